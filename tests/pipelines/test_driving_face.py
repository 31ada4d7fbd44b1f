"""The face of a driving video is followed, and what is not seen of it is told."""

import logging

import numpy as np
import pytest
import torch

from tests.testing_utils import driving_clips as clips
from vasa_hf import ModaTalkingHeadPipeline, VasaTalkingFacePipeline
from vasa_hf.media.video import VideoReader
from vasa_hf.pipelines.driving import DrivingFace, ranges, smooth


@pytest.fixture(scope="module")
def vasa1():
    pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def moda():
    pipe = ModaTalkingHeadPipeline.from_pretrained("moda-small")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=["vasa1", "moda"])
def pipe(request):
    return request.getfixturevalue(request.param)


def follow(pipe, path, **options):
    """A face that was followed, and its crops."""
    driving = DrivingFace(VideoReader(path), pipe.face_analyzer, pipe.image_processor, **options)
    return driving, torch.stack(list(driving.crops(64)))


def test_a_head_that_crosses_the_picture_is_followed(pipe, tmp_path, caplog):
    frames = list(VideoReader(clips.slide(tmp_path / "slide.mp4", pixels_per_second=400)))[::3]  # 48 pixels a frame
    motion = pipe.encode_video(frames)[0]
    assert motion.shape[0] == 10 and "No face" not in caplog.text
    turns = (motion[:, :3] - motion[0, :3]).abs().rad2deg()
    assert turns.max() < 6  # the picture is the same all the time; without following, 30 degrees and more
    torch.testing.assert_close(motion[:, 5] / motion[0, 5], torch.ones(10), rtol=0, atol=0.06)
    assert motion[:, 3].max() - motion[:, 3].min() < 0.25  # in the portrait's picture it stays


def test_a_zoom_reads_scale_in_proportion(pipe, tmp_path):
    frames = list(VideoReader(clips.zoom(tmp_path / "zoom.mp4")))[::4]
    motion = pipe.encode_video(frames)[0]
    wanted = 1 + 0.9 * torch.arange(0, 25, 4) / 24
    torch.testing.assert_close(motion[:, 5] / motion[0, 5], wanted, rtol=0.08, atol=0)
    assert (motion[:, :3] - motion[0, :3]).abs().rad2deg().max() < 6


def test_small_movements_are_seen_and_the_frame_stays(vasa1, tmp_path):
    """A head that moves a twentieth of its square: place and scale are those in the first frame's square."""
    path = clips.slide(tmp_path / "slide.mp4", frames=8, pixels_per_second=50)
    still, moved = (vasa1.encode_video(VideoReader(path), follow=follow)[0] for follow in (False, True))
    torch.testing.assert_close(moved[:, 3:6], still[:, 3:6], rtol=0, atol=0.02)
    assert moved[-1, 3] - moved[0, 3] > 0.03


def test_a_gap_is_filled_and_told(vasa1, tmp_path, caplog):
    path = clips.black(tmp_path / "gap.mp4", 4, 13, frames=18, pixels_per_second=100)
    driving, crops = follow(vasa1, path)
    assert driving.num_frames == 18 and driving.seen == [*range(4), *range(14, 18)] and len(crops) == 8
    assert driving.cuts == []  # the same scene goes on
    assert "No face in frames 4 to 13 of the driving video" in caplog.text
    values = torch.tensor([[float(frame), 1.0] for frame in driving.seen])
    torch.testing.assert_close(driving.fill(values)[:, 0], torch.arange(18.0))


def test_a_video_that_fades_in_begins_at_the_first_face(vasa1, tmp_path, caplog):
    path = clips.black(tmp_path / "fade.mp4", 0, 3, frames=6)
    out = vasa1.animate(clips.PORTRAIT, path, output_type="latent")
    assert "no face before frame 4" in caplog.text and "cut" not in caplog.text
    assert out.motion.shape[1] == 6 and torch.equal(out.motion[:, :4], out.motion[:, 4:5].expand(-1, 4, -1))
    own = vasa1.prepare_portrait(clips.PORTRAIT).motion
    torch.testing.assert_close(out.motion[:, 0], own)


def test_a_cut_is_told_and_nothing_goes_on_over_it(vasa1, tmp_path, caplog):
    frames = list(VideoReader(clips.cut(tmp_path / "cut.mp4", 10, frames=16)))
    black = np.zeros_like(frames[0])
    frames[8:12] = [black] * 4
    driving = DrivingFace(frames, vasa1.face_analyzer, vasa1.image_processor)
    crops = list(driving.crops(64))
    assert driving.cuts and min(driving.cuts) >= 8 and driving.seen == [*range(8), *range(12, 16)]
    assert "is cut at frame" in caplog.text
    filled = driving.fill(torch.tensor([float(frame) for frame in driving.seen]))
    assert set(filled[8:12].tolist()) <= {7.0, 12.0}
    caplog.clear()
    driving = DrivingFace(VideoReader(tmp_path / "cut.mp4"), vasa1.face_analyzer, vasa1.image_processor)
    crops = list(driving.crops(64))
    assert driving.cuts == [10] and "is cut at frame 10:" in caplog.text and len(crops) == 16
    # Both shots show the face in the middle, in one size.
    eyes = [vasa1.face_analyzer.detect(crops[index])[0] for index in (0, -1)]
    assert eyes[0].side == pytest.approx(eyes[1].side, rel=0.1)


def test_fill_holds_the_ends_and_up_to_a_cut():
    driving = DrivingFace([], None, None)
    driving.num_frames, driving.seen, driving.cuts = 12, [2, 4, 9], [7]
    values = driving.fill(torch.tensor([[2.0, 4.0, 9.0]]), dim=1)
    assert values.tolist() == [[2, 2, 2, 3, 4, 4, 4, 9, 9, 9, 9, 9]]
    driving.cuts = []
    assert driving.fill(torch.tensor([2.0, 4.0, 9.0])).tolist() == [2, 2, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    assert ranges([1, 2, 3, 7, 9, 10]) == "1 to 3, 7, 9 to 10"


def test_a_box_without_a_face_stays_and_no_face_is_an_error(vasa1, tmp_path, caplog):
    frames = [np.roll(np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8), 4 * i, 1) for i in range(3)]
    driving = DrivingFace(frames, vasa1.face_analyzer, vasa1.image_processor, box=(40, 40, 100, 100))
    with caplog.at_level(logging.INFO):
        assert len(list(driving.crops(64))) == 3
    assert driving.costs == [] and driving.neutral == 0 and "its square stays" in caplog.text
    with pytest.raises(ValueError, match="`driving_video`, frame 0: `image` must show a face, but none was found"):
        vasa1.encode_video(frames)


def test_smoothing_is_a_kalman_smoother_and_stops_at_cuts():
    values = torch.randn(12, 2, 3, dtype=torch.float64)
    apart = torch.zeros(12, 12, dtype=torch.float64)
    for i in range(11):
        if i + 1 != 5:
            apart[i : i + 2, i : i + 2] += torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    expected = torch.linalg.solve(torch.eye(12) + 0.7 * apart, values.flatten(1)).view_as(values)
    torch.testing.assert_close(smooth(values, 0.7, [5]), expected)
    assert torch.equal(smooth(values, 0), values) and torch.equal(smooth(values[:1], 1.0), values[:1])
    still = torch.full((9, 2), 0.3)
    torch.testing.assert_close(smooth(still, 4.0), still)


def test_the_face_at_rest_is_chosen_by_the_clip(vasa1, moda):
    """Open mouths first: without it, the lips of all other frames would close the portrait's further."""
    portrait = moda.prepare_portrait(clips.PORTRAIT)

    def mouth(strength):
        picture = moda.retarget(portrait, expression={"mouth_open": strength} if strength else None)
        return np.asarray(picture.resize((256, 256)))

    mouths = {strength: mouth(strength) for strength in (2.0, 1.5, 0.0)}
    frames = [mouths[strength] for strength in (2.0, 1.5, 0.0, 2.0)]
    driving = DrivingFace(frames, vasa1.face_analyzer, vasa1.image_processor)
    list(driving.crops(64))
    assert driving.costs[0] > driving.costs[2] + 0.3 and driving.neutral == 2
    for pipe in (vasa1, moda):
        who = pipe.prepare_portrait(clips.PORTRAIT)
        motion = pipe.follow_video(who, frames)[0][0]
        torch.testing.assert_close(motion[2, 6:], who.motion[0, 6:], rtol=0, atol=0.05 * float(motion[:, 6:].std()))
    frames = [mouths[0.0], mouths[2.0], mouths[0.0]]
    driving = DrivingFace(frames, vasa1.face_analyzer, vasa1.image_processor)
    list(driving.crops(64))
    assert driving.neutral == 0


def test_a_clip_that_begins_with_an_open_mouth_opens_closed_lips(vasa1, moda):
    """The slope of the lips' opening over that of the driver's: none with the first frame as the neutral one."""
    portrait, pipe, analyzer = moda.prepare_portrait(clips.PORTRAIT), vasa1, vasa1.face_analyzer
    frames = [
        moda.retarget(portrait, expression={"mouth_open": strength}).resize((256, 256)) for strength in (2, -2, 1)
    ]
    who, driving = pipe.prepare_portrait(frames[1]), DrivingFace(frames, analyzer, pipe.image_processor)
    encoded = pipe.encode_driving(driving)

    def openings(images):
        return [analyzer.detect(image)[0].mouth_open for image in images]

    def gain(neutral):
        motion, view = pipe.transfer_motion(who, encoded, neutral, 25, pipe.transfer_type(), pipe.view_type())
        shown = openings(torch.cat(list(pipe.render_frames(who, motion[0], view))) * 2 - 1)
        return np.polyfit(openings(map(pipe.image_processor.load, frames)), shown, 1)[0]

    assert driving.neutral == 1
    assert gain(0) < 0.15 and gain(driving.neutral) > 0.3  # 0.09 and 0.38


def test_a_trembling_extractor_is_smoothed(moda, tmp_path):
    """Noise in the pixels of a still face makes M tremble; the pose trembles at most half as much after smoothing."""
    rng, portrait = np.random.default_rng(0), moda.prepare_portrait(clips.PORTRAIT)
    still = np.asarray(moda.retarget(portrait).resize((256, 256)), np.float32)
    frames = [(still + rng.normal(0, 12, still.shape)).clip(0, 255).astype(np.uint8) for _ in range(8)]
    seen = moda.encode_video(frames)[0, :, :3].diff(dim=0).abs().mean()
    smoothed = moda.follow_video(portrait, frames)[0][0, :, :3].diff(dim=0).abs().mean()
    assert 0 < smoothed < 0.5 * seen

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.pipelines import (
    BOX,
    PipelineTesterMixin,
    Watch,
    call,
    generator,
    make_audio,
    make_image,
    make_vasa1_components,
)
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.geometry.crops import transform_points
from vasa_hf.hub import embedded_path
from vasa_hf.media import VideoWriter, read_provenance, read_video, save_wav
from vasa_hf.metrics.image import box_mask
from vasa_hf.metrics.sharpness import laplacian_sharpness
from vasa_hf.motion import to_relative


class TestVasaTalkingFacePipeline(PipelineTesterMixin):
    pipeline_class = VasaTalkingFacePipeline
    options = {"num_inference_steps": 3, "box": BOX}

    def make_components(self):
        return make_vasa1_components()


# --- what a call returns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "frames"), [(25, 33), (24, 32), (Fraction(30000, 1001), 40), (29.97, 40), ("60", 79), (12.5, 17)]
)
def test_output_rate_is_any_rational_number(pipe, fps, frames):
    out = call(pipe, audio=make_audio(1.31), fps=fps)
    assert len(out.frames) == frames
    assert abs(len(out.frames) / out.fps - 1.31) <= 1 / out.fps
    # The motion is generated at 25 frames per second at any rate of the video.
    assert out.motion.shape == (1, 33, 10) and out.motion_fps == 25
    assert torch.equal(out.motion, call(pipe, audio=make_audio(1.31)).motion)


def test_audio_is_returned_unchanged(pipe, tmp_path):
    stereo = np.stack([make_audio(0.5, 0, 48_000), make_audio(0.5, 1, 48_000)])
    out = call(pipe, audio=(stereo, 48_000))
    assert out.sampling_rate == 48_000
    np.testing.assert_allclose(out.audio, stereo.mean(0), atol=1e-6)
    save_wav(tmp_path / "a.wav", stereo, 48_000)
    from_file = call(pipe, audio=tmp_path / "a.wav")
    np.testing.assert_allclose(from_file.audio, stereo.mean(0), atol=1e-4)  # 16-bit file
    assert (from_file.motion - out.motion).abs().max() < 0.05


def test_audio_of_a_video_file(pipe, tmp_path):
    audio = make_audio(0.8)
    with VideoWriter(tmp_path / "a.mp4", 25, (64, 64), (audio, 16_000)) as writer:
        for _ in range(20):
            writer.write(make_image(size=(64, 64)))
    out = call(pipe, audio=str(tmp_path / "a.mp4"))
    assert abs(len(out.frames) - 20) <= 1
    assert (out.motion[:, :20] - call(pipe, audio=audio).motion).abs().mean() < 0.1  # AAC is not lossless


def test_image_of_any_kind_gives_the_same(pipe, tmp_path):
    array = make_image()
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    expected = call(pipe, array).frames
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), tensor):
        torch.testing.assert_close(call(pipe, image).frames, expected, rtol=0, atol=1e-2)
    stacked = call(pipe, torch.stack([tensor, tensor])).frames
    assert len(stacked) == 2


def test_prepared_portrait_gives_the_same(pipe):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    assert torch.equal(call(pipe, portrait).frames, call(pipe).frames)
    with pytest.raises(ValueError, match="`output_size` must be 32.*got 64"):
        call(pipe, portrait, output_size=64)


def test_output_sizes(pipe):
    assert pipe.output_sizes == (32, 64)
    small, large = call(pipe), call(pipe, output_size=64)
    assert large.frames.shape[1:] == (3, 64, 64)
    assert torch.equal(small.motion, call(pipe).motion)
    shrunk = torch.nn.functional.interpolate(large.frames, 32, mode="area")
    assert (shrunk - small.frames).abs().mean() < 0.1
    with pytest.raises(ValueError, match=r"`output_size` must be one of \[32, 64\], got 48"):
        call(pipe, output_size=48)
    plain = VasaTalkingFacePipeline(**make_vasa1_components(source_passthrough=False))
    with pytest.raises(ValueError, match=r"`output_size` must be one of \[32\], got 64"):
        call(plain, output_size=64)


def test_paste_back_changes_the_face_alone(pipe):
    image = np.repeat(np.repeat(make_image(size=(60, 80)), 4, 0), 4, 1)
    box = (130, 90, 180, 140)
    out = call(pipe, image, box=box, paste_back=True)
    assert out.frames.shape[2:] == (240, 320)
    difference = (out.frames - torch.from_numpy(image).permute(2, 0, 1) / 255).abs().amax((0, 1))
    # The square is twice the box, around it and 5 % of its side higher: 105..205 by 60..160.
    assert difference[:60].max() < 0.003 and difference[160:].max() < 0.003
    assert difference[:, :105].max() < 0.003 and difference[:, 205:].max() < 0.003
    assert difference[75:145, 120:190].mean() > 0.01


def test_frames_decoded_in_parallel_are_the_same(pipe):
    before, expected = torch.get_num_threads(), call(pipe)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            portrait = pipe.prepare_portrait(make_image(), box=BOX)
            decoded = torch.cat(list(pipe.decode_frames(portrait, expected.motion[0])))
            # Another number of threads may sum in another order, in bfloat16 where the CPU has it.
            torch.testing.assert_close(decoded, expected.frames, rtol=0, atol=1e-2)
    finally:
        torch.set_num_threads(before)


def test_saved_video_is_complete_and_marked_as_synthetic(pipe, tmp_path):
    out = call(pipe, audio=make_audio(1.31), fps="30000/1001", output_type="pil")
    out.save(tmp_path / "out.mp4")
    assert sum(1 for _ in read_video(tmp_path / "out.mp4")) == 40
    assert read_provenance(tmp_path / "out.mp4")["synthetic"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


# --- motion -----------------------------------------------------------------------------------------------------------


def test_pose_starts_from_the_portrait(pipe):
    """The same relative motion for two portraits, each about its own pose; dynamics as generated."""
    portraits = [pipe.prepare_portrait(make_image(seed), box=BOX) for seed in (0, 3)]
    assert (portraits[0].motion - portraits[1].motion).abs().max() > 1e-4
    first, second = (call(pipe, portrait).motion for portrait in portraits)
    relative = [to_relative(m, p.motion) for m, p in zip((first, second), portraits, strict=True)]
    torch.testing.assert_close(relative[0], relative[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first[..., 6:], second[..., 6:])


def test_head_motion_scales_the_movement(pipe):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    plain, half, none = (call(pipe, portrait, head_motion=amount).motion for amount in (1.0, 0.5, 0.0))
    own = portrait.motion[:, None, :6]
    torch.testing.assert_close(none[..., :6], own.expand_as(none[..., :6]))
    torch.testing.assert_close(half[..., :3] - own[..., :3], 0.5 * (plain[..., :3] - own[..., :3]))
    assert torch.equal(plain[..., 6:], half[..., 6:]) and torch.equal(plain[..., 6:], none[..., 6:])
    # A still head at twice the distance is half as large, and moves there if the distance has keyframes.
    far = call(pipe, portrait, head_motion=0.0, head_distance=2.0).motion
    torch.testing.assert_close(far[..., 5], own[..., 5].expand_as(far[..., 5]) / 2)
    moving = call(pipe, portrait, head_motion=0.0, head_distance=[(0.0, 1.0), (0.4, 2.0)]).motion[0, :, 5]
    torch.testing.assert_close(moving[[0, 5, 10, 19]] / own[0, 0, 5], 1 / torch.tensor([1.0, 1.5, 2.0, 2.0]))


def test_distances_beyond_the_models_range_are_reached_by_scaling(pipe):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    with Watch(pipe.motion_transformer) as calls:
        edge, far = (call(pipe, portrait, head_distance=distance).motion for distance in (1.25, 2.0))
    assert {kwargs["head_distance"].max().item() for kwargs in calls} == {1.25}
    torch.testing.assert_close(far[..., 5], edge[..., 5] * 1.25 / 2.0)
    # The rest is about the camera: nothing else of the motion changes.
    assert torch.equal(far[..., :5], edge[..., :5]) and torch.equal(far[..., 6:], edge[..., 6:])


def test_controls_reach_the_model_averaged_over_each_window(pipe):
    audio = make_audio(1.0)  # windows of 10, 10 and 5 frames
    settings = {"gaze": [(0.0, (0.0, 0.1)), (1.0, (0.5, 0.1))], "head_distance": 1.2, "emotion": {"sad": -0.5}}
    with Watch(pipe.motion_transformer) as calls:
        call(pipe, audio=audio, output_type="latent", guidance_scale={"audio": 0, "gaze": 0}, **settings)
    first = calls[::2]
    assert len(first) == 3
    yaws = [0.5 * np.mean([i / 25 for i in range(a, b)]) for a, b in ((0, 10), (10, 20), (20, 25))]
    torch.testing.assert_close(
        torch.cat([c["gaze"] for c in first]), torch.tensor([[yaw, 0.1] for yaw in yaws]).float()
    )
    assert all(c["head_distance"].tolist() == [[pytest.approx(1.2)]] for c in first)
    assert all(c["emotion"].tolist() == [[0, 0, 0, 0, -0.5, 0]] for c in first)
    assert first[2]["frame_mask"].sum() == 5


def test_default_controls_are_those_of_the_paper(pipe):
    with Watch(pipe.motion_transformer) as calls:
        call(pipe, output_type="latent")
    assert calls[0]["gaze"].abs().max() == 0 and calls[0]["emotion"].abs().max() == 0
    assert (calls[0]["head_distance"] == 1).all()
    with Watch(pipe.motion_transformer) as calls:
        call(pipe, output_type="latent", gaze=None, emotion=None, head_distance=None)
    assert calls[0]["gaze"] is None and calls[0]["emotion"] is None and calls[0]["head_distance"] is None


def test_guidance_has_one_scale_a_condition_and_costs_only_what_is_used(pipe):
    def passes(**settings):
        with Watch(pipe.motion_transformer) as calls:
            result = call(pipe, output_type="latent", **settings).motion
        return len(calls[0]["drop"]) + 1, result

    count, default = passes()
    assert count == 3  # all conditions, without audio, without gaze
    count, none = passes(guidance_scale={"audio": 0.0, "gaze": 0.0})
    assert count == 1 and (none - default).abs().max() > 1e-4
    count, same = passes(guidance_scale={"audio": 0.5})  # the other keeps its default
    assert count == 3 and torch.equal(same, default)
    count, more = passes(guidance_scale={"emotion": 1.0, "head_distance": 0.3})
    assert count == 5 and (more - default).abs().max() > 1e-4


def test_context_is_carried_from_window_to_window(pipe):
    with Watch(pipe.motion_transformer) as calls:
        call(pipe, output_type="latent", num_inference_steps=1)
    assert calls[0]["previous_motion"] is None and calls[0]["previous_audio"] is None
    assert calls[1]["previous_motion"].shape[1:] == (3, 10) and calls[1]["previous_audio"].shape[1:] == (3, 16)


def test_a_shorter_first_window_begins_earlier(pipe):
    audio = make_audio(1.3)
    received = []

    def microphone():
        for start in range(0, len(audio), 640):
            received.append(start)
            yield audio[start : start + 640]

    options = {"num_inference_steps": 2, "box": BOX, "output_type": "pt", "first_window": 4}
    chunks = pipe.stream(make_image(), microphone(), generator=generator(), **options)
    first = next(chunks)
    assert len(received) == 5  # 4 frames and 1 of look-ahead
    frames = torch.cat([first.frames, *(chunk.frames for chunk in chunks)])
    assert torch.equal(frames, call(pipe, audio=audio, first_window=4).frames)


# --- the embedded weights ---------------------------------------------------------------------------------------------

EMBEDDED = embedded_path("vasa-small")
ASSETS = Path(__file__).resolve().parents[2] / "vasa_hf" / "assets"


@pytest.mark.skipif(
    not all((EMBEDDED / name).is_dir() for name in ("motion_transformer", "face_autoencoder", "audio_encoder")),
    reason="the embedded weights are not in this checkout",
)
def test_embedded_weights_make_the_portrait_talk():
    pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
    pipe.set_progress_bar_config(disable=True)
    assert {p.dtype for p in pipe.face_autoencoder.parameters()} == {torch.float32}
    out = pipe(ASSETS / "portrait.jpg", ASSETS / "voice.flac", generator=generator(1), output_type="latent")
    assert torch.isfinite(out.motion).all() and out.motion.shape[1] == 160
    portrait = pipe.prepare_portrait(ASSETS / "portrait.jpg")
    relative = to_relative(out.motion, portrait.motion)
    assert relative[..., :3].abs().max() < 0.6  # the head stays about where it was, in radians
    frames = torch.cat(list(pipe.decode_frames(portrait, out.motion[0, :8])))
    own = portrait.crop.image * 0.5 + 0.5
    # The same person in the same place: nearer to the portrait than to its mirror image.
    assert (frames - own).abs().mean() < 0.5 * (frames - own.flip(-1)).abs().mean()


@pytest.mark.skipif(
    not (EMBEDDED / "face_autoencoder").is_dir(), reason="the embedded weights are not in this checkout"
)
@pytest.mark.parametrize("paste_back", [False, True])
def test_embedded_weights_keep_the_background_sharp(paste_back):
    """The head turns by 3 degrees; next to it and above it the wall keeps the portrait's pixels."""
    pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
    portrait = pipe.prepare_portrait(ASSETS / "portrait.jpg")
    turn = torch.zeros(2, portrait.motion.shape[1])
    turn[:, 0], turn[:, 3] = 0.06, 0.008
    frames = torch.cat(list(pipe.decode_frames(portrait, portrait.motion + turn, paste_back)))
    own = (portrait.picture if paste_back else portrait.crop.image)[None] * 0.5 + 0.5
    boxes = torch.tensor([[0.9, 0.02, 0.98, 0.6], [0.02, 0.02, 0.98, 0.04]], dtype=torch.float64)  # in the crop
    if paste_back:  # in fractions of the image
        corners = transform_points(portrait.crop.image_from_crop, boxes.view(-1, 2))
        boxes = (corners / corners.new_tensor([own.shape[-1], own.shape[-2]])).view(-1, 4)
    for mask in box_mask(boxes, tuple(own.shape[-2:])).float().split(1):
        assert (laplacian_sharpness(frames, mask) >= 0.9 * laplacian_sharpness(own, mask)).all()

"""Motion and videos as drivers: `render` and `animate`."""

import os
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.testing_utils.avatars import make_avatar
from tests.testing_utils.pipelines import (
    BOX,
    call,
    make_audio,
    make_image,
    make_joyvasa_components,
    make_moda_components,
    make_vasa1_components,
)
from vasa_hf import JoyVasaTalkingHeadPipeline, ModaTalkingHeadPipeline, Vasa3DAvatarPipeline
from vasa_hf.media import VideoWriter
from vasa_hf.media.video import VideoReader


def test_render_of_a_calls_motion_gives_its_frames(pipe, tmp_path):
    out = call(pipe, audio=make_audio(1.3), fps=30)
    again = pipe.render(make_image(), out.motion, fps=30, box=BOX, output_type="pt")
    # The 33 frames of motion last a little longer than the audio. Frames are decoded in other groups here, in bfloat16
    # where the CPU has it.
    assert len(out.frames) == 39 and len(again.frames) == 40
    torch.testing.assert_close(again.frames[:39], out.frames, rtol=0, atol=0.02)
    out.save(tmp_path / "motion.safetensors")
    audio = make_audio(1.3)
    saved = pipe.render(make_image(), tmp_path / "motion.safetensors", fps=30, audio=audio, box=BOX, output_type="pt")
    assert torch.equal(saved.frames, again.frames)
    np.testing.assert_array_equal(saved.audio, audio)


def test_render_relative_starts_from_the_portrait(pipe):
    portrait = pipe.prepare_portrait(make_image(2), box=BOX)
    motion = call(pipe).motion
    out = pipe.render(portrait, motion, relative=True, output_type="latent")
    torch.testing.assert_close(out.motion[:, 0], portrait.motion)
    torch.testing.assert_close(out.motion[..., :3].diff(dim=1), motion[..., :3].diff(dim=1))
    torch.testing.assert_close(out.motion[..., 6:].diff(dim=1), motion[..., 6:].diff(dim=1))
    torch.testing.assert_close(out.motion[..., 5] / out.motion[:, :1, 5], motion[..., 5] / motion[:, :1, 5])


def test_render_rejects_bad_motion(pipe, tmp_path):
    motion = call(pipe, output_type="latent").motion

    def run(motion, **changes):
        pipe.render(make_image(), motion, box=BOX, **changes)

    with pytest.raises(ValueError, match=r"`motion` must be a file or a tensor of shape .*, got list"):
        run(motion.tolist())
    with pytest.raises(ValueError, match="`motion` must have 10 channels last, got shape"):
        run(motion[..., :9])
    with pytest.raises(ValueError, match="`motion` must be a single one, got 2"):
        run(motion.expand(2, -1, -1))
    with pytest.raises(ValueError, match="`motion` must be finite"):
        run(motion * float("nan"))
    with pytest.raises(ValueError, match="`motion` must be finite, and its scales above 0"):
        run(torch.zeros_like(motion))
    with pytest.raises(ValueError, match="`motion` must be an existing motion file"):
        run(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        run(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="`fps` must be"):
        run(motion, fps=0)


def driving_frames(count=6):
    image = make_image(7)
    return [np.roll(image, 2 * i, axis=1) for i in range(count)]


def test_animate_relative_starts_from_the_portrait(pipe):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    out = pipe.animate(portrait, driving_frames(), driving_box=BOX, output_type="pt")
    assert out.frames.shape == (6, 3, 32, 32) and out.fps == 25
    torch.testing.assert_close(out.motion[:, 0], portrait.motion)
    driving = pipe.encode_video(driving_frames(), box=BOX)
    assert driving[..., :3].diff(dim=1).abs().max() > 1e-5
    torch.testing.assert_close(out.motion[..., :3].diff(dim=1), driving[..., :3].diff(dim=1))
    absolute = pipe.animate(portrait, driving_frames(), driving_box=BOX, relative=False, output_type="latent")
    assert torch.equal(absolute.motion, driving)


def test_animate_by_a_video_file_keeps_its_rate_and_audio(pipe, tmp_path):
    with VideoWriter(tmp_path / "drive.mp4", "30000/1001", (88, 96), (make_audio(0.2), 16_000)) as writer:
        for frame in driving_frames():
            writer.write(frame)
    out = pipe.animate(make_image(), tmp_path / "drive.mp4", driving_box=BOX, box=BOX, output_type="np")
    assert out.fps == Fraction(30000, 1001) and len(out.frames) == 6
    assert out.sampling_rate == 48_000 and np.abs(out.audio).max() > 0.1
    out.save(tmp_path / "out.mp4")


def test_animate_rejects_bad_videos(pipe, tmp_path):
    with pytest.raises(ValueError, match="`driving_video` must be an existing video file"):
        pipe.animate(make_image(), tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="`driving_video` must be a video file or a sequence of frames, got int"):
        pipe.animate(make_image(), 3)
    with pytest.raises(ValueError, match="`driving_video`, frame 0: `image` must show a face, but none was found"):
        pipe.animate(make_image(), [np.full((96, 96, 3), 128, np.uint8)], box=BOX)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="bad.mp4"):
        pipe.animate(make_image(), tmp_path / "bad.mp4", box=BOX)


# --- into files -------------------------------------------------------------------------------------------------------

SYSTEMS = {
    "vasa3d": (Vasa3DAvatarPipeline, make_vasa1_components),
    "moda": (ModaTalkingHeadPipeline, make_moda_components),
    "joyvasa": (JoyVasaTalkingHeadPipeline, make_joyvasa_components),
}


@pytest.fixture(params=["vasa1", *SYSTEMS])
def system(request, pipe):
    """A pipeline of each system, whom it animates, and options of its pictures."""
    if request.param == "vasa1":
        return pipe, make_image(), {"box": BOX}
    kind, components = SYSTEMS[request.param]
    pipe = kind(**components())
    pipe.set_progress_bar_config(disable=True)
    return (
        (pipe, make_avatar(), {"output_size": 32}) if request.param == "vasa3d" else (pipe, make_image(), {"box": BOX})
    )


def test_files_hold_what_lists_hold(system, tmp_path):
    pipe, who, options = system
    sound, shown = make_audio(0.25), []
    with VideoWriter(tmp_path / "drive.mp4", 25, (88, 96), (sound, 16_000)) as writer:
        for frame in driving_frames():
            writer.write(frame)
    out = pipe.animate(who, tmp_path / "drive.mp4", driving_box=BOX, output_type="np", **options)
    path, drive = tmp_path / "animated.mp4", tmp_path / "drive.mp4"
    saved = pipe.animate_to_file(
        path, who, drive, driving_box=BOX, provenance=False, crf=1, on_frames=lambda *n: shown.append(n), **options
    )
    assert torch.equal(saved.motion, out.motion) and saved.fps == out.fps and shown[-1] == (6, 6)
    frames = np.stack(list(VideoReader(path)))
    assert np.abs((frames / 255 - out.frames).mean(-1)).mean() < 8 / 255  # of noise, H.264 keeps little
    assert VideoReader(path).has_audio
    options["fps"] = 50
    out = pipe.render(who, saved.motion, output_type="np", **options)
    path = tmp_path / "rendered.mp4"
    again = pipe.render_to_file(path, who, saved.motion, audio=sound, provenance=False, crf=1, **options)
    assert torch.equal(again.motion, out.motion) and again.fps == 50
    frames = np.stack(list(VideoReader(path)))
    assert frames.shape == out.frames.shape and np.abs((frames / 255 - out.frames).mean(-1)).mean() < 8 / 255
    assert VideoReader(path).has_audio


def test_files_of_drivers_refuse_bad_targets_before_work(pipe, tmp_path):
    for write in (
        lambda path, **more: pipe.animate_to_file(path, make_image(), driving_frames(), box=BOX, **more),
        lambda path, **more: pipe.render_to_file(path, make_image(), torch.zeros(3, 10), box=BOX, **more),
    ):
        with pytest.raises(ValueError, match="`path` must end in .mp4"):
            write(tmp_path / "out.avi")
        with pytest.raises(ValueError, match="`path` must lie in an existing folder"):
            write(tmp_path / "none" / "out.mp4")
        with pytest.raises(ValueError, match="`crf` must be"):
            write(tmp_path / "out.mp4", crf=60)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_a_driving_video(pipe, tmp_path):
    """160 frames of the whole picture, 1.4 MB each as numbers: kept, the last 120 of them would be 170 MB."""
    large = np.repeat(np.repeat(make_image(), 4, 0), 4, 1)
    box, frames = tuple(4 * side for side in BOX), [large] * 160
    portrait, held = pipe.prepare_portrait(large, box=box), {}

    def watch(done, total):
        with open("/proc/self/statm") as file:
            held[done] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    out = pipe.animate_to_file(
        tmp_path / "out.mp4", portrait, frames, driving_box=box, paste_back=True, on_frames=watch
    )
    assert out.motion.shape[1] == 160 and len(held) >= 10
    early = max(size for done, size in held.items() if done <= 40)
    assert max(held.values()) - early < 40

"""Motion and videos as drivers: `render` and `animate`."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.testing_utils.pipelines import BOX, call, make_audio, make_image
from vasa_hf.media import VideoWriter


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

import json
import logging
import math
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.pipelines import (
    BOX,
    PipelineTesterMixin,
    call,
    generator,
    make_audio,
    make_image,
    make_vasa1_components,
)
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.geometry.crops import transform_points
from vasa_hf.hub import embedded_path
from vasa_hf.media import VideoWriter, load_audio, read_provenance, read_video, save_wav
from vasa_hf.metrics.image import box_mask
from vasa_hf.metrics.sharpness import laplacian_sharpness
from vasa_hf.motion import to_relative
from vasa_hf.processors.audio import resample


class TestVasaTalkingFacePipeline(PipelineTesterMixin):
    pipeline_class = VasaTalkingFacePipeline
    options = {"num_inference_steps": 3, "box": BOX}

    def make_components(self):
        return make_vasa1_components()


class Watch:
    """Records the keyword arguments of every pass through a module."""

    def __init__(self, module):
        self.calls = []
        self.handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: self.calls.append(kwargs), with_kwargs=True
        )

    def __enter__(self):
        return self.calls

    def __exit__(self, *_):
        self.handle.remove()


# --- what a call returns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "frames"), [(25, 33), (24, 32), (Fraction(30000, 1001), 40), (29.97, 40), ("60", 79), (12.5, 17)]
)
def test_output_rate_is_any_rational_number(pipe, fps, frames):
    out = call(pipe, audio=make_audio(1.31), fps=fps)
    assert len(out.frames) == frames
    assert abs(len(out.frames) / out.fps - 1.31) <= 1 / out.fps
    # The motion is generated at 25 frames a second whatever the video's rate.
    assert out.motion.shape == (1, 33, 10) and out.motion_fps == 25
    assert torch.equal(out.motion, call(pipe, audio=make_audio(1.31)).motion)


def test_sound_is_returned_as_it_was(pipe, tmp_path):
    stereo = np.stack([make_audio(0.5, 0, 48_000), make_audio(0.5, 1, 48_000)])
    out = call(pipe, audio=(stereo, 48_000))
    assert out.sampling_rate == 48_000
    np.testing.assert_allclose(out.audio, stereo.mean(0), atol=1e-6)
    save_wav(tmp_path / "a.wav", stereo, 48_000)
    from_file = call(pipe, audio=tmp_path / "a.wav")
    np.testing.assert_allclose(from_file.audio, stereo.mean(0), atol=1e-4)  # 16-bit file
    assert (from_file.motion - out.motion).abs().max() < 0.05


def test_sound_of_a_video_file(pipe, tmp_path):
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


def test_frames_decoded_side_by_side_are_the_same(pipe):
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


def test_saved_video_is_whole_and_says_what_it_is(pipe, tmp_path):
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


def test_distances_beyond_what_the_model_learnt_are_reached_by_scaling(pipe):
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


def test_shorter_first_window_begins_earlier(pipe):
    audio = make_audio(1.3)
    heard = []

    def microphone():
        for start in range(0, len(audio), 640):
            heard.append(start)
            yield audio[start : start + 640]

    options = {"num_inference_steps": 2, "box": BOX, "output_type": "pt", "first_window": 4}
    chunks = pipe.stream(make_image(), microphone(), generator=generator(), **options)
    first = next(chunks)
    assert len(heard) == 5  # 4 frames and 1 of look-ahead
    frames = torch.cat([first.frames, *(chunk.frames for chunk in chunks)])
    assert torch.equal(frames, call(pipe, audio=audio, first_window=4).frames)


# --- stream -----------------------------------------------------------------------------------------------------------


def test_stream_of_other_rates_and_channels_equals_offline(pipe):
    stereo = np.stack([make_audio(0.9, 0, 44_100), make_audio(0.9, 1, 44_100)])
    offline = call(pipe, audio=(stereo, 44_100))
    pieces = np.split(stereo, range(1777, stereo.shape[1], 1777), axis=1)
    options = {"num_inference_steps": 2, "box": BOX, "output_type": "pt"}
    for chunks, rate in (
        (pieces, 44_100),
        ([(p, 44_100) for p in pieces], None),
        ([(44_100, p.T) for p in pieces], None),
    ):
        out = list(pipe.stream(make_image(), chunks, sampling_rate=rate, generator=generator(), **options))
        # Resampling in pieces sums the same products in another grouping.
        torch.testing.assert_close(torch.cat([o.frames for o in out]), offline.frames, rtol=0, atol=5e-3)


def test_stream_of_a_whole_file(pipe, tmp_path):
    save_wav(tmp_path / "a.wav", make_audio(0.9), 16_000)
    options = {"num_inference_steps": 2, "box": BOX}
    chunks = list(pipe.stream(make_image(), tmp_path / "a.wav", generator=generator(), **options))
    assert sum(len(chunk.frames) for chunk in chunks) == 23
    assert isinstance(chunks[0].frames[0], Image.Image)


def test_stream_keeps_little_of_what_it_has_heard(pipe):
    """Memory does not grow with the length: neither sound nor motion is kept beyond what windows need."""
    import gc

    def held():
        gc.collect()
        return sum(o.numel() for o in gc.get_objects() if isinstance(o, torch.Tensor) and not o.requires_grad)

    sizes = []

    def microphone():
        for i in range(120):
            if i in (30, 110):
                sizes.append(held())
            yield make_audio(0.1, seed=i)

    options = {"num_inference_steps": 1, "box": BOX, "output_type": "latent"}
    for _ in pipe.stream(make_image(), microphone(), generator=generator(), **options):
        pass
    # 8 seconds more of sound are 128,000 samples; a window of it is 6,400.
    assert abs(sizes[1] - sizes[0]) < 20_000


def test_stream_tells_bad_audio(pipe):
    good = make_audio(0.5)

    def run(chunks, **changes):
        options = {"num_inference_steps": 1, "box": BOX, "output_type": "latent", **changes}
        return list(pipe.stream(make_image(), chunks, **options))

    with pytest.raises(ValueError, match="`audio_chunks` must be an iterable of samples, got int"):
        run(3)
    with pytest.raises(ValueError, match="`audio_chunks` must be finite, got NaN"):
        run([good, np.full(100, np.nan, np.float32)])
    with pytest.raises(ValueError, match="`audio_chunks` must hold at least 0.2 s of sound, got 0.100 s"):
        run([make_audio(0.1)])
    with pytest.raises(ValueError, match="`audio_chunks` must hold at least 0.2 s of sound, got 0.000 s"):
        run([])
    with pytest.raises(ValueError, match="`audio_chunks` must keep their sampling rate of 16000 Hz, got 8000"):
        run([(good, 16_000), (good, 8_000)])
    with pytest.raises(ValueError, match="`sampling_rate` must be a whole number in .8,000, 96,000., got 4000"):
        run([good], sampling_rate=4000)
    with pytest.raises(ValueError, match="`image` must be one portrait here, got 2"):
        list(pipe.stream([make_image()] * 2, [good], box=BOX))


@pytest.mark.parametrize("layout", ["(channels, n)", "(n, channels)"])
def test_chunks_of_any_length_keep_the_axis_of_their_channels(pipe, layout):
    """A chunk of one sample of two channels is no chunk of two samples."""
    stereo = np.stack([make_audio(0.5), make_audio(0.5, 1)])
    ends = [0, 100, 101, 103, 3000, 8000]
    chunks = [stereo[:, start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]
    if layout == "(n, channels)":
        chunks = [chunk.T for chunk in chunks]
    options = {"num_inference_steps": 1, "box": BOX, "output_type": "latent"}

    def run(chunks):
        parts = list(pipe.stream(make_image(), chunks, generator=generator(), **options))
        return np.concatenate([part.audio for part in parts])

    np.testing.assert_allclose(run(chunks), run([stereo.mean(0)]), atol=1e-6)
    with pytest.raises(ValueError, match=r"`audio_chunks` must keep their shape .*2.*, got \((2, 99|99, 2)\)"):
        run([chunks[0], (stereo[:, :99] if layout == "(n, channels)" else stereo[:, :99].T)])
    with pytest.raises(ValueError, match=r"must begin with more samples than channels, got \(2, 2\)"):
        run([stereo[:, :2]])


def test_an_inverted_channel_does_not_silence_the_voice(pipe, caplog):
    """Also where a quiet chunk alone would not tell."""
    voice = make_audio(1.0)
    voice[8000:12000] *= 1e-4
    inverted = np.stack([voice, -voice])
    chunks = [inverted[:, start : start + 2000] for start in range(0, 16_000, 2000)]
    options = {"num_inference_steps": 1, "box": BOX, "output_type": "latent"}
    for audio in (chunks, (inverted, 16_000)):
        parts = list(pipe.stream(make_image(), audio, generator=generator(), **options))
        np.testing.assert_allclose(np.concatenate([part.audio for part in parts]), voice, atol=1e-6)
    assert caplog.text.count("one channel is the other one inverted") == 2
    out = call(pipe, audio=(inverted, 16_000))
    np.testing.assert_allclose(out.audio, voice, atol=1e-6)


# --- a file at once ---------------------------------------------------------------------------------------------------


def test_talk_to_file_writes_what_a_call_makes(pipe, tmp_path):
    audio, seen = make_audio(1.3), []
    options = {"num_inference_steps": 2, "box": BOX, "output_size": 64}
    out = pipe.talk_to_file(
        tmp_path / "out.mp4",
        make_image(),
        audio,
        generator=generator(),
        crf=4,
        provenance=False,
        on_frames=lambda done, total: seen.append((done, total)),
        **options,
    )
    expected = call(pipe, audio=audio, output_size=64)
    torch.testing.assert_close(out.motion, expected.motion)
    frames = np.stack(list(read_video(tmp_path / "out.mp4")))
    assert frames.shape == (33, 64, 64, 3) and seen[-1] == (33, 33)
    # Little of H.264 at this quality is lost but half of the colours' resolution.
    assert np.abs(frames.mean(-1) - expected.frames.mean(1).numpy() * 255).mean() < 3
    assert read_provenance(tmp_path / "out.mp4") is None
    pipe.talk_to_file(tmp_path / "marked.mp4", make_image(), audio, generator=generator(), **options)
    assert read_provenance(tmp_path / "marked.mp4")["tool"] == "vasa_hf"


def test_talk_to_file_leaves_nothing_behind_after_an_error(pipe, tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"the film before")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.talk_to_file(
            tmp_path / "out.mp4", make_image(), make_audio(0.5), on_frames=stop, num_inference_steps=1, box=BOX
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"the film before"
    with pytest.raises(ValueError, match="`path` must end in .mp4"):
        pipe.talk_to_file(tmp_path / "out.avi", make_image(), make_audio(0.5))
    with pytest.raises(ValueError, match="`path` must lie in an existing folder"):
        pipe.talk_to_file(tmp_path / "no" / "out.mp4", make_image(), make_audio(0.5))
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match="`path` must be a file that can be written, got '.*folder.mp4'"):
        pipe.talk_to_file(tmp_path / "folder.mp4", make_image(), make_audio(0.5))
    with pytest.raises(ValueError, match=r"`crf` must be a whole number in \[0, 51\], got 99"):
        pipe.talk_to_file(tmp_path / "out.mp4", make_image(), make_audio(0.5), crf=99)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_file_heard_bit_by_bit_gives_what_the_whole_gives(pipe, tmp_path, rate):
    stereo = np.stack([make_audio(2.3, 0, rate), make_audio(2.3, 1, rate)])
    save_wav(tmp_path / "a.wav", stereo, rate)
    options = {"num_inference_steps": 2, "box": BOX, "generator": generator()}
    out = pipe.talk_to_file(tmp_path / "out.mp4", make_image(), tmp_path / "a.wav", **options)
    offline = call(pipe, audio=tmp_path / "a.wav")
    assert out.motion.shape == offline.motion.shape == (1, 58, 10)
    # Nothing is resampled at 16 kHz; else the same products are summed in another grouping.
    torch.testing.assert_close(out.motion, offline.motion, rtol=0, atol=0 if rate == 16_000 else 1e-4)
    sound, sound_rate = load_audio(tmp_path / "out.mp4")
    assert abs(sound.shape[1] / sound_rate - 58 / 25) <= 1 / 25
    middle = resample(stereo.mean(0), rate, 16_000)[3000:33_000]
    heard = resample(sound[0], sound_rate, 16_000)[3000:33_000]
    assert np.corrcoef(middle, heard)[0, 1] > 0.98  # AAC is not lossless, but nothing has moved


def write_float_wav(path, samples, rate=16_000):
    """A WAV of 32-bit floats, which can hold what integers cannot."""
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVE" + form + b"data" + struct.pack("<I", len(data)) + data
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: write_float_wav(path, np.r_[make_audio(1.5), np.nan]),
            "`audio` must be finite; got 1 NaN .* of 24001",
        ),
        (
            lambda path: write_float_wav(path, np.r_[make_audio(1.5), np.inf]),
            "`audio` must be finite; got 1 NaN or inf",
        ),
        (lambda path: write_float_wav(path, make_audio(0.1)), "`audio` must be at least 0.2 s long; got 0.100 s"),
        (lambda path: write_float_wav(path, np.zeros(0)), "`audio` must not have zero length"),
        (
            lambda path: write_float_wav(path, make_audio(1.0), 4000),
            "`sampling_rate` must lie in .8000, 96000. Hz; got 4000",
        ),
        (lambda path: path.write_bytes(b"no sound at all"), "`audio` must be a readable sound file, got '.*a.wav'"),
        (lambda path: path.touch(), "`audio` must not be empty, but '.*a.wav' has 0 bytes"),
        (lambda path: None, "`audio` must be an existing sound or video file, got '.*a.wav'"),
    ],
)
def test_bad_sound_files_are_told_before_any_heavy_work(pipe, tmp_path, make, message):
    """Also what is bad at the very end of a file that is not read as a whole."""
    make(tmp_path / "a.wav")
    before = sorted(tmp_path.iterdir())
    with Watch(pipe.face_autoencoder.appearance_encoder) as encoded, Watch(pipe.motion_transformer) as generated:
        for run in (
            lambda: pipe.talk_to_file(tmp_path / "out.mp4", make_image(), tmp_path / "a.wav", box=BOX),
            lambda: pipe.stream(make_image(), tmp_path / "a.wav", box=BOX),
            lambda: call(pipe, audio=tmp_path / "a.wav"),
        ):
            with pytest.raises(ValueError, match=message):
                run()
    assert not encoded and not generated
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(8000), "`audio` is silent"),
        (np.sign(make_audio(0.5)), "`audio` is clipped"),
        (9 * make_audio(0.5), "`audio` exceeds full scale"),
    ],
)
def test_doubtful_sound_files_are_told_once_and_used(pipe, tmp_path, caplog, samples, message):
    write_float_wav(tmp_path / "a.wav", samples)
    pipe.talk_to_file(tmp_path / "out.mp4", make_image(), tmp_path / "a.wav", box=BOX, num_inference_steps=1)
    assert caplog.text.count(message) == 1
    assert len(list(read_video(tmp_path / "out.mp4"))) == 13


def test_rate_of_a_file_must_agree(pipe, tmp_path):
    save_wav(tmp_path / "a.wav", make_audio(0.5), 16_000)
    with pytest.raises(ValueError, match="`sampling_rate` must agree with the rate of `audio`, 16000, got 8000"):
        pipe.talk_to_file(tmp_path / "out.mp4", make_image(), tmp_path / "a.wav", box=BOX, sampling_rate=8000)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "nowhere.png"}, "`image` must be an existing picture file, got 'nowhere.png'"),
        (
            {"image": 3},
            "`image` must be a file, a PIL image, an array, a tensor, or a list of them .or of Portrait., got int",
        ),
        ({"image": []}, "`image` must be at least one image"),
        ({"image": np.zeros((96, 96, 7), np.uint8)}, "`image` must be of shape .*7"),
        ({"image": np.full((96, 96, 3), np.nan, np.float32)}, "`image` must hold finite numbers"),
        ({"image": np.zeros((8, 8, 3), np.uint8)}, "`image` must be at least 64 pixels"),
        ({"image": np.full((96, 96, 3), 128, np.uint8), "box": None}, "`image` must show a face, but none was found"),
        ({"audio": "nowhere.wav"}, "`audio` must be an existing sound or video file, got 'nowhere.wav'"),
        ({"audio": 3}, "`audio` must be a file, samples, .samples, rate., or a list of them, got int"),
        ({"audio": []}, "`audio` must be at least one sound"),
        ({"audio": np.zeros(0, np.float32)}, "`audio` must hold at least one sample"),
        ({"audio": make_audio(0.1)}, "`audio` must be at least 0.2 s long; got 0.100 s"),
        ({"audio": np.full(8000, np.nan, np.float32)}, "`audio` must be finite; got 8000 NaN"),
        ({"audio": (make_audio(0.5), 4000)}, "`sampling_rate` must lie in .8000, 96000."),
        ({"audio": np.array(["a", "b"])}, "`audio` must hold real numbers"),
        ({"sampling_rate": 1}, "`sampling_rate` must be a whole number in .8,000, 96,000., got 1"),
        ({"image": [make_image()] * 2, "audio": [make_audio(0.5)] * 3}, "equally many.*got 2 and 3"),
        ({"gaze": 0.3}, "`gaze` must be .yaw, pitch. in radians, or keyframes"),
        ({"gaze": (2.0, 0.0)}, "`gaze` must lie in .-0.8, 0.8. radians .46 degrees., got .2.0, 0.0."),
        ({"gaze": [(1.0, (0.1, 0)), (0.5, (0, 0))]}, "`gaze` must have keyframes at rising times"),
        ({"head_distance": 0}, "`head_distance` must lie in .0.5, 2.0."),
        ({"head_distance": "near"}, "`head_distance` must be a number, or keyframes"),
        ({"emotion": {"hungry": 1.0}}, "`emotion` knows the names .*'happy'.*got 'hungry'"),
        ({"emotion": {"happy": 2}}, "`emotion` must have weights in .-1, 1., got 2 for 'happy'"),
        ({"emotion": "gleeful"}, "`emotion` knows the names .*'happy'.*got 'gleeful'"),
        ({"emotion": 3}, "`emotion` must be a name or a dict of weights, or keyframes"),
        ({"camera": "orbit"}, "`camera` is no option here: VasaTalkingFacePipeline knows .'gaze', 'head_distance'"),
        ({"guidance_scale": {"light": 1.0}}, "`guidance_scale` knows the names .*got 'light'"),
        ({"guidance_scale": {"audio": -1.0}}, "`guidance_scale` expects finite numbers >= 0"),
        ({"guidance_scale": 2.0}, "`guidance_scale` must be a dict with a scale for each condition, got 2.0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number in .1, 1,000., got 0"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` must be a whole number"),
        ({"head_motion": -1}, "`head_motion` must be a number in .0.0, 3.0., got -1"),
        ({"fps": "fast"}, "`fps` must be a number of frames a second in .1, 1000., got 'fast'"),
        ({"fps": 0}, "`fps` must be"),
        ({"generator": 3}, "`generator` must be a torch.Generator or a list of them, got int"),
        ({"generator": [torch.Generator()] * 2}, "`generator` must be one, or one for each of 1 videos, got 2"),
        ({"face": -1}, "`face` must be a whole number"),
        ({"face": 1}, "`face` must be None where `box` is given, got 1"),
        ({"latents": torch.full((1, 10, 10), math.nan)}, "`latents` must be finite, got NaN"),
        ({"box": (0, 0, 500, 500)}, "`box` must be x0 < x1 <= 88"),
        ({"box": (0, 0, 10)}, "`box` must be four numbers"),
        ({"box": (0, 0, 10, 10)}, "`box` must be at least 32 pixels"),
        ({"output_size": 33}, "`output_size` must be one of"),
        ({"output_type": "gif"}, "`output_type` must be one of .'pil', 'np', 'pt', 'latent'., got 'gif'"),
        ({"first_window": 2}, "`first_window` must be a whole number in .3, 10., got 2"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` must be callable, got int"),
    ],
)
def test_bad_input_is_told_before_any_heavy_work(pipe, changes, message):
    model, heavy = pipe.face_autoencoder, []
    modules = (pipe.audio_encoder, pipe.motion_transformer, model.appearance_encoder, model.merge)
    handles = [module.register_forward_pre_hook(lambda *_: heavy.append(1)) for module in modules]
    try:
        with pytest.raises(ValueError, match=message):
            call(pipe, **changes)
    finally:
        for handle in handles:
            handle.remove()
    assert not heavy


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_motion_that_is_not_finite_is_an_error(pipe, tmp_path, output_type):
    """A renderer may show it as black, or as a face: nobody would notice."""
    options = {"num_inference_steps": 1, "box": BOX, "generator": generator(), "output_type": output_type}
    spoil = lambda pipe, step, timestep, tensors: {"latents": tensors["latents"] * math.nan}  # noqa: E731
    with pytest.raises(ValueError, match="`motion` must be finite"):
        pipe(make_image(), make_audio(0.5), callback_on_step_end=spoil, **options)
    weight = next(pipe.motion_transformer.parameters())
    before = weight.data.clone()
    weight.data.fill_(math.nan)
    try:
        with pytest.raises(ValueError, match="`motion` must be finite"):
            list(pipe.stream(make_image(), [make_audio(0.5)], **options))
        with pytest.raises(ValueError, match="`motion` must be finite"):
            pipe.talk_to_file(tmp_path / "out.mp4", make_image(), make_audio(0.5), **options)
    finally:
        weight.data.copy_(before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_frames_that_are_not_finite_are_an_error(pipe, monkeypatch, output_type):
    options = {"box": BOX, "output_type": output_type}
    motion, decode = call(pipe, output_type="latent").motion, pipe.face_autoencoder.decode
    monkeypatch.setattr(pipe.face_autoencoder, "decode", lambda *args, **kwargs: decode(*args, **kwargs) * math.nan)
    with pytest.raises(ValueError, match="`frames` must be finite"):
        pipe.render(make_image(), motion, **options)
    with pytest.raises(ValueError, match="`frames` must be finite"):
        pipe(make_image(), make_audio(0.5), num_inference_steps=1, **options)
    with pytest.raises(ValueError, match="`frames` must be finite"):
        list(pipe.stream(make_image(), [make_audio(0.5)], num_inference_steps=1, **options))


def test_corrupt_files_are_told(pipe, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(ValueError, match="`image` must be"):
        call(pipe, tmp_path / "a.png")
    (tmp_path / "a.wav").write_bytes(b"RIFF no sound")
    with pytest.raises(ValueError, match="`audio` must be a readable sound file"):
        call(pipe, audio=tmp_path / "a.wav")


def test_silence_is_told_but_allowed(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        out = call(pipe, audio=np.zeros(8000, np.float32))
    assert "`audio` is silent" in caplog.text and torch.isfinite(out.frames).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"motion_transformer": {"motion_dim": 11, "dynamics": {"dynamics": 5}}},
            "`motion_transformer` must have `motion_dim` 10.*got 11",
        ),
        ({"motion_transformer": {"audio_dim": 8}}, "`motion_transformer` must have `audio_dim` 16.*got 8"),
        ({"motion_transformer": {"fps": 30.0}}, "`audio_processor` must have `fps` 30.0.*got 25"),
        (
            {"scheduler": {"prediction_type": "epsilon"}},
            "`scheduler` must have `prediction_type` 'sample'.*got 'epsilon'",
        ),
    ],
)
def test_components_that_do_not_fit_are_told(change, message):
    components = make_vasa1_components()
    for name, settings in change.items():
        config = {key: value for key, value in components[name].config.items() if not key.startswith("_")}
        config.pop("dynamics", None)
        components[name] = type(components[name])(**{**config, **settings})
    with pytest.raises(ValueError, match=message):
        VasaTalkingFacePipeline(**components)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    VasaTalkingFacePipeline(**make_vasa1_components()).save_pretrained(folder)
    return folder


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def take_another_class(folder):
    change_json(folder / "model_index.json", face_autoencoder=["vasa_hf.models.face_analyzer", "FaceAnalyzer"])
    shutil.rmtree(folder / "face_autoencoder")
    shutil.copytree(folder / "face_analyzer", folder / "face_autoencoder")


def take_anothers_weights(folder):
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(folder / "face_analyzer" / name, folder / "motion_transformer" / name)


def cut_off(folder):
    path = folder / "motion_transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (take_another_class, "`face_autoencoder` must be a Vasa1FaceAutoencoder, got FaceAnalyzer"),
        (take_anothers_weights, "`motion_transformer` must find all weights of Vasa1MotionTransformer .*, such as "),
        (lambda folder: change_json(folder / "face_autoencoder" / "config.json", identity_dim=8), "expected shape"),
        (lambda folder: change_json(folder / "audio_encoder" / "config.json", intermediate_size=24), "mismatched"),
        (cut_off, "Unable to load weights from .*motion_transformer"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "`model_index.json` must be JSON"),
    ],
)
def test_weights_of_another_class_or_shape_are_told(saved, tmp_path, spoil, message):
    shutil.copytree(saved, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(
        ValueError, match=f"(?s)`pretrained_model_name_or_path` must hold a whole pipeline, got '.*{message}"
    ):
        VasaTalkingFacePipeline.from_pretrained(tmp_path / "model")


def test_a_pipeline_that_is_nowhere_is_told(saved, tmp_path):
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must be an embedded model, a folder or a"):
        VasaTalkingFacePipeline.from_pretrained(tmp_path / "nothing")


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
    """The head turns by 3 degrees; beside it and above it the wall keeps the portrait's pixels."""
    pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
    portrait = pipe.prepare_portrait(ASSETS / "portrait.jpg")
    turn = torch.zeros(2, portrait.motion.shape[1])
    turn[:, 0], turn[:, 3] = 0.06, 0.008
    frames = torch.cat(list(pipe.decode_frames(portrait, portrait.motion + turn, paste_back)))
    own = (portrait.picture if paste_back else portrait.crop.image)[None] * 0.5 + 0.5
    boxes = torch.tensor([[0.9, 0.02, 0.98, 0.6], [0.02, 0.02, 0.98, 0.04]], dtype=torch.float64)  # in the crop
    if paste_back:  # in fractions of the picture
        corners = transform_points(portrait.crop.image_from_crop, boxes.view(-1, 2))
        boxes = (corners / corners.new_tensor([own.shape[-1], own.shape[-2]])).view(-1, 4)
    for mask in box_mask(boxes, tuple(own.shape[-2:])).float().split(1):
        assert (laplacian_sharpness(frames, mask) >= 0.9 * laplacian_sharpness(own, mask)).all()

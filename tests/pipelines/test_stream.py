"""`stream` and `talk_to_file`: chunked audio in, frames out, in constant memory."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.pipelines import (
    BOX,
    Watch,
    call,
    generator,
    make_audio,
    make_image,
)
from vasa_hf.media import load_audio, read_provenance, read_video, save_wav
from vasa_hf.processors.audio import resample


def test_stream_of_other_rates_and_channels_equals_offline(pipe):
    stereo = np.stack([make_audio(0.9, 0, 44_100), make_audio(0.9, 1, 44_100)])
    offline = call(pipe, audio=(stereo, 44_100))
    parts = np.split(stereo, range(1777, stereo.shape[1], 1777), axis=1)
    options = {"num_inference_steps": 2, "box": BOX, "output_type": "pt"}
    for chunks, rate in (
        (parts, 44_100),
        ([(p, 44_100) for p in parts], None),
        ([(44_100, p.T) for p in parts], None),
    ):
        out = list(pipe.stream(make_image(), chunks, sampling_rate=rate, generator=generator(), **options))
        # Resampling in chunks sums the same products in another grouping.
        torch.testing.assert_close(torch.cat([o.frames for o in out]), offline.frames, rtol=0, atol=5e-3)


def test_stream_of_a_whole_file(pipe, tmp_path):
    save_wav(tmp_path / "a.wav", make_audio(0.9), 16_000)
    options = {"num_inference_steps": 2, "box": BOX}
    chunks = list(pipe.stream(make_image(), tmp_path / "a.wav", generator=generator(), **options))
    assert sum(len(chunk.frames) for chunk in chunks) == 23
    assert isinstance(chunks[0].frames[0], Image.Image)


def test_memory_of_a_stream_does_not_grow(pipe):
    """Memory does not grow with the length: neither audio nor motion is kept beyond what windows need."""
    import gc

    def count_numbers():
        gc.collect()
        return sum(o.numel() for o in gc.get_objects() if isinstance(o, torch.Tensor) and not o.requires_grad)

    sizes = []

    def microphone():
        for i in range(120):
            if i in (30, 110):
                sizes.append(count_numbers())
            yield make_audio(0.1, seed=i)

    options = {"num_inference_steps": 1, "box": BOX, "output_type": "latent"}
    for _ in pipe.stream(make_image(), microphone(), generator=generator(), **options):
        pass
    # 8 seconds more of audio are 128,000 samples; a window of it is 6,400.
    assert abs(sizes[1] - sizes[0]) < 20_000


def test_stream_rejects_bad_audio(pipe):
    good = make_audio(0.5)

    def run(chunks, **changes):
        options = {"num_inference_steps": 1, "box": BOX, "output_type": "latent", **changes}
        return list(pipe.stream(make_image(), chunks, **options))

    with pytest.raises(ValueError, match="`audio_chunks` must be an iterable of samples, got int"):
        run(3)
    with pytest.raises(ValueError, match="`audio_chunks` must be finite, got NaN"):
        run([good, np.full(100, np.nan, np.float32)])
    with pytest.raises(ValueError, match="`audio_chunks` must hold at least 0.2 s of audio, got 0.100 s"):
        run([make_audio(0.1)])
    with pytest.raises(ValueError, match="`audio_chunks` must hold at least 0.2 s of audio, got 0.000 s"):
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


def test_talk_to_file_leaves_no_file_after_an_error(pipe, tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"the previous video")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.talk_to_file(
            tmp_path / "out.mp4", make_image(), make_audio(0.5), on_frames=stop, num_inference_steps=1, box=BOX
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"the previous video"
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
def test_a_file_read_in_blocks_equals_offline(pipe, tmp_path, rate):
    stereo = np.stack([make_audio(2.3, 0, rate), make_audio(2.3, 1, rate)])
    save_wav(tmp_path / "a.wav", stereo, rate)
    options = {"num_inference_steps": 2, "box": BOX, "generator": generator()}
    out = pipe.talk_to_file(tmp_path / "out.mp4", make_image(), tmp_path / "a.wav", **options)
    offline = call(pipe, audio=tmp_path / "a.wav")
    assert out.motion.shape == offline.motion.shape == (1, 58, 10)
    # Nothing is resampled at 16 kHz; else the same products are summed in another grouping.
    torch.testing.assert_close(out.motion, offline.motion, rtol=0, atol=0 if rate == 16_000 else 1e-4)
    audio, audio_rate = load_audio(tmp_path / "out.mp4")
    assert abs(audio.shape[1] / audio_rate - 58 / 25) <= 1 / 25
    middle = resample(stereo.mean(0), rate, 16_000)[3000:33_000]
    written = resample(audio[0], audio_rate, 16_000)[3000:33_000]
    assert np.corrcoef(middle, written)[0, 1] > 0.98  # AAC is not lossless, but nothing is shifted


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
        (lambda path: path.write_bytes(b"no audio"), "`audio` must be a readable audio file, got '.*a.wav'"),
        (lambda path: path.touch(), "`audio` must not be empty, but '.*a.wav' has 0 bytes"),
        (lambda path: None, "`audio` must be an existing audio or video file, got '.*a.wav'"),
    ],
)
def test_bad_audio_files_are_rejected_before_any_heavy_work(pipe, tmp_path, make, message):
    """Also for an error at the end of a file that is read in blocks."""
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
def test_doubtful_audio_files_warn_once_and_are_used(pipe, tmp_path, caplog, samples, message):
    write_float_wav(tmp_path / "a.wav", samples)
    pipe.talk_to_file(tmp_path / "out.mp4", make_image(), tmp_path / "a.wav", box=BOX, num_inference_steps=1)
    assert caplog.text.count(message) == 1
    assert len(list(read_video(tmp_path / "out.mp4"))) == 13


def test_rate_of_a_file_must_agree(pipe, tmp_path):
    save_wav(tmp_path / "a.wav", make_audio(0.5), 16_000)
    with pytest.raises(ValueError, match="`sampling_rate` must agree with the rate of `audio`, 16000, got 8000"):
        pipe.talk_to_file(tmp_path / "out.mp4", make_image(), tmp_path / "a.wav", box=BOX, sampling_rate=8000)

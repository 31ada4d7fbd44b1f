import os
import tracemalloc
import wave

import numpy as np
import pytest
import torch

from vasa_hf.media import audio_blocks, load_audio, save_wav


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.m4a", "a.ogg", "a.mp4", "a.webm"])
def test_reads_any_container(ffmpeg, name):
    video = ["-f", "lavfi", "-i", "color=red:s=64x48:d=1"] if name in ("a.mp4", "a.webm") else []
    path = ffmpeg("-f", "lavfi", "-i", "sine=f=440:r=48000:d=1", *video, "-ac", "2", name)
    sound, rate = load_audio(path)
    assert rate == 48000 and sound.dtype == np.float32 and sound.shape[0] == 2
    assert abs(sound.shape[1] - 48000) < 2400
    spectrum = abs(np.fft.rfft(sound[0, 4000:28000]))
    assert abs(spectrum.argmax() * 2 - 440) <= 2  # 24000 samples of 48 kHz: 2 Hz a bin


@pytest.mark.parametrize("rate", [8000, 22050, 96000])
def test_keeps_the_rate(ffmpeg, rate):
    assert load_audio(ffmpeg("-f", "lavfi", "-i", f"sine=r={rate}:d=0.5", "a.wav"))[1] == rate


def test_a_late_track_gets_silence_first(ffmpeg):
    ffmpeg("-f", "lavfi", "-i", "sine=r=16000:d=1", "a.wav")
    path = ffmpeg(
        "-f", "lavfi", "-i", "color=red:s=64x48:d=2", "-itsoffset", "0.5", "-i", "a.wav", "-c:a", "pcm_s16le", "a.mkv"
    )
    sound, rate = load_audio(path)
    assert abs(np.argmax(abs(sound[0]) > 0.01) / rate - 0.5) < 0.01


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_blocks_are_the_whole(ffmpeg, name):
    path = ffmpeg("-f", "lavfi", "-i", "sine=f=440:r=44100:d=2.3", "-ac", "2", name)
    whole, rate = load_audio(path)
    blocks = list(audio_blocks(path, seconds=0.1))
    assert {block_rate for _, block_rate in blocks} == {rate} and all(len(block) == 2 for block, _ in blocks)
    assert {block.shape[1] for block, _ in blocks[:-1]} == {4410} and 0 < blocks[-1][0].shape[1] <= 4410
    np.testing.assert_array_equal(np.concatenate([block for block, _ in blocks], axis=1), whole)


def test_a_long_file_takes_no_more_memory_than_a_short_one(ffmpeg):
    path = ffmpeg("-f", "lavfi", "-i", "sine=r=16000:d=120", "-c:a", "pcm_u8", "a.wav")
    tracemalloc.start()
    try:
        assert sum(block.shape[1] for block, _ in audio_blocks(path)) == 120 * 16_000
        # The whole of it is 7.7 MB; a block, 64 kB.
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def decibels(sound, reference):
    return 10 * np.log10(np.square(sound).mean() / np.square(reference).mean())


@pytest.mark.parametrize("layout", ["3.0", "5.0", "5.1", "5.1(side)", "7.1"])
@pytest.mark.parametrize("name", ["a.wav", "a.mkv", "a.m4a"])
def test_the_centre_of_many_channels_is_heard(ffmpeg, layout, name):
    """A mean of all six channels of 5.1 had a voice in the centre 15.6 dB down."""
    ffmpeg("-f", "lavfi", "-i", "sine=f=440:r=48000:d=1", "voice.wav")
    quiet = {"a.m4a": ["-b:a", "512k"], "a.mkv": ["-c:a", "flac"]}.get(name, [])
    path = ffmpeg("-i", "voice.wav", "-af", f"pan={layout}|FC=c0", *quiet, name)
    reference, _ = load_audio(path.with_name("voice.wav"))
    sound, rate = load_audio(path)
    assert sound.shape[0] == 2 and rate == 48000
    assert abs(decibels(sound.mean(0)[4800:43200], reference[0, 4800:43200])) < 3


def test_stereo_and_mono_are_left_alone(ffmpeg):
    noise = ("-f", "lavfi", "-i", "anoisesrc=r=16000:d=0.5:seed=1:a=0.3")
    for options, channels in (((), 1), (("-af", "pan=stereo|FL=c0|FR=0.2*c0"), 2)):
        path = ffmpeg(*noise, *options, "-c:a", "pcm_s16le", "a.wav")
        with wave.open(str(path)) as file:
            stored = np.frombuffer(file.readframes(8000), "<i2").reshape(-1, channels).T / 32768
        np.testing.assert_allclose(load_audio(path)[0], stored, atol=1e-4)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_an_inverted_channel_is_noticed(ffmpeg, caplog, name):
    noise = ("-f", "lavfi", "-i", "anoisesrc=r=16000:d=2.5:seed=1:a=0.3")
    path = ffmpeg(*noise, "-af", "pan=stereo|FL=c0|FR=-1*c0", name)
    sound, _ = load_audio(path)
    assert caplog.text.count("one channel is the other one inverted") == 1
    assert abs(decibels(sound.mean(0), sound[0])) < 0.1 and np.abs(sound).max() > 0.1
    caplog.clear()
    load_audio(ffmpeg(*noise, "-af", "pan=stereo|FL=c0|FR=c0", name))
    load_audio(ffmpeg(*noise, "-af", "pan=stereo|FL=c0|FR=0*c0", name))
    assert not caplog.text


def test_stopping_in_the_middle_leaves_no_process(ffmpeg):
    blocks = audio_blocks(ffmpeg("-f", "lavfi", "-i", "sine=r=48000:d=60", "a.wav"))
    next(blocks)
    process = blocks.gi_frame.f_locals["decoder"]._process
    blocks.close()
    assert process.poll() is not None


def test_damage_is_told_once(ffmpeg, caplog):
    path = ffmpeg("-f", "lavfi", "-i", "sine=r=16000:d=4", "a.flac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    list(audio_blocks(path))
    assert "a.flac is damaged and was read as far as possible" in caplog.text
    caplog.clear()
    list(audio_blocks(path, quiet=True))
    assert not caplog.text


@pytest.mark.parametrize("suffix", ["wav", "w64", "caf", "aiff", "au", "ogg", "flac", "mp3", "avi", "mka"])
def test_files_that_are_cut_off_are_told(ffmpeg, caplog, suffix):
    """ffmpeg reads them to their end without a word."""
    path = ffmpeg("-f", "lavfi", "-i", "anoisesrc=r=16000:d=3:a=0.2", f"a.{suffix}")
    samples, rate = load_audio(path)
    assert abs(samples.shape[1] / rate - 3) < 0.2 and not caplog.text
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    samples, rate = load_audio(path)
    assert 0.8 < samples.shape[1] / rate < 2.5
    assert caplog.text.count("was read as far as possible") == 1 and path.name in caplog.text


def test_lengths_that_a_stream_cannot_know_are_no_damage(ffmpeg, caplog):
    load_audio(ffmpeg("-itsoffset", "20", "-f", "lavfi", "-i", "anoisesrc=r=16000:d=1:a=0.2", "late.mka"))
    path = ffmpeg("-f", "lavfi", "-i", "anoisesrc=r=16000:d=1:a=0.2", "-bitexact", "a.wav")
    data = bytearray(path.read_bytes())
    for size in (0, 0xFFFFFFFF):
        place = data.index(b"data")
        data[4:8] = data[place + 4 : place + 8] = size.to_bytes(4, "little")
        path.write_bytes(data)
        if size:
            assert load_audio(path)[0].shape[1] == 16000
    # A recorder that was stopped: the outer size is right, that of the samples is not.
    data[4:8], data[place + 4 : place + 8] = (len(data) - 8).to_bytes(4, "little"), (64000).to_bytes(4, "little")
    path.write_bytes(data)
    assert not caplog.text
    load_audio(path)
    assert "a.wav is cut off" in caplog.text


def test_arrays_and_tensors():
    wave_float = np.linspace(-0.5, 0.5, 1000)
    stereo = np.stack([wave_float, -wave_float])
    for audio in (wave_float, torch.tensor(wave_float), torch.tensor(wave_float).bfloat16(), wave_float.tolist()):
        sound, rate = load_audio(audio, sampling_rate=16000)
        assert rate == 16000 and sound.shape == (1, 1000) and np.allclose(sound[0], wave_float, atol=4e-3)
    for audio in (stereo, stereo.T, (stereo * 32768).astype(np.int16).T, (stereo * 128 + 128).astype(np.uint8)):
        for pair in ((audio, 8000), (8000, audio)):
            sound, rate = load_audio(pair)
            assert rate == 8000 and sound.shape == (2, 1000) and np.allclose(sound, stereo, atol=1e-2)


def test_wav_round_trip(tmp_path):
    sound = np.random.default_rng(0).uniform(-1, 1, (2, 500)).astype(np.float32)
    save_wav(tmp_path / "a.wav", sound, 22050)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 22050, 500)
    back, rate = load_audio(tmp_path / "a.wav")
    assert rate == 22050 and np.allclose(back, sound, atol=1e-4)  # 16 bit
    with pytest.raises(ValueError, match="`audio` must be finite"):
        save_wav(tmp_path / "b.wav", np.full(10, np.nan), 16000)
    assert os.listdir(tmp_path) == ["a.wav"]


def test_unfit_sound(ffmpeg, tmp_path):
    silent = ffmpeg("-f", "lavfi", "-i", "color=red:s=64x48:d=1", "silent.mp4")
    (tmp_path / "text.wav").write_text("not a sound" * 50)
    save_wav(tmp_path / "good.wav", np.zeros(100), 16000)
    (tmp_path / "header.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:44])
    for audio, rate, message in [
        (silent, None, "no audio stream"),
        (tmp_path / "text.wav", None, "`audio` must be a readable audio file"),
        (tmp_path / "missing.wav", None, "`audio` must be an existing file"),
        (tmp_path / "header.wav", None, "zero length"),
        (tmp_path / "good.wav", 44100, "`sampling_rate` must agree"),
        (np.zeros(0), 16000, "zero length"),
        (np.zeros(100), None, "`sampling_rate` must be given"),
        (np.zeros(100), 10, "`sampling_rate` must be a whole number"),
        (np.zeros((2, 3, 4)), 16000, "1 or 2 dimensions"),
        (np.zeros(100, complex), 16000, "real numbers"),
        (np.zeros((100, 100)), 16000, "at most 32 channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_audio(audio, sampling_rate=rate)

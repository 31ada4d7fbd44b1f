import json

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Model, WhisperConfig, WhisperModel

from vasa_hf.data.synthetic.speech import available_engines
from vasa_hf.media.video import VideoWriter
from vasa_hf.processors.audio import VasaAudioProcessor, feature_geometry, frame_features
from vasa_hf.training.recipes.audio_encoder import (
    NUM_MELS,
    AudioEncoderOptions,
    SpeechDataset,
    Voice,
    augment,
    correlation,
    init_filter_bank,
    load_clips,
    log_mel,
    make_encoder,
    make_utterances,
    small_config,
    split_people,
    stretch,
)
from vasa_hf.training.run import main

needs_voice = pytest.mark.skipif(not available_engines(), reason="neither espeak-ng nor flite is installed")


def test_noise_and_rooms_do_not_move_the_voice():
    clean = np.zeros(16_000, np.float32)
    clean[8_000:8_400] = np.sin(np.arange(400)) * np.hanning(400)
    for seed in range(20):
        spoilt = augment(clean, np.random.default_rng(seed))
        assert spoilt.shape == clean.shape
        assert np.isfinite(spoilt).all()
        lag = np.argmax(np.correlate(spoilt, clean[8_000:8_400], "valid")) - 8_000
        assert abs(lag) < 320, seed  # less than one feature


def test_log_mel_finds_a_tone_at_its_time():
    samples = torch.zeros(1, 16_000)
    samples[0, 8_000:9_600] = 0.3 * torch.sin(2 * torch.pi * 1000 * torch.arange(1600) / 16_000)
    spectrum = log_mel(samples)
    assert spectrum.shape == (1, 50, NUM_MELS)
    time, band = divmod(int(spectrum.argmax()), NUM_MELS)
    assert 25 <= time < 30
    assert band == 7  # of 24 triangles between 60 and 7600 Hz, equal steps in mel


def test_correlation_looks_at_known_frames_alone():
    a, b = 100 * torch.randn(2, 30), 100 * torch.randn(2, 30)
    known = torch.ones(2, 30)
    known[:, 20:] = 0
    expected = [np.corrcoef(x[:20], y[:20])[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(correlation(a, b, known), expected, atol=1e-3)


def test_the_filter_bank_hears_pitch_at_the_right_place():
    config = small_config(32, 1)
    assert feature_geometry(config)[0] == 320
    encoder = Wav2Vec2Model(config).eval()
    init_filter_bank(encoder)
    time = torch.arange(6400) / 16_000
    with torch.no_grad():
        first = encoder.feature_extractor.conv_layers[0].conv
        levels = [first(0.1 * torch.sin(2 * torch.pi * hz * time)[None, None]).std(-1)[0] for hz in (300, 1000, 4000)]
    bands = [int(level.argmax()) // 3 for level in levels]
    assert bands[0] < bands[1] < bands[2]


@needs_voice
def test_labels_follow_a_voice_that_is_slowed_or_sped_up():
    found = {-1: 0.0, 0: 0.0, 1: 0.0}  # energy in frames called silence, labels scaled by 0.9, 1 and 1.1
    for voice in make_utterances(12, 5):
        energy = voice.samples.astype(np.float32).reshape(-1, 320).std(-1)
        for step in found:
            index = np.minimum(np.arange(len(energy)) * (1 + 0.1 * step), len(energy) - 1).astype(int)
            found[step] += float(energy[voice.phones[index] == 0].sum() / energy.mean())
    assert found[0] < 0.6 * found[-1]
    assert found[0] < 0.6 * found[1]


@needs_voice
def test_samples_are_a_function_of_their_index():
    clip = Voice(np.random.default_rng(0).standard_normal(30 * 640).astype(np.float32), np.ones((30, 2), np.float32))
    options = AudioEncoderOptions(batch_size=2)
    utterances = make_utterances(3, 0)
    one, two = (SpeechDataset(options, utterances, [clip], []) for _ in range(2))
    kinds = set()
    for index in range(8):
        a, b = one[index], two[index]
        for name, value in a.items():
            assert torch.equal(value, b[name]), name
        assert len(a["samples"]) == 640 * len(a["known"]) == 320 * len(a["phones"])
        kinds.add(bool(a["known"].any()))
        assert bool(a["known"].any()) != bool((a["phones"] >= 0).any())
    assert kinds == {True, False}


def test_a_stretched_clip_keeps_its_mouth_with_its_sound():
    loud = np.repeat(np.array([0, 1, 0, 0, 1, 1, 0, 1, 0, 0], np.float32), 5)  # a value a frame
    noise = np.random.default_rng(0).uniform(-1, 1, 50 * 640)
    clip = Voice((noise * np.repeat(loud, 640)).astype(np.float32), np.stack([loud, 1 + loud], 1))
    for rate in (13_600, 18_720):
        other = stretch(clip, rate)
        assert len(other) == len(other.mouth) == 50 * rate // 16_000
        level = other.samples.reshape(-1, 640).std(1)
        assert np.corrcoef(level, other.mouth[:, 0])[0, 1] > 0.97
        np.testing.assert_allclose(other.mouth[:, 1], 1 + other.mouth[:, 0], atol=1e-6)


def test_new_layers_change_nothing_at_first(tmp_path):
    first = make_encoder(AudioEncoderOptions(hidden_size=32, num_layers=1))
    first.save_pretrained(tmp_path)
    deeper = make_encoder(AudioEncoderOptions(hidden_size=32, num_layers=3, initial=str(tmp_path)))
    samples = 0.1 * torch.randn(2, 6400)
    with torch.no_grad():
        expected = first.eval()(samples).last_hidden_state
        torch.testing.assert_close(deeper.eval()(samples).last_hidden_state, expected)
    deeper(samples).last_hidden_state.square().sum().backward()
    assert deeper.encoder.layers[2].feed_forward.output_dense.weight.grad.abs().sum() > 0
    for options in ({"hidden_size": 64}, {"hidden_size": 32, "num_layers": 0}):
        with pytest.raises(ValueError, match="`initial` must have `hidden_size`"):
            make_encoder(AudioEncoderOptions(**options, initial=str(tmp_path)))


def test_people_of_validation_are_those_with_few_clips_but_enough():
    people = {name: [Voice(np.zeros(0))] * count for name, count in (("a", 40), ("b", 3), ("c", 21), ("d", 20))}
    rest, kept = split_people(people, 2)
    assert set(rest) == {"a", "b"}
    assert set(kept) == {"c", "d"}


def write_clips(folder, names):
    """Labels and videos of 10 frames; a name ending in "mute" has no sound track."""
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        sound = None if name.endswith("mute") else (rng.uniform(-0.5, 0.5, 6400).astype(np.float32), 16_000)
        with VideoWriter(folder / "clips" / f"{name}.mp4", 25, (32, 32), sound, provenance=False) as writer:
            for _ in range(10):
                writer.write(np.zeros((32, 32, 3), np.uint8))
    mouth = rng.uniform(0.1, 0.5, (10 * len(names), 2)).astype(np.float32)
    np.savez(folder / "clips.npz", names=names, offsets=np.arange(len(names) + 1) * 10, mouth=mouth)


def test_clips_without_a_sound_track_are_left_out(tmp_path):
    write_clips(tmp_path / "one", ["a", "b_mute"])
    sound = {}
    (clips,) = load_clips(tmp_path / "one", sound).values()
    assert len(clips) == 1 and len(clips[0]) == 10 == len(clips[0].mouth)
    assert set(sound) == {str(tmp_path / "one" / "clips" / f"{name}.mp4") for name in ("a", "b_mute")}


@needs_voice
def test_the_teacher_is_cut_with_the_sound():
    noise = [np.random.default_rng(i).standard_normal(40 * 640).astype(np.float32) for i in range(2)]
    voices = [Voice(sound, teacher=sound.reshape(80, 320)[:, :3].astype(np.float16)) for sound in noise]
    utterances = make_utterances(2, 0)
    for voice in utterances:
        voice.teacher = voice.samples.reshape(-1, 320)[:, :3]
    options = AudioEncoderOptions(batch_size=1, recording_share=0.5)
    dataset = SpeechDataset(options, utterances, [], voices)
    seen = {"silent": 0, "voice": 0}
    for index in range(12):
        sample = dataset[index]
        heard = sample["teacher"].isfinite().all(-1)
        sound = sample["clean"].reshape(-1, 320)[:, :3]
        gain = sound[heard].abs().amax() / sample["teacher"][heard].abs().amax().float()
        seen["silent"] += int((~heard).sum())
        if (sample["phones"] < 0).all():  # a recording: one gain for all of it
            seen["voice"] += 1
            torch.testing.assert_close(sound[heard], gain * sample["teacher"][heard].float(), rtol=2e-3, atol=1e-4)
        assert (sample["clean"].reshape(-1, 320)[~heard] == 0).all()
    assert min(seen.values()) > 0


@needs_voice
def test_a_tiny_run_learns_from_a_teacher(tmp_path):
    write_clips(tmp_path / "data", ["a", "b", "c", "d"])
    config = WhisperConfig(
        vocab_size=8, d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_attention_heads=2, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(tmp_path / "whisper")
    arguments = f"--output {tmp_path} --data {tmp_path / 'data'} --teacher {tmp_path / 'whisper'} --num-utterances 8"
    arguments += " --max-steps 40 --batch-size 3 --hidden-size 32 --num-layers 1 --stretched-copies 1 --real-share 0.3"
    arguments += " --validation-people 0 --cpu --mixed-precision no --log-every 4 --warmup-steps 3 --sample-every 0"
    main(["audio_encoder", *arguments.split(), "--learning-rate", "0.005"])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["teacher"] < 0.8 * lines[0]["teacher"]


@needs_voice
def test_a_tiny_run_learns(tmp_path):
    arguments = f"--output {tmp_path} --num-utterances 8 --max-steps 24 --batch-size 3 --hidden-size 32 --num-layers 1"
    arguments += " --cpu --mixed-precision no --log-every 4 --warmup-steps 3 --learning-rate 0.005 --sample-every 0"
    main(["audio_encoder", *arguments.split()])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["phone"] < lines[0]["phone"] - 0.2
    assert lines[-1]["articulation"] < lines[0]["articulation"]

    encoder = Wav2Vec2Model.from_pretrained(tmp_path / "audio_encoder").eval()
    processor = VasaAudioProcessor.from_pretrained(tmp_path / "audio_processor")
    assert not processor.do_normalize
    with torch.no_grad():
        features = frame_features(encoder, torch.zeros(1, 3200), 5)
    assert features.shape == (1, 5, 32)

import json

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Model

from vasa_hf.data.synthetic.speech import available_engines
from vasa_hf.processors.audio import VasaAudioProcessor, feature_geometry, frame_features
from vasa_hf.training.train_audio_encoder import (
    NUM_MELS,
    AudioEncoderOptions,
    Clip,
    SpeechDataset,
    augment,
    correlation,
    init_filter_bank,
    log_mel,
    main,
    make_utterances,
    small_config,
)

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
    for samples, phones in make_utterances(12, 5):
        energy = samples.astype(np.float32).reshape(-1, 320).std(-1)
        for step in found:
            index = np.minimum(np.arange(len(phones)) * (1 + 0.1 * step), len(phones) - 1).astype(int)
            found[step] += float(energy[phones[index] == 0].sum() / energy.mean())
    assert found[0] < 0.6 * found[-1]
    assert found[0] < 0.6 * found[1]


@needs_voice
def test_samples_are_a_function_of_their_index():
    clip = Clip(np.random.default_rng(0).standard_normal(30 * 640).astype(np.float32), np.ones((30, 2), np.float32))
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


@needs_voice
def test_a_tiny_run_learns(tmp_path):
    arguments = f"--output {tmp_path} --num-utterances 8 --max-steps 24 --batch-size 3 --hidden-size 32 --num-layers 1"
    arguments += " --cpu --mixed-precision no --log-every 4 --warmup-steps 3 --learning-rate 0.005 --sample-every 0"
    main(arguments.split())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["phone"] < lines[0]["phone"] - 0.2
    assert lines[-1]["articulation"] < lines[0]["articulation"]

    encoder = Wav2Vec2Model.from_pretrained(tmp_path / "audio_encoder").eval()
    processor = VasaAudioProcessor.from_pretrained(tmp_path / "audio_processor")
    assert not processor.do_normalize
    with torch.no_grad():
        features = frame_features(encoder, torch.zeros(1, 3200), 5)
    assert features.shape == (1, 5, 32)

import sys

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from vasa_hf.data.speech_teacher import TeacherTargets, load_teacher


@pytest.fixture
def whisper(tmp_path):
    config = WhisperConfig(
        vocab_size=8, d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_attention_heads=2, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperModel(config).eval()
    model.save_pretrained(tmp_path)
    return model


def test_thirty_seconds_are_what_whisper_itself_gives(whisper, tmp_path):
    samples = 0.1 * np.random.default_rng(0).standard_normal(30 * 16_000).astype(np.float32)
    features = load_teacher(tmp_path)(samples)
    mel = WhisperFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        expected = whisper.encoder(mel).last_hidden_state[0]
    # Half precision of values up to about 4.
    np.testing.assert_allclose(features.astype(np.float32), expected, atol=4e-3)


def test_every_length_has_fifty_features_a_second(whisper, tmp_path):
    teacher = load_teacher(tmp_path)
    samples = 0.1 * np.random.default_rng(0).standard_normal(45 * 16_000).astype(np.float32)
    assert teacher(samples[:16_100]).shape == (50, 24)
    long = teacher(samples)
    assert long.shape == (45 * 50, 24)
    np.testing.assert_array_equal(long[: 45 * 25], teacher(samples[: 45 * 8_000]))  # two pieces of the same length


def test_ctranslate2_files_without_the_library_say_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "model.bin").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(ImportError, match="pip install ctranslate2"):
        load_teacher(tmp_path)


def test_targets_are_uncorrelated_and_hold_the_large_components():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((2000, 4)) * [4.0, 2.0, 1.0, 0.05]
    features = (hidden @ np.linalg.qr(rng.standard_normal((4, 4)))[0] * [1, 10, 0.1, 1] + 5).astype(np.float16)
    targets = TeacherTargets.fit([features[:1500], features[1500:]], 3)
    out = targets(features).astype(np.float64)
    covariance = np.cov(out.T, bias=True)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.01
    assert np.trace(covariance) == pytest.approx(3, rel=0.01)
    assert np.abs(out.mean(0)).max() < 0.01
    # A fourth root: the ratio of variances is the square root of the components' own.
    standard = (features - features.mean(0, dtype=np.float64)) / features.std(0, dtype=np.float64)
    values = np.linalg.eigvalsh(np.cov(standard.T))[::-1]
    assert covariance[0, 0] / covariance[2, 2] == pytest.approx(np.sqrt(values[0] / values[2]), rel=0.02)

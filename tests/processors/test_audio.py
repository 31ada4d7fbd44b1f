import logging

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model

from vasa_hf.media.audio import save_wav
from vasa_hf.processors.audio import (
    AudioCheck,
    StreamingResampler,
    VasaAudioProcessor,
    feature_geometry,
    frame_features,
    layer_features,
    resample,
    window_features,
)

RATES = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000)


def tone(rate: int, hz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def tiny_encoder(norm: str = "layer") -> Wav2Vec2Model:
    """`norm="group"` is the style of facebook/wav2vec2-base-960h."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        feat_extract_norm=norm,
        conv_bias=norm == "layer",
        do_stable_layer_norm=norm == "layer",
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return Wav2Vec2Model(config).eval()


@pytest.mark.parametrize("rate", RATES)
def test_resampling_keeps_a_tone_in_time_and_level(rate):
    out = resample(tone(rate), rate, 16_000)
    assert len(out) == 8_000
    inner = slice(800, -800)  # the filter rings at the ends of the tone
    np.testing.assert_allclose(out[inner], tone(16_000)[inner], atol=2e-4)


@pytest.mark.parametrize("rate", [22_050, 48_000, 96_000])
def test_resampling_lets_nothing_above_the_new_band_through(rate):
    out = resample(tone(rate, hz=9_000), rate, 16_000)
    assert np.abs(out[800:-800]).max() < 5e-4  # -60 dB


@pytest.mark.parametrize("rate", RATES)
def test_resampling_in_pieces_equals_the_whole(rate):
    samples = np.random.default_rng(0).standard_normal(rate // 3).astype(np.float32)
    stream = StreamingResampler(rate, 16_000)
    pieces = [stream.push(piece) for piece in np.array_split(samples, [7, 8, 500, 501, 2000])]
    np.testing.assert_allclose(np.concatenate([*pieces, stream.flush()]), resample(samples, rate, 16_000), atol=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_any_rate_gives_whole_frames(rate):
    out = VasaAudioProcessor()((tone(rate, seconds=0.99), rate))
    assert out["num_frames"] == 25
    assert out["input_values"].shape == (1, 16_000)
    assert out["input_values"].dtype == torch.float32


def test_stereo_is_mixed_in_either_layout():
    both = np.stack([tone(16_000), np.zeros(8_000, np.float32)])
    for samples in (both, both.T, torch.from_numpy(both)):
        mono = VasaAudioProcessor().load(samples, 16_000)
        np.testing.assert_allclose(mono, tone(16_000) / 2, atol=1e-6)


def test_integers_pairs_and_files_are_the_same_audio(tmp_path):
    processor, samples = VasaAudioProcessor(), tone(24_000)
    expected = processor.load(samples, 24_000)
    save_wav(tmp_path / "voice.wav", samples, 24_000)
    pcm = (samples * 32768).round().astype(np.int16)
    for audio in ((24_000, pcm), (samples, 24_000), tmp_path / "voice.wav", str(tmp_path / "voice.wav")):
        np.testing.assert_allclose(processor.load(audio), expected, atol=1e-4)  # 16 bits


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros(0, np.float32), 16_000, "`audio` must .* zero length|`audio` must hold at least one sample"),
        (tone(16_000, seconds=0.1), 16_000, "`audio` must be at least 0.2 s long; got 0.100 s"),
        (
            np.full(8_000, np.nan, np.float32),
            16_000,
            "`audio` must be finite; got 8000 NaN or infinite samples of 8000",
        ),
        (np.full(8_000, np.inf, np.float32), 16_000, "`audio` must be finite"),
        (np.array(["a"] * 8_000), 16_000, "`audio` must hold real numbers"),
        (np.zeros((2, 2, 8_000), np.float32), 16_000, "`audio` must have 1 or 2 dimensions"),
        (tone(16_000), 4_000, r"`sampling_rate` must lie in \[8000, 96000\] Hz; got 4000"),
        (tone(16_000), 192_000, r"`sampling_rate` must lie in \[8000, 96000\] Hz; got 192000"),
        ("no such file.wav", None, "`audio`.*no such file.wav"),
    ],
)
def test_bad_audio_is_named(audio, rate, message):
    with pytest.raises(ValueError, match=message):
        VasaAudioProcessor()(audio, rate)


def test_a_file_that_is_no_audio_is_named(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"this is no audio" * 50)
    with pytest.raises(ValueError, match=r"`audio`.*broken\.wav"):
        VasaAudioProcessor()(tmp_path / "broken.wav")


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(8_000, np.float32), "`audio` is silent"),
        (np.sign(tone(16_000)), "`audio` is clipped"),
        (tone(16_000) * 4, "`audio` exceeds full scale"),
    ],
)
def test_doubtful_audio_is_used_with_a_warning(audio, message, caplog):
    with caplog.at_level(logging.WARNING, logger="vasa_hf.processors.audio"):
        out = VasaAudioProcessor()(audio, 16_000)
    assert message in caplog.text
    assert out["num_frames"] == 13
    assert out["input_values"].abs().max() <= 1


def test_audio_in_pieces_is_judged_as_a_whole(caplog):
    """Few clipped or bad samples of one piece count as a share of all."""
    loud, quiet = np.ones((1, 10), np.float32), np.full((1, 9_990), 0.1, np.float32)
    for pieces, told in (([quiet, loud], False), ([quiet[:, :4_000], loud], True)):
        check = AudioCheck(16_000)
        for piece in pieces:
            check.add(piece)
        check.finish()
        assert ("clipped in 0.2 %" in caplog.text) == told
    check.add(np.full((1, 7), np.nan, np.float32))
    with pytest.raises(ValueError, match="`audio` must be finite; got 7 NaN or infinite samples of 4017"):
        check.finish()


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("num_frames", [1, 7, 50])
def test_one_feature_a_frame(norm, num_frames):
    encoder = tiny_encoder(norm)
    assert feature_geometry(encoder.config) == (320, 400)
    samples = torch.randn(2, num_frames * 640) * 0.1
    features = frame_features(encoder, samples, num_frames, do_normalize=norm == "group")
    assert features.shape == (2, num_frames, 16)
    assert torch.isfinite(features).all()


def test_features_lie_at_their_own_frame():
    encoder = tiny_encoder()
    samples = torch.zeros(1, 20 * 640)
    samples[:, 12 * 640 : 13 * 640] = 0.5 * torch.randn(640)
    encoder.encoder.layers = torch.nn.ModuleList()  # attention looks everywhere; the convolutions must not
    with torch.no_grad():
        change = frame_features(encoder, samples, 20) - frame_features(encoder, torch.zeros_like(samples), 20)
    assert change.square().sum(-1)[0].argmax() == 12


def test_normalisation_makes_the_level_irrelevant():
    encoder, samples = tiny_encoder("group"), torch.randn(1, 6400)
    with torch.no_grad():
        loud = frame_features(encoder, samples, 10, do_normalize=True)
        quiet = frame_features(encoder, 0.01 * samples + 0.2, 10, do_normalize=True)
    torch.testing.assert_close(loud, quiet, atol=2e-3, rtol=0)


def test_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"`samples` must have the shape .* got \(1, 1000\) with `num_frames` 2"):
        frame_features(tiny_encoder(), torch.zeros(1, 1000), 2)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_window_attends_to_its_surroundings_alone(norm):
    encoder, processor = tiny_encoder(norm), VasaAudioProcessor(do_normalize=norm == "group")
    audio = 0.1 * torch.randn(1, 100 * 640)
    with torch.no_grad():
        offline = processor.window_features(encoder, audio, 40, 20)
        streamed = processor.window_features(encoder, audio[:, : 62 * 640], 40, 20)  # the rest has not come yet
        far = audio.clone()
        far[:, : 30 * 640] = 1.0
        far[:, 62 * 640 :] = -1.0
        torch.testing.assert_close(streamed, offline, atol=0, rtol=0)
        torch.testing.assert_close(processor.window_features(encoder, far, 40, 20), offline, atol=0, rtol=0)
    assert offline.shape == (1, 20, 16)


def tiny_hubert(norm: str) -> HubertModel:
    return HubertModel(HubertConfig.from_dict({**tiny_encoder(norm).config.to_dict(), "num_hidden_layers": 3})).eval()


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("make", [tiny_encoder, tiny_hubert])
def test_layers_are_those_of_the_encoder(make, norm):
    encoder, samples = make(norm), torch.randn(2, 6480)
    with torch.no_grad():
        expected = encoder(samples, output_hidden_states=True)
        layers = layer_features(encoder, samples)
    torch.testing.assert_close(layers[:, :, -1], expected.last_hidden_state)
    for i in range(layers.shape[2] - 1):
        torch.testing.assert_close(layers[:, :, i], expected.hidden_states[i + 1])


def test_all_layers_of_a_window_at_the_frame_rate():
    encoder = tiny_hubert("group")
    samples = torch.randn(1, 40 * 640)
    options = {"layers": "all", "resample_first": True, "padding": "reflect", "pre_emphasis": 0.97}
    processor = VasaAudioProcessor(context_frames=8, lookahead_frames=2, **options)
    with torch.no_grad():
        features = processor.window_features(encoder, samples, 10, 20)
        assert features.shape == (1, 20, 3, 16)
        # The input of the transformer is 30 vectors, not 60 that are averaged.
        plain = window_features(encoder, samples, 10, 20, 8, 2, layers="all")
        assert plain.shape == features.shape and (plain - features).abs().max() > 1e-3
        # What lies further away than the context does not matter.
        samples[:, : 2 * 640], samples[:, 33 * 640 :] = 0.0, 0.0
        torch.testing.assert_close(processor.window_features(encoder, samples, 10, 20), features)


def test_pre_emphasis_is_a_filter_of_two_taps():
    encoder, samples = tiny_hubert("group"), torch.randn(1, 5 * 640)
    filtered = samples.clone()
    filtered[:, 1:] -= 0.97 * samples[:, :-1]
    with torch.no_grad():
        result = frame_features(encoder, samples, 5, pre_emphasis=0.97)
        torch.testing.assert_close(result, frame_features(encoder, filtered, 5))
        assert (result - frame_features(encoder, samples, 5)).abs().max() > 1e-3


@pytest.mark.parametrize("option", [{"layers": "first"}, {"padding": "edge"}])
def test_unknown_ways_of_encoding_are_named(option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}`"):
        frame_features(tiny_encoder(), torch.zeros(1, 640), 1, **option)


def test_beyond_the_ends_there_is_silence():
    encoder, audio = tiny_encoder(), 0.1 * torch.randn(1, 10 * 640)
    padded = torch.nn.functional.pad(audio, (12 * 640, 70 * 640))
    with torch.no_grad():
        torch.testing.assert_close(window_features(encoder, audio, 0, 50), window_features(encoder, padded, 12, 50))


def test_the_processor_is_saved_and_loaded(tmp_path):
    options = {"do_normalize": True, "layers": "all", "resample_first": True, "padding": "reflect", "pre_emphasis": 0.9}
    processor = VasaAudioProcessor(context_frames=5, lookahead_frames=1, **options)
    processor.save_pretrained(tmp_path)
    again = VasaAudioProcessor.from_pretrained(tmp_path)
    assert (again.context_frames, again.lookahead_frames) == (5, 1)
    assert {name: getattr(again, name) for name in options} == options
    assert again.sampling_rate == 16_000
    assert again.samples_per_frame == 640


def test_frames_must_be_whole():
    with pytest.raises(ValueError, match="`sampling_rate` must be a multiple of `fps`; got 16000 and 30"):
        VasaAudioProcessor(fps=30)


def test_silence_is_judged_after_mixing(caplog):
    """The result is the mean of the channels; one inverted channel is no reason to be silent."""
    processor, tone = VasaAudioProcessor(), np.sin(np.arange(16000) * 0.2).astype(np.float32)
    three = np.stack([tone, -0.5 * tone, -0.5 * tone])  # no pair of channels: nothing tells which one to take
    processor.load((three, 16_000))
    assert "`audio` is silent" in caplog.text
    caplog.clear()
    mono = processor.load((np.stack([tone, -tone]), 16_000))
    assert "inverted" in caplog.text and "silent" not in caplog.text
    np.testing.assert_allclose(mono, tone, atol=1e-6)

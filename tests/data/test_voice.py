import pytest
import torch

from vasa_hf.data.voice import LEVEL_DB, PEAK, gate_noise, prepare_voice


def make_voice(seconds=4.0, rate=16_000):
    """Vowels with pauses."""
    time = torch.arange(int(seconds * rate)) / rate
    tone = sum(torch.sin(2 * torch.pi * 150 * k * time) / k for k in range(1, 12))
    return 0.1 * tone * (torch.sin(2 * torch.pi * 1.5 * time) > 0)


def snr(clean, other):
    return 10 * torch.log10(clean.square().sum() / (clean - other).square().sum())


def test_steady_noise_is_turned_down_and_the_voice_stays():
    torch.manual_seed(0)
    voice = make_voice()
    noisy = voice + 0.02 * torch.randn(len(voice))
    assert snr(voice, gate_noise(noisy)) > snr(voice, noisy) + 4
    assert snr(voice, gate_noise(voice)) > 30
    pause = voice == 0
    inner = torch.nn.functional.avg_pool1d(pause.float()[None], 1025, 1, 512)[0] == 1  # away from the edges
    assert gate_noise(noisy)[inner].std() < 0.4 * noisy[inner].std()


@pytest.mark.parametrize("gain", [0.05, 0.3, 1.0])
def test_every_voice_gets_one_level(gain):
    voice = prepare_voice(gain * make_voice(), "level")
    heard = voice[make_voice() != 0]
    assert 20 * torch.log10(heard.std()) == pytest.approx(LEVEL_DB, abs=1.0)


def test_nothing_is_clipped_and_silence_stays_silent():
    click = torch.zeros(16_000)
    click[8000] = 0.5
    assert prepare_voice(click).abs().max() <= PEAK
    assert prepare_voice(torch.zeros(16_000)).abs().max() == 0
    assert prepare_voice(1e-4 * make_voice(), "level").abs().max() < 0.01  # by 30 dB at most
    kept = make_voice()
    assert prepare_voice(kept, "keep") is kept
    with pytest.raises(ValueError, match="`voice` must be one of"):
        prepare_voice(kept, "louder")

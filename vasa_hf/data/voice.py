"""The voice of a training clip at one level and with less noise (GAIA §A.2). Pure tensors.

# Not in the paper: how. It normalizes amplitudes and applies a learned denoiser (Defossez et al., 2020); here the level
is that of the louder frames, and the denoiser is a spectral gate, which takes steady noise alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

VOICES = ("keep", "level", "clean")
LEVEL_DB = -23.0  # of the frames with a voice, relative to full scale
MAX_GAIN_DB = 30.0
PEAK = 0.98
WINDOW, HOP, RATE = 512, 128, 16_000
# Share of the frames from which the noise is read, their power over the mean power in noise alone (measured on white
# noise), how much more than the noise is taken, and the least gain.
QUIET_SHARE, QUIET_POWER, OVER, FLOOR = 0.1, 0.31, 1.3, 0.1


def prepare_voice(samples: Tensor, how: str = "clean") -> Tensor:
    """Level a voice, and gate its noise.

    Args:
        samples (`torch.Tensor` of shape `(samples,)`): Mono at 16 kHz, in [-1, 1].
        how (`str`, defaults to `"clean"`): `"keep"`, `"level"`, or `"clean"`: level and noise.

    Returns:
        `torch.Tensor` of the same shape, in [-0.98, 0.98] unless it is kept.

    Raises:
        ValueError: If there is no such way.
    """
    if how not in VOICES:
        raise ValueError(f"`voice` must be one of {list(VOICES)}, got {how!r}.")
    if how == "keep" or len(samples) < WINDOW:
        return samples
    samples = samples - samples.mean()
    return level_voice(gate_noise(samples) if how == "clean" else samples)


def level_voice(samples: Tensor) -> Tensor:
    """Bring the louder frames to -23 dB of full scale, by 30 dB at most and without clipping; `(samples,)`."""
    frames = samples[: len(samples) // HOP * HOP].view(-1, HOP).square().mean(1)
    heard = frames[frames >= 0.01 * frames.max()]  # within 20 dB of the loudest
    level, peak = heard.mean().sqrt(), samples.abs().max()
    if float(peak) == 0.0:
        return samples
    gain = min(10 ** (LEVEL_DB / 20) / float(level), 10 ** (MAX_GAIN_DB / 20), PEAK / float(peak))
    return samples * gain


def gate_noise(samples: Tensor) -> Tensor:
    """Turn down what is not louder than the quiet frames, in each frequency; `(samples,)`.

    The noise of a frequency is the mean power of its quietest tenth of frames over `QUIET_POWER`.
    """
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(samples, WINDOW, HOP, window=window, return_complex=True)  # [F, T]
    # Over three frames and three frequencies: single bins of noise vary by more than speech stands out.
    power = torch.nn.functional.avg_pool2d(spectrum.abs().square()[None], 3, stride=1, padding=1)[0]
    count = max(1, round(QUIET_SHARE * power.shape[1]))
    noise = power.sort(1).values[:, :count].mean(1, keepdim=True) / QUIET_POWER
    gain = (1 - OVER * noise / power.clamp_min(1e-12)).clamp_min(0).sqrt().clamp_min(FLOOR)
    return torch.istft(spectrum * gain, WINDOW, HOP, window=window, length=len(samples))

"""What a head follows in speech: loudness, pitch of the voice, accents and phrases.

Not in the paper: VASA-1 learns head motion from videos. Rendered talkers need a rule from audio to motion; this file
measures the audio, `talkers` moves the head.
"""

import dataclasses

import numpy as np

from vasa_hf.data.synthetic.speech import Speech

RATE = 100  # measures per second
_VOWELS = frozenset("aa ae ah ao aw ay eh er ey ih iy ow oy uh uw ue oe".split())
_PAUSE_SECONDS = 0.16  # shorter gaps are closures of plosives


@dataclasses.dataclass
class Prosody:
    """Measures of one recording, `RATE` per second.

    Attributes:
        loudness (`numpy.ndarray` of shape `(n,)`): 0 at 40 dB under the loudest, 1 at the loudest.
        pitch (`numpy.ndarray` of shape `(n,)`): Octaves over the voice's median, held where nothing is voiced.
        accents (`numpy.ndarray` of shape `(k, 2)`): Start of each accented vowel in seconds, and its strength, about 1.
        phrases (`numpy.ndarray` of shape `(p, 2)`): Start and end of each stretch between pauses, in seconds.
    """

    loudness: np.ndarray
    pitch: np.ndarray
    accents: np.ndarray
    phrases: np.ndarray


def measure_prosody(speech: Speech) -> Prosody:
    """Loudness, pitch, accents and phrases of speech whose phones are known.

    Args:
        speech (`Speech`): At 16 kHz.

    Raises:
        ValueError: If its rate is another.
    """
    if speech.sampling_rate != 16_000:
        raise ValueError(f"`speech` must be sampled at 16000 Hz, but is at {speech.sampling_rate} Hz.")
    loudness, pitch = _loudness(speech.samples), _pitch(speech.samples)
    phrases = phrases_of(speech)
    return Prosody(loudness, pitch, _accents(speech, loudness, pitch, phrases), phrases)


def phrases_of(speech: Speech) -> np.ndarray:
    """Stretches between pauses, [p, 2] seconds."""
    stretches: list[list[float]] = []
    for phone, start, end in speech.phones:
        if phone == "sil":
            continue
        if stretches and start - stretches[-1][1] < _PAUSE_SECONDS:
            stretches[-1][1] = end
        else:
            stretches.append([start, end])
    return np.array(stretches, np.float64).reshape(-1, 2)


def _frames(samples: np.ndarray, width: int) -> np.ndarray:
    """Windows [n, width] about every hundredth of a second."""
    hop = 16_000 // RATE
    padded = np.pad(samples, (width // 2, width))
    count = -(-len(samples) // hop)
    return np.lib.stride_tricks.sliding_window_view(padded, width)[: count * hop : hop]


def _loudness(samples: np.ndarray) -> np.ndarray:
    level = 20 * np.log10(np.sqrt((_frames(samples, 480) ** 2).mean(1)) + 1e-6)
    return ((level - level.max()) / 40 + 1).clip(0, 1)


def _pitch(samples: np.ndarray, low_hz: float = 70.0, high_hz: float = 420.0) -> np.ndarray:
    """Octaves over the median by autocorrelation; unvoiced stretches hold the line between their neighbours."""
    windows = _frames(samples, 640) * np.hanning(640).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(windows, 1280)) ** 2
    spectrum[:, 120:] = 0  # over 1.5 kHz there is nothing of the voice's period
    correlation = np.fft.irfft(spectrum)[:, : int(16_000 / low_hz) + 1]
    least = int(16_000 / high_hz)
    best = correlation[:, least:].argmax(1) + least
    strength = correlation[np.arange(len(best)), best] / (correlation[:, 0] + 1e-6)
    voiced = (strength > 0.35) & (correlation[:, 0] > 0.01 * np.quantile(correlation[:, 0], 0.95))
    if voiced.sum() < 5:
        return np.zeros(len(best))
    octaves = np.log2(16_000 / best)
    octaves -= np.median(octaves[voiced])
    voiced &= np.abs(octaves) < 0.8  # leaps of an octave are mistakes
    line = np.interp(np.arange(len(best)), np.flatnonzero(voiced), octaves[voiced])
    kernel = np.hanning(11)[1:-1]
    return np.convolve(np.pad(line, 4, mode="edge"), kernel / kernel.sum(), "valid")


def _accents(speech: Speech, loudness: np.ndarray, pitch: np.ndarray, phrases: np.ndarray) -> np.ndarray:
    """Vowels that stand out by loudness, pitch and length, [k, 2]: start and strength; 0.2 s apart at least."""
    rows = []
    for phone, start, end in speech.phones:
        part = slice(int(start * RATE), max(int(end * RATE), int(start * RATE) + 1))
        if phone in _VOWELS and len(loudness[part]):
            rows.append((start, loudness[part].max(), pitch[part].max(), min(end - start, 0.25)))
    if not rows:
        return np.zeros((0, 2))
    start, *measures = np.array(rows).T
    score = np.zeros(len(start))
    for measure, weight, least in zip(measures, (0.65, 0.3, 0.25), (0.03, 0.05, 0.02), strict=True):
        score += weight * (measure - measure.mean()) / max(measure.std(), least)
    first = np.array([np.flatnonzero(start >= begin - 1e-6)[:1] for begin, _ in phrases], object)
    for index in first:  # a phrase starts with one
        if len(index):
            score[int(index[0])] += 0.4
    accents: list[tuple[float, float]] = []
    for index in np.argsort(-score):
        near = any(abs(start[index] - other) < 0.2 for other, _ in accents)
        if score[index] > -0.15 and not near:
            accents.append((float(start[index]), float(np.clip(0.55 + 0.5 * score[index], 0.4, 1.8))))
    return np.array(sorted(accents)).reshape(-1, 2)

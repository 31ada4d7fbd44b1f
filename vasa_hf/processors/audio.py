"""Audio to features at the frame rate.

VASA-1 (paper section 3.2) conditions its motion generator on features of a pretrained Wav2Vec2, "synchronised" with the
video. Wav2Vec2 gives one vector per 320 samples (50 Hz at 16 kHz); the project uses 25 frames per second.

    any rate, any channels --VasaAudioProcessor--> 16 kHz mono, 640 samples per frame, [1, 640 N]
    [B, 640 N] --frame_features--> [B, N, hidden]       one vector per frame (or per frame and layer)
    [B, 640 N] --window_features--> [B, W, hidden]      frames of one window, from the samples around it

MoDA uses all layers of a HuBERT whose transformer runs at the frame rate: `layers="all"`, `resample_first=True`,
`padding="reflect"`, `pre_emphasis=0.97`.

# Not in the paper: the alignment and the context of features. Here the encoder gets `context_frames` before each window
# and `lookahead_frames` after it, zeros beyond the ends, so that streaming and offline give the same numbers.
"""

import logging
import math
import os
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import FeatureExtractionMixin

from vasa_hf.checks import check_number, shorten
from vasa_hf.media.audio import CancellationGuard, load_audio

logger = logging.getLogger(__name__)

MIN_SECONDS = 0.2
MIN_RATE, MAX_RATE = 8_000, 96_000
SILENCE_PEAK = 1e-4  # -80 dB of full scale
CLIPPED_SHARE = 0.002  # of the samples, at full scale


class StreamingResampler:
    """Band-limited resampling of a mono signal in chunks: a polyphase sinc with a Kaiser window.

    The concatenated output equals that of the whole signal at once. Output `k` is at time `k / to_rate`; the stop band
    is at -90 dB.

    Args:
        from_rate (`int`): Sampling rate of the input in Hz.
        to_rate (`int`): Sampling rate of the output in Hz.
        zero_crossings (`int`, defaults to 24): Zero crossings of the sinc on each side: the length of the filter.
    """

    def __init__(self, from_rate: int, to_rate: int, zero_crossings: int = 24):
        ratio = Fraction(to_rate, from_rate)
        self.up, self.down = ratio.numerator, ratio.denominator
        cutoff = min(1.0, self.up / self.down) * 0.97  # of the input's Nyquist frequency; the rest is transition
        half = math.ceil(zero_crossings / cutoff)
        # Output k lies at input k * down / up, so the filters of k mod up = 0 .. up - 1 serve every `down` inputs.
        position = np.arange(self.up) * self.down
        start = position // self.up
        offset = np.arange(-half, half + 1)[None] - (position / self.up - start)[:, None]  # [up, taps]
        window = np.i0(9.0 * np.sqrt(np.clip(1 - (offset / (half + 1)) ** 2, 0, 1))) / np.i0(9.0)
        self.kernel = torch.zeros(self.up, 1, 2 * half + 1 + int(start[-1]))
        for phase, taps in enumerate(cutoff * np.sinc(cutoff * offset) * window):
            self.kernel[phase, 0, start[phase] : start[phase] + 2 * half + 1] = torch.from_numpy(taps)
        self.buffer = torch.zeros(half)
        self.half, self.num_in, self.num_out = half, 0, 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Add the next samples `[n]` and return the output that is complete, float32."""
        samples = np.ascontiguousarray(samples, np.float32)
        self.num_in += len(samples)
        if self.up == self.down:
            return samples
        self.buffer = torch.cat([self.buffer, torch.from_numpy(samples)])
        blocks = max(0, (len(self.buffer) - self.kernel.shape[2]) // self.down + 1)
        out = np.zeros(0, np.float32)
        if blocks:
            used = self.buffer[: (blocks - 1) * self.down + self.kernel.shape[2]]
            out = F.conv1d(used[None, None], self.kernel, stride=self.down)[0].T.flatten().numpy()
            self.buffer = self.buffer[blocks * self.down :]
        self.num_out += len(out)
        return out

    def flush(self) -> np.ndarray:
        """End the signal and return the rest of the output, up to the time of its last sample."""
        if self.up == self.down:
            return np.zeros(0, np.float32)
        num_in, before = self.num_in, self.num_out
        rest = self.push(np.zeros(self.kernel.shape[2] + self.down, np.float32))
        return rest[: -(-num_in * self.up // self.down) - before]


def resample(
    samples: np.ndarray,  # [n]
    from_rate: int,
    to_rate: int,
) -> np.ndarray:  # [ceil(n * to_rate / from_rate)]
    """Resample a whole mono signal; see `StreamingResampler`."""
    stream = StreamingResampler(from_rate, to_rate)
    return np.concatenate([stream.push(samples), stream.flush()])


def feature_geometry(config) -> tuple[int, int]:
    """Stride and receptive field of a Wav2Vec2 convolution stack, in samples.

    Args:
        config (`transformers.Wav2Vec2Config`): Configuration of the encoder.

    Returns:
        `tuple[int, int]`: `(stride, receptive_field)`, (320, 400) for every published Wav2Vec2.
    """
    stride, field = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    return stride, field


def pad_by_reflection(
    samples: Tensor,  # [B, n]
    stride: int = 320,
    field: int = 400,
) -> Tensor:  # [B, n + 2 * side]
    """Pad both ends by reflection, so that an encoder gives one vector for every whole `stride`.

    Source: code of JoyVASA and MoDA. They pad in two halves; the second reflects the first.

    Args:
        samples (`torch.Tensor` of shape `(batch, n)`): Mono audio.
        stride (`int`, defaults to 320): Samples between two vectors of the encoder.
        field (`int`, defaults to 400): Receptive field of a vector in samples.
    """
    length = samples.shape[1]
    side = -((length - stride * (length // stride) - (field - stride)) // 2)
    if side <= 0:
        return samples
    for _ in range(2):
        samples = F.pad(samples, (side // 2, side // 2), mode="reflect")
    return F.pad(samples, (side % 2, side % 2), mode="replicate")


def frame_features(
    encoder,
    samples: Tensor,  # [B, 640 N]
    num_frames: int,
    do_normalize: bool = False,
    padding: str = "zeros",
    layers: str = "last",
    resample_first: bool = False,
    pre_emphasis: float = 0.0,
) -> Tensor:  # [B, N, hidden] or [B, N, L, hidden]
    """Encode audio to exactly one feature vector per video frame.

    The edges are padded so that the encoder gives exactly two vectors per frame (more if its stride is shorter); these
    are averaged, unless `resample_first`.

    Args:
        encoder (`transformers.Wav2Vec2Model`): Any size and configuration, on any device and in any dtype.
        samples (`torch.Tensor` of shape `(batch, num_frames * samples_per_frame)`): Mono audio, full scale = 1.
        num_frames (`int`): Number of video frames that the samples span.
        do_normalize (`bool`, defaults to `False`):
            Normalise the samples to zero mean and unit variance first, as the published encoders without a layer norm
            in their convolutions expect. Not for the embedded encoder, which needs the level to detect silence.
        padding (`str`, defaults to `"zeros"`): Samples beyond the ends: `"zeros"`, or `"reflect"` as in JoyVASA.
        layers (`str`, defaults to `"last"`): `"all"` returns the outputs of all layers, as in MoDA.
        resample_first (`bool`, defaults to `False`):
            Resample the features of the convolutions to one per frame, so that the transformer runs at the frame rate.
        pre_emphasis (`float`, defaults to 0.0): Share of the previous sample that is subtracted; 0.97 in MoDA's code.

    Returns:
        `torch.Tensor` of shape `(batch, num_frames, hidden_size)`, or `(batch, num_frames, layers, hidden_size)` for
        all layers, on the encoder's device, in its dtype.

    Raises:
        ValueError: If `samples` is not two-dimensional, or its length is no multiple of `num_frames` and the stride.
    """
    stride, field = feature_geometry(encoder.config)
    if samples.ndim != 2 or num_frames < 1 or samples.shape[1] % (num_frames * stride):
        raise ValueError(
            f"`samples` must have the shape (batch, num_frames * samples_per_frame), samples_per_frame a multiple of"
            f" {stride}; got {tuple(samples.shape)} with `num_frames` {num_frames}."
        )
    if padding not in ("zeros", "reflect"):
        raise ValueError(f"`padding` must be 'zeros' or 'reflect', got {padding!r}.")
    if layers not in ("last", "all"):
        raise ValueError(f"`layers` must be 'last' or 'all', got {layers!r}.")
    whole = layers == "last" and not resample_first
    hook = getattr(encoder, "_hf_hook", None)
    if hook is not None and not whole:  # offloaded: `layer_features` does not call `forward`, which would load it
        hook.pre_forward(encoder)
    # If the encoder is offloaded layer by layer, the hook of each layer moves its input.
    samples = samples.to(samples.device if encoder.device.type == "meta" else encoder.device, torch.float32)
    if pre_emphasis:
        samples = samples - pre_emphasis * F.pad(samples, (1, 0))[:, :-1]
    if do_normalize:
        mean, variance = samples.mean(-1, keepdim=True), samples.var(-1, keepdim=True, unbiased=False)
        samples = (samples - mean) / torch.sqrt(variance + 1e-7)
    if padding == "reflect":
        samples = pad_by_reflection(samples, stride, field)
    else:
        samples = F.pad(samples, ((field - stride) // 2, (field - stride + 1) // 2))
    samples = samples.to(encoder.dtype)
    if whole:
        hidden = encoder(samples).last_hidden_state  # [B, samples / stride, hidden]
    else:
        hidden = layer_features(encoder, samples, num_frames if resample_first else None)
        hidden = hidden if layers == "all" else hidden[:, :, -1]
    return hidden.unflatten(1, (num_frames, -1)).mean(2)


def layer_features(
    encoder,
    samples: Tensor,  # [B, n]
    num_vectors: int | None = None,
) -> Tensor:  # [B, N, L, hidden]
    """Compute the outputs of all layers of an encoder's transformer, optionally at another rate.

    Source: MoDA's code (its paper says "wav2vec").

    Args:
        encoder (`transformers.HubertModel` or `transformers.Wav2Vec2Model`): The encoder, in evaluation mode.
        samples (`torch.Tensor` of shape `(batch, n)`): Padded mono audio.
        num_vectors (`int`, *optional*):
            Length to which the features of the convolutions are interpolated, with aligned ends.

    Returns:
        `torch.Tensor` of shape `(batch, vectors, layers, hidden_size)`.
    """
    features = encoder.feature_extractor(samples)  # [B, C, n']
    if num_vectors is not None:
        features = F.interpolate(features, num_vectors, mode="linear", align_corners=True)
    hidden, transformer = encoder.feature_projection(features.mT), encoder.encoder
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    hidden = hidden + transformer.pos_conv_embed(hidden)
    norm_last = encoder.config.do_stable_layer_norm
    hidden = transformer.dropout(hidden if norm_last else transformer.layer_norm(hidden))
    outputs = []
    for layer in transformer.layers:
        hidden = layer(hidden)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        outputs.append(hidden)
    if norm_last:
        outputs[-1] = transformer.layer_norm(outputs[-1])
    return torch.stack(outputs, dim=2)


def window_samples(
    samples: Tensor,  # [B, n]
    start_frame: int,
    num_frames: int,
    samples_per_frame: int = 640,
) -> Tensor:  # [B, num_frames * samples_per_frame]
    """Cut frames `[start_frame, start_frame + num_frames)` out of the samples, with zeros beyond either end."""
    begin, end = start_frame * samples_per_frame, (start_frame + num_frames) * samples_per_frame
    inside = samples[:, max(begin, 0) : max(end, 0)]
    left = min(max(-begin, 0), end - begin)
    return F.pad(inside, (left, end - begin - left - inside.shape[1]))


def window_features(
    encoder,
    samples: Tensor,  # [B, n]
    start_frame: int,
    num_frames: int,
    context_frames: int = 10,
    lookahead_frames: int = 2,
    do_normalize: bool = False,
    samples_per_frame: int = 640,
    **options,
) -> Tensor:  # [B, num_frames, hidden] or [B, num_frames, L, hidden]
    """Compute the features of one window from its samples and some context.

    The rest of the audio has no influence, and samples beyond its ends are zeros, so a stream that has received
    `start_frame + num_frames + lookahead_frames` frames gets the same numbers as a pass over the whole file.

    Args:
        encoder (`transformers.Wav2Vec2Model`): The audio encoder.
        samples (`torch.Tensor` of shape `(batch, n)`): Mono audio, full scale = 1.
        start_frame (`int`): First frame of the window.
        num_frames (`int`): Length of the window in frames.
        context_frames (`int`, defaults to 10): Frames of context before the window.
        lookahead_frames (`int`, defaults to 2): Frames of context after the window.
        do_normalize (`bool`, defaults to `False`): See `frame_features`; the statistics are those of this window.
        samples_per_frame (`int`, defaults to 640): Samples of one video frame.
        **options: Other arguments of `frame_features`.

    Returns:
        `torch.Tensor` of shape `(batch, num_frames, hidden_size)`, or with all layers, see `frame_features`.
    """
    total = context_frames + num_frames + lookahead_frames
    cut = window_samples(samples, start_frame - context_frames, total, samples_per_frame)
    features = frame_features(encoder, cut, total, do_normalize, **options)
    return features[:, context_frames : context_frames + num_frames]


class AudioCheck:
    """Check audio in chunks: raise for unusable audio, warn about silent or clipped audio.

    Args:
        sampling_rate (`int`): Sampling rate in Hz.

    Raises:
        ValueError: If the rate is outside 8 to 96 kHz.
    """

    def __init__(self, sampling_rate: int):
        if not MIN_RATE <= sampling_rate <= MAX_RATE:
            raise ValueError(f"`sampling_rate` must lie in [{MIN_RATE}, {MAX_RATE}] Hz; got {sampling_rate}.")
        self.sampling_rate = sampling_rate
        self.num_samples = 0  # of each channel
        self.num_values, self.num_bad, self.num_clipped, self.peak = 0, 0, 0, 0.0
        self.mixed_peak = 0.0  # of the mean of all channels, which the encoder gets

    def add(self, samples: np.ndarray) -> None:
        """Add the next samples `(channels, n)`, full scale = 1."""
        level = np.abs(samples)
        finite = np.isfinite(level)
        self.num_samples += samples.shape[1]
        self.num_values += samples.size
        self.num_bad += samples.size - int(np.count_nonzero(finite))
        self.num_clipped += int(np.count_nonzero(level >= 0.999))
        self.peak = max(self.peak, float(level.max(initial=0.0, where=finite)))
        mixed = np.abs(np.where(finite, samples, 0.0).mean(0)) if len(samples) > 1 else level[0]
        self.mixed_peak = max(self.mixed_peak, float(mixed.max(initial=0.0, where=np.isfinite(mixed))))

    def finish(self) -> None:
        """Check all samples.

        Raises:
            ValueError: If a sample is NaN or infinite, or there is less than 0.2 s.
        """
        if self.num_bad:
            raise ValueError(
                f"`audio` must be finite; got {self.num_bad} NaN or infinite samples of {self.num_values}."
            )
        seconds = self.num_samples / self.sampling_rate
        if seconds < MIN_SECONDS:
            raise ValueError(f"`audio` must be at least {MIN_SECONDS} s long; got {seconds:.3f} s.")
        if self.mixed_peak < SILENCE_PEAK:
            text = "`audio` is silent (peak %.1e of all channels mixed): the face moves, but does not speak."
            logger.warning(text, self.mixed_peak)
        clipped = self.num_clipped / self.num_values
        if clipped > CLIPPED_SHARE:
            logger.warning("`audio` is clipped in %.1f %% of its samples: lip sync may be worse.", 100 * clipped)
        if self.peak > 1.0:
            logger.warning("`audio` exceeds full scale (peak %.2f) and is clipped.", self.peak)


class VasaAudioProcessor(FeatureExtractionMixin):
    """Convert any audio to mono at the encoder's rate, padded to whole video frames.

    Args:
        sampling_rate (`int`, defaults to 16000): Rate of the encoder in Hz.
        fps (`int`, defaults to 25): Video frames per second inside the models.
        context_frames (`int`, defaults to 10): Frames of context before each window.
        lookahead_frames (`int`, defaults to 2): Frames of context after each window.
        do_normalize (`bool`, defaults to `False`):
            Normalise each window before encoding: `True` for encoders such as `facebook/wav2vec2-base-960h`.
        padding (`str`, defaults to `"zeros"`): See `frame_features`, also for the next arguments.
        layers (`str`, defaults to `"last"`): `"last"` or `"all"`.
        resample_first (`bool`, defaults to `False`): Whether the transformer runs at the frame rate.
        pre_emphasis (`float`, defaults to 0.0): Share of the previous sample that is subtracted.
    """

    model_input_names = ["input_values"]

    def __init__(
        self,
        sampling_rate: int = 16_000,
        fps: int = 25,
        context_frames: int = 10,
        lookahead_frames: int = 2,
        do_normalize: bool = False,
        padding: str = "zeros",
        layers: str = "last",
        resample_first: bool = False,
        pre_emphasis: float = 0.0,
        **kwargs,
    ):
        check_number("sampling_rate", sampling_rate, MIN_RATE, MAX_RATE, whole=True)
        check_number("fps", fps, 1, 1000, whole=True)
        check_number("context_frames", context_frames, 0, 10_000, whole=True)
        check_number("lookahead_frames", lookahead_frames, 0, 10_000, whole=True)
        check_number("pre_emphasis", pre_emphasis, 0.0, 1.0)
        if padding not in ("zeros", "reflect"):
            raise ValueError(f"`padding` must be 'zeros' or 'reflect', got {shorten(padding)}.")
        if layers not in ("last", "all"):
            raise ValueError(f"`layers` must be 'last' or 'all', got {shorten(layers)}.")
        if sampling_rate % fps:
            raise ValueError(f"`sampling_rate` must be a multiple of `fps`; got {sampling_rate} and {fps}.")
        super().__init__(**kwargs)
        self.sampling_rate = sampling_rate
        self.fps = fps
        self.context_frames = context_frames
        self.lookahead_frames = lookahead_frames
        self.do_normalize = do_normalize
        self.padding, self.layers = padding, layers
        self.resample_first, self.pre_emphasis = resample_first, pre_emphasis

    @property
    def samples_per_frame(self) -> int:
        """Samples of one video frame."""
        return self.sampling_rate // self.fps

    def load(self, audio, sampling_rate: int | None = None) -> np.ndarray:  # [n]
        """Read, check, mix to mono and resample.

        Args:
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor`, `list[float]` or `tuple`):
                A file that ffmpeg can read, samples `(n,)` or `(channels, n)`, or `(samples, rate)` / `(rate,
                samples)`.
            sampling_rate (`int`, *optional*):
                Rate in Hz of samples without a rate, defaults to the processor's.

        Returns:
            `np.ndarray` of shape `(n,)`, float32 in [-1, 1], at the processor's rate.

        Raises:
            ValueError: If the audio is empty, too short, not finite, or its rate is outside 8 to 96 kHz.
        """
        bare = not isinstance(audio, (str, os.PathLike, tuple))
        samples, rate = load_audio(audio, self.sampling_rate if bare and sampling_rate is None else sampling_rate)
        samples = CancellationGuard("`audio`").apply(samples)
        check = AudioCheck(rate)
        check.add(samples)
        check.finish()
        return resample(samples.clip(-1.0, 1.0).mean(0), rate, self.sampling_rate).clip(-1.0, 1.0)

    def __call__(self, audio, sampling_rate: int | None = None) -> dict:
        """Prepare audio for the encoder.

        Args:
            audio: See `load`.
            sampling_rate (`int`, *optional*): See `load`.

        Returns:
            `dict` with `input_values` (`torch.Tensor` of shape `(1, num_frames * samples_per_frame)`, float32, the last
            frame padded with zeros) and `num_frames` (`int`).
        """
        samples = self.load(audio, sampling_rate)
        num_frames = max(1, -(-len(samples) // self.samples_per_frame))
        samples = np.pad(samples, (0, num_frames * self.samples_per_frame - len(samples)))
        return {"input_values": torch.from_numpy(samples)[None], "num_frames": num_frames}

    def window_features(self, encoder, samples: Tensor, start_frame: int, num_frames: int) -> Tensor:
        """Call `window_features` with this processor's settings."""
        return window_features(
            encoder,
            samples,
            start_frame,
            num_frames,
            self.context_frames,
            self.lookahead_frames,
            self.do_normalize,
            self.samples_per_frame,
            padding=self.padding,
            layers=self.layers,
            resample_first=self.resample_first,
            pre_emphasis=self.pre_emphasis,
        )

"""Scores of single videos: the inputs of each metric, and its value or the reason why there is none."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.evaluation.catalogue import METRICS, NOT_DEFINED
from vasa_hf.geometry.landmarks import rows
from vasa_hf.metrics import image, motion, regions
from vasa_hf.metrics.capp import capp_score
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.metrics.frechet import FVD_FRAMES, frechet_distance, video_features
from vasa_hf.metrics.sync import SyncScore, expert_sync, syncnet_crops, syncnet_score

# Rows of the lower lip (outer and inner) and the chin; of the outer eye corners.
LOWER_FACE = rows(17, 84, 314, 181, 405, 91, 321, 14, 87, 317, 178, 402, 88, 318, 152, 148, 377, 176, 400)
EYE_CORNERS = rows(33, 263)
# Networks measure every fifth frame: neighbours are nearly equal.
NETWORK_STRIDE = 5

ABSENT = {
    "lpips": "needs the public LPIPS weights: --lpips FOLDER (`vasa-hf convert lpips` makes it)",
    "fid": "needs Inception: --fid-network FILE (TorchScript, inception-2015-12-05.pt)",
    "fvd": "needs I3D: --fvd-network FILE (TorchScript, i3d_torchscript.pt)",
    "syncnet": "needs SyncNet: --syncnet FOLDER (`vasa-hf convert syncnet` makes it)",
    "sync_expert": "no sync_expert among the model's folders and no --sync-expert FOLDER",
    "capp": "no capp among the model's folders and no --capp FOLDER",
    "face_recognizer": "no face_recognizer among the model's folders and no --recognizer NAME",
    "nobody": "the paper's network is not published",
}


@dataclass
class VideoSample:
    """One video to score, and its references. Metrics of a field that is `None` have no value.

    Attributes:
        frames (`torch.Tensor` of shape `(frames, 3, size, size)`): RGB in [0, 1].
        track (`FaceTrack`): The face in them.
        truth (`torch.Tensor` of the same shape): The true frames.
        truth_track (`FaceTrack`): The face in the true (or driving) frames, by the same detector.
        driving (`torch.Tensor` of the same shape): The real frames of `truth_track` if these are not `truth`.
        labels (`FaceTrack`): Labels of the true frames in the data.
        source (`torch.Tensor` of shape `(1, 3, size, size)`): The portrait.
        samples (`torch.Tensor` of shape `(n,)`): The audio, mono at 16 kHz.
        audio_features (`torch.Tensor` of shape `(frames, dim)`): Features of the audio encoder.
        other_samples (`torch.Tensor` of shape `(n,)`): Audio of another person.
        other_features (`torch.Tensor` of shape `(frames, dim)`): Its features.
        latent (`torch.Tensor` of shape `(frames, channels)`): The rendered or encoded motion.
        wanted_gaze (`torch.Tensor` of shape `(2,)` or `(frames, 2)`): Radians.
        wanted_scale (`torch.Tensor` of shape `(frames,)` or `float`): Size of the head, fraction of the frame.
        lacks (`dict`): Name of a missing field -> reason.
    """

    frames: Tensor | None = None
    track: FaceTrack | None = None
    truth: Tensor | None = None
    truth_track: FaceTrack | None = None
    driving: Tensor | None = None
    labels: FaceTrack | None = None
    source: Tensor | None = None
    samples: Tensor | None = None
    audio_features: Tensor | None = None
    other_samples: Tensor | None = None
    other_features: Tensor | None = None
    latent: Tensor | None = None
    wanted_gaze: Tensor | None = None
    wanted_scale: Tensor | float | None = None
    lacks: dict[str, str] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """Return a field.

        Raises:
            ValueError: If it is missing, with the reason.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(self.lacks.get(name) or f"{NOT_DEFINED}: no {name.replace('_', ' ')}")
        return value


class Scorer:
    """Scores videos and keeps the rows.

    Args:
        networks (`dict`): Networks of metrics, by the names in `ABSENT`.
        metrics (`set[str]`, *optional*): Only these metrics.
    """

    def __init__(self, networks: dict[str, Any], metrics: set[str] | None = None):
        self.networks, self.metrics = networks, metrics
        self.rows: list[dict[str, Any]] = []
        self.features: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        # Several metrics and systems measure the same frames. `forget` frees them.
        self.embeds: Any = lru_cache(None)(self._embeds)
        self.maps: Any = lru_cache(None)(self._maps)
        self.region_maps: Any = lru_cache(None)(self._region_maps)
        self.measure: Any = lru_cache(None)(lambda function, frames, track: function(frames, track))

    def wants(self, *names: str) -> bool:
        """Whether one of these metrics is requested."""
        return self.metrics is None or bool(self.metrics & set(names))

    def record(self, role: str, system: str, item: str, sample: int | str, values: dict[str, Any]) -> None:
        """Add rows with values, or with the reasons why there are none, of one video (item "*": of all)."""
        for name, value in values.items():
            number = isinstance(value, float | int) and math.isfinite(value)
            if not number and not isinstance(value, str):
                value = f"not finite: {value}"
            row = {"role": role, "system": system, "item": item, "sample": sample, "metric": name}
            self.rows.append({**row, "value": float(value) if number else "", "why": "" if number else value})

    @torch.no_grad()
    def score(self, names: tuple[str, ...], video: VideoSample) -> dict[str, float | str]:
        """Return the values of one video, or reasons.

        Args:
            names (`tuple[str, ...]`): Metrics; those that are not of single videos are skipped.
            video (`VideoSample`): The video.
        """
        values: dict[str, float | str] = {}
        for name in names:
            if name not in SCORES or not self.wants(name):
                continue
            needed = METRICS[name].needs
            if needed is not None and self.networks.get(needed) is None:
                continue  # `absent` gives the reason once
            try:
                values[name] = SCORES[name](self, video)
            except ValueError as error:
                values[name] = " ".join(str(error).split())
        return values

    def absent(self, names: tuple[str, ...]) -> dict[str, str]:
        """Return the reasons of metrics whose network is missing."""
        wanted = {name: METRICS[name].needs for name in names if self.wants(name)}
        return {name: ABSENT[need] for name, need in wanted.items() if need and self.networks.get(need) is None}

    @torch.no_grad()
    def _embeds(self, frames: Tensor) -> Tensor:
        """Compute identity embeddings of every fifth frame, `(n, dim)`."""
        still = frames.stride(0) == 0  # one image, expanded
        embeds = self.networks["face_recognizer"]((frames[:1] if still else frames[::NETWORK_STRIDE]) * 2 - 1)
        return embeds.float().cpu().expand(-(-len(frames) // NETWORK_STRIDE), -1)

    @torch.no_grad()
    def _maps(self, frames: Tensor) -> list[Tensor]:
        """Compute feature maps of every fifth frame; of one frame if all are one expanded image."""
        some = frames[:1] if frames.stride(0) == 0 else frames[::NETWORK_STRIDE]
        return self.networks["face_recognizer"].feature_maps(some * 2 - 1)

    @torch.no_grad()
    def _region_maps(self, cut: Callable[[Tensor, Tensor], Tensor], frames: Tensor, track: FaceTrack) -> list[Tensor]:
        """Compute feature maps of a region in every fifth frame with a face."""
        found = track.found[::NETWORK_STRIDE]
        crops = cut(frames[::NETWORK_STRIDE][found], track.landmarks[::NETWORK_STRIDE][found])
        return self.networks["face_recognizer"].feature_maps(crops * 2 - 1)

    def forget(self) -> None:
        """Free the frames that were measured."""
        self.embeds.cache_clear()
        self.maps.cache_clear()
        self.region_maps.cache_clear()
        self.measure.cache_clear()

    @torch.no_grad()
    def collect(self, system: str, frames: Tensor | None) -> None:
        """Keep features of a video for the metrics of sets.

        Args:
            system (`str`): The system that generated them.
            frames (`torch.Tensor` of shape `(frames, 3, size, size)`): RGB in [0, 1].
        """
        kept = self.features[system]
        if frames is None:
            return
        if self.networks.get("fid") is not None and self.wants("fid"):
            kept["fid"].append(self.networks["fid"](frames[::NETWORK_STRIDE] * 2 - 1).float().cpu())
        if self.networks.get("face_recognizer") is not None and self.wants("fid_recognizer"):
            kept["fid_recognizer"].append(self.embeds(frames))
        if self.networks.get("fvd") is not None and self.wants("fvd") and len(frames) >= FVD_FRAMES:
            kept["fvd"].append(video_features(self.networks["fvd"], frames))

    def score_sets(self, names: tuple[str, ...], roles: dict[str, str], truth: str) -> None:
        """Record Fréchet distances of every system's features from those of `truth`."""
        for system, role in roles.items():
            values: dict[str, float | str] = {}
            for name in set(names) & {"fid", "fid_recognizer", "fvd"}:
                if system == truth or not self.wants(name) or self.networks.get(METRICS[name].needs or "") is None:
                    continue
                mine, real = (self.features[key].get(name, []) for key in (system, truth))
                try:
                    if not mine or not real:
                        raise ValueError(f"{NOT_DEFINED}: no frames, or all clips shorter than a window.")
                    values[name] = frechet_distance(torch.cat(mine), torch.cat(real))
                except ValueError as error:
                    values[name] = str(error)
            self.record(role, system, "*", "*", values)


def _true_track(video: VideoSample) -> FaceTrack:
    """Return the labels if there are any, else the track of the true frames."""
    return video.labels if video.labels is not None else video.get("truth_track")


def _face_mask(video: VideoSample) -> Tensor:
    return image.box_mask(_true_track(video).boxes, video.get("frames").shape[-1])


def _mean(values: Tensor) -> float:
    return float(values[torch.isfinite(values)].mean()) if torch.isfinite(values).any() else math.inf


def _some(video: VideoSample, *names: str) -> list[Tensor]:
    return [video.get(name)[::NETWORK_STRIDE] for name in names]


def _sync(scorer: Scorer, video: VideoSample, kind: str) -> SyncScore:
    if kind not in video.kept:
        samples = video.get("samples")
        if kind == "sync_expert":
            video.kept[kind] = expert_sync(scorer.networks[kind], video.get("latent"), samples)
        else:
            frames = (video.get("frames") * 255).round().byte().permute(0, 2, 3, 1).numpy()
            boxes = video.get("track").boxes.numpy() * frames.shape[1]
            video.kept[kind] = syncnet_score(scorer.networks[kind], syncnet_crops(frames, boxes), samples)
    return video.kept[kind]


def _capp(scorer: Scorer, video: VideoSample, name: str) -> float:
    pose, features = video.get("track").pose, video.get(name)
    frames = min(len(pose), len(features))
    return capp_score(scorer.networks["capp"], pose[:frames], features[:frames])


def _wrong_sync(scorer: Scorer, video: VideoSample) -> float:
    latent, samples = video.get("latent"), video.get("other_samples")
    return expert_sync(scorer.networks["sync_expert"], latent, samples).aligned_confidence


def _gaze(scorer: Scorer, video: VideoSample) -> float:
    wanted = video.wanted_gaze if video.wanted_gaze is not None else video.get("truth_track").gaze
    return motion.gaze_error(video.get("track"), wanted)


def _distance(scorer: Scorer, video: VideoSample) -> float:
    wanted = video.wanted_scale if video.wanted_scale is not None else video.get("truth_track").scale
    return motion.distance_error(video.get("track"), wanted)


def _if_defined(measure: Callable[..., float], *given: Any) -> float:
    """Call a measure of frames that a video may lack, such as those with an open mouth."""
    try:
        return measure(*given)
    except ValueError as error:
        raise ValueError(f"{NOT_DEFINED}: {error}") from error


def _ratio(generated: float, real: float) -> float:
    if real == 0:
        raise ValueError(f"{NOT_DEFINED}: it is 0 in the real frames")
    return generated / real


def _sharpness(scorer: Scorer, video: VideoSample, function: Callable[[Tensor, FaceTrack], float]) -> float:
    videos, track = (video.get("frames"), video.get("truth")), _true_track(video)
    return _ratio(*(_if_defined(scorer.measure, function, video, track) for video in videos))


def _region_distance(scorer: Scorer, video: VideoSample, cut: Callable[[Tensor, Tensor], Tensor]) -> float:
    videos, track = (video.get("frames"), video.get("truth")), _true_track(video)
    return _mean(image.feature_distance(*(scorer.region_maps(cut, video, track) for video in videos)))


def _flicker(scorer: Scorer, video: VideoSample) -> float:
    """Measure each video with its own track of the same detector."""
    made, track = video.get("frames"), video.get("track")
    real = video.truth if video.truth is not None else video.get("driving")
    pairs = ((made, track), (real, video.get("truth_track")))
    return _ratio(*(_if_defined(scorer.measure, regions.mouth_flicker, *pair) for pair in pairs))


def _teeth(scorer: Scorer, video: VideoSample) -> float:
    """Lips should be closed when the true or driving ones are; with audio alone, when the detector says so."""
    frames = video.get("frames")
    if video.truth is not None:
        return _if_defined(regions.teeth_on_shut_lips, frames, _true_track(video))
    wanted = video.truth_track if video.samples is None else None
    return _if_defined(regions.teeth_on_shut_lips, frames, video.get("track"), wanted)


SCORES: dict[str, Callable[[Scorer, VideoSample], float]] = {
    "psnr": lambda s, c: _mean(image.psnr(c.get("frames"), c.get("truth"))),
    "psnr_face": lambda s, c: _mean(image.psnr(c.get("frames"), c.get("truth"), _face_mask(c))),
    "ssim": lambda s, c: _mean(image.ssim(c.get("frames"), c.get("truth"))),
    "l1": lambda s, c: _mean(image.l1(c.get("frames"), c.get("truth"))),
    "lpips": lambda s, c: _mean(s.networks["lpips"](*_some(c, "frames", "truth"))),
    "perceptual": lambda s, c: _mean(image.feature_distance(s.maps(c.get("frames")), s.maps(c.get("truth")))),
    "mouth_sharpness": lambda s, c: _sharpness(s, c, regions.mouth_sharpness),
    "eye_sharpness": lambda s, c: _sharpness(s, c, regions.eye_sharpness),
    "mouth_distance": lambda s, c: _region_distance(s, c, regions.cut_mouth),
    "eye_distance": lambda s, c: _region_distance(s, c, regions.cut_eyes),
    "mouth_flicker": _flicker,
    "teeth_when_shut": _teeth,
    "identity": lambda s, c: _mean(F.cosine_similarity(s.embeds(c.get("frames")), s.embeds(c.get("source")))),
    "identity_transfer": lambda s, c: SCORES["identity"](s, c),
    "akd": lambda s, c: motion.keypoint_distance(c.get("track"), c.get("truth_track")),
    "akd_labels": lambda s, c: motion.keypoint_distance(c.get("track"), c.get("labels")),
    "pose_error": lambda s, c: motion.pose_error(c.get("track"), c.get("truth_track")),
    "lip_correlation": lambda s, c: motion.lip_correlation(c.get("track"), _true_track(c)),
    "gaze_error": _gaze,
    "distance_error": _distance,
    "msi": lambda s, c: motion.motion_stability(c.get("track")),
    "smoothness": lambda s, c: motion.smoothness(c.get("frames")),
    "delta_pose": lambda s, c: motion.pose_variation(c.get("track")),
    "blink_rate": lambda s, c: motion.blink_rate(c.get("track")),
    "lip_gap": lambda s, c: motion.mean_lip_gap(c.get("track")),
    "closed_in_silence": lambda s, c: _if_defined(motion.closed_in_silence, c.get("track"), c.get("samples")),
    "found": lambda s, c: float(c.get("track").found.float().mean()),
    "sync_c": lambda s, c: _sync(s, c, "syncnet").confidence,
    "sync_d": lambda s, c: _sync(s, c, "syncnet").distance,
    "expert_c": lambda s, c: _sync(s, c, "sync_expert").aligned_confidence,
    "expert_d": lambda s, c: _sync(s, c, "sync_expert").aligned_distance,
    "expert_offset": lambda s, c: float(abs(_sync(s, c, "sync_expert").offset_frames)),
    "expert_c_shuffled": _wrong_sync,
    "capp": lambda s, c: _capp(s, c, "audio_features"),
    "capp_shuffled": lambda s, c: _capp(s, c, "other_features"),
}


def track_of_motion(latent: Tensor) -> FaceTrack:
    """Return the head pose of motion vectors as a track without landmarks."""
    pose = torch.cat([latent[:, :5], torch.zeros(len(latent), 1), latent[:, 5:6]], 1)
    return FaceTrack.of(torch.full((len(latent), 162, 2), torch.nan), pose)


def loudness_track(source: FaceTrack, samples: Tensor, num_frames: int, most: float = 0.15) -> FaceTrack:
    """Make a still face whose lower lip and jaw fall with the loudness of each frame.

    Args:
        source (`FaceTrack`): Track of one frame.
        samples (`torch.Tensor` of shape `(n,)`): Mono at 16 kHz.
        num_frames (`int`): Frames to make.
        most (`float`): Lip gap at the loudest frame, relative to the distance of the outer eye corners.
    """
    level = motion.loudness(samples, num_frames)
    gap = most * (level / level.max().clamp_min(1e-6)).sqrt()
    gap = F.avg_pool1d(gap[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    landmarks = source.landmarks.expand(num_frames, -1, -1).clone()
    eyes = source.landmarks[:, EYE_CORNERS[0]] - source.landmarks[:, EYE_CORNERS[1]]
    fall = (gap - source.lip_gap) * eyes.norm(dim=-1)
    landmarks[:, LOWER_FACE, 1] += fall[:, None]
    return FaceTrack.of(landmarks, source.pose.expand(num_frames, -1))


def fit_lip_motion(latents: list[Tensor], gaps: list[Tensor]) -> Tensor:
    """Fit the change of a motion vector when the mouth opens by one outer eye distance, `(channels,)`: least squares.

    Args:
        latents (`list` of `torch.Tensor` of shape `(frames, channels)`): Motion of real clips.
        gaps (`list` of `torch.Tensor` of shape `(frames,)`): Their lip gaps.
    """
    x = torch.cat([gap - gap.mean() for gap in gaps])
    y = torch.cat([latent - latent.mean(0) for latent in latents])
    return (x[:, None] * y).sum(0) / x.square().sum().clamp_min(1e-9)


def other_motion(values: Tensor, num_frames: int) -> Tensor:
    """Take `num_frames` of another clip; a shorter one runs forward and backward."""
    if len(values) >= num_frames:
        return values[:num_frames]
    there_and_back = torch.cat([values, values.flip(0)[1:-1]]) if len(values) > 2 else values
    return there_and_back.repeat(-(-num_frames // len(there_and_back)), *[1] * (values.ndim - 1))[:num_frames]

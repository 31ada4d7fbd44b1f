"""One video in, clips with labels out: the step that `prepare_job` repeats over a folder, here or with Ray.

```
video -> follow_faces (25 frames/s) -> frame_reasons -> pieces -> sync of lips and audio -> clips
      -> a static square a clip: 2.0 x its median landmark box, raised by 5 %, edges replicated -> mp4, wav, npz, json
```

Labels have the units and layout of `FaceLabels`. In addition: `gaze` (F, 2) radians, `head_distance` (F,) over that of
the clip's median frame, `expression` (F, 6) in the order of `geometry.landmarks.EXPRESSIONS`, `speech` (F,) bool,
`presence` (F,).

# Not in the papers: VASA-1 takes emotions from a network that we have not; `expression` holds geometric proxies from
lips, lids and brows, of use as differences within a person. GAIA §A.2 denoises and levels the voice; here it stays as
it was unless `voice` says otherwise (`voice.py`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.data.face_pairs import motion_of
from vasa_hf.data.filters import FPS, Filters, clip_square, cut_into_pieces, frame_reasons, speaking
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics
from vasa_hf.data.shards import SAMPLING_RATE, add_file, encode, write_bytes
from vasa_hf.data.tracks import FaceFrames, cut_square, follow_faces
from vasa_hf.data.voice import VOICES, prepare_voice
from vasa_hf.files import temporary_folder
from vasa_hf.geometry.crops import transform_points
from vasa_hf.geometry.landmarks import (
    EXPRESSIONS,
    LANDMARK_IDS,
    expression_scores,
    eye_openness,
    gaze_angles,
    iris_offset,
    mouth_openness,
    transform_pose,
)
from vasa_hf.hub import resolve
from vasa_hf.media.audio import audio_blocks
from vasa_hf.media.ffmpeg import READ_OPTIONS, ffmpeg_path, input_url
from vasa_hf.media.video import VideoReader, VideoWriter
from vasa_hf.metrics.sync import SyncScore, expert_sync
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.face_analyzer_mediapipe import MediaPipeFaceAnalyzer
from vasa_hf.models.sync_expert import SyncExpert
from vasa_hf.processors.audio import StreamingResampler

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # what ffmpeg reads, by habit
)


@dataclass(frozen=True)
class PrepareSettings:
    """How videos are prepared; part of the manifest.

    Attributes:
        filters (`Filters`): What is kept.
        size (`int`): Side of the clips in pixels.
        crop_scale (`float`): Side of the square over the larger side of the landmark box. Videos that are close crops
            themselves (VoxCeleb2) want about 1.6, or the square reaches far beyond them.
        crf (`int`): Quality of H.264, 0 to 51.
        model (`str`): Embedded name or folder with `face_analyzer`, `sync_expert` and `landmark_dynamics.safetensors`.
        mediapipe (`str`, *optional*): MediaPipe's `face_landmarker.task`, to find faces with it instead.
        identity (`str`): `folder`: a video's first folder names the person; `video`: each video is a person.
        voice (`str`): What is done to the audio of a clip: `keep`, `level` or `clean`, see `prepare_voice`.
    """

    filters: Filters = field(default_factory=Filters)
    size: int = 256
    crop_scale: float = 2.0
    crf: int = 18
    model: str = "vasa-small"
    mediapipe: str | None = None
    identity: str = "folder"
    voice: str = "keep"

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 2048 or self.size % 2:
            raise ValueError(f"`size` must be an even number of pixels in [32, 2048], got {self.size}.")
        if not 1.0 <= self.crop_scale <= 4.0:
            raise ValueError(f"`crop_scale` must lie in [1, 4], got {self.crop_scale}.")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"`crf` must lie in [0, 51], got {self.crf}.")
        if self.identity not in ("folder", "video"):
            raise ValueError(f"`identity` must be folder or video, got {self.identity!r}.")
        if self.voice not in VOICES:
            raise ValueError(f"`voice` must be one of {list(VOICES)}, got {self.voice!r}.")

    def asdict(self) -> dict[str, Any]:
        """All values as JSON has them."""
        return asdict(self)


@dataclass(frozen=True)
class Source:
    """A video of the folder.

    Attributes:
        path (`str`): Where it is.
        name (`str`): Its path within the folder, with `/`.
        key (`str`): What its clips' names begin with; unique.
        identity (`str`): Who is in it, as far as the folders tell.
    """

    path: str
    name: str
    key: str
    identity: str


def find_videos(folder: str | os.PathLike, identity: str = "folder", skip: Path | None = None) -> list[Source]:
    """All videos below a folder, in the order of their keys.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        identity (`str`, defaults to `"folder"`): See `PrepareSettings`.
        skip (`Path`, *optional*): A folder below it that is left out, such as that of the shards.

    Raises:
        ValueError: If there is no such folder, or no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`videos` must be an existing folder, got {str(folder)!r}.")
    found, skip = {}, skip.resolve() if skip else None
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and Path(place, f).resolve() != skip)
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                relative = path.relative_to(folder)
                plain = re.sub(r"[^A-Za-z0-9_\-]+", "_", relative.with_suffix("").as_posix())
                person = relative.parts[0] if identity == "folder" and len(relative.parts) > 1 else plain
                found[relative.as_posix()] = (str(path), plain, person)
    if not found:
        raise ValueError(f"`videos` must hold videos ({' '.join(sorted(VIDEO_SUFFIXES))}), got {str(folder)!r}.")
    plains = [plain.lower() for _, plain, _ in found.values()]
    sources = []
    for name, (path, plain, person) in found.items():
        if len(plain) > 64 or plains.count(plain.lower()) > 1:  # a.mp4 next to a.mov
            plain = f"{plain[:54]}_{sha256(name.encode()).hexdigest()[:8]}"
        sources.append(Source(path, name, plain, person))
    return sorted(sources, key=lambda source: source.key)


class VideoPreparer:
    """Prepares one video after another; holds the networks.

    Args:
        settings (`PrepareSettings`): How.

    Raises:
        ValueError: If the model's folder or the task file is not there.
    """

    def __init__(self, settings: PrepareSettings):
        self.settings = settings
        folder = Path(resolve(settings.model))
        if not (folder / "face_analyzer").is_dir():
            raise ValueError(f"`model` must be a folder with face_analyzer, got {settings.model!r}.")
        self.analyzer: Any = FaceAnalyzer.from_pretrained(folder, subfolder="face_analyzer").float().eval()
        self.canonical = self.analyzer.canonical.float()
        if settings.mediapipe is not None:
            self.analyzer = MediaPipeFaceAnalyzer(settings.mediapipe, self.canonical)
        self.expert = None
        if settings.filters.min_sync > 0:
            self.expert = SyncExpert.from_pretrained(folder, subfolder="sync_expert").float().eval()
            self.dynamics = LandmarkDynamics.load(folder / "landmark_dynamics.safetensors")

    def __call__(self, source: Source, clips: Path) -> dict[str, Any]:
        """Prepare a video.

        Args:
            source (`Source`): The video.
            clips (`Path`): Tar file for its clips; written whole, and only if there are any.

        Returns:
            `dict`: What became of it: `key`, `name`, `identity`, `bytes`, `frames`, `error` (`None` if it could be
            read) and `pieces`, which together are the whole video: `start` and `stop` in frames, and either `reason` or
            `key` of a clip.
        """
        report = {"key": source.key, "name": source.name, "identity": source.identity, "frames": 0, "pieces": []}
        report |= {"bytes": os.path.getsize(source.path), "error": None}
        try:
            video = _Video(self, source)
        except (ValueError, RuntimeError) as error:  # corrupt; or too odd for a network
            return report | {"error": plain_message(error, source)}
        report |= {"frames": len(video.faces), "pieces": video.pieces}
        kept = [piece for piece in video.pieces if piece["reason"] is None]
        if kept:
            partial = clips.with_name(f".{clips.name}.{os.getpid()}.partial")
            try:
                with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                    for piece, files in video.cut(kept):
                        for extension, content in files.items():
                            add_file(tar, f"{piece['key']}.{extension}", content)
                os.replace(partial, clips)
            finally:
                partial.unlink(missing_ok=True)
        return report


def plain_message(error: Exception, source: Source) -> str:
    """An error in one line without paths and addresses: the same video gives the same message everywhere."""
    text = re.sub(r" @ 0x[0-9a-f]+", "", str(error).replace(source.path, source.name))
    return " ".join(text.split())


class _Video:
    """One video while it is prepared."""

    def __init__(self, preparer: VideoPreparer, source: Source):
        self.preparer, self.settings, self.source = preparer, preparer.settings, source
        filters = self.settings.filters
        self.reader = VideoReader(source.path, FPS)
        self.faces = follow_faces(preparer.analyzer, self.reader)
        if self.reader.damage:  # smeared images look like faces, too
            raise ValueError(f"`path` must be a whole video, but {source.path!r} is damaged: {self.reader.damage}")
        self.samples = load_voice(source.path, len(self.faces)) if self.reader.has_audio else None
        self.speech = speaking(self.samples, len(self.faces))
        self.bits = bits_a_pixel(source.path, len(self.faces), self.reader.size)
        codes = frame_reasons(self.faces, self.speech, self.reader.size, self.bits, filters)
        self.pieces = []
        for piece in cut_into_pieces(self.faces, codes, filters, self.settings.crop_scale):
            entry: dict[str, Any] = {"start": piece.first, "stop": piece.stop, "reason": piece.reason}
            if piece.reason is None:
                entry["key"] = f"{source.key}_{piece.first:06d}"
                if preparer.expert is not None:
                    entry |= self._judge_sync(piece.first, piece.stop)
            self.pieces.append(entry)

    def _judge_sync(self, first: int, stop: int) -> dict[str, Any]:
        """Confidence of the sync expert in a clip at the best shift that is allowed, and whether it is too little."""
        filters = self.settings.filters
        labels = self.labels(first, stop)
        motion = motion_of(labels, self.preparer.dynamics.encode(labels, people=labels.names))
        try:
            score = expert_sync(self.preparer.expert, motion, self.audio(first, stop))
        except ValueError:  # silent
            return {"sync": 0.0, "reason": "lips and audio differ"}
        confidence = best_confidence(score, filters.max_offset)
        found = {"sync": round(confidence, 3), "offset_frames": score.offset_frames}
        return found | ({"reason": "lips and audio differ"} if confidence < filters.min_sync else {})

    def audio(self, first: int, stop: int) -> Tensor:
        """Samples of the frames `[first, stop)`."""
        return self.samples[first * SAMPLING_RATE // FPS : stop * SAMPLING_RATE // FPS]

    def labels(self, first: int, stop: int) -> FaceLabels:
        """Labels of the frames `[first, stop)` in their own square."""
        faces = self.faces[first:stop]
        crop_from_image = torch.linalg.inv(clip_square(faces, self.settings.crop_scale))
        points = transform_points(crop_from_image, faces.landmarks)
        canonical = torch.zeros(478, 3)  # of the mesh only the landmarks are known
        canonical[list(LANDMARK_IDS)] = self.preparer.canonical
        return FaceLabels(
            landmarks=points,
            pose=transform_pose(faces.pose, crop_from_image),
            iris_offset=iris_offset(points),
            eye_open=eye_openness(points),
            mouth=mouth_openness(points),
            offsets=np.array([0, len(points)]),
            names=[f"{self.source.key}_{first:06d}"],
            ids=np.array(LANDMARK_IDS),
            canonical=canonical,
        )

    def cut(self, kept: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
        """Read the video again and make each clip's files."""
        frames, number = iter(self.reader), 0
        for piece in kept:
            for _ in range(piece["start"] - number):
                next(frames)
            square = clip_square(self.faces[piece["start"] : piece["stop"]], self.settings.crop_scale)
            with temporary_folder() as folder:
                size, path = self.settings.size, Path(folder) / "clip.mp4"
                with VideoWriter(path, FPS, (size, size), provenance=False, crf=self.settings.crf) as writer:
                    for _ in range(piece["start"], piece["stop"]):
                        crop = cut_square(next(frames), square, size)
                        writer.write((crop * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
                files = self._files(piece, square) | {"mp4": path.read_bytes()}
            number = piece["stop"]
            yield piece, {extension: files[extension] for extension in sorted(files)}
        frames.close()

    def _files(self, piece: dict[str, Any], square: Tensor) -> dict[str, bytes]:
        first, stop = piece["start"], piece["stop"]
        labels, faces, speech = self.labels(first, stop), self.faces[first:stop], self.speech[first:stop]
        files = {"npz": encode("npz", label_arrays(labels, faces, speech, self.preparer.canonical))}
        if self.samples is not None:
            voice = prepare_voice(self.audio(first, stop), self.settings.voice)
            files["wav"] = encode("wav", voice.numpy())
        about = {
            "key": piece["key"],
            "identity": self.source.identity,
            "source": self.source.name,
            "source_size": list(self.reader.size),
            "start_seconds": first / FPS,
            "frames": stop - first,
            "fps": FPS,
            "size": self.settings.size,
            "image_from_crop": [[round(value, 3) for value in row] for row in square[:2].tolist()],
            "face_pixels": round(float(faces.side.median()), 1),
            "sharpness": round(float(faces.sharpness.nanmedian()), 4),
            "bits_a_pixel": round(self.bits, 4),
            "speech_share": round(float(speech.float().mean()), 3),
            "expressions": list(EXPRESSIONS),
            **{name: piece[name] for name in ("sync", "offset_frames") if name in piece},
        }
        return files | {"json": encode("json", about)}


def label_arrays(labels: FaceLabels, faces: FaceFrames, speech: Tensor, canonical: Tensor) -> dict[str, np.ndarray]:
    """Arrays of a clip's `npz`; `FaceLabels.load` reads them.

    Args:
        labels (`FaceLabels`): Of the clip.
        faces (`FaceFrames`): Its frames.
        speech (`torch.Tensor` of shape `(frames,)`): Where there is speech, bool.
        canonical (`torch.Tensor` of shape `(162, 3)`): Mean face.
    """
    scores = expression_scores(labels.landmarks, labels.pose, canonical)
    scale = labels.pose[:, 6]
    half = lambda values: values.numpy().astype(np.float16)  # noqa: E731
    return {
        "names": np.array(labels.names),
        "offsets": labels.offsets.astype(np.int32),
        "landmarks": (labels.landmarks * 8192 + 8192).round().clamp(0, 32767).numpy().astype(np.uint16),
        "pose": labels.pose.numpy(),
        "eye_open": half(labels.eye_open),
        "mouth": half(labels.mouth),
        "iris_offset": half(labels.iris_offset),
        "gaze": half(gaze_angles(labels.landmarks, labels.pose)),
        "head_distance": half(scale.median() / scale),
        "expression": half(torch.stack([scores[name] for name in EXPRESSIONS], 1)),
        "speech": speech.numpy(),
        "presence": half(faces.presence),
        "landmark_ids": labels.ids.astype(np.int16),
        "canonical": labels.canonical.numpy(),
    }


def best_confidence(score: SyncScore, max_offset: int) -> float:
    """Median distance over all shifts minus the least one within `max_offset` frames of none."""
    distances = score.distances
    middle = len(distances) // 2
    near = distances[middle - max_offset : middle + max_offset + 1]
    return float(distances.nanmedian() - near[~near.isnan()].min())


def load_voice(path: str | os.PathLike, num_frames: int) -> Tensor:
    """Audio of a video as mono at 16 kHz, `(640 * num_frames,)`: cut, or filled up with silence.

    Read block by block; of the original only a second is held at a time.

    Raises:
        ValueError: If it cannot be read, or holds NaN or infinity.
    """
    stream, parts = None, []
    for samples, rate in audio_blocks(path):
        if not np.isfinite(samples).all():
            raise ValueError(f"`audio` must be finite, but {os.fspath(path)!r} holds NaN or infinity.")
        stream = stream or StreamingResampler(rate, SAMPLING_RATE)
        parts.append(stream.push(samples.mean(0)))
    parts.append(stream.flush())
    samples = np.concatenate(parts)[: num_frames * SAMPLING_RATE // FPS].clip(-1.0, 1.0)
    return torch.from_numpy(np.pad(samples, (0, num_frames * SAMPLING_RATE // FPS - len(samples))))


def bits_a_pixel(path: str | os.PathLike, num_frames: int, size: tuple[int, int]) -> float:
    """Bits of the coded image over the pixels that it shows in `num_frames` frames of `size` at 25 per second."""
    command = [ffmpeg_path(), *READ_OPTIONS, "-i", input_url(path), "-map", "0:V:0", "-c", "copy", "-f", "null", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    sizes = re.findall(rb"video:\s*(\d+)\s*(?:kB|KiB)", done.stderr)  # the audio may be the larger part of a file
    num_bytes = int(sizes[-1]) * 1024 if sizes else os.path.getsize(path)
    return num_bytes * 8 / (num_frames * size[0] * size[1])


def prepare_part(preparer: VideoPreparer, source: Source, parts: Path) -> str:
    """Prepare one video and leave its clips and its report in `parts`; returns its key.

    Networks run on one thread: videos are what runs side by side, and the last digits of labels depend on the number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = preparer(source, parts / f"{source.key}.tar")
    finally:
        torch.set_num_threads(threads)
    write_bytes(parts / f"{source.key}.json", json.dumps(report, sort_keys=True, ensure_ascii=False).encode())
    return source.key

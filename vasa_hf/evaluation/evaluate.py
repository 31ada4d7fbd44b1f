"""`vasa-hf eval`: generate, score, and write the tables of the papers with our rows in them.

A pipeline is asked through its public methods (`prepare_portrait`, `animate`, `__call__`, `render`, `encode_video`), so
that every system of this package can be judged alike. Each part writes `rows/PART.csv`, one row for every number of
every video; the tables are made from those files alone (`remake`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vasa_hf
from vasa_hf.bench.memory import peak_memory_mb
from vasa_hf.evaluation import avatars as avatar_parts
from vasa_hf.evaluation import tables
from vasa_hf.evaluation.catalogue import AVATAR_PARTS, CONTROL_PARTS, METRICS, NOT_DEFINED, PARTS, TRUTH
from vasa_hf.evaluation.data import Clip, EvalData, load_samples, to_uint8
from vasa_hf.evaluation.inference import quick_detector
from vasa_hf.evaluation.plots import write_sheet
from vasa_hf.evaluation.protocols import EXCERPT_FRAMES
from vasa_hf.evaluation.protocols import RUN as TALKING
from vasa_hf.evaluation.scoring import Case, Scorer, fit_lip_motion
from vasa_hf.geometry.crops import WHOLE_PICTURE_BOX
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.metrics.motion import FPS, SAMPLES_PER_FRAME
from vasa_hf.streaming import map_ahead

NOTHING = "the data folder holds nothing for this part"
RUN = {**TALKING, "avatars": avatar_parts.avatars}


@dataclass
class Truth:
    """What is kept of a real clip after its frames are gone.

    Attributes:
        track (`FaceTrack`): By the analyzer.
        labels (`FaceTrack` or `None`): The data's own.
        latent (`torch.Tensor` of shape `(frames, channels)` or `None`): Motion as the pipeline encodes it.
    """

    track: FaceTrack
    labels: FaceTrack | None
    latent: Tensor | None

    @property
    def best(self) -> FaceTrack:
        """Labels where there are some."""
        return self.track if self.labels is None else self.labels


class Evaluation:
    """One run over one folder.

    Args:
        pipeline (`VasaTalkingFacePipeline` or another with its methods): What is judged.
        data (`str` or `os.PathLike`): See `EvalData`.
        output (`str` or `os.PathLike`): Folder to write to; made if need be.
        networks (`dict`, *optional*): Metric networks by name, see `scoring.ABSENT`.
        metrics (`Sequence[str]`, *optional*): Only these of `METRICS`.
        limit (`int`, *optional*): Take so many clips, portraits and voices at most.
        samples (`int`, defaults to 3): Videos generated for each sound.
        seed (`int`, defaults to 0): Of their random numbers.
        sheets (`bool`, defaults to `True`): Write a picture of frames side by side for each video.
        detector (`FaceAnalyzer` or another, *optional*): Measures faces; the pipeline's analyzer by default.
        avatars (`Mapping`, *optional*):
            Name -> function that loads a `Sitter`: avatars that are judged, by the parts `AVATAR_PARTS`, against
            `pipeline`.
        eyes (`VasaTalkingFacePipeline`, *optional*):
            Whose motion the sync expert knows, and whose audio encoder CAPP hears with; `pipeline` by default.
    """

    def __init__(
        self,
        pipeline,
        data: str | os.PathLike,
        output: str | os.PathLike,
        networks: dict[str, Any] | None = None,
        metrics: Sequence[str] | None = None,
        limit: int | None = None,
        samples: int = 3,
        seed: int = 0,
        sheets: bool = True,
        detector=None,
        avatars: Mapping[str, Callable[[], avatar_parts.Sitter]] | None = None,
        eyes=None,
    ):
        check_names(None, metrics)
        self.pipeline, self.data, self.output = pipeline, EvalData(data, limit), Path(output)
        self.model = avatar_parts.FULL if avatars else getattr(pipeline, "model_name", None) or type(pipeline).__name__
        self.avatars, self.eyes = dict(avatars or {}), eyes or pipeline
        self.has_gaze = "gaze" in inspect.signature(pipeline.__call__).parameters
        self.asked = set(metrics) if metrics else None
        self.networks = networks or {}
        self.num_samples, self.seed, self.sheets = samples, seed, sheets
        self.detector = detector or quick_detector(pipeline.face_analyzer)
        self.size = pipeline.output_sizes[0]
        self.whole = tuple(self.size * share for share in WHOLE_PICTURE_BOX)
        self.truths: dict[Path, Truth] = {}
        self.seconds, self.cpu_seconds = {"generate": 0.0, "score": 0.0}, {"generate": 0.0, "score": 0.0}

    def run(self, part: str) -> None:
        """Generate and score one part and write its rows.

        Args:
            part (`str`): One of `PARTS`.
        """
        self.scorer = Scorer(self.detector, self.networks, self.asked)
        self.seconds, self.cpu_seconds = {"generate": 0.0, "score": 0.0}, {"generate": 0.0, "score": 0.0}
        started, worked = time.perf_counter(), time.process_time()
        RUN[part](self)
        names = PARTS[part]
        if not self.scorer.rows:
            self.scorer.record(part, "model", self.model, "-", "*", dict.fromkeys(self.wanted(names), NOTHING))
        self.scorer.record(part, "model", self.model, "*", "*", self.scorer.absent(names))
        tables.write_rows(self.output / "rows" / f"{part}.csv", self.scorer.rows)
        facts = {name: round(value, 1) for name, value in self.seconds.items()}
        facts |= {"seconds": round(time.perf_counter() - started, 1), "threads": torch.get_num_threads()}
        facts |= {"cpu_seconds": round(time.process_time() - worked, 1)}
        facts |= {f"{name}_cpu_seconds": round(value, 1) for name, value in self.cpu_seconds.items()}
        facts |= {
            "memory_mb": round(peak_memory_mb() or 0) or None,
            "model": self.model,
            "seed": self.seed,
            "samples": self.num_samples,
        }
        facts |= {"networks": {name: _describe(network) for name, network in self.networks.items()}}
        facts |= {"detector": type(self.detector).__name__}
        facts |= {"vasa_hf": vasa_hf.__version__, "torch": torch.__version__, "machine": platform.machine()}
        (self.output / "rows" / f"{part}.json").write_text(json.dumps(facts))
        print(f"{part}: {tables.time_spent([facts])}", file=sys.stderr, flush=True)

    # --- what the parts share -----------------------------------------------------------------------------------------

    def readable_clips(self, part: str) -> Iterable[Clip]:
        """The clips that can be read; the others get rows that say why not."""
        for index, path in enumerate(self.data.clips):
            self.say(part, index, len(self.data.clips), path.stem)
            clip = None
            with self.reasons(part, path.stem, PARTS[part]):
                clip = self.load(path)
            if clip is not None:
                yield clip

    def load(self, path: Path) -> Clip:
        """One clip as face crops; raises `ValueError` if it is unfit."""
        return self.data.load_clip(path, self.size, self.pipeline.face_analyzer, self.pipeline.audio_processor)

    def first_of(self, paths: Sequence[Path]) -> Clip:
        """The first of these clips that can be read."""
        for path in paths:
            with contextlib.suppress(ValueError, OSError):
                return self.load(path)
        raise ValueError("there is no clip to drive the portrait.")

    @contextlib.contextmanager
    def reasons(self, part: str, item: str, names: Sequence[str], system: str | None = None):
        """Turn what an unfit file raises into rows that say why."""
        try:
            yield
        except (ValueError, OSError) as error:
            why = " ".join(str(error).split())
            print(f"{part}: {item}: {why}", file=sys.stderr)
            reasons = dict.fromkeys(self.wanted(names) or ["clip"], why)
            self.scorer.record(part, "model", system or self.model, item, "*", reasons)

    def wanted(self, names: Iterable[str]) -> list[str]:
        """Those of the metrics that are asked for."""
        return [name for name in names if self.asked is None or name in self.asked]

    def wanted_values(self, values: dict[str, float]) -> dict[str, float]:
        """Numbers of the metrics that are asked for."""
        return {name: values[name] for name in self.wanted(values)}

    def has(self, network: str) -> bool:
        """Whether a network is there and a metric that needs it is asked for."""
        used = {name for name, metric in METRICS.items() if metric.needs == network}
        return self.networks.get(network) is not None and (self.asked is None or bool(used & self.asked))

    def truth(self, clip: Clip, encode: bool = True) -> Truth:
        """What a detector and the pipeline's encoder see in a real clip; measured once."""
        path = next(path for path in self.data.clips if path.stem == clip.name)
        if path not in self.truths:
            with self.clock("score"):
                self.truths[path] = Truth(self.need_track(clip.frames), clip.labels, None)
        truth = self.truths[path]
        if encode and truth.latent is None and self.has("sync_expert"):
            with self.clock("generate"):
                truth.latent = self.eyes.encode_video(to_uint8(clip.frames), box=self.whole)[0].cpu()
        return truth

    def seen(self, frames: Tensor, motion: Tensor) -> Tensor | None:
        """Generated motion `(frames, channels)` as the sync expert knows it: itself, or what `eyes` see in frames."""
        if self.eyes is self.pipeline:
            return motion.cpu()
        return self.eyes.encode_video(to_uint8(frames), box=self.whole)[0].cpu() if self.has("sync_expert") else None

    def truth_of(self, path: Path) -> Truth:
        """The same for a file."""
        known = self.truths.get(path)
        if known is not None and (known.latent is not None or not self.has("sync_expert")):
            return known
        return self.truth(self.load(path))

    def person(self, path: Path) -> str:
        """Who is in a clip."""
        return self.data.people[path.stem]

    def lip_motion(self) -> Tensor | None:
        """What opening the mouth adds to a motion vector, from the real clips."""
        latents, gaps = [], []
        for path in self.data.clips:
            with contextlib.suppress(ValueError, OSError):
                truth = self.truth_of(path)
                if truth.latent is not None:
                    latents.append(truth.latent)
                    gaps.append(truth.best.lip_gap[: len(truth.latent)])
        return fit_lip_motion(latents, gaps) if latents else None

    def portrait(self, image: Any, box: Sequence[float] | None = None) -> Any:
        """A prepared portrait."""
        with self.clock("generate"):
            return self.pipeline.prepare_portrait(image, box=box)

    def first_portrait(self, part: str, names: Sequence[str]) -> Any:
        """The first portrait with a face, or `None`."""
        for path in self.data.portraits:
            with self.reasons(part, path.stem, names):
                return self.portrait(path)
        return None

    def voices(self, part: str, names: Sequence[str], seconds: int) -> Iterable[tuple[str, Tensor]]:
        """The beginning of each voice; of clips' sound if there are no voices."""
        for path in self.data.speech or self.data.clips:
            with self.reasons(part, path.stem, names):
                samples = load_samples(path, self.pipeline.audio_processor)[: seconds * FPS * SAMPLES_PER_FRAME]
                yield path.stem, samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]

    def excerpts(self, part: str, names: Sequence[str]) -> Iterable[tuple[str, Tensor]]:
        """All of each voice in pieces of 3 seconds; what is shorter is told."""
        size = EXCERPT_FRAMES * SAMPLES_PER_FRAME
        for path in self.data.speech:
            with self.reasons(part, path.stem, names):
                samples = load_samples(path, self.pipeline.audio_processor)
                if len(samples) < size:
                    raise ValueError(f"the voice lasts {len(samples) / 16000:.2f} s, shorter than a window of 3 s.")
                pieces = samples[: len(samples) // size * size].unflatten(0, (-1, size))
                yield from ((f"{path.stem}@{3 * index}s", piece) for index, piece in enumerate(pieces))

    def motion(self, portrait: Any, samples: Tensor, **settings: Any) -> Tensor:
        """Motion `(frames, channels)` generated for a sound."""
        sound = (samples.numpy(), SAMPLES_PER_FRAME * FPS)
        return self.pipeline(portrait, sound, output_type="latent", **settings).motion[0].cpu()

    def render(self, portrait: Any, latent: Tensor) -> Tensor:
        """Frames `(frames, 3, size, size)` in [0, 1] of a motion."""
        return self.pipeline.render(portrait, latent, output_type="pt").frames

    @functools.cached_property
    def sounds(self) -> list[tuple[str, Tensor]]:
        """Who speaks, and the samples, of all clips and voices that can be heard."""
        sounds = []
        for path in (*self.data.clips, *self.data.speech):
            with contextlib.suppress(ValueError, OSError):
                samples = load_samples(path, self.pipeline.audio_processor)
                sounds.append((self.data.people.get(path.stem, path.stem), samples))
        return sounds

    def wrong_sound(self, person: str, num_frames: int, index: int) -> dict[str, Tensor | None]:
        """A stranger's sound that lasts so long, and its features, as a `Case` has them; none if nobody speaks so long.

        Args:
            person (`str`): Who is speaking.
            num_frames (`int`): Frames to be filled.
            index (`int`): Chooses among the strangers.
        """
        size = num_frames * SAMPLES_PER_FRAME
        others = [samples for who, samples in self.sounds if who != person and len(samples) >= size]
        if not others:
            return {}
        samples = others[7 * index % len(others)][:size]
        features = self.audio_features(samples, num_frames) if self.has("capp") else None
        return {"wrong_samples": samples, "wrong_features": features}

    def audio_features(self, samples: Tensor, num_frames: int) -> Tensor:
        """The audio encoder's features `(frames, dim)`."""
        processor, encoder = self.eyes.audio_processor, self.eyes.audio_encoder
        with torch.no_grad():
            return processor.window_features(encoder, samples[None], 0, num_frames)[0].float().cpu()

    def canonical(self) -> Tensor:
        """The analyzer's mean face."""
        return self.pipeline.face_analyzer.canonical.float().cpu()

    def need_track(self, frames: Tensor) -> FaceTrack:
        """The face in real frames; raises `ValueError` if the detector sees none."""
        return self.scorer.track(frames)

    def track(self, frames: Tensor) -> FaceTrack | None:
        """The face in generated frames, or `None` if the detector sees none."""
        try:
            return self.scorer.track(frames)
        except ValueError:
            return None

    def keep(self, part: str, item: str, videos: Sequence[tuple[str, str, int, Sequence[str], Case]]) -> None:
        """Score videos of one item side by side; keep their features for the metrics of sets.

        Args:
            part (`str`): One of `PARTS`.
            item (`str`): The clip, portrait or voice.
            videos (`Sequence` of tuples): Role, system, sample, metrics and case of each. A case without a track is
                measured.
        """

        def score(video: tuple[str, str, int, Sequence[str], Case]) -> dict[str, float | str]:
            *_, names, case = video
            if case.track is None:
                case.track = self.track(case.frames)
            if case.track is None:
                case.lacks = {**case.lacks, "track": "our detector sees no face in the generated frames"}
            return self.scorer.score(tuple(names), case)

        workers = min(torch.get_num_threads(), len(videos))
        even = len(videos) // workers * workers  # the rest would leave workers idle: each of them gets all threads
        long_first = sorted(range(len(videos)), key=lambda number: videos[number][-1].track is not None)
        ordered = [videos[number] for number in long_first]
        scores = dict(
            zip(long_first, [*map_ahead(score, ordered[:even], workers), *map(score, ordered[even:])], strict=True)
        )
        for number, (role, system, sample, _, case) in enumerate(videos):
            values = scores[number]
            self.scorer.record(part, role, system, item, sample, values)
            if part != "audio" or case.truth_track is not None or role == "truth":  # else nothing true to set beside
                self.scorer.collect(part, system, case.frames)
        self.scorer.forget()

    def score_sets(self, part: str, names: Sequence[str], truth: str = TRUTH) -> None:
        """Score the sets of videos of all systems against those of `truth`."""
        roles = {row["system"]: row["role"] for row in self.scorer.rows if row["value"] != ""}
        with self.clock("score"):
            self.scorer.score_sets(part, tuple(names), roles, truth)

    def sheet(
        self, part: str, name: str, source: Tensor, driven: Tensor | None, made: Tensor, truth: Tensor | None
    ) -> None:
        """Write the frames of one video side by side."""
        if self.sheets:
            write_sheet(self.output / "sheets" / f"{part}_{name}.jpg", source, driven, made, truth)

    @contextlib.contextmanager
    def clock(self, what: str):
        """Count the seconds spent inside as `what`."""
        started, worked = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started
            self.cpu_seconds[what] += time.process_time() - worked

    def say(self, part: str, index: int, total: int, name: str) -> None:
        """Tell on stderr how far it is."""
        spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self.seconds.items())
        print(f"{part} {index + 1}/{total}: {name} ({spent})", file=sys.stderr, flush=True)


def evaluate(
    pipeline, data: str | os.PathLike, output: str | os.PathLike, parts: Sequence[str] | None = None, **settings: Any
) -> list[str]:
    """Judge a pipeline and write `table.md`, `card.md`, `table.csv`, `table.json`, plots and sheets.

    Args:
        pipeline (`VasaTalkingFacePipeline` or another with its methods): What is judged.
        data (`str` or `os.PathLike`): See `EvalData`.
        output (`str` or `os.PathLike`): Folder; rows of parts made before stay there and come into the tables, too.
        parts (`Sequence[str]`, *optional*): Of `PARTS`; all that are for such a pipeline by default.
        **settings: Of `Evaluation`.

    Returns:
        `list[str]`: Asked-for metrics without a single number; empty if all is well.
    """
    check_names(parts, settings.get("metrics"))
    gaze = "gaze" in inspect.signature(pipeline.__call__).parameters
    known = tuple(part for part in PARTS if part not in AVATAR_PARTS and (gaze or part not in CONTROL_PARTS))
    known = AVATAR_PARTS if settings.get("avatars") else known
    parts = list(parts or known)
    if not set(parts) <= set(known):
        raise ValueError(f"`parts` must be of {list(known)} for this pipeline, got {parts}.")
    run = Evaluation(pipeline, data, output, **settings)
    (run.output / "rows").mkdir(parents=True, exist_ok=True)
    for one in (pipeline, run.eyes):
        if hasattr(one, "set_progress_bar_config"):
            one.set_progress_bar_config(disable=True)
    for part in parts:
        run.run(part)
    tables.remake(output)
    return missing_metrics(output, parts, settings.get("metrics"))


def missing_metrics(
    output: str | os.PathLike, parts: Sequence[str] | None = None, metrics: Sequence[str] | None = None
) -> list[str]:
    """Asked-for metrics that have not a single number, as `part: metric`.

    Without `metrics`, those are asked for whose networks, and whose labels, are there.

    Args:
        output (`str` or `os.PathLike`): Folder with `rows/`.
        parts (`Sequence[str]`, *optional*): Of `PARTS`; those that have rows by default.
        metrics (`Sequence[str]`, *optional*): Of `METRICS`.
    """
    rows, missing = tables.read_rows(output), []
    parts = parts or sorted({row["part"] for row in rows})
    for part in parts:
        mine = [row for row in rows if row["part"] == part and row["role"] == "model"]
        done = {row["metric"] for row in mine if row["value"] is not None}
        why = [(row["metric"], row["item"], row["why"]) for row in mine if row["value"] is None]
        absent = {name for name, item, reason in why if item == "*" or reason.startswith(NOT_DEFINED)}
        for name in PARTS[part]:
            asked = name in metrics if metrics else name in {row["metric"] for row in mine} - absent
            if asked and name not in done:
                missing.append(f"{part}: {name}")
    in_parts = set(itertools.chain.from_iterable(PARTS[part] for part in parts))
    missing += [f"{name}: in none of the parts {', '.join(parts)}" for name in metrics or () if name not in in_parts]
    return missing


def check_names(parts: Sequence[str] | None, metrics: Sequence[str] | None) -> None:
    """Raise `ValueError` for a name that is no part, or no metric."""
    for argument, names, known in (("parts", parts, PARTS), ("metrics", metrics, METRICS)):
        for name in names or ():
            if name not in known:
                raise ValueError(f"`{argument}` must be of {list(known)}, got {name!r}.")


def _describe(network: Any) -> str:
    """Class and, where it has one, name of a metric's network."""
    inner = getattr(network, "backbone", network)
    name = getattr(getattr(inner, "config", None), "_name_or_path", "") or ""
    return " ".join(filter(None, (type(inner).__name__, Path(str(name)).name)))

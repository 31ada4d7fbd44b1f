"""Base class of the protocols: reading data, scoring of videos side by side, writing of rows."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import vasa_hf
from vasa_hf.bench.memory import peak_memory_mb
from vasa_hf.evaluation import tables
from vasa_hf.evaluation.catalogue import METRICS, NOT_DEFINED, PARTS, TRUTH
from vasa_hf.evaluation.data import Clip, load_samples
from vasa_hf.evaluation.plots import write_sheet
from vasa_hf.evaluation.run import Evaluation
from vasa_hf.evaluation.scoring import Scorer, VideoSample, track_of_motion
from vasa_hf.metrics.motion import FPS, SAMPLES_PER_FRAME
from vasa_hf.motion.streaming import map_ahead

EXCERPT_FRAMES = 75  # CAPP's window of 3 seconds, in VASA-1
SYNCNET = ("sync_c", "sync_d")
NOTHING = "the data folder has no files for this part"


class Protocol:
    """One table: its inputs, baselines and metrics.

    A protocol has a `name`, which is a key of `PARTS`, and generates and scores its videos in `_generate`.

    Args:
        run (`Evaluation`): The pipeline, the data and the networks.
    """

    name: ClassVar[str]

    def __init__(self, run: Evaluation):
        self.run, self.metrics = run, PARTS[self.name]
        self.scorer = Scorer(run.networks, run.requested)

    def _generate(self) -> None:
        raise NotImplementedError

    def write_rows(self) -> None:
        """Generate and score all videos; write `rows/NAME.csv`, and facts about the run to `rows/NAME.json`."""
        run = self.run
        run.seconds, run.cpu_seconds = {"generate": 0.0, "score": 0.0}, {"generate": 0.0, "score": 0.0}
        started, worked = time.perf_counter(), time.process_time()
        self._generate()
        if not self.scorer.rows:
            self.scorer.record("model", run.model, "-", "*", dict.fromkeys(run.select_requested(self.metrics), NOTHING))
        absent = self.scorer.absent(self.metrics)
        self.scorer.record("model", run.model, "*", "*", absent)
        for why in dict.fromkeys(absent.values()):
            names = ", ".join(METRICS[name].label for name in absent if absent[name] == why)
            print(f"{self.name}: not computed: {names}: {why}", file=sys.stderr)
        rows = [{"part": self.name, **row} for row in self.scorer.rows]
        tables.write_rows(run.output / "rows" / f"{self.name}.csv", rows)
        facts = {
            **{name: round(value, 1) for name, value in run.seconds.items()},
            "seconds": round(time.perf_counter() - started, 1),
            "threads": torch.get_num_threads(),
            "cpu_seconds": round(time.process_time() - worked, 1),
            **{f"{name}_cpu_seconds": round(value, 1) for name, value in run.cpu_seconds.items()},
            "memory_mb": round(peak_memory_mb() or 0) or None,
            "model": run.model,
            "seed": run.seed,
            "samples": run.num_samples,
            "networks": {name: _describe(network) for name, network in run.networks.items()},
            "detector": type(run.detector).__name__,
            "vasa_hf": vasa_hf.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        (run.output / "rows" / f"{self.name}.json").write_text(json.dumps(facts))
        print(f"{self.name}: {tables.format_time([facts])}", file=sys.stderr, flush=True)

    def readable_clips(self) -> Iterable[Clip]:
        """Yield the clips that can be read; all others get rows with the reason."""
        for index, path in enumerate(self.run.data.clips):
            self.report(index, len(self.run.data.clips), path.stem)
            clip = None
            with self.record_failure(path.stem):
                clip = self.run.load(path)
            if clip is not None:
                yield clip

    @contextlib.contextmanager
    def record_failure(self, item: str, system: str | None = None) -> Iterator[None]:
        """Turn the errors of an unusable file into rows with the reason."""
        try:
            yield
        except (ValueError, OSError) as error:
            why = " ".join(str(error).split())
            print(f"{self.name}: {item}: {why}", file=sys.stderr)
            reasons = dict.fromkeys(self.run.select_requested(self.metrics) or ["clip"], why)
            self.scorer.record("model", system or self.run.model, item, "*", reasons)

    def first_portrait(self) -> Any:
        """Return the first portrait with a face, or `None`."""
        for path in self.run.data.portraits:
            with self.record_failure(path.stem):
                return self.run.portrait(path)
        return None

    def voices(self, seconds: int) -> Iterable[tuple[str, Tensor]]:
        """Yield the first seconds of each voice; without voices, of the clips' audio."""
        for path in self.run.data.speech or self.run.data.clips:
            with self.record_failure(path.stem):
                samples = load_samples(path, self.run.pipeline.audio_processor)[: seconds * FPS * SAMPLES_PER_FRAME]
                yield path.stem, samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]

    def excerpts(self) -> Iterable[tuple[str, Tensor]]:
        """Yield all windows of 3 seconds of each voice; shorter voices get rows with the reason."""
        size = EXCERPT_FRAMES * SAMPLES_PER_FRAME
        for path in self.run.data.speech:
            with self.record_failure(path.stem):
                samples = load_samples(path, self.run.pipeline.audio_processor)
                if len(samples) < size:
                    raise ValueError(f"the voice lasts {len(samples) / 16000:.2f} s, shorter than a window of 3 s.")
                windows = samples[: len(samples) // size * size].unflatten(0, (-1, size))
                yield from ((f"{path.stem}@{3 * index}s", window) for index, window in enumerate(windows))

    def keep(self, item: str, videos: Sequence[tuple[str, str, int, Sequence[str], VideoSample]]) -> None:
        """Score videos of one item side by side; keep their features for the metrics of sets.

        Args:
            item (`str`): The clip, portrait or voice.
            videos (`Sequence` of tuples): Role, system, sample number, metrics and video; tracks are added.
        """

        def score(entry: tuple[str, str, int, Sequence[str], VideoSample]) -> dict[str, float | str]:
            *_, names, video = entry
            if video.track is None:
                video.track = self.run.track(video.get("frames"))
            if video.track is None:
                video.lacks = {**video.lacks, "track": "the detector finds no face in the generated frames"}
            return self.scorer.score(tuple(names), video)

        workers = min(torch.get_num_threads(), len(videos))
        even = len(videos) // workers * workers  # the rest would leave workers idle: it runs with all threads
        long_first = sorted(range(len(videos)), key=lambda number: videos[number][-1].track is not None)
        ordered = [videos[number] for number in long_first]
        scores = dict(
            zip(long_first, [*map_ahead(score, ordered[:even], workers), *map(score, ordered[even:])], strict=True)
        )
        for number, (role, system, sample, _, video) in enumerate(videos):
            values = scores[number]
            self.scorer.record(role, system, item, sample, values)
            # Speech without video has no true frames.
            if self.name != "audio" or video.truth_track is not None or role == "truth":
                self.scorer.collect(system, video.frames)
        self.scorer.forget()

    @property
    def needs_frames(self) -> bool:
        """Whether a network that measures all frames is given, SyncNet or I3D."""
        return self.run.has("syncnet") or self.run.has("fvd")

    def score_motion(self, names: Sequence[str], latent: Tensor, samples: Tensor) -> dict[str, float | str]:
        """Score generated motion `(frames, channels)` without frames; SyncNet's metrics are left to `score_frames`."""
        features = self.run.audio_features(samples, len(latent)) if self.run.has("capp") else None
        names = tuple(name for name in names if name not in SYNCNET)
        lacks = {"frames": f"{NOT_DEFINED}: motion alone is scored"}
        video = VideoSample(track=track_of_motion(latent), latent=latent, samples=samples, lacks=lacks)
        video.audio_features = features
        return self.scorer.score(names, video)

    def score_frames(self, system: str, frames: Tensor | None, samples: Tensor) -> dict[str, float | str]:
        """Score all frames of a video by SyncNet, and keep those for FVD; nothing without frames."""
        if frames is None:
            return {}
        self.scorer.collect(system, frames)
        video = VideoSample(frames=frames, samples=samples)
        if self.run.has("syncnet"):
            video.track = self.run.track(frames)
        video.lacks = {"track": "the detector finds no face in the generated frames"}
        return self.scorer.score(SYNCNET, video)

    def score_real_video(self) -> None:
        """Score the clips as the papers' row of real videos, where all frames are measured."""
        for clip in self.readable_clips() if self.needs_frames else ():
            with self.record_failure(clip.name), self.run.clock("score"):
                if clip.samples is None:
                    self.scorer.collect(TRUTH, clip.frames)
                    continue
                values = self.score_frames(TRUTH, clip.frames, clip.samples)
                self.scorer.record("truth", TRUTH, clip.name, 0, values)

    def score_sets(self, truth: str = TRUTH) -> None:
        """Score all videos of each system as a set against those of `truth`."""
        roles = {row["system"]: row["role"] for row in self.scorer.rows if row["value"] != ""}
        with self.run.clock("score"):
            self.scorer.score_sets(self.metrics, roles, truth)

    def sheet(self, name: str, source: Tensor, driving: Tensor | None, generated: Tensor, truth: Tensor | None) -> None:
        """Write the frames of one video side by side."""
        if self.run.sheets:
            write_sheet(self.run.output / "sheets" / f"{self.name}_{name}.jpg", source, driving, generated, truth)

    def report(self, index: int, total: int, name: str) -> None:
        """Print the progress to stderr."""
        spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self.run.seconds.items())
        print(f"{self.name} {index + 1}/{total}: {name} ({spent})", file=sys.stderr, flush=True)


def _describe(network: Any) -> str:
    """Class and, if it has one, name of a metric's network."""
    inner = getattr(network, "backbone", network)
    name = getattr(getattr(inner, "config", None), "_name_or_path", "") or ""
    return " ".join(filter(None, (type(inner).__name__, Path(str(name)).name)))

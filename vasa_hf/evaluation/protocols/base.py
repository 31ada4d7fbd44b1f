"""What all protocols share: the material, the scoring of videos next to each other, and the rows that are written."""

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
from vasa_hf.evaluation.catalogue import PARTS, TRUTH
from vasa_hf.evaluation.data import Clip, load_samples
from vasa_hf.evaluation.plots import write_sheet
from vasa_hf.evaluation.run import Evaluation
from vasa_hf.evaluation.scoring import Case, Scorer
from vasa_hf.metrics.motion import FPS, SAMPLES_PER_FRAME
from vasa_hf.motion.streaming import map_ahead

EXCERPT_FRAMES = 75  # CAPP's window of 3 seconds, in VASA-1
NOTHING = "the data folder holds nothing for this part"


class Protocol:
    """One table: what is generated from what, next to which baselines, and which numbers are taken.

    A protocol has a `name`, which is a key of `PARTS`, and generates and scores its videos in `_generate`.

    Args:
        run (`Evaluation`): The pipeline, the data and the networks.
    """

    name: ClassVar[str]

    def __init__(self, run: Evaluation):
        self.run, self.metrics = run, PARTS[self.name]
        self.scorer = Scorer(run.networks, run.asked)

    def _generate(self) -> None:
        raise NotImplementedError

    def write_rows(self) -> None:
        """Generate and score all videos, and write `rows/NAME.csv` and what is known of the run, `rows/NAME.json`."""
        run = self.run
        run.seconds, run.cpu_seconds = {"generate": 0.0, "score": 0.0}, {"generate": 0.0, "score": 0.0}
        started, worked = time.perf_counter(), time.process_time()
        self._generate()
        if not self.scorer.rows:
            self.scorer.record("model", run.model, "-", "*", dict.fromkeys(run.wanted(self.metrics), NOTHING))
        self.scorer.record("model", run.model, "*", "*", self.scorer.absent(self.metrics))
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
        print(f"{self.name}: {tables.time_spent([facts])}", file=sys.stderr, flush=True)

    def readable_clips(self) -> Iterable[Clip]:
        """The clips that can be read; the others get rows that say why not."""
        for index, path in enumerate(self.run.data.clips):
            self.say(index, len(self.run.data.clips), path.stem)
            clip = None
            with self.reasons(path.stem):
                clip = self.run.load(path)
            if clip is not None:
                yield clip

    @contextlib.contextmanager
    def reasons(self, item: str, system: str | None = None) -> Iterator[None]:
        """Turn what an unfit file raises into rows that say why."""
        try:
            yield
        except (ValueError, OSError) as error:
            why = " ".join(str(error).split())
            print(f"{self.name}: {item}: {why}", file=sys.stderr)
            reasons = dict.fromkeys(self.run.wanted(self.metrics) or ["clip"], why)
            self.scorer.record("model", system or self.run.model, item, "*", reasons)

    def first_portrait(self) -> Any:
        """The first portrait with a face, or `None`."""
        for path in self.run.data.portraits:
            with self.reasons(path.stem):
                return self.run.portrait(path)
        return None

    def voices(self, seconds: int) -> Iterable[tuple[str, Tensor]]:
        """The beginning of each voice; of clips' sound if there are no voices."""
        for path in self.run.data.speech or self.run.data.clips:
            with self.reasons(path.stem):
                samples = load_samples(path, self.run.pipeline.audio_processor)[: seconds * FPS * SAMPLES_PER_FRAME]
                yield path.stem, samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]

    def excerpts(self) -> Iterable[tuple[str, Tensor]]:
        """All of each voice in pieces of 3 seconds; what is shorter is told."""
        size = EXCERPT_FRAMES * SAMPLES_PER_FRAME
        for path in self.run.data.speech:
            with self.reasons(path.stem):
                samples = load_samples(path, self.run.pipeline.audio_processor)
                if len(samples) < size:
                    raise ValueError(f"the voice lasts {len(samples) / 16000:.2f} s, shorter than a window of 3 s.")
                pieces = samples[: len(samples) // size * size].unflatten(0, (-1, size))
                yield from ((f"{path.stem}@{3 * index}s", piece) for index, piece in enumerate(pieces))

    def keep(self, item: str, videos: Sequence[tuple[str, str, int, Sequence[str], Case]]) -> None:
        """Score videos of one item side by side; keep their features for the metrics of sets.

        Args:
            item (`str`): The clip, portrait or voice.
            videos (`Sequence` of tuples): Role, system, sample, metrics and case of each; tracks are added.
        """

        def score(video: tuple[str, str, int, Sequence[str], Case]) -> dict[str, float | str]:
            *_, names, case = video
            if case.track is None:
                case.track = self.run.track(case.get("frames"))
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
            self.scorer.record(role, system, item, sample, values)
            # A voice alone has no true frames to compare with.
            if self.name != "audio" or case.truth_track is not None or role == "truth":
                self.scorer.collect(system, case.frames)
        self.scorer.forget()

    def score_sets(self, truth: str = TRUTH) -> None:
        """Score the sets of videos of all systems against those of `truth`."""
        roles = {row["system"]: row["role"] for row in self.scorer.rows if row["value"] != ""}
        with self.run.clock("score"):
            self.scorer.score_sets(self.metrics, roles, truth)

    def sheet(self, name: str, source: Tensor, driven: Tensor | None, made: Tensor, truth: Tensor | None) -> None:
        """Write the frames of one video side by side."""
        if self.run.sheets:
            write_sheet(self.run.output / "sheets" / f"{self.name}_{name}.jpg", source, driven, made, truth)

    def say(self, index: int, total: int, name: str) -> None:
        """Tell on stderr how far it is."""
        spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self.run.seconds.items())
        print(f"{self.name} {index + 1}/{total}: {name} ({spent})", file=sys.stderr, flush=True)


def _describe(network: Any) -> str:
    """Class and, where it has one, name of a metric's network."""
    inner = getattr(network, "backbone", network)
    name = getattr(getattr(inner, "config", None), "_name_or_path", "") or ""
    return " ".join(filter(None, (type(inner).__name__, Path(str(name)).name)))

"""A folder of videos to a folder of shards: one video after another, on several processes, or with Ray.

```
OUT/settings.json        how; another run with other settings is refused
OUT/parts/<video>.tar    clips of a finished video, until they are in a shard
OUT/parts/<video>.json   what became of it; written last: there means finished
OUT/clip-000000.tar ...  the shards, see `shards.py`
OUT/videos.jsonl         what became of every video
OUT/clips.csv            every clip that was kept, and every part of a video that was dropped, with the reason
OUT/manifest.json        the shards with their hashes, settings, and counts as in GAIA's Table 1
```

Every file appears under its name when it is whole, so a run may be killed at any time; the next one continues where it
was. Shards hold the clips in the order of their keys: neither the number of processes nor an interruption changes a
byte. Videos that are added to the folder later make new shards behind the old ones.
"""

from __future__ import annotations

import csv
import heapq
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vasa_hf import __version__
from vasa_hf.data.filters import FPS, REASONS
from vasa_hf.data.prepare import PrepareSettings, Source, VideoPreparer, find_videos, prepare_part
from vasa_hf.data.shards import ShardIndex, ShardWriter, read_manifest, scan_tar, write_bytes

Progress = Callable[[int, int], None]


def prepare(
    videos: str | os.PathLike,
    output: str | os.PathLike,
    settings: PrepareSettings | None = None,
    clips_per_shard: int = 1000,
    workers: int = 1,
    engine: str = "local",
    retry: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepare all videos of a folder that are not prepared yet.

    Args:
        videos (`str` or `os.PathLike`): Folder of videos, with folders in it or not.
        output (`str` or `os.PathLike`): Folder for the shards; made if it is not there.
        settings (`PrepareSettings`, *optional*): How.
        clips_per_shard (`int`, defaults to 1000): Clips of a full shard.
        workers (`int`, defaults to 1): Processes; each holds the networks (about 0.5 GB) and uses one core.
        engine (`str`, defaults to `"local"`): `local`, or `ray` to use a Ray cluster that sees both folders.
        retry (`bool`, defaults to `False`): Whether to try videos again that could not be read.
        progress (`Callable`, *optional*): Called with the videos done and all videos of this run.

    Returns:
        `dict`: The manifest.

    Raises:
        ValueError: If a folder or a number is unfit, or the output was made with other settings.
    """
    settings = settings or PrepareSettings()
    if engine not in ("local", "ray"):
        raise ValueError(f"`engine` must be local or ray, got {engine!r}.")
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}.")
    output = Path(output)
    sources = find_videos(videos, settings.identity, skip=output)
    output.mkdir(parents=True, exist_ok=True)
    _same_settings(output, {"prepare": settings.asdict(), "clips_per_shard": clips_per_shard})
    (output / "parts").mkdir(exist_ok=True)
    for rest in [*output.glob(".*.partial"), *(output / "parts").glob(".*.partial")]:
        rest.unlink()
    done = _find_finished(output, retry)
    todo = [source for source in sources if source.name not in done]
    if engine == "ray":
        from vasa_hf.data.prepare_ray import run_with_ray  # ray is optional

        finished = run_with_ray(todo, settings, output / "parts", workers)
    else:
        finished = _run_here(todo, settings, output / "parts", workers)
    for count, _ in enumerate(finished, start=1):
        if progress is not None:
            progress(count, len(todo))
    return _pack(output, settings, clips_per_shard)


def _same_settings(output: Path, settings: dict[str, Any]) -> None:
    path, text = output / "settings.json", json.dumps(settings, indent=1, sort_keys=True)
    if not path.exists():
        write_bytes(path, text.encode())
    elif (old := json.loads(path.read_text())) != json.loads(text):
        raise ValueError(
            f"`output` must be a new folder or one made with the same settings; {str(output)!r} was made with "
            f"{json.dumps(old, sort_keys=True)}."
        )


# --- videos -----------------------------------------------------------------------------------------------------------


def _run_here(todo: list[Source], settings: PrepareSettings, parts: Path, workers: int) -> Iterator[str]:
    workers = min(workers, len(todo))
    if workers <= 1:
        preparer = VideoPreparer(settings) if todo else None
        for source in todo:
            yield prepare_part(preparer, source, parts)
        return
    # Not forked: threads of torch do not survive that.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (settings,))
    with pool:
        rest = iter(todo)
        running = {pool.submit(_work, source, parts) for source in islice(rest, 2 * workers)}
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_work, source, parts) for source in islice(rest, len(ready))}
            for future in ready:
                yield future.result()


_PREPARER: VideoPreparer | None = None  # of a worker process


def _begin_worker(settings: PrepareSettings) -> None:
    global _PREPARER
    _PREPARER = VideoPreparer(settings)


def _work(source: Source, parts: Path) -> str:
    return prepare_part(_PREPARER, source, parts)


# --- reports and shards -----------------------------------------------------------------------------------------------


def _reports(output: Path) -> Iterator[dict[str, Any]]:
    """What became of every video, in the order of the keys; a later report replaces an earlier one."""
    old = output / "videos.jsonl"
    lines = (json.loads(line) for line in open(old, encoding="utf-8")) if old.exists() else iter(())
    new = (json.loads(path.read_bytes()) for path in sorted((output / "parts").glob("*.json"), key=lambda p: p.stem))
    last = None
    for report in heapq.merge(lines, new, key=lambda report: report["key"]):
        if last is not None and last["key"] != report["key"]:
            yield last
        last = report
    if last is not None:
        yield last


def kept_keys(report: dict[str, Any]) -> list[str]:
    """Keys of a video's clips."""
    return [piece["key"] for piece in report["pieces"] if piece["reason"] is None]


def _find_finished(output: Path, retry: bool) -> set[str]:
    """Names of the videos that need not be prepared: their clips are in shards, or lie next to their report."""
    packed = set(ShardIndex.scan(output).keys())
    done = set()
    for report in _reports(output):
        there = (output / "parts" / f"{report['key']}.tar").exists() or packed.issuperset(kept_keys(report))
        if there and not (retry and report["error"]):
            done.add(report["name"])
    return done


def _pack(output: Path, settings: PrepareSettings, clips_per_shard: int) -> dict[str, Any]:
    """Move finished videos' clips into shards and write tables and manifest. May be killed and called again."""
    packed = set(ShardIndex.scan(output).keys())
    waiting: list[Path] = []
    counts = Counts()
    with ShardWriter(output, clips_per_shard, append=True) as writer:
        for report in _reports(output):
            counts.add(report)
            part = output / "parts" / f"{report['key']}.tar"
            if not part.exists():
                continue
            for key, files in _clips_of(part):
                if key in packed:
                    continue
                closed = writer.num_closed
                writer.write(key, files)
                if writer.num_closed > closed:  # all videos before this one are in whole shards
                    for path in waiting:
                        path.unlink()
                    waiting = []
            waiting.append(part)
        writer.about = {
            "maker": f"vasa_hf {__version__}",
            "settings": {"prepare": settings.asdict(), "clips_per_shard": clips_per_shard},
            "counts": counts.asdict(),
        }
        _write_tables(output)
    shutil.rmtree(output / "parts")
    return read_manifest(output)


def _clips_of(part: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    with open(part, "rb") as file:
        for key, places in scan_tar(part):
            files = {}
            for extension, (offset, size) in places.items():
                file.seek(offset)
                files[extension] = file.read(size)
            yield key, files


def _write_tables(output: Path) -> None:
    """`videos.jsonl` and `clips.csv`, from the last ones and the parts."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["video", "start_seconds", "stop_seconds", "clip", "identity", "dropped_for"])
    lines = []
    for report in _reports(output):
        lines.append(json.dumps(report, sort_keys=True, ensure_ascii=False) + "\n")
        if report["error"]:
            rows.writerow([report["name"], "", "", "", report["identity"], f"unreadable: {report['error']}"])
        for piece in report["pieces"]:
            start, stop = piece["start"] / FPS, piece["stop"] / FPS
            key = "" if piece["reason"] else piece["key"]
            rows.writerow([report["name"], start, stop, key, report["identity"], piece["reason"] or ""])
    write_bytes(output / "clips.csv", table.getvalue().encode())
    write_bytes(output / "videos.jsonl", "".join(lines).encode())


class Counts:
    """Sums over reports: what there was, what was kept, and what was dropped for which reason (GAIA, Table 1)."""

    def __init__(self):
        self.raw, self.kept = {"videos": 0, "frames": 0}, {"videos": 0, "clips": 0, "frames": 0}
        self.people: tuple[set[str], set[str]] = (set(), set())
        self.dropped = {reason: {"pieces": 0, "frames": 0} for reason in REASONS}
        self.unreadable = 0

    def add(self, report: dict[str, Any]) -> None:
        """Count a video."""
        self.raw["videos"] += 1
        self.raw["frames"] += report["frames"]
        self.people[0].add(report["identity"])
        self.unreadable += bool(report["error"])
        for piece in report["pieces"]:
            frames = piece["stop"] - piece["start"]
            if piece["reason"] is None:
                self.kept["clips"] += 1
                self.kept["frames"] += frames
            else:
                dropped = self.dropped.setdefault(
                    piece["reason"], {"pieces": 0, "frames": 0}
                )  # or an earlier version's
                dropped["pieces"] += 1
                dropped["frames"] += frames
        if kept_keys(report):
            self.kept["videos"] += 1
            self.people[1].add(report["identity"])

    def asdict(self) -> dict[str, Any]:
        """For the manifest; frames become hours."""

        def hours(entry: dict[str, int]) -> dict[str, Any]:
            return {k: v for k, v in entry.items() if k != "frames"} | {"hours": round(entry["frames"] / FPS / 3600, 6)}

        return {
            "raw": {**hours(self.raw), "identities": len(self.people[0])},
            "filtered": {**hours(self.kept), "identities": len(self.people[1])},
            "dropped": {reason: hours(entry) for reason, entry in self.dropped.items() if entry["pieces"]},
            "unreadable": {"videos": self.unreadable},
        }


def table(counts: dict[str, Any]) -> str:
    """The counts as lines of text: raw and filtered as in GAIA's Table 1, then the reasons."""
    raw, kept = counts["raw"], counts["filtered"]
    lines = [
        f"{'':<24}{'videos':>8}{'clips':>8}{'hours':>10}{'people':>8}",
        f"{'raw':<24}{raw['videos']:>8}{'':>8}{raw['hours']:>10.4f}{raw['identities']:>8}",
        f"{'filtered':<24}{kept['videos']:>8}{kept['clips']:>8}{kept['hours']:>10.4f}{kept['identities']:>8}",
        "",
        f"{'dropped for':<24}{'':>8}{'parts':>8}{'hours':>10}{'share':>8}",
    ]
    for reason, entry in counts["dropped"].items():
        share = entry["hours"] / raw["hours"] if raw["hours"] else 0.0
        lines.append(f"{reason:<24}{'':>8}{entry['pieces']:>8}{entry['hours']:>10.4f}{share:>8.1%}")
    if counts["unreadable"]["videos"]:
        lines.append(f"{'unreadable':<24}{counts['unreadable']['videos']:>8}")
    return "\n".join(lines)


def unreadable(output: str | os.PathLike) -> Iterable[tuple[str, str]]:
    """Name and error of each video that could not be read."""
    return [(report["name"], report["error"]) for report in _reports(Path(output)) if report["error"]]

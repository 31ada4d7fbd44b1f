"""The command `batch`: a talking video for each row of a list."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from vasa_hf.batch import JobResult, run_jobs
from vasa_hf.cli import options as shared
from vasa_hf.cli.talk import add_talk_options, find_system, read_talk_settings
from vasa_hf.files import check_writable, write_csv

_EXAMPLES = """examples:
  vasa-hf batch list.csv -o videos --workers 2
  vasa-hf batch list.csv -o videos --system moda --fps 30 --seed 1
  RAY_ADDRESS=auto vasa-hf batch list.csv -o videos --engine ray --workers 64
where list.csv holds
  image,audio,name,gaze,emotion
  anna.jpg,hello.wav,anna_hello,,happy=0.6
  ben.jpg,hello.wav,,"0.2,0",
Columns are the long options of `talk`, with _ for -; an empty cell takes the value of the command line. Without a name
the video is that of its row, such as 00001.mp4. Paths are relative to the list.

The same command continues a batch that was stopped: rows that are done and have not changed are not made again.
DIR/results.jsonl has a line for each row; DIR/failures.csv the rows that failed and why, as a list to give again.

exit status: 0 all rows are done, 1 some failed, 2 bad input
"""
# What holds for the whole batch, since a worker loads one model; and files that rows would overwrite.
_SHARED = ("system", "model", "device", "threads", "motion", "no_provenance", "c2pa_cert", "c2pa_key")
_YES = ("1", "true", "yes")


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    batch = command("batch", _batch, "make a talking video for each row of a list, with several workers", _EXAMPLES)
    batch.add_argument("list", metavar="LIST.csv", help="table with the columns image, audio and any option of talk")
    batch.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the videos and the results")
    batch.add_argument("--workers", type=int, default=1, help="processes or actors; each loads the model (%(default)s)")
    batch.add_argument("--engine", choices=("local", "ray"), default="local", help="local, or ray for a cluster")
    batch.add_argument("--retry", action="store_true", help="try rows again that failed")
    add_talk_options(batch)


class _RowParser(argparse.ArgumentParser):
    """The options of `talk`, whose errors raise."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        add_talk_options(self)
        for action in self._actions:  # what a row does not name is that of the command line
            action.default = argparse.SUPPRESS

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def columns(self) -> dict[str, argparse.Action]:
        """Option of each column that a list may have."""
        actions = {action.option_strings[-1][2:].replace("-", "_"): action for action in self._actions}
        return {name: action for name, action in actions.items() if name not in _SHARED}


def read_rows(path: str | os.PathLike) -> dict[str, dict[str, str]]:
    """Rows of a list by the names of their videos.

    Args:
        path (`str` or `os.PathLike`): CSV file in UTF-8.

    Raises:
        ValueError: If it is no such table, a column is unknown, or two rows have one name.
    """
    shared.check_files(list=path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, names = list(table), table.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`list` must be a CSV file in UTF-8, got {os.fspath(path)!r}: {error}") from error
    known = {"image", "audio", "name", "error", *_RowParser().columns()}
    if missing := {"image", "audio"} - set(names):
        raise ValueError(f"`list` must have the columns image and audio, {sorted(missing)} are missing.")
    if unknown := sorted(map(str, set(names) - known)):
        raise ValueError(f"`list` must have columns among {sorted(known)}, got {unknown}.")
    named: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"`list` must have {len(names)} cells in each row, row {number} has more or fewer.")
        name = row.get("name") or f"{number:05d}"
        if name in named or name != os.path.basename(name) or name.startswith("."):
            raise ValueError(f"`list` must have names that differ and can be file names, row {number} has {name!r}.")
        named[name] = {key: value.strip() for key, value in row.items() if key != "error" and value.strip()}
    return named


def read_job(row: dict[str, str], folder: Path, options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """What a worker needs for a row: files and the settings of a call.

    Args:
        row (`dict[str, str]`): Cells.
        folder (`Path`): That paths are relative to.
        options (`argparse.Namespace`): Of the command line.
        output (`Path`): The video.

    Raises:
        ValueError: If a file is missing or a value cannot be used.
    """
    parser, words = _RowParser(), []
    columns = parser.columns()
    for name, value in row.items():
        if name in columns and columns[name].nargs == 0:
            words += [columns[name].option_strings[-1]] if value.lower() in _YES else []
        elif name in columns:
            words.append(f"{columns[name].option_strings[-1]}={value}")
    chosen = argparse.Namespace(**{**vars(options), **vars(parser.parse_args(words))})
    files = {name: str(folder / row.get(name, "")) for name in ("image", "audio")}
    shared.check_files(**files)
    settings = read_talk_settings(chosen)
    seed = int.from_bytes(os.urandom(4), "big") if chosen.seed is None else chosen.seed
    return {**files, "output": str(output), "seed": seed, "crf": chosen.crf, "settings": settings}


class Talker:
    """A worker: a pipeline that makes one video after another.

    Args:
        options (`argparse.Namespace`): Of the command line: system, model, device, threads, provenance.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.credentials = options, shared.find_credentials(options)
        self.pipe = shared.load_pipeline(options, find_system(options.system)[0])
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Make the video of a row; how long it took, and its seed."""
        import torch

        began = time.monotonic()
        self.pipe.talk_to_file(
            job["output"],
            job["image"],
            job["audio"],
            provenance=not self.options.no_provenance,
            crf=job["crf"],
            credentials=self.credentials,
            generator=torch.Generator().manual_seed(job["seed"]),
            **job["settings"],
        )
        return {"seconds": round(time.monotonic() - began, 2), "seed": job["seed"]}


def _batch(options: argparse.Namespace) -> int:
    if options.motion is not None:
        raise ValueError("`motion` has no effect with batch: each video would overwrite it.")
    if options.model is None:
        options.model = shared.find_embedded(find_system(options.system)[1])
    shared.find_credentials(options)
    rows, output = read_rows(options.list), Path(options.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"`output` must be a folder, got the file {options.output!r}.")
    output.mkdir(parents=True, exist_ok=True)
    check_writable("output", str(output / "results.jsonl"))
    common = {key: value for key, value in vars(options).items() if key in getattr(options, "given", ())}
    common = {key: value for key, value in common.items() if key not in ("output", "workers", "engine", "retry")}
    marks = {name: _mark(row, common) for name, row in rows.items()}
    found = _read_results(output / "results.jsonl")
    jobs, folder, skipped = {}, Path(options.list).absolute().parent, 0
    plain = argparse.Namespace(**{k: v for k, v in vars(options).items() if k not in ("run", "parser", "arguments")})
    with open(output / "results.jsonl", "a", encoding="utf-8") as log:

        def note(result: JobResult) -> None:
            line = {"name": result.name, "row": marks[result.name], "error": result.error, **(result.value or {})}
            found[result.name] = line
            log.write(json.dumps(line, ensure_ascii=False) + "\n")
            log.flush()

        for name, row in rows.items():
            last, video = found.get(name, {}), output / f"{name}.mp4"
            is_same = last.get("row") == marks[name]
            if is_same and ((last["error"] is None and video.is_file()) or (last["error"] and not options.retry)):
                skipped += 1
                continue
            try:
                jobs[name] = read_job(row, folder, plain, video.absolute())
            except ValueError as error:
                note(JobResult(name, str(error)))
        results = _find_engine(options)(jobs, Talker, (plain,), options.workers)
        for count, result in enumerate(results, start=1):
            note(result)
            state = "failed" if result.error else "done"
            print(f"vasa-hf: {count}/{len(jobs)} {result.name}: {state}", file=sys.stderr)
    failed = [name for name in rows if found[name]["error"]]
    _write_failures(output / "failures.csv", {name: (rows[name], found[name]["error"]) for name in failed}, folder)
    for name in failed:
        print(f"vasa-hf: {name}: {' '.join(found[name]['error'].split())}", file=sys.stderr)
    print(f"{options.output}: {len(rows) - len(failed)} videos, {len(failed)} failed, {skipped} not made again")
    return 1 if failed else 0


def _find_engine(options: argparse.Namespace) -> Callable[..., Iterator[JobResult]]:
    if options.engine == "local":
        return run_jobs
    from vasa_hf.batch_ray import run_on_ray  # ray is optional

    return partial(run_on_ray, gpus=float(options.device.startswith("cuda")))


def _mark(row: dict[str, str], common: dict[str, Any]) -> str:
    """Hash of all that a row's video depends on but its files."""
    return hashlib.sha256(json.dumps([row, common], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Last line of each row; a line that was cut off is left out."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[entry["name"]] = entry
    return found


def _write_failures(path: Path, failures: dict[str, tuple[dict[str, str], str]], folder: Path) -> None:
    """Write failed rows as a list, with absolute paths; no file where nothing failed."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    rows = []
    for name, (row, error) in failures.items():
        files = {key: str(folder / row.get(key, "")) for key in ("image", "audio")}
        rows.append({**row, **files, "name": name, "error": " ".join(error.split())})
    write_csv(path, rows)

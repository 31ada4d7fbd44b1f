"""The command `prepare`: training clips from a folder of videos."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from vasa_hf.cli import options as shared


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    ready = command(
        "prepare",
        _prepare,
        "make training clips from a folder of videos: find faces, filter, crop, label, write shards",
        "examples:\n"
        "  vasa-hf prepare videos -o shards --workers 4\n"
        "  vasa-hf prepare videos -o shards --filters loose --set min_face=100 --set frontal_deg=45\n"
        "  vasa-hf prepare --check shards\n"
        "  vasa-hf prepare --unpack shards -o data     # the layout that the trainers read\n"
        "\nThe same command continues a run that was stopped. Exit status of --check: 0 if all shards are valid.\n",
    )
    ready.add_argument("videos", nargs="?", help="folder of videos; its subfolders name the people")
    ready.add_argument("-o", "--output", metavar="DIR", help="folder for the shards or the unpacked clips")
    ready.add_argument("--check", metavar="DIR", help="compare shards with their manifest")
    ready.add_argument("--unpack", metavar="DIR", help="write clips/*.mp4, clips.npz and identities.csv from shards")
    ready.add_argument("--filters", default="strict", help="strict: for motion, loose: for appearance (%(default)s)")
    ready.add_argument(
        "--set", action="append", default=[], metavar="NAME=NUMBER", help="change a filter, see vasa_hf/data/filters.py"
    )
    ready.add_argument("--min-seconds", type=float, help="minimal length of a clip (3)")
    ready.add_argument("--max-seconds", type=float, help="maximal length; longer clips are cut (10)")
    ready.add_argument("--size", type=int, default=256, help="side of the clips in pixels (%(default)s)")
    ready.add_argument("--crop-scale", type=float, default=2.0, help="side relative to the face (%(default)s)")
    ready.add_argument("--crf", type=int, default=18, help="quality of H.264, 0 to 51 (%(default)s)")
    ready.add_argument("--identity", default="folder", help="one person per folder or per video (%(default)s)")
    ready.add_argument(
        "--voice", default="keep", help="audio of the clips: keep, level, or clean: level and less noise (%(default)s)"
    )
    ready.add_argument("--model", default="vasa-small", help="model whose networks label the clips (%(default)s)")
    ready.add_argument("--mediapipe", metavar="FILE", help="find faces with MediaPipe: its face_landmarker.task")
    ready.add_argument("--clips-per-shard", type=int, default=1000, help="(%(default)s)")
    ready.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    ready.add_argument("--engine", default="local", help="local, or ray for a cluster (%(default)s)")
    ready.add_argument("--retry", action="store_true", help="try unreadable videos again")
    ready.add_argument("--json", action="store_true", help="print the manifest's counts as JSON")


def _prepare(options: argparse.Namespace) -> int:
    from vasa_hf.data import shards

    if options.check is not None:
        shared.refuse_ignored(options, {"check"}, "check")
        complaints = shards.check(options.check)
        print(
            "\n".join(complaints) or f"{options.check}: {shards.read_manifest(options.check)['samples']} clips, whole"
        )
        return 1 if complaints else 0
    if options.output is None:
        raise ValueError("`output` must be given: -o DIR.")
    if options.unpack is not None:
        shared.refuse_ignored(options, {"unpack", "output"}, "unpack")
        print(f"{shards.unpack(options.unpack, options.output)} clips in {options.output}")
        return 0
    if options.videos is None:
        raise ValueError("`videos` must be given: a folder.")
    shared.quiet_libraries()
    from vasa_hf.data import prepare_job
    from vasa_hf.data.filters import Filters
    from vasa_hf.data.prepare import PrepareSettings

    changes = {name: value for text in options.set for name, value in shared.parse_weights("set", text).items()}
    for name in ("min_seconds", "max_seconds"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    names = ("size", "crop_scale", "crf", "model", "mediapipe", "identity", "voice")
    manifest = prepare_job.prepare(
        options.videos,
        options.output,
        PrepareSettings(Filters.named(options.filters, **changes), **{name: getattr(options, name) for name in names}),
        clips_per_shard=options.clips_per_shard,
        workers=options.workers,
        engine=options.engine,
        retry=options.retry,
        progress=lambda done, total: print(f"\r{done} of {total} videos", end="", file=sys.stderr, flush=True),
    )
    print(file=sys.stderr)
    for name, error in prepare_job.unreadable(options.output):
        print(f"vasa-hf: unreadable: {name}: {error}", file=sys.stderr)
    print(json.dumps(manifest["counts"]) if options.json else prepare_job.table(manifest["counts"]))
    return 0

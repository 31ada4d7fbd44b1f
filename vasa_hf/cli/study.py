"""The command `study`: a blinded user study as a web page, and its result."""

from __future__ import annotations

import argparse
import json
from typing import Any

_EXAMPLES = """examples:
  vasa-hf study vasa1=videos1 moda=videos2 -o study    # videos of the same names, as `vasa-hf batch` writes
  vasa-hf study study --score answers-*.csv
Give participants the folder study/page: index.html needs no server and saves answers-....csv. Keep study/key.json.
"""


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    study = command(
        "study",
        _study,
        "make a blinded page for scoring and choosing videos, or count the answers",
        _EXAMPLES,
    )
    study.add_argument("systems", nargs="+", metavar="NAME=DIR", help="videos of each system; or the study, to --score")
    study.add_argument("-o", "--output", metavar="DIR", help="new folder for the page and its key")
    study.add_argument("--score", nargs="+", metavar="CSV", help="files that participants saved")
    study.add_argument("--seed", type=int, help="seed of the order and of the names of files")
    study.add_argument("--json", action="store_true", help="print the result as JSON")


def _study(options: argparse.Namespace) -> None:
    from vasa_hf.evaluation.user_study import make_study, score_study

    if options.score:
        if len(options.systems) != 1 or options.output:
            raise ValueError("`score` needs the folder of one study and no --output.")
        result = score_study(options.systems[0], options.score)
        if options.json:
            print(json.dumps(result))
            return
        print("| system | video quality, 1 to 5 ↑ | preferred ↑ | participants |\n| --- | ---: | ---: | ---: |")
        for row in result:
            quality = "–" if row["quality"] is None else f"{row['quality']:.2f}"
            preference = "–" if row["preference"] is None else f"{row['preference']:.2%}"
            print(f"| {row['system']} | {quality} | {preference} | {row['participants']} |")
        return
    if not options.output:
        raise ValueError("`output` must be given: -o DIR.")
    systems = {}
    for text in options.systems:
        name, separator, folder = text.partition("=")
        if not separator or not name or name in systems:
            raise ValueError(f"`systems` must be NAME=DIR with names that differ, got {text!r}.")
        systems[name] = folder
    count = make_study(systems, options.output, options.seed)
    print(f"{options.output}/page/index.html: {count * len(systems)} videos to score, {count} choices")

"""`vasa-hf eval`: generate, score, and write the tables of the papers with new rows.

Each protocol writes `rows/NAME.csv`, one row for every number of every video. The tables are made from these files.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

from vasa_hf.evaluation import tables
from vasa_hf.evaluation.catalogue import AVATAR_PARTS, CONTROL_PARTS, LATENT_PARTS, NOT_DEFINED, PARTS, check_names
from vasa_hf.evaluation.protocols import PROTOCOLS
from vasa_hf.evaluation.run import Evaluation


def evaluate(
    pipeline: Any,
    data: str | os.PathLike,
    output: str | os.PathLike,
    parts: Sequence[str] | None = None,
    **settings: Any,
) -> list[str]:
    """Evaluate a pipeline and write `table.md`, `card.md`, `table.csv`, `table.json`, plots and sheets.

    Args:
        pipeline (`VasaTalkingFacePipeline` or another with its methods): The pipeline.
        data (`str` or `os.PathLike`): See `EvalData`.
        output (`str` or `os.PathLike`): Folder; rows that it has for other parts are added to the tables.
        parts (`Sequence[str]`, *optional*): Names in `PARTS`; by default all that suit the pipeline.
        **settings: Arguments of `Evaluation`.

    Returns:
        `list[str]`: Requested metrics without any number; empty on success.
    """
    check_names(parts, settings.get("metrics"))
    controls = set(pipeline.control_names())
    fits = lambda part: part not in CONTROL_PARTS or controls & set(CONTROL_PARTS[part])  # noqa: E731
    has_latents = hasattr(pipeline, "face_autoencoder")
    known = tuple(part for part in PARTS if part not in AVATAR_PARTS and fits(part))
    known = tuple(part for part in known if has_latents or part not in LATENT_PARTS)
    known = AVATAR_PARTS if settings.get("avatars") else known
    parts = list(parts or known)
    if not set(parts) <= set(known):
        raise ValueError(f"`parts` must be of {list(known)} for this pipeline, got {parts}.")
    run = Evaluation(pipeline, data, output, **settings)
    (run.output / "rows").mkdir(parents=True, exist_ok=True)
    for one in (pipeline, run.reference):
        if hasattr(one, "set_progress_bar_config"):
            one.set_progress_bar_config(disable=True)
    for part in parts:
        PROTOCOLS[part](run).write_rows()
    tables.remake(output)
    return missing_metrics(output, parts, settings.get("metrics"))


def missing_metrics(
    output: str | os.PathLike, parts: Sequence[str] | None = None, metrics: Sequence[str] | None = None
) -> list[str]:
    """List requested metrics without any number, as `part: metric`.

    Without `metrics`, all whose networks and labels exist are requested.

    Args:
        output (`str` or `os.PathLike`): Folder with `rows/`.
        parts (`Sequence[str]`, *optional*): Names in `PARTS`; by default those with rows.
        metrics (`Sequence[str]`, *optional*): Names in `METRICS`.
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

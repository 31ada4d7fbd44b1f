"""Rows to tables: Markdown, CSV and JSON, with confidence intervals and the reasons of missing values."""

from __future__ import annotations

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from vasa_hf.evaluation.catalogue import METRICS, NOT_DEFINED, PAPERS, PARTS, TITLES, Metric
from vasa_hf.evaluation.plots import draw_plots
from vasa_hf.files import staging, write_csv

COLUMNS = ("part", "role", "system", "item", "sample", "metric", "value", "why")
ROLES = ("model", "share", "baseline", "truth", "paper")
NOTES = {
    "self": "Source: the first frame of each clip; measured: all others, generated from the clip's own motion.",
    "cross": "Each portrait with the absolute motion of the first 75 frames of another person's clip. The row of true "
    "frames is that of the driving clips. AKD includes the difference between the shapes of the faces; FID is against "
    "the portraits.",
    "audio": "The audio of every clip with its own first frame, and every voice in windows of 3 s, each with another "
    "portrait; several samples of each, all frames measured. Requested gaze: the camera; requested distance: the "
    "portrait's. The sync expert measures the generated motion, and for true frames the encoded motion; head poses are "
    "measured in the frames. Baselines have no frames.",
    "minutes": "The first minute of each voice as one video with one portrait. Sync, CAPP, ΔP and seams are of the "
    "generated motion; with SyncNet or I3D all frames are rendered and measured, 10 s at a time.",
    "disentangle": "Targets: of each person the first frame of a clip that is nearest to frontal. Sources: 3 s of "
    "clips of other people, at random (paper: 108 people, 50 clips each). Identity: all motion of the source. The "
    "rest: its dynamics alone with the target's pose, as in Fig. 4.",
    "silence": "20 s of silence with two portraits (or with first frames of clips), all frames measured.",
    "ablations": "The first 10 s of each voice with one portrait; requested gaze 0.25, -0.25 rad to the side and 0.15 "
    "down. Sync, CAPP and ΔP are of the generated motion; gaze and distance are measured in every tenth frame. With "
    "SyncNet or I3D all frames are rendered and measured, and the clips are the real video.",
    "controls": "Four portraits, 2 s of one voice, the same seed for each setting; measured by the detector in every "
    "tenth frame. Gaze ±0.3 rad to the sides, ±0.2 up and down; distance 0.8 and 1.25; six emotions at 1.",
    "motion_controls": "Up to ten portraits, 3 s of one voice, one seed, every fifth frame measured by the detector. "
    "Head poses: six constant ones (0.3 rad of yaw, 0.2 of pitch and roll, both ways), and those of a clip. Held: all "
    "landmarks but those of mouth and jaw, moved as in a clip. A row for each instruction.",
    "speed": "The first 10 s of up to four voices with one portrait, after loading: find and encode the portrait, read "
    "audio, generate motion, render frames, write the file. The papers' rows are on a GPU that MoDA does not name.",
    "studies": "Response of the learned metrics to shifted audio, scaled motion, and the audio of other clips.",
    "avatars": "VASA-1 and the avatar render the same motion (the first 3 s of voices and of clips that are in no "
    "training data) of the same portrait on the same plain background; VASA-1's frames are the truth, and its row the "
    "upper bound. The sync expert measures the motion that VASA-1's encoder finds in the frames. Identity is relative "
    "to the portrait.",
    "real": "Each avatar was fitted to one frame of a clip, is driven by the whole clip and judged against it, as is "
    "VASA-1 from the same frame. What the avatar does not cover is the real frame's in all rows.",
}


def write_rows(path: str | os.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of one part as CSV, whole or not at all."""
    write_csv(path, rows, COLUMNS)


def read_rows(output: str | os.PathLike) -> list[dict[str, Any]]:
    """Read all rows of a folder; `value` is a number or `None`.

    Raises:
        ValueError: If there are none.
    """
    rows = []
    for path in sorted(Path(output).glob("rows/*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            rows += [{**row, "value": float(row["value"]) if row["value"] else None} for row in csv.DictReader(file)]
    if not rows:
        raise ValueError(f"`output` must hold rows/*.csv of an evaluation, {os.fspath(output)!r} has none.")
    return rows


def summarize(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average each part, system and metric: mean over items of the mean over samples, 95 % interval, reasons.

    Returns:
        `list[dict]` with `part`, `role`, `system`, `metric`, `value` (or `None`), `low`, `high`, `items`, `why` (reason
        -> the items it holds for) and `per_item`.
    """
    groups: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    reasons: dict[tuple, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        key = (row["part"], row["role"], row["system"], row["metric"])
        groups[key]  # also for groups that have only reasons
        if row["value"] is None:
            reasons[key][row["why"]].add(row["item"])
        else:
            groups[key][row["item"]].append(row["value"])
    summary = []
    for key, items in groups.items():
        per_item = {item: sum(values) / len(values) for item, values in items.items()}
        low, high = bootstrap_interval(list(per_item.values()))
        summary.append(
            {
                **dict(zip(("part", "role", "system", "metric"), key, strict=True)),
                "value": sum(per_item.values()) / len(per_item) if per_item else None,
                "low": low,
                "high": high,
                "items": len(per_item),
                "why": {why: sorted(names) for why, names in reasons[key].items()},
                "per_item": per_item,
            }
        )
    return summary


def bootstrap_interval(
    values: Sequence[float], resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of independent values; NaN for fewer than two.

    Args:
        values (`Sequence[float]`): One value per clip.
        resamples (`int`): Number of resamples.
        level (`float`): Coverage.
        seed (`int`): Random seed.
    """
    table = torch.as_tensor(values, dtype=torch.float64)
    if len(table) < 2:
        return math.nan, math.nan
    draws = torch.randint(len(table), (resamples, len(table)), generator=torch.Generator().manual_seed(seed))
    means = table[draws].mean(1)
    tail = (1 - level) / 2
    return float(means.quantile(tail)), float(means.quantile(1 - tail))


def shares_of_truth(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make entries of the role `share`: the model's mean relative to that of the true frames, over common items.

    Only for metrics whose mean over the true frames exists and is above 0.
    """
    references = {(e["part"], e["metric"]): e for e in summary if e["role"] == "truth"}
    shares = []
    for entry in summary:
        truth = references.get((entry["part"], entry["metric"]))
        if entry["role"] != "model" or truth is None:
            continue
        common = [item for item in entry["per_item"] if item in truth["per_item"]]
        mine, true = (sum(e["per_item"][item] for item in common) for e in (entry, truth))
        if true > 0:
            known = {"role": "share", "system": f"{entry['system']}, share of {truth['system']}", "value": mine / true}
            nothing = {"low": math.nan, "high": math.nan, "why": {}, "per_item": {}}
            shares.append({**entry, **known, **nothing, "items": len(common)})
    return shares


def below_baselines(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the metrics in which a model is worse than a baseline that is not trivial for the metric.

    Returns:
        `list[dict]` with `part`, `system`, `metric`, `baseline`, both values, and `certain`: whether the 95 % interval
        of the paired difference excludes 0 (`False` without pairs).
    """
    found = []
    baselines = [entry for entry in summary if entry["role"] == "baseline" and entry["value"] is not None]
    for entry in summary:
        metric = _metric(entry["metric"])
        if entry["role"] != "model" or entry["value"] is None or not metric.better:
            continue
        for other in baselines:
            same = (other["part"], other["metric"]) == (entry["part"], entry["metric"])
            if not same or other["system"] in metric.trivial:
                continue
            common = [item for item in entry["per_item"] if item in other["per_item"]]
            model, baseline = ([e["per_item"][item] for item in common] for e in (entry, other))
            gaps = [metric.better * (a - b) for a, b in zip(model, baseline, strict=True)]
            gap = sum(gaps) / len(gaps) if gaps else metric.better * (entry["value"] - other["value"])
            if gap < 0:
                found.append(
                    {
                        **{name: entry[name] for name in ("part", "system", "metric")},
                        "baseline": other["system"],
                        "value": sum(model) / len(model) if model else entry["value"],
                        "baseline_value": sum(baseline) / len(baseline) if baseline else other["value"],
                        "certain": len(gaps) > 1 and bootstrap_interval(gaps)[1] < 0,
                    }
                )
    return found


def remake(output: str | os.PathLike, plots: bool = True) -> None:
    """Write `table.md`, `card.md`, `table.csv`, `table.json` and the plots from the rows of a folder.

    Args:
        output (`str` or `os.PathLike`): Folder with `rows/`.
        plots (`bool`, defaults to `True`): Draw plots, if matplotlib is installed.
    """
    output = Path(output)
    rows = read_rows(output)
    summary = summarize(rows)
    summary += shares_of_truth(summary)
    verdicts = below_baselines(summary)
    facts = {path.stem: json.loads(path.read_text()) for path in sorted(output.glob("rows/*.json"))}
    _write_text(output / "table.md", format_markdown(summary, verdicts, facts))
    _write_text(output / "card.md", format_card(summary, verdicts))
    flat = [{name: value for name, value in entry.items() if name != "per_item"} for entry in summary]
    for entry in flat:
        entry |= {name: None for name in ("low", "high") if math.isnan(entry[name])}
    content = {"summary": flat, "below_baselines": verdicts, "papers": PAPERS, "runs": facts}
    _write_text(output / "table.json", json.dumps(content, ensure_ascii=False, indent=1))
    rows = [
        {**entry, "why": "; ".join(f"{why} ({len(items)})" for why, items in entry["why"].items())} for entry in flat
    ]
    rows += [
        {"part": part, "role": "paper", "system": system, "metric": name, "value": value}
        for part, systems in PAPERS.items()
        for system, values in systems.items()
        for name, value in values.items()
    ]
    columns = ("part", "role", "system", "metric", "value", "low", "high", "items", "why")
    write_csv(output / "table.csv", rows, columns)
    if plots:
        draw_plots(output / "plots", [entry for entry in summary if entry["role"] != "share"])


def format_markdown(
    summary: Sequence[dict[str, Any]], verdicts: Sequence[dict[str, Any]], facts: dict[str, dict[str, Any]]
) -> str:
    """Format all parts as one Markdown text.

    Args:
        summary (`Sequence[dict]`): See `summarize`.
        verdicts (`Sequence[dict]`): See `below_baselines`.
        facts (`dict`): Facts about the run of each part.
    """
    lines = [
        "# Evaluation",
        "",
        "Mean over clips of the mean over samples, [95 % bootstrap interval over clips]. A share is the model's mean "
        "relative to that of the true frames, over the clips that have both. ▼ marks a model below a trivial baseline. "
        "Networks measure every fifth frame. The papers' rows are on other data, with other networks and detectors: "
        "they are not comparable with the rest.",
    ]
    for part in PARTS:
        entries = [entry for entry in summary if entry["part"] == part]
        if not entries:
            continue
        lines += ["", f"## {TITLES[part]}", "", NOTES[part], ""]
        lines += _study_lines(entries) if part == "studies" else _part_lines(part, entries, verdicts)
        lines += _verdict_lines([verdict for verdict in verdicts if verdict["part"] == part])
        lines += _reason_lines(entries)
        if part in facts:
            fact = facts[part]
            text = f"{fact['threads']} threads: {format_time([fact])}; peak memory {fact['memory_mb']} MB."
            lines += ["", text]
            networks = "".join(f", {name}: {what}" for name, what in fact.get("networks", {}).items())
            lines += [f"Measured with {fact.get('detector', 'the analyzer')}{networks}."]
    if len(facts) > 1:
        lines += ["", "## Time", "", f"{', '.join(facts)}: {format_time(list(facts.values()))}."]
    used = {entry["metric"] for entry in summary if entry["metric"] in METRICS}
    lines += ["", "## Columns", ""]
    arrows = {1: "↑", -1: "↓", 0: ""}
    lines += [f"- **{m.label}** {arrows[m.better]}: {m.about}." for name, m in METRICS.items() if name in used]
    return "\n".join(lines) + "\n"


def format_time(facts: Sequence[dict[str, Any]]) -> str:
    """Format the wall time and the CPU time of some parts, in total, for generation and for measurement.

    Args:
        facts (`Sequence[dict]`): Contents of `rows/PART.json`.
    """
    keys = ("seconds", "cpu_seconds", "generate", "generate_cpu_seconds", "score", "score_cpu_seconds")
    spent = [f"{sum(fact[key] for fact in facts):.0f} s" for key in keys]
    pairs = zip(("all", "generating", "measuring"), spent[::2], spent[1::2], strict=True)
    return ", ".join(f"{what} {wall} ({worked} of CPU time)" for what, wall, worked in pairs)


def format_card(summary: Sequence[dict[str, Any]], verdicts: Sequence[dict[str, Any]]) -> str:
    """Format the same for a model card: metrics as rows, systems as columns, without the papers' rows.

    Args:
        summary (`Sequence[dict]`): See `summarize`.
        verdicts (`Sequence[dict]`): See `below_baselines`.
    """
    lines = []
    below = {(verdict["part"], verdict["system"], verdict["metric"]) for verdict in verdicts}
    for part in PARTS:
        entries = [entry for entry in summary if entry["part"] == part and entry["value"] is not None]
        if not entries:
            continue
        lines += [f"**{TITLES[part]}.** {NOTES[part]}", ""]
        if part == "studies":
            lines += [*_study_lines(entries), ""]
            continue
        roles = {entry["system"]: entry["role"] for entry in entries}
        systems = sorted(roles, key=lambda name: ROLES.index(roles[name]))
        numbers = {(entry["system"], entry["metric"]): entry for entry in entries}
        lines += ["| | " + " | ".join(systems) + " |", "| --- |" + " ---: |" * len(systems)]
        for name in PARTS[part]:
            if not any((system, name) in numbers for system in systems):
                continue
            cells = []
            for system in systems:
                entry = numbers.get((system, name))
                full = roles[system] == "share" or (roles[system] == "model" and part != "ablations")
                text = _cell(entry, METRICS[name]) if full else None
                text = text or _number(entry["value"] if entry else None, METRICS[name].decimals)
                cells.append(text + " ▼" * ((part, system, name) in below))
            lines.append(f"| {METRICS[name].heading} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _part_lines(part: str, entries: Sequence[dict[str, Any]], verdicts: Sequence[dict[str, Any]]) -> list[str]:
    numbers = {(entry["system"], entry["metric"]): entry for entry in entries}
    papers = PAPERS.get(part, {})
    printed = {name for values in papers.values() for name in values}
    measured = {entry["metric"] for entry in entries if entry["value"] is not None}
    columns = [name for name in PARTS[part] if name in printed | measured]
    lines = [
        "| system | " + " | ".join(METRICS[name].heading for name in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    roles: dict[str, str] = {}
    for entry in entries:
        if entry["value"] is not None:
            roles.setdefault(entry["system"], entry["role"])
    below = {(verdict["system"], verdict["metric"]) for verdict in verdicts if verdict["part"] == part}
    for system in sorted(roles, key=lambda name: ROLES.index(roles[name])):
        cells = []
        for name in columns:
            cells.append(_cell(numbers.get((system, name)), METRICS[name]) + " ▼" * ((system, name) in below))
        title = f"**{system}**" if roles[system] == "model" else system
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for system, values in papers.items():
        cells = [_number(values.get(name), METRICS[name].decimals) for name in columns]
        lines.append(f"| *{system}* | " + " | ".join(cells) + " |")
    return lines


def _study_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    systems = list(dict.fromkeys(entry["system"] for entry in entries))
    names = list(dict.fromkeys(entry["metric"] for entry in entries if entry["value"] is not None))
    numbers = {(entry["system"], entry["metric"]): entry["value"] for entry in entries}
    lines = ["| | " + " | ".join(systems) + " |", "| --- |" + " ---: |" * len(systems)]
    return lines + [
        f"| {name} | " + " | ".join(_number(numbers.get((system, name)), 3) for system in systems) + " |"
        for name in names
    ]


def _verdict_lines(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    if not verdicts:
        return []
    lines = ["", "Below a baseline:", ""]
    for verdict in verdicts:
        metric = _metric(verdict["metric"])
        value, baseline = (_number(verdict[name], metric.decimals) for name in ("value", "baseline_value"))
        doubt = "" if verdict["certain"] else " (the interval of the difference contains 0, or there are no pairs)"
        lines.append(f"- {verdict['system']}, {metric.label}: {value}, {verdict['baseline']} {baseline}{doubt}")
    return lines


def _reason_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """List the metrics that could not be computed, by reason."""
    reasons: dict[str, tuple[set[str], set[str], set[str]]] = defaultdict(lambda: (set(), set(), set()))
    for entry in entries:
        for why, items in entry["why"].items():
            if why.startswith(NOT_DEFINED) and "*" not in items:
                continue
            metrics, systems, names = reasons[why]
            metrics.add(_metric(entry["metric"]).label)
            systems.add(entry["system"])
            names.update(items)
    if not reasons:
        return []
    lines = ["", "Not computed:", ""]
    for why, (metrics, systems, names) in reasons.items():
        where = (
            "" if names == {"*"} else f" ({len(names)} items: {', '.join(sorted(names)[:3])}{', …' * (len(names) > 3)})"
        )
        by = "" if names == {"*"} else f", {' and '.join(sorted(systems))}"
        lines.append(f"- {', '.join(sorted(metrics))}{by}: {why}{where}")
    return lines


def _cell(entry: dict[str, Any] | None, metric: Metric) -> str:
    if entry is None or entry["value"] is None:
        return "–"
    if entry["role"] == "share":
        return f"{entry['value']:.0%}"
    text = _number(entry["value"], metric.decimals)
    if math.isnan(entry["low"]) or text == "∞":
        return text
    return f"{text} [{_number(entry['low'], metric.decimals)}, {_number(entry['high'], metric.decimals)}]"


def _number(value: float | None, decimals: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{decimals}f}" if abs(value) < 1e5 else "∞"  # such as the stability of a still image


def _metric(name: str) -> Metric:
    return METRICS.get(name) or Metric(name, 0, 3, "")


def _write_text(path: Path, text: str) -> None:
    with staging(path) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")

"""Figures of an evaluation: frames side by side for each video, bars of every part, curves of the studies."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vasa_hf.evaluation.catalogue import METRICS, PARTS, TITLES
from vasa_hf.media.ffmpeg import staging

SHEET_SIDE, SHEET_ROWS = 160, 4


def write_sheet(
    path: str | os.PathLike, source: Tensor, driving: Tensor | None, generated: Tensor, truth: Tensor | None
) -> None:
    """Write four moments of a video from top to bottom: source, driving or true, generated, and difference frames.

    Args:
        path (`str` or `os.PathLike`): A `.jpg` file.
        source (`torch.Tensor` of shape `(1, 3, size, size)`): The portrait, in [0, 1].
        driving (`torch.Tensor` of shape `(frames, 3, size, size)`, *optional*): Driving frames.
        generated (`torch.Tensor` of shape `(frames, 3, size, size)`): Generated frames.
        truth (`torch.Tensor` of shape `(frames, 3, size, size)`, *optional*): True frames.
    """
    rows = torch.linspace(0, len(generated) - 1, min(SHEET_ROWS, len(generated))).round().long()
    columns = {"source": source.expand(len(rows), -1, -1, -1)}
    if driving is not None:
        columns["driving" if truth is None else "truth"] = driving[rows]
    columns["generated"] = generated[rows]
    if truth is not None:
        columns["difference x 4"] = ((generated[rows] - truth[rows]).abs() * 4).clamp(0, 1)
    side, head = SHEET_SIDE, 14
    sheet = Image.new("RGB", (side * len(columns), head + side * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, frames) in enumerate(columns.items()):
        draw.text((column * side + 4, 1), name, fill="black")
        for row, frame in enumerate(frames):
            array = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            image = Image.fromarray(np.ascontiguousarray(array)).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(image, (column * side, head + row * side))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with staging(path) as folder:
        sheet.save(folder / Path(path).name, quality=88)


def draw_plots(folder: Path, summary: Sequence[dict[str, Any]]) -> None:
    """Draw bars with intervals for every part, and the curves of the studies; needs matplotlib.

    Args:
        folder (`Path`): Folder for the PNG files; created if it does not exist.
        summary (`Sequence[dict]`): See `tables.summarize`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plots: they need matplotlib (pip install 'vasa-hf[eval]')", file=sys.stderr)
        return
    folder.mkdir(parents=True, exist_ok=True)

    def save(figure: Any, name: str) -> None:
        with staging(folder / name) as place:
            figure.savefig(place / name, dpi=110, bbox_inches="tight")

    for part in PARTS:
        entries = [entry for entry in summary if entry["part"] == part and entry["value"] is not None]
        if not entries:
            continue
        if part == "studies":
            save(_study_figure(Figure, entries), "studies.png")
            continue
        names = [name for name in PARTS[part] if any(entry["metric"] == name for entry in entries)]
        systems = list(dict.fromkeys(entry["system"] for entry in entries))
        across = min(4, len(names))
        figure = Figure(figsize=(3.2 * across, 0.9 + (0.7 + 0.24 * len(systems)) * -(-len(names) // across)))
        axes = np.atleast_1d(figure.subplots(-(-len(names) // across), across, squeeze=False)).flatten()
        colors = {system: f"C{index % 10}" for index, system in enumerate(systems)}
        for axis, name in zip(axes, names, strict=False):
            mine = {entry["system"]: entry for entry in entries if entry["metric"] == name}
            for place, system in enumerate(systems):
                if system in mine:
                    entry = mine[system]
                    axis.barh(place, entry["value"], color=colors[system])
                    if not math.isnan(entry["low"]):
                        axis.plot([entry["low"], entry["high"]], [place, place], color="black", linewidth=1)
            values = [entry["value"] for entry in mine.values()]
            if min(values) > 0 and max(values) > 100 * min(values):  # the MSI of a still face is nearly infinite
                axis.set_xscale("log")
            axis.set_title(METRICS[name].heading, fontsize=8)
            axis.set_yticks(range(len(systems)), [s[:32] for s in systems] if axis in axes[::across] else [])
            axis.tick_params(labelsize=6)
            axis.invert_yaxis()
        for axis in axes[len(names) :]:
            axis.axis("off")
        figure.suptitle(TITLES[part], fontsize=10)
        figure.tight_layout()
        save(figure, f"{part}.png")


def _study_figure(figure_class: Any, entries: Sequence[dict[str, Any]]) -> Any:
    figure = figure_class(figsize=(10, 2.8))
    curves: tuple[tuple[str, str, str], ...] = (
        ("CAPP ±", "shift in frames", "CAPP"),
        ("CAPP ×", "scale of pose changes", "CAPP"),
    )
    curves += (("sync cosine ±", "shift in frames", "cosine of the sync expert"),)
    for axis, (prefix, x_label, y_label) in zip(figure.subplots(1, 3), curves, strict=True):
        for system in dict.fromkeys(entry["system"] for entry in entries):
            points = [
                (float(entry["metric"].removeprefix(prefix)), entry["value"])
                for entry in entries
                if entry["system"] == system and entry["metric"].startswith(prefix)
            ]
            if points:
                axis.plot(*zip(*sorted(points), strict=True), marker="o", label=system)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.tight_layout()
    return figure

"""Make a training folder without the files whose rights are unclear.

    python -m vasa_hf.data.select --data DATA/train --output DATA/train_clear

Reads `sources.csv` (column `media`: `clear`, `clear-ish` or `unclear`) and links what remains, with its labels, so that
every trainer can be run on it unchanged.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np


def select_media(data: str | Path, output: str | Path, accepted: tuple[str, ...] = ("clear",)) -> dict[str, int]:
    """Link the files of a data folder whose media rights are accepted, and cut the labels to them.

    Args:
        data (`str` or `Path`): Folder with `clips`, `portraits`, `speech`, their labels and `sources.csv`.
        output (`str` or `Path`): New folder; must not exist.
        accepted (`tuple[str, ...]`): Accepted values of the column `media`, up to the first comma or colon.

    Returns:
        `dict[str, int]`: Number of files kept in each subfolder.

    Raises:
        ValueError: If `output` exists or nothing is left.
    """
    data, output = Path(data), Path(output)
    if output.exists():
        raise ValueError(f"`output` must not exist yet, got {str(output)!r}.")
    with open(data / "sources.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kept_rows = [row for row in rows if row["media"].replace(":", ",").split(",")[0].strip() in accepted]
    if not kept_rows:
        raise ValueError(f"`accepted` must leave some file, but none of {len(rows)} has media in {list(accepted)}.")
    counts: dict[str, int] = {}
    for row in kept_rows:
        target = output / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        os.symlink((data / row["file"]).resolve(), target)
        counts[target.parent.name] = counts.get(target.parent.name, 0) + 1
    with open(output / "sources.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(kept_rows)
    kept = {Path(row["file"]).stem for row in kept_rows}
    for name in ("clips.npz", "portraits.npz"):
        if (data / name).exists():
            _cut_labels(data / name, output / name, kept)
    with (
        open(data / "identities.csv", newline="") as source,
        open(output / "identities.csv", "w", newline="") as target,
    ):
        lines = source.read().splitlines()
        target.write("\n".join([lines[0], *(line for line in lines[1:] if line.split(",")[0] in kept)]) + "\n")
    return counts


def _cut_labels(source: Path, target: Path, kept: set[str]) -> None:
    with np.load(source) as arrays:
        names, offsets = arrays["names"], arrays["offsets"]
        files = np.array([str(name) in kept for name in names])
        frames = np.repeat(files, np.diff(offsets))
        out = {"names": names[files], "offsets": np.r_[0, np.diff(offsets)[files].cumsum()].astype(offsets.dtype)}
        for key in arrays.files:
            if key not in out:
                value = arrays[key]
                out[key] = value[frames] if value.ndim and len(value) == len(frames) else value
    np.savez_compressed(target, **out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with sources.csv")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument("--accepted", nargs="+", default=["clear"], help="accepted values of the column `media`")
    options = parser.parse_args()
    print(select_media(options.data, options.output, tuple(options.accepted)))


if __name__ == "__main__":
    main()

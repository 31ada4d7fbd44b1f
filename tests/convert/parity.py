"""How far our modules are from the reference vectors of three projects: `python -m tests.convert.parity`.

Each project has a file `vectors_<project>.py` next to this one, with a function for each check: it returns the largest
absolute difference of each output. The tests run the same functions.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[3] / "shared" / "refvec"
ABSENT = "the reference vectors are not part of the repository"


@dataclass(frozen=True)
class Check:
    """A comparison of what we compute with what the reference computed.

    Args:
        name (`str`): What is compared.
        limit (`float`): Largest absolute difference allowed.
        run (`Callable`): Gives the largest absolute difference of each output, by name.
    """

    name: str
    limit: float
    run: Callable[[], dict[str, float]]


class Checks(list):
    """The checks of one project, in order; calling it makes a decorator that adds one."""

    def __call__(self, name: str, limit: float) -> Callable:
        def add(run: Callable[[], dict[str, float]]) -> Callable:
            self.append(Check(name, limit, run))
            return run

        return add


def load(project: str, name: str) -> dict[str, Tensor]:
    """Arrays of `<project>/<name>.npz`."""
    with np.load(FOLDER / project / f"{name}.npz") as arrays:
        numbers = [key for key in arrays.files if arrays[key].dtype.kind != "U"]  # some hold a remark
        return {key: torch.from_numpy(arrays[key].copy()) for key in numbers}


def difference(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference; infinite when shapes differ or anything is not finite."""
    if ours.shape != reference.shape or not ours.isfinite().all():
        return math.inf
    return (ours.double() - reference.double()).abs().max().item()


def projects() -> dict[str, Checks]:
    """Checks by project, from the files next to this one."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("vectors_*.py"))
    modules = {name: importlib.import_module(f"tests.convert.{name}") for name in names}
    return {name.removeprefix("vectors_"): module.CHECKS for name, module in modules.items()}


@torch.no_grad()
def main() -> int:
    """Print a row for each output; 1 if one is beyond its limit."""
    if not FOLDER.is_dir():
        print(f"parity: {ABSENT}", file=sys.stderr)
        return 2
    rows = []
    for project, checks in projects().items():
        for check in checks:
            rows += [(f"{project}: {check.name}", output, value, check.limit) for output, value in check.run().items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    print(f"{'what':<{widths[0]}}  {'output':<{widths[1]}}  {'difference':>10}  {'limit':>8}")
    for what, output, value, limit in rows:
        verdict = "pass" if value <= limit else "FAIL"
        print(f"{what:<{widths[0]}}  {output:<{widths[1]}}  {value:>10.1e}  {limit:>8.0e}  {verdict}")
    failed = sum(value > limit for *_, value, limit in rows)
    print(f"{len(rows) - failed} of {len(rows)} within their limits")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

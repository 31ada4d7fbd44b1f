"""Every module against the reference vectors; the same checks as `python -m tests.convert.parity` prints."""

import math

import pytest
import torch

from tests.convert import parity

CASES = {f"{project}: {check.name}": check for project, checks in parity.projects().items() for check in checks}


@pytest.mark.skipif(not parity.FOLDER.is_dir(), reason=parity.ABSENT)
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_reference(name):
    with torch.no_grad():
        differences = CASES[name].run()
    assert differences
    beyond = {output: value for output, value in differences.items() if not value <= CASES[name].limit}
    assert not beyond


def test_a_wrong_shape_and_what_is_no_number_are_never_within_a_limit():
    assert parity.difference(torch.zeros(2, 3), torch.zeros(3, 2)) == math.inf
    assert parity.difference(torch.tensor([float("nan")]), torch.zeros(1)) == math.inf
    assert parity.difference(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.5


@pytest.mark.parametrize(("value", "code", "verdict"), [(0.5, 0, "pass"), (2.0, 1, "FAIL")])
def test_the_report_fails_with_a_row(monkeypatch, tmp_path, capsys, value, code, verdict):
    checks = parity.Checks()
    checks("a module", 1.0)(lambda: {"out": value})
    monkeypatch.setattr(parity, "projects", lambda: {"some": checks})
    monkeypatch.setattr(parity, "FOLDER", tmp_path)
    assert parity.main() == code
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith("some: a module") and row.endswith(verdict)

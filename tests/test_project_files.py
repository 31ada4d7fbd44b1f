"""Files around the code that would otherwise fail only on somebody else's machine: tiers, CI, pre-commit, types."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
TIERS = {"e2e", "training"}

pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="these files are not part of the package")


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_ci_runs_both_commands_and_every_tier():
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^run_command (\d)", script, re.MULTILINE) == ["1", "2"]
    assert set(re.findall(r"^run_tier (\w+)", script, re.MULTILINE)) == TIERS
    left_out = set(re.findall(r"not (\w+)", re.search(r'"-m", "(.*)"', PYPROJECT)[1]))
    assert left_out == TIERS | {"slow", "gpu", "hub"}


def test_every_python_that_is_promised_is_tested():
    promised = re.findall(r"Python :: (3\.\d+)", PYPROJECT)
    jobs = read_yaml(".github/workflows/tests.yml")["jobs"]
    assert jobs["default"]["strategy"]["matrix"]["python-version"] == promised
    assert any(step.get("run") == ".ci/run" for step in jobs["everything"]["steps"])


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_github_can_read_it(path):
    content = read_yaml(path)
    if path.parent.name == "workflows":
        assert content["permissions"] == {"contents": "read"}, "a workflow may change nothing unless a job asks for it"
        assert all(job["steps"] and job["runs-on"] for job in content["jobs"].values())
        # YAML 1.1 reads the key `on` as true.
        assert content.get("on", content.get(True))
    elif path.name != "config.yml":
        assert content["name"] and content["description"]
        assert all(field["attributes"]["label"] for field in content["body"])


def test_pre_commit_uses_the_tested_versions():
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    used = [entry.split("==") for hook in hooks for entry in hook.get("additional_dependencies", [])]
    assert {name for name, _ in used} >= {"ruff", "typos", "pre-commit-hooks"}
    assert all(pinned.get(name, version) == version for name, version in used)


def test_types_are_shipped():
    assert (ROOT / "vasa_hf" / "py.typed").exists()


@pytest.mark.e2e
def test_mypy_finds_nothing(tmp_path):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr

"""axe-core, the accessibility checker of Deque: from npm, into the environment of the tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

VERSION = "4.10.3"


def axe_script() -> str:
    """Source of axe-core; skips the test where it is not installed and npm cannot install it."""
    folder = Path(sys.prefix) / "share" / f"axe-core-{VERSION}"
    script = Path("node_modules") / "axe-core" / "axe.min.js"
    if not (folder / script).is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("needs axe-core: install npm")
        with tempfile.TemporaryDirectory() as new:
            command = [npm, "install", "--prefix", new, "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run([*command, f"axe-core@{VERSION}"], capture_output=True, text=True, timeout=300)
            if done.returncode != 0 or not (Path(new) / script).is_file():
                pytest.skip(f"npm could not install axe-core: {done.stderr[-200:]}")
            try:
                shutil.copytree(new, folder, dirs_exist_ok=True)
            except OSError:  # an environment that cannot be written: install again next time
                return (Path(new) / script).read_text()
    return (folder / script).read_text()


def find_violations(page: Any, impacts: tuple[str, ...] = ("serious", "critical")) -> list[str]:
    """Violations on a page of Playwright, of WCAG 2.2 A and AA, one text each.

    Args:
        page (`playwright.sync_api.Page`): The page.
        impacts (`tuple[str]`): Which to return.
    """
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(axe_script())
    tags = json.dumps(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"])
    found = page.evaluate(f"axe.run(document, {{runOnly: {{type: 'tag', values: {tags}}}}}).then(r => r.violations)")
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:200]} {node['failureSummary'][:300]}"
        for one in found
        if one["impact"] in impacts
        for node in one["nodes"]
    ]

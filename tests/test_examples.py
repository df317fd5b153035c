"""Every example runs, and prints its table."""

import re
import subprocess
import sys

import pytest
from conftest import REPO

EXAMPLES = sorted((REPO / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr
    assert "variant" in done.stdout


def test_every_adapter_has_an_example():
    adapters = {path.stem for path in (REPO / "recotransfer" / "adapters").glob("[!_]*.py")}
    shown = {name for path in EXAMPLES for name in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert adapters <= shown

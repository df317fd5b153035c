"""Every example runs, and prints its table."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import REPO

EXAMPLES = sorted((REPO / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "extend"], ids=lambda path: path.stem)
def test_example(path):
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr
    assert "variant" in done.stdout


def test_every_adapter_has_an_example():
    adapters = {path.stem for path in (REPO / "recotransfer" / "adapters").glob("[!_]*.py")}
    shown = {name for path in EXAMPLES for name in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert adapters <= shown


def test_classes_of_ones_own_are_fitted_tuned_benchmarked_saved_loaded_and_held_to_the_contracts():
    done = subprocess.run([sys.executable, "examples/extend.py"], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert said["here"] == said["in a fresh process"]
    assert said["benchmarked"] == "[('mine', None), ('Popularity', None)]"
    assert "passed" in said["contracts"]
    assert "failed" not in said["contracts"]


def test_classes_of_ones_own_take_forty_lines_at_most():
    tree = ast.parse((REPO / "examples" / "extend.py").read_text(encoding="utf-8"))
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in tree.body if hasattr(node, "name")}
    parts = ["Letters", "MeanOfHistory", "Centred", "PlainIndex", "margin", "moods", "answers"]
    assert max(lengths[name] for name in parts) <= 40

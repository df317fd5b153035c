"""The benchmark scripts run in their small form, say where and what they ran, and leave the committed results alone."""

import hashlib
import runpy
import shlex
import sys
from contextlib import nullcontext

import pytest
import torch
from conftest import REPO

FOLDER = REPO / "benchmarks"
SCRIPTS = sorted(p.name for p in FOLDER.glob("*.py") if p.name != "common.py")


def results():
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((FOLDER / "results").iterdir())}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script in this process, where the libraries it needs are loaded already; gives what it prints."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(REPO)
    monkeypatch.syspath_prepend(FOLDER)

    def call(script, *words):
        monkeypatch.setattr(sys, "argv", [str(FOLDER / script), *words])
        with pytest.raises(SystemExit) if "--help" in words else nullcontext():
            runpy.run_path(sys.argv[0], run_name="__main__")
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "script",
    [
        "topk.py",
        "encode.py",
        "scale.py",
        "transferability.py",
        "finetune.py",
        "multitask.py",
        "cross_shop.py",
        "distill.py",
    ],
)
def test_small_runs_print_their_header_and_write_no_results(run, script):
    before = results()
    lines = run(script, "--tiny").splitlines()
    said = {line.split()[0]: line.partition(" ")[2].strip() for line in lines if line.strip()}
    assert "cores, Python 3." in said["machine"]
    assert said["commit"]
    assert said["command"] == f"python benchmarks/{script} --tiny"
    assert len(lines) > 6, "a table follows the header"
    assert results() == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_is_measured(run, script):
    text = run(script, "--help")
    assert text.startswith(f"usage: {script}")
    assert len(text.split("\n\n")[1]) > 40


def test_the_command_of_the_header_can_be_run_again(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import common

    words = ["benchmarks/encode.py", "--model", "a b", "it's"]
    monkeypatch.setattr(sys, "argv", words)
    assert shlex.split(common.header()["command"]) == ["python", *words]

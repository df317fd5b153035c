"""The benchmark scripts run in their small form, say where and what they ran, and leave the committed results alone."""

import argparse
import hashlib
import runpy
import shlex
import sys
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPO

from recotransfer.data import Interactions

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
        "text_encoders.py",
        "scale.py",
        "transferability.py",
        "finetune.py",
        "multitask.py",
        "cross_shop.py",
        "distill.py",
        "everywhere.py",
        "repeats.py",
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


@pytest.fixture
def everywhere(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import everywhere

    return everywhere


@pytest.mark.parametrize("timed", [True, False])
def test_splits_of_everywhere_hold_out_what_they_say(everywhere, timed):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"user": rng.integers(0, 30, 900), "item": rng.integers(0, 60, 900), "t": np.arange(900.0)})
    events = Interactions.from_frame(frame, time="t" if timed else None)
    pairs = len(frame.drop_duplicates(["user", "item"]))
    cut = {name: split(events) for name, split in everywhere.SPLITS.items()}
    for part in cut.values():
        held = set(zip(part.truth.user.tolist(), part.truth.item.tolist(), strict=True))
        assert len(held) == len(part.truth)
        assert not held & set(zip(part.train.user.tolist(), part.train.item.tolist(), strict=True))
        assert len(part.train) + len(part.truth) == pairs, "every user here has a history"

    sizes = np.bincount(cut["warm"].train.user) + (held := np.bincount(cut["warm"].truth.user))
    assert (held == sizes // 5).all()
    if timed:
        newest, oldest = (frame.groupby("user")["t"] for frame in (of(cut["warm"].train), of(cut["warm"].truth)))
        assert (newest.max() < oldest.min()).all()
    assert len(cut["cold"].candidates) == 6
    new = set(events.items.positions(cut["cold"].candidates).tolist())
    assert set(cut["cold"].truth.item.tolist()) == new
    assert not new & set(cut["all"].train.item.tolist())
    others = np.bincount(cut["cold"].train.user)  # a fifth of each user's events with the other items is held out, too
    assert len(cut["all"].truth) == len(cut["cold"].truth) + (others // 5).sum()


def of(events):
    time = np.arange(len(events)) if events.time is None else events.time
    return pd.DataFrame({"user": events.user, "t": time})


def test_everywhere_measures_only_what_is_not_finished_and_lists_losses(everywhere, monkeypatch, tmp_path):
    shop = everywhere.read("sample_shop", argparse.Namespace(tiny=True, data=None))
    bare = shop._replace(encoders=[])
    monkeypatch.setattr(everywhere, "read", lambda name, a: bare)
    ran, level = [], {"flagship": 0.3, "Popularity": 0.5, "ItemKNN": 0.3}

    def measure(cell, a):
        ran.append((cell.split, cell.model))
        if (cell.split, cell.model) == ("all", "ItemKNN"):
            return "out of memory"
        values = np.full(50, level[cell.model])
        cell.path.parent.mkdir(exist_ok=True)
        np.savez(cell.path, facts="{}", **dict.fromkeys(everywhere.METRICS, values))
        return None

    monkeypatch.setattr(everywhere, "run_alone", measure)
    monkeypatch.setattr(everywhere, "progress", lambda cell, error: "")
    a = argparse.Namespace(only=["sample_shop"], model=list(level), out=tmp_path, again=False, tiny=True)
    written = []
    rows = everywhere.matrix(a, [*level, "RidgeProfiles"], written.append)
    cells = [(split, model) for model in level for split in ("warm", "all")]
    assert ran == cells
    assert len(written) == len(cells)
    assert [row["model"] for row in rows] == [model for model in level for _ in range(3)]
    assert {row["skipped"] for row in rows if row["split"] == "cold"} == {
        "cannot rank items without events: the set has no content"
    }
    assert [row["failed"] for row in rows if "failed" in row] == ["out of memory"]
    assert everywhere.losses(rows) == [
        f"sample_shop, {split}, Popularity: -0.2000 [-0.2000, -0.2000]" for split in ("warm", "all")
    ]
    assert "| sample_shop | ItemKNN | 0.3000 [0.3000, 0.3000] | cannot" in everywhere.table(rows)

    ran.clear()
    everywhere.matrix(a, list(level), written.append)
    assert ran == [("all", "ItemKNN")], "only the one that failed"

    ran.clear()
    a.again, a.model = True, ["Popularity"]
    rows = everywhere.matrix(a, list(level), written.append)
    assert ran == [("warm", "Popularity"), ("all", "Popularity")]
    assert {row["model"] for row in rows if "ndcg@20" in row} == set(level), "finished ones stay in the table"

    ran.clear()
    a.again, bare = False, shop._replace(encoders=[], digest="changed")
    everywhere.matrix(a, list(level), written.append)
    assert len(ran) == 2, "other data, other cells"


def test_repeats_holds_out_whole_visits_and_counts_them(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import repeats

    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {"user": rng.integers(0, 9, 400), "item": rng.integers(0, 30, 400), "t": rng.integers(0, 60, 400)}
    )
    events = Interactions.from_frame(frame, time="t")
    cut = repeats.last_visits(events)
    train, held = of(cut.train).groupby("user")["t"], of(cut.truth).groupby("user")["t"]
    assert (train.max() < held.min()).all()
    assert (held.nunique() == (train.nunique() + held.nunique()) // 5).all()
    assert len(cut.train) + len(cut.truth) == len(events)

    few = pd.DataFrame({"user": [0] * 5 + [1, 2], "item": [1, 1, 2, 2, 2, 3, 3], "t": [0, 1, 0, 0, 9, 0, 0]})
    log = Interactions.from_frame(few.assign(t=few["t"] * repeats.DAY), time="t")
    monkeypatch.setattr(repeats, "K", 3)
    lists = [repeats.by_frequency(log, np.array([0]), days).items[0].tolist() for days in (np.inf, 1)]
    assert lists == [[1, 2, 3], [2, 1, 3]]

"""The command line from outside: what goes to stdout, what ends in one sentence and status 2, flags from TOML."""

import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import REPO, blas_threads
from threadpoolctl import threadpool_limits

from recotransfer import encoders, progress, task
from recotransfer.cli import adapt
from recotransfer.cli import main as cli
from recotransfer.cli.main import main
from recotransfer.cli.options import settings
from recotransfer.encoders import HashingText
from recotransfer.errors import InputError
from recotransfer.experiments import tuning
from recotransfer.numerics.threads import thread_count
from recotransfer.recommenders import EASE, HybridItems, LearnedHybrid

SHOP = REPO / "sample_data"


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a command line in this process; gives status, out and err."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["recotransfer", *map(str, words)])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        found = capfd.readouterr()
        return SimpleNamespace(status=status, out=found.out, err=found.err)

    return call


@pytest.fixture
def hashed(monkeypatch):
    """Hashed words in place of the transformer, where what the text means does not matter."""
    monkeypatch.setattr(encoders, "SentenceText", lambda model=None, column="title": HashingText(column=column))


def tiny_tables(users=30, items=40):
    rng = np.random.default_rng(0)
    colour = rng.integers(4, size=items)
    catalogue = pd.DataFrame(
        {
            "item_id": np.arange(100, 100 + items),
            "title": [f"{['red', 'blue', 'green', 'grey'][c]} mug number {i}" for i, c in enumerate(colour)],
            "category": [f"kind {c}" for c in colour],
            "price": np.round(rng.uniform(1, 50, items), 2),
            "in_stock": rng.random(items) < 0.8,
        }
    )
    own = [np.flatnonzero(colour == u % 4) for u in range(users)]
    rows = [(u, 100 + i, 1e9 + 60 * t) for u in range(users) for t, i in enumerate(rng.permutation(own[u])[:5])]
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return catalogue, log


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a tiny shop as CSV and a model of its behaviour alone."""
    folder = tmp_path_factory.mktemp("tiny")
    catalogue, log = tiny_tables()
    catalogue.to_csv(folder / "items.csv", index=False)
    log.to_csv(folder / "events.csv", index=False)
    words = ["fit", "--items", "items.csv", "--events", "events.csv", "--out", "model", "--no-content"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["recotransfer", *words])
        main()
    return folder


@pytest.fixture
def place(tiny, tmp_path, monkeypatch):
    """A fresh working folder that holds the tiny shop and its model."""
    shutil.copytree(tiny, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


FIT = ("fit", "--items", "items.csv", "--events", "events.csv", "--out")
BENCH = ("benchmark", "--items", "items.csv", "--events", "events.csv", "--no-content", "--out")


def refused(ran, *words):
    """One sentence on stderr that holds `words`, status 2, nothing on stdout, no traceback."""
    assert ran.status == 2, ran.err
    assert not ran.out
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("recotransfer: "), ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in last, last
    return last


# -- the sample shop, start to end -------------------------------------------------------------------------------------


def examples(run, command=None):
    """The command lines shown by --help."""
    text = run(*([command] if command else []), "--help").out
    return [line.split("#  ")[0] for line in re.findall(r"^ +(recotransfer .*)", text, re.MULTILINE)]


@pytest.fixture
def small_shop(tmp_path, monkeypatch):
    """A working folder with part of the sample shop, as files and as a database."""
    folder = tmp_path / "there"
    (folder / "sample_data").mkdir(parents=True)
    monkeypatch.chdir(folder)
    with sqlite3.connect("shop.db") as base:
        for name, rows in (("items", 300), ("events", 3000)):
            table = pd.read_csv(SHOP / f"{name}.csv", nrows=rows)
            table.to_sql(name, base, index=False)
            for path in (f"sample_data/{name}.csv", f"{name}.csv"):
                table.to_csv(path, index=False)
    table.head(300).assign(user_id="new").to_csv("new_users.csv", index=False)


def test_examples_in_help_run(small_shop, run, hashed):
    shown = [line for command in ("fit", "recommend", "similar", "inspect", "demo") for line in examples(run, command)]
    assert len(shown) >= 7
    for line in shown:
        quoted = re.findall(r"'([^']*)'|\"([^\"]*)\"|(\S+)", line.replace("--trials 20", "--trials 2"))
        ran = run(*["".join(word) for word in quoted][1:])
        assert ran.status == 0, (line, ran.err)
        assert ran.out, line
    assert set(pd.read_parquet("recs-new")["user"]) == {"new"}


def test_examples_of_the_first_help_page_run(small_shop, run, hashed):
    for line in examples(run):
        ran = run(*line.split("#")[0].split()[1:])
        assert ran.status == 0, (line, ran.err)
    assert pd.read_parquet("recs").groupby("user").size().eq(10).all()


def test_stdout_is_for_machines_and_stderr_for_people(place, run):
    ran = run(*FIT, "m", "--no-content")
    assert (ran.status, ran.out) == (0, "m\n")
    assert "40 rows read, 40 kept" in ran.err
    assert "fitted LearnedHybrid on 150 events of 30 users and 40 items" in ran.err
    ran = run("recommend", "m", "--out", "r", "--k", 3)
    assert (ran.status, ran.out) == (0, "r\n")
    assert "90 rows for 30 users" in ran.err
    ran = run("similar", "m", 100, 101, "--k", 2)
    table = pd.read_csv(io.StringIO(ran.out))
    assert list(table) == ["item", "similar", "rank", "score", "title"]
    assert table["item"].tolist() == [100, 100, 101, 101]
    facts = json.loads(run("inspect", "m").out)
    assert facts["recommender"] == "LearnedHybrid"
    assert facts["items"] == 40
    assert facts["weights in words"][0].startswith(("Weights were learned", "The log is too small"))
    assert not facts["encoders"]


def test_the_demo_tells_its_story(tmp_path, run, hashed):
    ran = run("demo", "--data", SHOP, "--out", tmp_path / "demo")
    assert ran.status == 0
    for word in (
        "A warm user",
        "A brand-new user with two clicks",
        "A brand-new item without any events",
        "because of",
    ):
        assert word in ran.out
    table = pd.read_parquet(tmp_path / "demo" / "recommendations")
    assert table.groupby("user").size().eq(10).all()
    assert table["user"].nunique() == 1500
    assert run("demo", "--data", SHOP, "--out", tmp_path / "demo").status == 0
    assert len(pd.read_parquet(tmp_path / "demo" / "recommendations")) == len(table)
    refused(run("demo", "--data", tmp_path / "nothing"), "has no items.csv")


@pytest.mark.parametrize("name", ["EASE", "ItemKNN", "ALS", "BPR", "Popularity", "RidgeProfiles", "ContentProfiles"])
def test_every_recommender_fits_and_recommends(place, run, hashed, name):
    ran = run(*FIT, "m", "--recommender", name, *(["--set", "dim=4"] if name in ("ALS", "BPR") else []))
    assert (ran.status, ran.out) == (0, "m\n"), ran.err
    assert run("recommend", "m", "--out", "r", "--k", 4).status == 0
    table = pd.read_parquet("r")
    assert table["user"].nunique() == 30
    assert table["rank"].max() == 4
    assert json.loads(run("inspect", "m").out)["recommender"] == name


# -- in and out --------------------------------------------------------------------------------------------------------


def test_a_database_gives_the_same_recommendations_as_csv(place, run, hashed):
    catalogue, log = tiny_tables()
    with sqlite3.connect("shop.db") as base:
        catalogue.to_sql("items", base, index=False)
        log.to_sql("events", base, index=False)
    assert run(*FIT, "from-csv").status == 0
    ran = run("fit", "--items", "sqlite:///shop.db#items", "--events",
              "sqlite:///shop.db#SELECT * FROM events ORDER BY rowid", "--out", "from-sql")  # fmt: skip
    assert ran.status == 0, ran.err
    for name in ("from-csv", "from-sql"):
        assert run("recommend", name, "--out", f"{name}-recs", "--reasons").status == 0
    of_csv, of_sql = pd.read_parquet("from-csv-recs"), pd.read_parquet("from-sql-recs")
    of_csv[["user", "item"]] = of_csv[["user", "item"]].astype(np.int64)
    pd.testing.assert_frame_equal(of_csv, of_sql)


def test_integer_ids_of_parquet_stay_integers_and_text_keeps_its_zeros(place, run):
    catalogue, log = tiny_tables()
    catalogue.to_parquet("items.parquet")
    log.to_parquet("events.parquet")
    run("fit", "--items", "items.parquet", "--events", "events.parquet", "--out", "ints", "--no-content")
    pd.DataFrame({"user_id": ["3", "7"]}).to_csv("some.csv", index=False)
    assert run("recommend", "ints", "--out", "r", "--users", "some.csv").status == 0
    table = pd.read_parquet("r")
    assert table["user"].dtype == table["item"].dtype == np.int64
    assert set(table["user"]) == {3, 7}
    catalogue["item_id"], log["item_id"] = (t["item_id"].map("{:05d}".format) for t in (catalogue, log))
    catalogue.to_csv("items.csv", index=False)
    log.assign(user_id=log["user_id"].map("{:03d}".format)).to_csv("events.csv", index=False)
    assert run(*FIT, "zeros", "--no-content").status == 0
    assert run("recommend", "zeros", "--out", "r2").status == 0
    table = pd.read_parquet("r2")
    assert "007" in set(table["user"])
    assert table["item"].str.len().eq(5).all()
    assert run("similar", "zeros", "00100").out.startswith("item,similar")


def test_histories_of_new_users_drop_and_report_unknown_items(place, run):
    Path("h.csv").write_text("user_id,item_id\nnew,100\nnew,999\nother,888\nlast,104\n")
    ran = run("recommend", "model", "--histories", "h.csv", "--out", "r", "--k", 3)
    assert ran.status == 0
    assert "2 rows dropped: unknown item (column 'item_id', lines 3, 4" in ran.err
    assert set(pd.read_parquet("r")["user"]) == {"new", "last"}


def test_histories_take_the_event_flags_of_the_fit(place, run):
    Path("h.csv").write_text("who,item_id,event\nnew,100,wishlist\nnew,104,view\n")
    ran = run("recommend", "model", "--histories", "h.csv", "--out", "r", "--event-column", "user=who")
    refused(ran, "unknown kinds of event: 'wishlist'")
    ran = run("recommend", "model", "--histories", "h.csv", "--out", "r", "--event-column", "user=who",
              "--event-weight", "wishlist=2")  # fmt: skip
    assert ran.status == 0, ran.err


def test_filters_and_lists_of_ids_from_files(place, run):
    Path("allow.txt").write_text("item\n100\n101\n102\n103\n104\n105\n")
    Path("deny.csv").write_text("item_id,why\n100,recalled\n")
    ran = run("recommend", "model", "--out", "r", "--allow", "allow.txt", "--deny", "deny.csv", "--where", "price < 40",
              "--include-seen")  # fmt: skip
    assert ran.status == 0, ran.err
    catalogue = pd.read_csv("items.csv").set_index("item_id")
    found = set(pd.read_parquet("r")["item"].astype(int))
    assert found
    assert found <= {101, 102, 103, 104, 105}
    assert (catalogue.loc[list(found), "price"] < 40).all()


def test_tuning_reports_and_keeps_every_trial(place, run, hashed):
    ran = run(*FIT, "m", "--trials", 3, "--seed", 1)
    assert (ran.status, ran.out) == (0, "m\n"), ran.err
    assert "3 trials: NDCG@10 on held-out events" in ran.err
    trials = pd.read_csv("m.trials.csv")
    assert len(trials) == 3
    assert trials.loc[0, "neighbours"] == LearnedHybrid().neighbours
    assert {"weight.text", "weight.attributes"} <= set(trials)
    assert len(re.findall(r"\d items, ", ran.err)) == 2, "each encoder reports once, for its vectors are not made twice"


def test_an_interrupted_search_goes_on_where_it_stopped(place, run, hashed, monkeypatch):
    words = "--trials", 5, "--seed", 1, "--recommender", "EASE"
    assert run(*FIT, "whole", *words).status == 0
    measured, lists_for = [], tuning.lists_for

    def stopping(*args, **options):
        if len(measured) == 2:
            raise KeyboardInterrupt

        measured.append(1)
        return lists_for(*args, **options)

    monkeypatch.setattr(tuning, "lists_for", stopping)
    ran = run(*FIT, "deep/cut", *words)
    assert (ran.status, Path("deep/cut").exists()) == (130, False)
    assert "trials of fit (run it again)" in ran.err
    assert len(json.loads(Path("deep/cut.trials.json").read_text())["trials"]) == 2

    measured.clear()
    monkeypatch.setattr(tuning, "lists_for", lambda *a, **o: measured.append(1) or lists_for(*a, **o))
    refused(run(*FIT, "deep/cut", *words, "--k", 5), "cut.trials.json holds the trials of another search: k changed; "
            "give the same settings, or remove that file")  # fmt: skip
    assert measured == []

    ran = run(*FIT, "deep/cut", *words)
    assert ran.status == 0, ran.err
    assert f"continuing the search in {Path('deep/cut.trials.json')}" in ran.err
    assert len(measured) == 3
    assert Path("deep/cut.trials.csv").read_bytes() == Path("whole.trials.csv").read_bytes()
    one, other = (task.TransferTask.load(Path(name)).recommender for name in ("whole", "deep/cut"))
    assert one.params() == other.params()
    np.testing.assert_array_equal(one.weights_, other.weights_)
    assert not Path("deep/cut.trials.json").exists(), "so that the next fit, on other events, begins anew"


def test_a_search_that_writes_to_a_file_reports_its_progress_in_lines(place, run, hashed, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_SHARE", 0.0)
    ran = run(*FIT, "m", "--trials", 3, "--recommender", "EASE")
    found = re.findall(r"^choosing settings: (\d) of 3 after \d+ s, best NDCG@10 0\.\d{4}$", ran.err, re.MULTILINE)
    assert found == ["1", "2", "3"]


@pytest.mark.parametrize(
    "words",
    [
        "fit --items i.csv --events e.csv --out m",
        "recommend m --out r",
        "label m table.csv --out labels.csv",
        "adapt nlp table.csv --out m",
    ],
)
def test_threads_are_limited_while_the_command_runs(tmp_path, monkeypatch, run, words):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    seen = []

    def stop(*_):
        seen.append((thread_count(), {*blas_threads()}, torch.get_num_threads(), os.environ["OPENBLAS_NUM_THREADS"]))
        raise InputError("far enough")

    for place in (cli, "read_catalogue"), (task.TransferTask, "load"), (adapt, "_frame"):
        monkeypatch.setattr(*place, stop)

    before = torch.get_num_threads()
    with threadpool_limits(2, "blas"):
        assert "far enough" in run(*words.split(), "--threads", 3).err
        assert (thread_count(), {*blas_threads()}, torch.get_num_threads()) == (8, {2}, before)
    assert seen == [(3, {3}, 3, "3")]
    assert "0 is not in the range" in run(*words.split(), "--threads", 0).err


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_log_without_times_is_told_which_split_to_ask_for(place, run):
    lines = Path("events.csv").read_text().splitlines()
    at = lines[0].split(",").index(next(name for name in lines[0].split(",") if "time" in name))
    bare = [",".join(cell for n, cell in enumerate(line.split(",")) if n != at) for line in lines]
    Path("untimed.csv").write_text("\n".join(bare) + "\n")
    words = ["benchmark", "--items", "items.csv", "--events", "untimed.csv", "--no-content", "--out", "bench"]
    refused(run(*words), "untimed.csv has none; give --split random, or --split leave-last", "--event-column time=")
    ran = run(*words, "--split", "random", "--model", "Popularity")
    assert ran.status == 0, ran.err


def test_a_benchmark_tells_what_was_asked_and_what_came_out(place, run):
    words = [*BENCH, "bench", "--split", "leave-last", "--model", "EASE(reg=50)", "--model", "<b>x</b>=Popularity"]
    ran = run(*words, "--k", 5, "--k", 10, "--k", 5, "--workers", 2)
    assert (ran.status, ran.out) == (0, f"{Path('bench/results.json')}\n")
    assert "leave-last: 90 train, 30 valid, 30 test events" in ran.err
    assert re.search(r"EASE\(reg=50\) +no +0\.\d{4} +\[", ran.err)
    assert "Warning" not in ran.err
    results = json.loads(Path("bench/results.json").read_text(), parse_constant=pytest.fail)
    assert results["protocol"]["k"] == [5, 10]
    assert [variant["name"] for variant in results["variants"]] == ["EASE(reg=50)", "<b>x</b>"]
    assert "<b>x</b>" not in Path("bench/report.html").read_text()
    refused(run(*words), "bench holds an earlier benchmark; resume it with --resume")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nosuch"], ["No such command 'nosuch'", "recotransfer --help"]),
        (["fit"], ["Missing option '--items'", "recotransfer fit --help"]),
        ([*FIT, "m", "--colour", "red"], ["No such option", "--colour"]),
        (["fit", "--items", "no.csv", "--events", "events.csv", "--out", "m"], ["no.csv does not exist"]),
        ([*FIT, "m", "--recommender", "Oracle"], ["no recommender is called 'Oracle'", "known are ALS"]),
        ([*FIT, "m", "--set", "rge=3"], ["LearnedHybrid has no setting 'rge'", "it has neighbours, guard, seed"]),
        ([*FIT, "m", "--set", "neighbours=abc"], ["--set neighbours=abc: neighbours must be a whole number"]),
        ([*FIT, "m", "--recommender", "HybridItems", "--set", "reg=NaN"], ["--set reg=NaN: reg must be a number"]),
        ([*FIT, "m", "--recommender", "HybridItems", "--set", "reg=true"], ["--set reg=true: reg must be a number"]),
        ([*FIT, "m", "--set", "neighbours=2.5"], ["neighbours must be a whole number"]),
        ([*FIT, "m", "--recommender", "HybridItems", "--set", "form=round"], ["form must be \"sparse\" or \"dense\""]),
        ([*FIT, "m", "--set", "reg"], ["--set 'reg' is incomplete; write NAME=VALUE"]),
        ([*FIT, "m", "--recommender", "EASE", "--set", "reg=-1"], ["--set reg=-1: reg must be a number of at least 0"]),
        ([*FIT, "m", "--weight", "text=heavy"], ["--weight text=heavy: 'heavy' is not a number"]),
        ([*FIT, "m", "--weight", "txt=1"], ["'txt'", "text, attributes"]),
        ([*FIT, "m", "--only", "colour"], ["no column 'colour' to encode"]),
        ([*FIT, "m", "--kind", "title=words"], ["kinds must be a dict from text to 'text', 'image'"]),
        ([*FIT, "m", "--image-encoder", "clip"], ["items.csv has no image column"]),
        ([*FIT, "m", "--k", "0"], ["'--k': 0 is not in the range"]),
        ([*FIT, "m", "--index-recall", "0.9"], ["LearnedHybrid has no index to choose"]),
        ([*FIT, "m", "--recommender", "EASE", "--no-guard"], ["EASE has no guard to switch off; leave --no-guard out"]),
        ([*FIT, "m", "--index", "ExactIndex"], ["LearnedHybrid has no index to choose; leave --index out"]),
        ([*FIT, "m", "--index", "ExactIndx"], ["no index is called 'ExactIndx'; did you mean 'ExactIndex'?"]),
        ([*FIT, "m", "--recommender", "EAZE"], ["no recommender is called 'EAZE'; did you mean 'EASE'?"]),
        ([*FIT, "m", "--recommender", "EASE(rge=3)"], ["EASE has no setting 'rge'; it has reg, "]),
        ([*FIT, "m", "--encoder", "HashingTxt"], ["no encoder is called 'HashingTxt'; did you mean 'HashingText'?"]),
        ([*FIT, "m", "--encoder", "title=HashingText(dim=0)"], ["HashingText: dim must be a whole number of"]),
        ([*FIT, "m", "--encoder", "nowhere=HashingText"], ["no column 'nowhere'"]),
        ([*FIT, "m", "--transfer", "Whitenning"], ["no transfer is called 'Whitenning'; did you mean 'Whitening'?"]),
        ([*FIT, "m", "--transfer", "Whitening(dim=-1)"], ["Whitening: dim must be a whole number of"]),
        ([*FIT, "m", "--tuner", "text=FinTune"], ["no tuner is called 'FinTune'; did you mean 'FineTune'?"]),
        ([*FIT, "m", "--tuner", "text=FineTune"], ["'folder'"]),
        (["--import", "no_such", "inspect", "model"], ["--import no_such cannot be imported"]),
        ([*FIT, "m", "--recommender", "RidgeProfiles", "--no-content"], ["RidgeProfiles ranks by content alone"]),
        ([*FIT, "m", "--trials", "2", "--recommender", "Popularity"], ["Popularity has nothing to tune"]),
        ([*FIT, "items.csv"], ["items.csv is a file"]),
        ([*FIT, "items.csv/m"], ["items.csv is not a writable folder"]),
        ([*FIT, "."], ["working folder"]),
        ([*FIT, "m", "--cache", "m/cache"], ["keep the cache outside"]),
        ([*BENCH, "m", "--model", "EAZE"], ["no recommender is called 'EAZE'", "known are ALS"]),
        ([*BENCH, "m", "--model", "EASE(rge=1)"], ["EASE has no setting 'rge'; it has reg, "]),
        ([*BENCH, "m", "--model", "no_such:Mine"], ["'no_such:Mine' cannot be imported", "on PYTHONPATH"]),
        ([*BENCH, "m", "--model", "broken:Mine"], ["'broken:Mine' cannot be imported (ValueError: of mine)"]),
        ([*BENCH, "m", "--split", "tiem"], ["'tiem' is not one of 'time', 'leave-last'"]),
        ([*BENCH, "m", "--valid", "events.csv"], ["--valid and --test go together"]),
        ([*BENCH, "m", "--history", "events.csv"], ["give --valid and --test too"]),
        ([*BENCH, "."], ["holds other files; give a new or empty folder"]),
        ([*BENCH, "items.csv"], ["items.csv is a file"]),
        (["recommend", "nowhere", "--out", "r"], ["nowhere", "manifest.json"]),
        (["recommend", "model", "--out", "r", "--k", "0"], ["'--k': 0 is not in the range"]),
        (["recommend", "model", "--out", "r", "--k", "ten"], ["'ten' is not a valid integer"]),
        (["recommend", "model", "--out", "r", "--where", "cost < 3"], ["no column 'cost'", "'price'"]),
        (["recommend", "model", "--out", "r", "--where", "price <"], ["filter 'price <' is not a valid expression"]),
        (["recommend", "model", "--out", "r", "--where", "print(1)"], ["print(...) is not allowed"]),
        (["recommend", "model", "--out", "r", "--where", "price < 0"], ["no item passes the filter", "price < 0"]),
        (["recommend", "model", "--out", "r", "--users", "no.csv"], ["no.csv does not exist"]),
        (["recommend", "model", "--out", "items.csv"], ["items.csv is a file"]),
        (["recommend", "model", "--out", "."], ["holds other files"]),
        (["similar", "model"], ["Missing argument 'ITEMS...'"]),
        (["similar", "model", "nothing"], ["unknown ids: 'nothing'", "known ids look like '100'"]),
        (["inspect", "items.csv"], ["items.csv"]),
        (["recommend", "model", "--out", "r", "--config", "no.toml"], ["no.toml does not exist"]),
    ],
    ids=lambda value: " ".join(value)[-50:],
)  # fmt: skip
def test_bad_words_end_in_one_sentence(place, run, hashed, monkeypatch, words, parts):
    Path("broken.py").write_text("raise ValueError('of mine')")
    monkeypatch.syspath_prepend(place)
    refused(run(*words), *parts)
    assert not Path("r").exists(), "a refused job leaves no folder behind"
    assert not Path("m").exists()


def test_no_words_show_the_help(run):
    ran = run()
    assert ran.status == 2
    assert "Commands:" in ran.err
    assert run("--version").out.startswith("recotransfer, version")


def test_bad_files_of_ids_are_named(place, run):
    Path("u.csv").write_text("user_id\n3\nnobody\n")
    Path("i.csv").write_text("item_id\n100\nnothing\n")
    Path("empty.csv").write_text("user_id,item_id\n")
    Path("strange.csv").write_text("user_id,item_id\nx,nothing\n")
    go = ("recommend", "model", "--out", "r")
    refused(run(*go, "--users", "u.csv"), "u.csv: unknown ids: 'nobody'")
    refused(run(*go, "--allow", "i.csv"), "i.csv: unknown ids: 'nothing'")
    refused(run(*go, "--deny", "i.csv"), "i.csv: unknown ids: 'nothing'")
    refused(run(*go, "--histories", "empty.csv"), "empty.csv: has a header but no rows")
    refused(run(*go, "--histories", "strange.csv"), "strange.csv", "none of its 1 ids is known")
    assert not Path("r").exists()


def test_damaged_models_are_refused(place, run):
    parts = [path for path in Path("model").iterdir() if path.name != "manifest.json"]
    part = max(parts, key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:-10])
    refused(run("recommend", "model", "--out", "r"), part.name, "truncated or edited")
    refused(run("inspect", "model"), part.name)
    Path("model/manifest.json").write_text("{")
    refused(run("similar", "model", "100"), "manifest.json is damaged")


def test_folders_with_other_files_are_never_overwritten(place, run, monkeypatch):
    monkeypatch.setattr(cli, "_recommender", lambda o: pytest.fail("the folder must be checked before any work"))
    Path("app").mkdir()
    Path("app/manifest.json").write_text('{"name": "a web app"}')
    refused(run(*FIT, "app"), "app holds other files")
    assert Path("app/manifest.json").exists()
    Path("app2").mkdir()
    Path("app2/notes.txt").write_text("mine")
    refused(run(*FIT, "app2"), "app2 holds other files")
    Path("model/notes.txt").write_text("mine")
    refused(run(*FIT, "model"), "'notes.txt'", "would be lost")
    assert Path("model/notes.txt").read_text() == "mine"


def test_an_earlier_model_may_be_replaced(place, run):
    before = Path("model/manifest.json").read_bytes()
    assert run(*FIT, "model", "--no-content").status == 0
    assert Path("model/manifest.json").read_bytes() == before
    assert run(*FIT, "model", "--no-content", "--set", "neighbours=7").status == 0
    assert Path("model/manifest.json").read_bytes() != before
    next(Path("model").glob("*.npy")).write_bytes(b"damaged")
    assert run(*FIT, "model", "--no-content").status == 0, "what the error of a damaged model advises"
    assert Path("model/manifest.json").read_bytes() == before


def test_interrupts_full_disks_and_no_memory_end_in_a_sentence(place, run, monkeypatch):
    def failing(error):
        def load(*_, **__):
            raise error

        monkeypatch.setattr(task.TransferTask, "load", load)
        return run("similar", "model", "100")

    ran = failing(KeyboardInterrupt())
    assert ran.status == 130
    assert ran.err.strip().endswith("are kept")
    assert "recotransfer: interrupted" in ran.err
    refused(failing(OSError(28, "No space left on device", "r/part")), "r/part: No space left on device")
    refused(failing(MemoryError("8 TiB")), "out of memory (8 TiB)")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of this system")
def test_a_closed_pipe_is_no_error(place):
    words = [sys.executable, "-m", "recotransfer", "similar", "model", *map(str, range(100, 140)), "--k", "30"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


# -- settings and TOML -------------------------------------------------------------------------------------------------


def test_settings_are_read_as_their_types():
    assert settings(EASE, ["reg=3", "neighbours=null"]) == {"reg": 3, "neighbours": None}
    assert settings(HybridItems, ["form=dense", "neighbours=5"]) == {"form": "dense", "neighbours": 5}
    with pytest.raises(InputError, match="neighbours must be a whole number of at least 1 or null"):
        settings(EASE, ["neighbours=many"])


def test_flags_come_from_a_file_and_the_command_line_wins(place, run):
    Path("shop.toml").write_text(
        'items = "items.csv"\nevents = "events.csv"\nno-content = true\n'
        '[fit]\nout = "m"\nrecommender = "HybridItems"\n[fit.set]\nreg = 33\nform = "dense"\n'
        '[recommend]\nmodel = "m"\nout = "r"\nk = 3\nwhere = "price < 45"\nreasons = true\n'
    )
    assert run("fit", "--config", "shop.toml").status == 0
    held = json.loads(run("inspect", "m").out)["settings"]
    assert (held["reg"], held["form"]) == (33, "dense")
    assert run("recommend", "--config", "shop.toml").status == 0
    table = pd.read_parquet("r")
    assert table["rank"].max() == 3
    assert "reason" in table
    assert run("recommend", "--config=shop.toml", "--k", 5, "--out", "r5").status == 0
    assert pd.read_parquet("r5")["rank"].max() == 5
    assert run("fit", "--config", "shop.toml", "--set", "reg=44", "--out", "m2").status == 0
    assert json.loads(run("inspect", "m2").out)["settings"]["reg"] == 44


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("k = ", ["c.toml is not TOML"]),
        ("kk = 3", ["recommend has no flag 'kk'", "include-seen"]),
        ("[recommend]\nitems = 3", ["recommend has no flag 'items'"]),
        ("[reccomend]\nk = 3", ["no flag 'reccomend'"]),
        ("recommend = 3", ["recommend must be a table"]),
        ('[recommend]\nk = "ten"', ["'--k'", "'ten' is not a valid integer"]),
        ("[recommend]\nk = 2.5", ["'--k'", "'2.5' is not a valid integer"]),
        ("[recommend]\nk = true", ["'--k'", "'true' is not a valid integer"]),
        ("[recommend]\nk = [1, 2]", ["k takes one value, got [1, 2]"]),
        ('[recommend]\nreasons = "yes"', ["reasons must be true or false, got 'yes'"]),
        ('[recommend]\nevent-weight = "view"', ["--event-weight 'view' is incomplete; write NAME=VALUE"]),
    ],
)
def test_bad_files_of_flags_are_named(place, run, text, parts):
    Path("c.toml").write_text(text)
    refused(run("recommend", "model", "--out", "r", "--histories", "events.csv", "--config", "c.toml"), *parts)


THEIRS = """
from recotransfer.encoders import HashingText
from recotransfer.recommenders import RidgeProfiles
from recotransfer.transfer import Whitening


class Words(HashingText):
    pass


class Mine(RidgeProfiles):
    pass


class White(Whitening):
    pass
"""


def test_classes_of_ones_own_are_fitted_saved_and_read_again_by_name(run, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("their_words.py").write_text(THEIRS)
    words = ["fit", "--items", tiny / "items.csv", "--events", tiny / "events.csv", "--out", "m",
             "--recommender", "their_words:Mine(unobserved=0.02)", "--set", "reg=2",
             "--encoder", "title=their_words:Words(dim=64)", "--transfer", "their_words:White(dim=8)"]  # fmt: skip
    assert run(*words).status == 0
    monkeypatch.delitem(sys.modules, "their_words")
    unread = run("inspect", "m")
    assert unread.status == 2
    assert "import their_words first, then load again (on the command line: recotransfer --import" in unread.err
    facts = json.loads(run("--import", "their_words", "inspect", "m").out)
    assert facts["settings"]["reg"] == 2
    assert facts["settings"]["unobserved"] == 0.02
    assert facts["encoders"] == [{"class": "their_words:Words", "column": "title", "dim": 64}]


def test_an_index_is_named_with_its_settings(run, tiny, tmp_path):
    pytest.importorskip("implicit")
    words = ["fit", "--items", tiny / "items.csv", "--events", tiny / "events.csv", "--no-content",
             "--recommender", "ALS(dim=4, epochs=2)", "--index", "ExactIndex", "--out", tmp_path / "m"]  # fmt: skip
    done = run(*words)
    assert done.status == 0
    assert "ExactIndex, as given" in done.err


# -- results in a database ---------------------------------------------------------------------------------------------


def test_recommendations_go_into_a_database(place, run):
    words = ("recommend", "model", "--k", 3, "--users", "some.txt", "--shard", 1)
    Path("some.txt").write_text("3\n7\n")
    ran = run(*words, "--out", "sqlite:///shop.db#recs")
    assert (ran.status, ran.out) == (0, "sqlite:///shop.db#recs\n"), ran.err
    assert "6 rows in" in ran.err
    assert run(*words, "--out", "r").status == 0
    with sqlite3.connect("shop.db") as base:
        table = pd.read_sql("select * from recs", base)
    wanted = pd.read_parquet("r")
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False)
    refused(run(*words, "--out", "sqlite:///shop.db"), "name a table to write to after '#'")
    refused(run(*words, "--out", "sqlite:///shop.db#recs", "--resume"), "a database table is written at once")
    refused(run(*words, "--out", "sqlite:///new.db#recs", "--where", "price < 0"), "no item passes the filter")
    assert not Path("new.db").exists()

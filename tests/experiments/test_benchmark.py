"""The benchmark: the same numbers whatever the workers, an interrupted one ends the same, figures equal the metrics."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import REPO
from threadpoolctl import threadpool_limits

from recotransfer import splits
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.diagnostics import Guarded, guard
from recotransfer.encoders import HashingText
from recotransfer.errors import ArtifactError, InputError
from recotransfer.evaluation import metrics
from recotransfer.evaluation.uncertainty import holm
from recotransfer.experiments.benchmark import Benchmark, Variant, runner, table, variants_of, work
from recotransfer.experiments.benchmark.measure import measure, plain, rankings_of
from recotransfer.experiments.benchmark.variants import ABLATION, GUARDED
from recotransfer.experiments.benchmark.work import run_variant
from recotransfer.recommenders import EASE, HybridItems, ItemKNN, Popularity, Recommender
from recotransfer.task import TransferTask
from recotransfer.transfer import Whitening

DAY = 86_400.0


@pytest.fixture(scope="module")
def shop():
    """80 items of five kinds that titles tell; users keep to a kind; the last ten items sell in the last days only."""
    rng = np.random.default_rng(0)
    words = ["tent", "mug", "lamp", "boot", "scarf"]
    columns = pd.DataFrame({"title": [f"{words[i % 5]} {words[i % 5]} no {i}" for i in range(80)]})
    columns["kind"] = [words[i % 5] for i in range(80)]
    items = Items(IdMap([f"i{i}" for i in range(80)]), columns, {"title": "text", "kind": "category"})
    rows = []
    for user in range(150):
        own = rng.permutation(np.arange(user % 5, 70, 5))[: rng.integers(4, 9)]
        rows += [(f"u{user}", f"i{i}", float(t) * 9 * DAY + user * 60) for t, i in enumerate(own)]
        rows.append((f"u{user}", f"i{70 + user % 10}", 80 * DAY + user * 60))
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    return items, Interactions.from_frame(frame, time="time", items=items.ids)


def task():
    return TransferTask(encoders=[HashingText(dim=64)], progress=False)


def here(work, jobs, workers, show):
    """Does in this process what `run_each` does in one process per job, each of which takes seconds to start."""
    with threadpool_limits(1):  # as in those processes, so that sums are rounded alike
        for job in jobs:
            run_variant(work, *job)
            show()


WORDS = ("HybridItems", "EASE", "Popularity")


def run(out, shop, words=WORDS, split=None, resume=False, processes=False, on=None, **settings):
    """Runs a benchmark of these variants, in this process unless `processes`."""
    items, events = shop
    settings = {"trials": 2, "progress": False, **settings}
    split = splits.leave_last(events) if split is None else split
    with pytest.MonkeyPatch.context() as patch:
        if not processes:
            patch.setattr(runner, "run_each", here)
        bench = Benchmark(out, **settings)
        return bench.run(items, split, variants_of(words), task=task() if on is None else on, resume=resume)


def numbers(results):
    """All of the results but what a clock or a meter says."""
    plain = json.loads(json.dumps(results))
    del plain["environment"], plain["created"]
    for variant in plain["variants"]:
        for name in ("seconds", "users_per_second", "memory_mib"):
            del variant[name]
    return plain


@pytest.fixture(scope="module")
def results(shop, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    return out, run(out, shop)


def variant(results, name):
    return next(row for row in results["variants"] if row["name"] == name)


def test_every_variant_and_its_ablation_and_guard_are_there(results):
    out, found = results
    names = ["HybridItems", "HybridItems" + GUARDED, "HybridItems" + ABLATION, "EASE", "Popularity"]
    assert [row["name"] for row in found["variants"]] == names
    assert all(row["failed"] is None for row in found["variants"])
    assert [len(row["trials"]) for row in found["variants"]] == [2, 0, 2, 2, 0]
    assert found == json.loads((out / "results.json").read_text())
    assert variant(found, "HybridItems" + ABLATION)["ablation_of"] == "HybridItems"
    assert not variant(found, "HybridItems" + ABLATION)["content"]
    page = (out / "report.html").read_text()
    assert all(name in page for name in names)
    models = [row for row in found["variants"] if row.get("same_as") is None]
    best = max(models, key=lambda row: row["valid"])
    assert found["reference"] == best["name"]
    pairs = [(row["ranking"], row["variant"]) for row in found["comparisons"]]
    rankings = list(best["rankings"])
    assert pairs == [(ranking, row["name"]) for ranking in rankings for row in models if row is not best]
    assert all(row["p_holm"] >= row["p"] for row in found["comparisons"])


@pytest.mark.parametrize(
    ("kept", "trust", "original"),
    [(False, (0.0, 0.0, 0.0, 0.0), ABLATION), (True, (1.0, 1.0, 1.0, 1.0), ""), (True, (1.0, 1.0, 1.0, 0.0), None)],
)
def test_a_guarded_form_that_is_another_model_has_its_figures_and_its_speed(
    kept, trust, original, shop, tmp_path, monkeypatch
):
    def decided(transfer, ablation, *args, **settings):
        found = guard(transfer, ablation, *args, **settings)
        verdict = replace(found.verdict, trust=trust, kept=kept)
        return Guarded(transfer.with_trust(trust) if kept else ablation, verdict)

    monkeypatch.setattr(work, "guard", decided)
    found = run(tmp_path / "out", shop, ["HybridItems(reg=50)"])
    mine = variant(found, "HybridItems(reg=50)" + GUARDED)
    compared = [row["variant"] for row in found["comparisons"]]
    text = table(found)
    if original is None:
        assert mine["same_as"] is None
        assert mine["name"] in [*compared, found["reference"]]
        assert "one model, measured once" not in text
        return

    other = variant(found, "HybridItems(reg=50)" + original)
    assert mine["same_as"] == other["name"]
    for name in ("rankings", "popularity", "beyond", "users_per_second", "memory_mib"):
        assert mine[name] == other[name]
    files = [pd.read_parquet(tmp_path / "out" / "variants" / variant_folder(row["name"]) / "users.parquet")
             for row in (mine, other)]  # fmt: skip
    pd.testing.assert_frame_equal(*files)
    assert mine["name"] not in [*compared, found["reference"]]
    assert f"{mine['name']} is {other['name']}: one model, measured once" in text


def test_two_workers_give_the_numbers_of_one_variant_after_another(shop, tmp_path):
    found = run(tmp_path / "two", shop, ["HybridItems(reg=50)"], processes=True, workers=2)
    assert [row["failed"] for row in found["variants"]] == [None] * 3
    assert numbers(found) == numbers(run(tmp_path / "one", shop, ["HybridItems(reg=50)"]))


def test_an_interrupted_benchmark_goes_on_to_the_same_numbers(results, shop, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(results[0], out)
    for name in ("results.json", "report.html", "variants/HybridItems/variant.json"):
        (out / name).unlink()
    shutil.rmtree(out / "variants" / variant_folder("HybridItems" + GUARDED))
    trials = out / "variants" / "HybridItems" / "trials.json"
    kept = json.loads(trials.read_text())
    kept["trials"] = kept["trials"][:1]
    trials.write_text(json.dumps(kept))
    assert numbers(run(out, shop, resume=True)) == numbers(results[1])
    with pytest.raises(InputError, match="holds an earlier benchmark; resume it with --resume"):
        run(out, shop)
    with pytest.raises(InputError, match="holds another benchmark: trials was 2 and is now 3; give"):
        run(out, shop, resume=True, trials=3)


def variant_folder(name):
    return Variant(name, Popularity()).folder


def test_the_figures_are_those_of_a_fit_by_hand(results, shop):
    items, events = shop
    split = splits.leave_last(events).with_items(items.ids)
    settings = variant(results[1], "EASE")["settings"]
    model = EASE(**settings).fit(split.train)
    lists = model.recommend(k=10, histories=split.test_history)
    by_hand = metrics.ndcg(metrics.hits(lists, split.test), 10)
    assert variant(results[1], "EASE")["rankings"]["all"]["metrics"]["ndcg@10"]["value"] == pytest.approx(
        by_hand.mean()
    )
    users = pd.read_parquet(results[0] / "variants" / "EASE" / "users.parquet")
    np.testing.assert_allclose(users.loc[users["ranking"] == "all", "ndcg@10"], by_hand)
    written = pd.read_parquet(results[0] / "variants" / "EASE" / "test-lists.parquet")
    assert written["item"].tolist() == lists.to_frame()["item"].tolist()
    valid = metrics.ndcg(metrics.hits(model.recommend(k=10), split.valid), 10).mean()
    assert variant(results[1], "EASE")["valid"] == pytest.approx(valid)


def test_models_can_be_taken_from_the_folder(results, shop):
    kept = TransferTask.load(results[0] / "variants" / "HybridItems" / "model")
    assert json.loads(json.dumps(kept.recommender.params())) == variant(results[1], "HybridItems")["settings"]


def test_transfers_of_the_task_map_what_variants_with_content_get(results, shop, tmp_path):
    mapped = TransferTask(encoders=[HashingText(dim=64)], transfers=[Whitening(dim=3)], progress=False)
    found = run(tmp_path / "out", shop, ["HybridItems"], on=mapped)
    plain = results[1]
    assert variant(found, "HybridItems")["rankings"] != variant(plain, "HybridItems")["rankings"]
    ablation = "HybridItems" + ABLATION
    assert (
        variant(found, ablation)["rankings"]["all"]["metrics"] == variant(plain, ablation)["rankings"]["all"]["metrics"]
    )
    kept = TransferTask.load(tmp_path / "out" / "variants" / "HybridItems" / "model")
    assert [type(transfer) for transfer in kept.transfers] == [Whitening]
    with pytest.raises(InputError, match="transfers was"):
        run(tmp_path / "out", shop, ["HybridItems"], resume=True)


def test_refit_learns_the_validation_events_too(shop, tmp_path):
    items, events = shop
    found = run(tmp_path / "out", shop, ["EASE(reg=50)"], refit=True)
    split = splits.leave_last(events).with_items(items.ids)
    model = EASE(reg=50).fit(split.test_history)
    by_hand = metrics.ndcg(metrics.hits(model.recommend(k=10), split.test), 10).mean()
    row = variant(found, "EASE(reg=50)")
    assert row["rankings"]["all"]["metrics"]["ndcg@10"]["value"] == pytest.approx(by_hand)
    assert not row["tuned"]
    assert found["protocol"]["form"] == "refit"


def test_a_time_cut_ranks_warm_and_cold_items_apart(shop, tmp_path):
    split = splits.time_cut(shop[1], valid=0.1, test=0.15)
    found = run(tmp_path / "out", shop, ["HybridItems", "BPR(epochs=5)"], split=split, ks=(5, 10))
    row = variant(found, "HybridItems")
    assert set(row["rankings"]) == {"all", "warm", "cold"}
    assert row["rankings"]["cold"]["metrics"]["recall@5"]["value"] > 0
    other = next(row for row in found["variants"] if row["name"] != found["reference"])
    best = variant(found, found["reference"])
    for ranking in ("all", "warm", "cold"):
        rows = [row for row in found["comparisons"] if row["ranking"] == ranking]
        told = next(row for row in rows if row["variant"] == other["name"])
        one, two = (a["rankings"][ranking]["metrics"]["ndcg@5"]["value"] for a in (other, best))
        assert told["value"] == pytest.approx(one - two)
        np.testing.assert_allclose([row["p_holm"] for row in rows], holm(np.array([row["p"] for row in rows])))
    assert {bucket["bucket"] for bucket in row["ages"]} >= {"no event yet", "under a week"}
    assert sum(bucket["pairs"] for bucket in row["popularity"]) == len(split.test)
    assert sum(bucket["pairs"] for bucket in row["histories"]) == len(split.test)
    assert 0 < row["beyond"]["coverage@5"] <= 1
    assert "calibration@5" in row["beyond"]
    assert variant(found, "BPR(epochs=5)")["failed"] is None


class Broken(Popularity):
    """A recommender that cannot be fitted."""

    def _fit(self, events, items):
        raise ZeroDivisionError("nothing works")


class Killed(Popularity):
    """A recommender whose process is killed, as when memory runs out."""

    def _fit(self, events, items):
        signal.raise_signal(signal.SIGKILL)


class Mine(ItemKNN):
    """A user's own class, which joins by its import path."""


def test_an_variant_that_fails_is_reported_and_takes_no_other_with_it(shop, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO / "tests"))
    words = [f"killed={__name__}:Killed", f"mine={__name__}:Mine(neighbours=20)"]
    found = run(tmp_path / "out", shop, words, processes=True, workers=2)
    assert "killed, probably for lack of memory" in variant(found, "killed")["failed"]
    assert variant(found, "mine")["failed"] is None
    with pytest.raises(InputError, match="holds 'mine' as Mine with other settings; rename the variant"):
        run(tmp_path / "out", shop, [f"mine={__name__}:Mine(neighbours=30)"], resume=True)
    assert found["reference"] == "mine"
    assert "killed, probably for lack of memory" in (tmp_path / "out" / "report.html").read_text()


def test_a_benchmark_whose_every_variant_failed_raises_once_its_report_is_written(shop, tmp_path):
    with pytest.raises(InputError, match="every variant failed, the first with ZeroDivisionError: nothing works"):
        run(tmp_path / "out", shop, [f"broken={__name__}:Broken"])
    assert "nothing works" in (tmp_path / "out" / "report.html").read_text()
    facts = json.loads((tmp_path / "out" / "variants" / "broken" / "variant.json").read_text())
    assert facts["failed"] == "ZeroDivisionError: nothing works"
    assert "nothing works" in (tmp_path / "out" / "variants" / "broken" / "traceback.txt").read_text()


SCRIPT = """
from pathlib import Path
from recotransfer import Benchmark, Interactions, variants_of, splits
from recotransfer.data import IdMap, Items
import pandas as pd

log = pd.DataFrame({"user": [f"u{n // 5}" for n in range(50)], "item": [f"i{n * 7 % 11}" for n in range(50)]})
events = Interactions.from_frame(log)
items = Items(events.items, pd.DataFrame(index=range(len(events.items))), {})
Path("ran").open("a").write("once ")
Benchmark("bench", progress=False).run(items, splits.leave_last(events), variants_of(["Popularity"], content=False))
"""


def test_a_script_without_a_main_is_told_what_it_lacks(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert 'put the code of the script under if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert not (tmp_path / "bench" / "variants").exists()  # so that the mended script finds the folder free


def test_a_script_from_standard_input_is_refused_before_any_work(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(InputError, match="<stdin> is not a file; save the script and run"):
        run(tmp_path / "bench", shop, ["Popularity"])
    assert not (tmp_path / "bench").exists()


def test_a_guard_that_cannot_judge_is_a_failed_line_beside_the_variants(shop, tmp_path):
    split = splits.leave_last(shop[1])
    split = replace(split, valid=split.valid.select(split.valid.user == split.valid.user[0]))
    found = run(tmp_path / "out", shop, ["HybridItems(reg=50)"], split=split)
    assert "a comparison needs two" in variant(found, "HybridItems(reg=50)" + GUARDED)["failed"]
    assert variant(found, "HybridItems(reg=50)")["failed"] is None
    assert found["guard"] == []


def test_numbers_that_are_none_are_null_in_json():
    assert plain({"a": [float("nan"), 1.5, None], "b": ({"c": float("inf")}, "x", 2)}) == {
        "a": [None, 1.5, None],
        "b": [{"c": None}, "x", 2],
    }


def test_words_for_variants():
    variants = variants_of(["HybridItems", "EASE(reg=7, neighbours=20)", "tuned=EASE", "Popularity"])
    assert [a.name for a in variants] == ["HybridItems", "HybridItems" + ABLATION, "EASE(reg=7, neighbours=20)",
                                          "tuned", "Popularity"]  # fmt: skip
    assert [a.tuned for a in variants] == [True, True, False, True, False]
    assert [a.content for a in variants] == [True, False, False, False, False]
    assert variants[2].recommender.params() == {"reg": 7, "neighbours": 20, "history_decay": 1.0}
    assert [a.name for a in variants_of(["HybridItems"], content=False)] == ["HybridItems"]
    assert variants_of(["EASE"], items=10**6)[0].recommender.neighbours == 200
    assert "ContentProfiles" not in [a.name for a in variants_of([], content=False)]
    assert len({a.folder for a in variants_of(["a/b=EASE", "a:b=EASE"])}) == 2
    assert [a.name for a in variants_of([" <b>mine</b>\n (v=2) =EASE(reg=5)"])] == ["<b>mine</b> (v=2)"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["EASE", "EASE"], "two variants are called 'EASE'; rename one"),
        (["EASE(reg=1, reg=2)"], "each once"),
        (["EASE(**{'reg': 1})"], "each once"),
        (["a=EASE(reg=1"], r"'EASE\(reg=1': write settings"),
        (["EASE(reg=)"], r"write settings as in EASE\(reg=100"),
        (["EASE(100)"], r"write settings as in EASE\(reg=100"),
        (["EASE(reg=__import__('os'))"], r"write settings as in EASE\(reg=100"),
        (["EASE(rge=1)"], "EASE has no setting 'rge'; it has reg, neighbours, history_decay"),
        (["EASE(reg=-1)"], "reg must be a number of at least 0"),
        (["RidgeProfiles"], "ranks by content alone"),
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        variants_of(words, content=False)


def test_an_unknown_recommender_is_named():
    with pytest.raises((InputError, ArtifactError), match="'EAZE'"):
        variants_of(["EAZE"])


def test_folders_in_use_are_left_alone(shop, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run(tmp_path, shop)
    with pytest.raises(InputError, match="is a file"):
        run(tmp_path / "notes.txt", shop)
    split = splits.leave_last(shop[1])
    with pytest.raises(InputError, match="test has events of 1 user only"):
        run(tmp_path / "new", shop, split=replace(split, test=split.test.select(split.test.user == 0)))
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="trials must be at least 1"):
        run(tmp_path / "new", shop, trials=0)


def test_buckets_cut_the_truth_and_not_the_lists(shop):
    items, events = shop
    split = splits.leave_last(events).with_items(items.ids)
    model = HybridItems().fit(split.train)
    lists = {name: model.recommend(k=10, histories=split.test_history, filter=None) for name in rankings_of(split)}
    tables = measure({"all": lists["all"]}, split, (10,)).tables
    rank = metrics.ranks(lists["all"], split.test)
    counts = metrics.popularity_counts(split.train)[rank.item]
    for row, (low, high) in zip(tables["popularity"], metrics.POPULARITY_BUCKETS, strict=True):
        own = (counts >= low) & (counts <= (np.inf if high is None else high))
        assert row["pairs"] == own.sum()
        if own.any():  # one true event per user: recall is the share of pairs found
            assert row["recall@10"]["value"] == pytest.approx((rank.rank[own] >= 0).mean())


def test_the_contract_of_a_recommender_is_all_an_variant_needs():
    assert issubclass(Mine, Recommender)

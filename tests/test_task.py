"""The task: raw content, encoders and recommender together; new items, audiences, odd catalogues, persistence."""

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recotransfer import task as task_module
from recotransfer.data import Filter, IdMap, Interactions, Items
from recotransfer.encoders import HashingText, SentenceText, TabularAttributes, encode_items
from recotransfer.errors import ArtifactError, InputError, NotFittedError, UnknownIdError
from recotransfer.io.readers import read_interactions, read_items
from recotransfer.recommenders import (
    ALS,
    BPR,
    EASE,
    ContentProfiles,
    HybridItems,
    ItemKNN,
    LearnedHybrid,
    Popularity,
    RidgeProfiles,
)
from recotransfer.serving.batch import BatchJob
from recotransfer.task import TransferTask
from recotransfer.transfer import Tuner, Whitening

ALL = (LearnedHybrid, HybridItems, EASE, ItemKNN, RidgeProfiles, ContentProfiles, ALS, BPR, Popularity)


@pytest.fixture(scope="session")
def tables(shop):
    items = read_items(shop / "items.csv").data
    return items, read_interactions(shop / "events.csv", items=items.ids).data


def encoders(*, price=True):
    columns = ["category", "brand", "price"] if price else ["category"]
    return [HashingText(column=["title", "description"]), TabularAttributes(columns=columns)]


@pytest.fixture(scope="session")
def fitted(tables):
    """The sample shop without its last ten items, which nobody has touched."""
    items, events = tables
    known = items.take(np.arange(590))
    return TransferTask(encoders=encoders(), progress=False).fit(known, events.with_items(known.ids))


def little(items=5, users=3, **columns):
    frame = pd.DataFrame({"title": [f"thing {i}" for i in range(items)], "price": np.arange(items) * 1.0})
    catalogue = Items(IdMap([f"i{i}" for i in range(items)]), frame, {"title": "text", "price": "number"})
    rows = [(f"u{u}", f"i{(u + j) % items}", float(j)) for u in range(users) for j in range(min(2, items))]
    log = pd.DataFrame(rows, columns=["user", "item", "time"])
    if columns:
        catalogue = Items(catalogue.ids, frame.assign(**columns), catalogue.kinds)
    return catalogue, Interactions.from_frame(log, time="time", items=catalogue.ids)


def quick(recommender=None, **settings):
    settings = {"encoders": [HashingText(), TabularAttributes(columns=["price"])], "progress": False, **settings}
    return TransferTask(recommender, **settings)


def same(left, right, tolerance=0.0):
    assert left.users.tolist() == right.users.tolist()
    assert left.items.tolist() == right.items.tolist()
    np.testing.assert_allclose(left.scores, right.scores, rtol=tolerance)


# -- fit, extend, audience ---------------------------------------------------------------------------------------------


def test_new_items_enter_without_a_refit_and_reach_who_should_see_them(tables, fitted):
    items, events = tables
    before = len(fitted.recommender.catalogue_)
    grown = fitted.extend(items)
    assert (before, len(fitted.recommender.catalogue_), len(grown.recommender.catalogue_)) == (590, 590, 600)
    new = items.ids.ids[590:]
    audience = grown.audience(new[::-1], 5)
    assert list(audience) == ["item", "user", "rank", "score"]
    assert audience["item"].unique().tolist() == new[::-1].tolist()
    assert (audience.groupby("item", sort=False)["rank"].apply(list).map(lambda r: r == [1, 2, 3, 4, 5])).all()
    category = dict(zip(items.ids.ids, items.columns["category"], strict=True))
    taste = pd.DataFrame({"user": events.users.take(events.user), "category": events.items.take(events.item)})
    taste["category"] = taste["category"].map(category)
    likes = taste.groupby("user")["category"].agg(set)
    own = [category[row.item] in likes[row.user] for row in audience.itertuples()]
    chance = np.mean([category[new[0]] in held for held in likes])
    assert np.mean(own) > 0.9 > chance
    found = grown.recommend(audience["user"].unique().tolist(), 10)
    assert set(new) & set(found.items.ravel().tolist()), "a new item stands in the lists of its audience"


def counting(encode, counts):
    """An encoder's `encode` that notes how many values it was given."""
    return lambda self, values: counts.append(len(values)) or encode(self, values)


def test_extending_encodes_the_new_items_only_and_fits_nothing(tables, fitted, monkeypatch):
    items, _ = tables
    encoded, fits = [], []
    for kind in (HashingText, TabularAttributes):
        monkeypatch.setattr(kind, "encode", counting(kind.encode, encoded))
    monkeypatch.setattr(LearnedHybrid, "_fit", lambda *_: fits.append(1))
    for i in range(6):
        fitted.extend(items.take(np.array([590 + i])))
    assert encoded == [1] * 12
    assert not fits


@pytest.mark.slow
def test_extending_loads_the_transformer_once(tables, monkeypatch):
    items, events = tables
    known = items.take(np.arange(590))
    task = TransferTask(progress=False).fit(known, events.with_items(known.ids))
    encoded = []
    monkeypatch.setattr(SentenceText, "encode", counting(SentenceText.encode, encoded))
    monkeypatch.setattr("sentence_transformers.SentenceTransformer", None)  # loading it again would fail
    for i in range(6):
        task.extend(items.take(np.array([590 + i])))
    assert encoded == [1] * 6


def test_extending_twice_or_by_known_items_changes_nothing(tables, fitted):
    items, _ = tables
    assert len(fitted.extend(items.take(np.arange(5))).recommender.catalogue_) == 590
    at_once = fitted.extend(items)
    again = at_once.extend(items)
    same(at_once.recommend(["U0001"], 20), again.recommend(["U0001"], 20))
    assert at_once.recommender.item_columns_.shape == again.recommender.item_columns_.shape


def test_filters_see_the_columns_of_new_items(tables, fitted):
    items, _ = tables
    grown = fitted.extend(items)
    dear = Filter(where="price > 100 and in_stock")
    prices = dict(zip(items.ids.ids, items.columns["price"], strict=True))
    found = grown.recommend(["U0001", "U0002"], 30, filter=dear).items.ravel()
    assert all(prices[i] > 100 for i in found if i is not None)
    catalogue, log = little(in_stock=[True] * 5)
    task = quick(encoders=[HashingText()]).fit(catalogue, log)
    grown = task.extend(Items(IdMap(["new"]), pd.DataFrame({"title": ["thing 3"]}), {"title": "text"}))
    assert "new" in grown.recommend(["u0"], 6).items
    assert "new" not in grown.recommend(["u0"], 6, filter=Filter(where="in_stock")).items, "unknown is not in stock"


def test_new_cells_join_the_type_of_their_column(tmp_path):
    catalogue, log = little(
        size=["7", "x", None, "9", "L"], in_stock=[True] * 5, gone=pd.Series([None] * 5, dtype=object)
    )
    task = quick(encoders=[HashingText()]).fit(catalogue, log)
    columns = {"title": ["thing 3"], "size": [7], "price": ["cheap"], "in_stock": [None], "other": ["x"]}
    grown = task.extend(Items(IdMap(["new"]), pd.DataFrame(columns), {"title": "text"}))
    grown.save(tmp_path / "m")
    grown = TransferTask.load(tmp_path / "m")
    assert list(grown.recommender.item_columns_) == ["title", "price", "size", "in_stock", "gone"]
    assert "new" in grown.recommend(["u0"], 6, filter=Filter(where="size == '7'")).items
    assert "new" not in grown.recommend(["u0"], 6, filter=Filter(where="price < 1000")).items


def test_audiences_in_blocks_equal_one_ranking(tables, fitted, monkeypatch):
    items, _ = tables
    wanted = items.ids.ids[[3, 500, 40]]
    whole = fitted.audience(wanted, 7)
    monkeypatch.setattr("recotransfer.recommenders.audiences._BLOCK", 100)
    pd.testing.assert_frame_equal(fitted.audience(wanted, 7), whole)
    seen = fitted.recommender.events_
    owners = set(seen.users.take(seen.user[seen.item == 3]).tolist())
    assert not owners & set(whole.loc[whole["item"] == wanted[0], "user"])


def test_bad_audiences(fitted):
    assert not len(fitted.audience([]))
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        fitted.audience(["P0001"], 0)
    with pytest.raises(UnknownIdError, match="'nothing'"):
        fitted.audience(["nothing"])
    with pytest.raises(NotFittedError):
        TransferTask().audience(["a"])


def test_the_ablation_variant_is_behaviour_alone_over_the_same_items(tables):
    items, events = tables
    ablation = TransferTask(encoders=[]).fit(items, events)
    assert ablation.recommender.catalogue_ == items.ids
    same(ablation.recommend(k=5), LearnedHybrid().fit(events).recommend(k=5))
    with pytest.raises(InputError, match="LearnedHybrid cannot rank new items: it was fitted without encoders"):
        ablation.extend(Items(IdMap(["new"]), items.columns.head(1)))
    bought = Interactions.from_frame(pd.DataFrame({"user": ["a", "b", "a"], "item": ["i1", "i1", "i2"]}))
    assert len(quick(EASE()).fit(little()[0], bought).recommender.catalogue_) == 5


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("items", "users"), [(1, 1), (2, 3), (5, 1), (5, 3)])
def test_every_recommender_on_the_smallest_catalogues(tmp_path, kind, items, users):
    recommender = kind(dim=2) if kind in (ALS, BPR) else kind()
    task = quick(recommender).fit(*little(items, users))
    found = task.recommend(k=3, reason=True)
    assert (found.positions >= 0).sum() == users * (items - min(2, items) if items < 5 else 3)
    assert np.isfinite(found.scores[found.positions >= 0]).all()
    task.similar_items(["i0"], 2)
    task.save(tmp_path / "m")
    same(TransferTask.load(tmp_path / "m").recommend(k=3), found)


# -- odd catalogues ----------------------------------------------------------------------------------------------------


def test_catalogues_without_content(tmp_path):
    catalogue, log = little()
    bare = Items(catalogue.ids, pd.DataFrame(index=range(5)))
    with pytest.raises(InputError, match="no encoder fits these items"):
        TransferTask(progress=False).fit(bare, log)
    quick(encoders=[]).fit(bare, log).save(tmp_path / "m")
    again = TransferTask.load(tmp_path / "m")
    assert again.recommender.item_columns_.shape == (5, 0)
    assert len(again.recommend(k=2).to_frame()) == 6
    with pytest.raises(InputError, match="no column 'price'"):
        again.recommend(filter=Filter(where="price < 3"))


def test_columns_and_cells_without_a_value():
    catalogue, log = little(title=None)
    assert len(quick().fit(catalogue, log).recommend(k=2).to_frame()) == 6
    alone = quick(encoders=[HashingText()]).fit(catalogue, log)
    assert alone.reports_[0].empty == 5
    same(alone.recommend(k=3), quick(encoders=[]).fit(catalogue, log).recommend(k=3), 1e-6)
    priced, log = little(price=[1.0, np.nan, 3.0, None, 5.0])
    found = quick().fit(priced, log).recommend(k=5, filter=Filter(where="price < 100"), exclude_seen=False)
    assert set(found.items.ravel().tolist()) - {None} == {"i0", "i2", "i4"}


def test_items_the_catalogue_lacks_are_ranked_but_pass_no_filter(tmp_path):
    catalogue, _ = little(in_stock=[True] * 5)
    frame = pd.DataFrame({"user": ["a", "a", "b", "b"], "item": ["i1", "gone", "gone", "i2"], "t": [1.0, 2, 3, 4]})
    task = quick().fit(catalogue, Interactions.from_frame(frame, time="t"))
    task.save(tmp_path / "m")
    task = TransferTask.load(tmp_path / "m")
    frame = pd.DataFrame({"user": ["new"], "item": ["i1"]})
    history = Interactions.from_frame(frame)
    assert "gone" in task.recommend(histories=history).items
    found = task.recommend(histories=history, filter=Filter(where="price >= 0 and in_stock")).items
    assert "gone" not in found


def test_ids_of_any_kind(tmp_path):
    ids = ["a,b", "c\nd", "😀", 'q"t', "é"]
    catalogue, log = little()
    frame = pd.DataFrame({"user": ["u,1", "u,1", "😀u"], "item": ids[:3], "t": [1.0, 2, 3]})
    task = quick().fit(Items(IdMap(ids), catalogue.columns, catalogue.kinds), Interactions.from_frame(frame, time="t"))
    task.save(tmp_path / "m")
    again = TransferTask.load(tmp_path / "m")
    same(again.recommend(k=5), task.recommend(k=5))
    BatchJob(tmp_path / "r", progress=False).run(again.recommender, model="m")
    assert set(pd.read_parquet(tmp_path / "r")["user"]) == {"u,1", "😀u"}
    mixed = IdMap(["7", 7, "x", 2.5, b"z"])
    log = Interactions(log.users, mixed, log.user, log.item, log.weight, log.time)
    task = quick().fit(Items(mixed, catalogue.columns, catalogue.kinds), log)
    task.save(tmp_path / "mixed")
    assert TransferTask.load(tmp_path / "mixed").audience([7, "7"], 1)["item"].tolist() == [7, "7"]


def test_columns_of_every_kind_are_kept_for_filters_or_left_out(tmp_path):
    catalogue, log = little(
        code=pd.Series([1, "a", None, 2.5, True], dtype=object),
        store=pd.Series([1, None, 2, 3, 4], dtype=object),
        cost=[Decimal("1.5")] * 5,
        day=pd.date_range("2020", periods=5),
        flag=pd.Series([True, None, False, True, None], dtype=object),
        picture=[b"x"] * 5,
        vector=[[1, 2]] * 5,
    )
    task = quick().fit(catalogue, log)
    task.save(tmp_path / "m")
    task = TransferTask.load(tmp_path / "m")
    assert list(task.recommender.item_columns_) == ["title", "price", "code", "store", "cost", "day", "flag", "vector"]

    def passing(where):
        return set(task.recommend(["u0"], 5, filter=Filter(where=where), exclude_seen=False).items[0]) - {None}

    assert passing("store >= 2") == {"i2", "i3", "i4"}
    assert passing("code == '1'") == {"i0"}
    assert passing("flag") == {"i0", "i3"}
    assert passing("has(vector, 2)") == {"i0", "i1", "i2", "i3", "i4"}
    assert passing("cost < 2") == {"i0", "i1", "i2", "i3", "i4"}


def test_pictures_that_cannot_be_read_are_reported(tmp_path):
    class Shape:
        """An encoder of bytes that fails on one of them."""

        name, column, dim, modality = "Shape/1", "picture", 2, "image"

        def values(self, items):
            return items.columns["picture"].tolist()

        def encode(self, values):
            return np.array([[np.nan] * 2 if v == b"bad" else [len(v), 1.0] for v in values], np.float32)

        def explain_failure(self, value):
            return "no picture"

    catalogue, log = little(picture=[b"a", b"bb", b"bad", None, b"c"])
    task = quick(encoders=[HashingText(), Shape()]).fit(catalogue, log)
    assert task.reports_[1].unreadable == (("i2", "no picture"),)
    assert "item 'i2': no picture" in str(task.reports_[1])
    new = Items(IdMap(["n1"]), pd.DataFrame({"title": ["thing"], "picture": [b"bad"]}), {"title": "text"})
    grown = task.extend(new)
    assert grown.reports_[1].unreadable == (("n1", "no picture"),)
    assert "n1" in grown.recommend(["u0"], 6).items


# -- tuners and transfers ----------------------------------------------------------------------------------------------


class Teachable(HashingText):
    """An encoder that says that it has weights."""

    module = None


class Narrower(Tuner):
    """Gives another encoder, of 64 dimensions, and keeps what it learned from."""

    def tune(self, encoder, items, relations):
        self.learned_from = items, relations
        return HashingText(dim=64)


def tuning(**settings):
    return TransferTask(encoders=[Teachable()], tuners={"text": Narrower()}, progress=False, **settings)


def test_vectors_that_tuners_have_not_seen_are_refused():
    catalogue, log = little()
    embeddings = quick(encoders=[Teachable()]).fit(catalogue, log).encode(catalogue)
    for call in (lambda: tuning().encode(catalogue), lambda: tuning().fit(catalogue, log, embeddings=embeddings)):
        with pytest.raises(InputError, match=r"this task's tuners have not run yet; call task\.tuned\(items, events\)"):
            call()
    ready = tuning().tuned(catalogue, log)
    passed = ready.fit(catalogue, log, embeddings=ready.encode(catalogue))
    assert passed.embed(catalogue).dim == 64
    same(passed.recommend(k=3), tuning().fit(catalogue, log).recommend(k=3))


def test_encoding_leaves_a_fitted_task_its_encoders(tmp_path):
    catalogue, log = little()
    task = tuning(transfers=[Whitening(dim=4)]).fit(catalogue, log)
    before = task.label(catalogue)
    assert [part.dim for part in task.encode(catalogue)] == [64]
    same(task.label(catalogue), before)
    same(task.label(catalogue, embeddings=task.encode(catalogue)), before)
    task.save(tmp_path / "m")
    same(TransferTask.load(tmp_path / "m").label(catalogue), before)
    chosen = TransferTask(progress=False).fit(*little(in_stock=[True] * 5))
    names = [encoder.name for encoder in chosen.encoders_]
    chosen.encode(catalogue)
    assert [encoder.name for encoder in chosen.encoders_] == names, "other columns choose no other encoders"


def test_a_fitted_task_that_is_tuned_again_counts_as_not_fitted():
    catalogue, log = little()
    again = tuning().fit(catalogue, log).tuned(catalogue, log)
    with pytest.raises(NotFittedError):
        again.embed(catalogue)


def test_new_items_and_events_go_through_what_was_tuned_and_learned():
    catalogue, log = little()
    task = tuning(transfers=[Whitening(dim=4)]).fit(catalogue, log)
    maps = {name: values.copy() for name, values in task.transfers[0].state_.items()}
    new = Items(IdMap(["n1"]), pd.DataFrame({"title": ["thing 3"]}), {"title": "text"})
    grown = task.extend(new)
    assert grown.recommender.items_.dim == 4
    event = Interactions.from_frame(pd.DataFrame({"user": ["u9"], "item": ["n1"], "time": [9.0]}), time="time")
    task.partial_fit(new, event)
    assert task.recommender.items_.dim == 4
    np.testing.assert_allclose(
        task.recommender.items_.align(new.ids).vectors, grown.recommender.items_.align(new.ids).vectors
    )
    for name, values in task.transfers[0].state_.items():
        np.testing.assert_array_equal(values, maps[name])


# -- weights -----------------------------------------------------------------------------------------------------------


def test_modalities_not_named_weigh_one():
    catalogue, log = little()
    some = quick(weights={"text": 1.0}).fit(catalogue, log)
    same(some.recommend(k=3), quick().fit(catalogue, log).recommend(k=3))
    assert quick(weights={"text": 3}).fit(catalogue, log).modality_weights() == {"text": 3.0, "attributes": 1.0}
    twice = [HashingText(), HashingText(dim=64), TabularAttributes(columns=["price"])]
    task = quick(encoders=twice, weights={"text 2": 2.0}).fit(catalogue, log)
    assert task.modality_weights() == {"text": 1.0, "text 2": 2.0, "attributes": 1.0}


def test_bad_weights_are_named_before_any_encoding(monkeypatch):
    monkeypatch.setattr(task_module, "encode_items", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(InputError, match="weights name 'txt'; the modalities read are text, attributes"):
        quick(weights={"txt": 1.0}).fit(*little())
    with pytest.raises(InputError, match="ranks by content alone; give encoders"):
        quick(RidgeProfiles(), encoders=[]).fit(*little())


# -- persistence -------------------------------------------------------------------------------------------------------


def test_saved_tasks_recommend_and_extend_alike(tables, fitted, tmp_path):
    items, _ = tables
    fitted.save(tmp_path / "m")
    again = TransferTask.load(tmp_path / "m")
    some = ["U0001", "U0777"]
    for filter in (None, Filter(where='price < 30 and category == "Mugs"')):
        same(again.recommend(some, 10, filter=filter), fitted.recommend(some, 10, filter=filter))
    same(again.similar_items(["P0001"]), fitted.similar_items(["P0001"]))
    same(again.extend(items).recommend(some, 30), fitted.extend(items).recommend(some, 30), 1e-6)
    grown = fitted.extend(items)
    grown.save(tmp_path / "grown")
    same(TransferTask.load(tmp_path / "grown").recommend(some, 30), grown.recommend(some, 30))
    assert again.kinds_ == fitted.kinds_
    assert again.reports_ == []


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_a_second_fit_replaces_the_model_at_a_path(tmp_path):
    quick().fit(*little()).save(tmp_path / "m")
    first = digest(tmp_path / "m")
    quick().fit(*little()).save(tmp_path / "m")
    assert digest(tmp_path / "m") == first
    quick().fit(*little(users=2)).save(tmp_path / "m")
    assert digest(tmp_path / "m") != first
    assert os.listdir(tmp_path) == ["m"]


def test_other_folders_are_no_tasks(fitted, tmp_path):
    fitted.recommender.save(tmp_path / "model")
    with pytest.raises(ArtifactError, match="was saved by LearnedHybrid, not TransferTask"):
        TransferTask.load(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json"):
        TransferTask.load(tmp_path)
    with pytest.raises(NotFittedError, match="call fit or load first"):
        TransferTask().save(tmp_path / "m")
    with pytest.raises(NotFittedError):
        TransferTask().recommend()


def test_saved_tasks_hold_no_path_and_nothing_to_execute(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    assert {p.suffix for p in (tmp_path / "m").iterdir()} <= {".json", ".npy", ".parquet"}
    for part in (tmp_path / "m").glob("*.json"):
        assert str(tmp_path) not in part.read_text()
        json.loads(part.read_text())


# -- killed while encoding ---------------------------------------------------------------------------------------------


def test_encoding_that_dies_goes_on_from_the_cache_to_the_same_model(tables, tmp_path, monkeypatch):
    items, events = tables
    monkeypatch.setattr(task_module, "encode_items", functools.partial(encode_items, chunk=64))
    TransferTask(encoders=encoders(), progress=False).fit(items, events).save(tmp_path / "whole")

    class Dying(HashingText):
        calls = 0

        def encode(self, values):
            Dying.calls += 1
            if Dying.calls == 4:
                raise KeyboardInterrupt
            return super().encode(values)

    column = ["title", "description"]
    with pytest.raises(KeyboardInterrupt):
        TransferTask(encoders=[Dying(column=column)], cache=tmp_path / "cache", progress=False).fit(items, events)
    task = TransferTask(encoders=encoders(), cache=tmp_path / "cache", progress=False).fit(items, events)
    assert task.reports_[0].cached == 3 * 64
    task.save(tmp_path / "resumed")
    assert digest(tmp_path / "resumed") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_a_fit_killed_while_encoding_ends_with_the_same_bytes(shop, tmp_path):
    """The command line with the transformer, killed with signal 9 after a few chunks of the cache."""
    script = tmp_path / "fit.py"
    script.write_text(
        "import functools, os, signal\nfrom recotransfer import task\nfrom recotransfer.cli.main import main\n"
        "from recotransfer.encoders import SentenceText\n"
        "encode, calls = SentenceText.encode, []\n"
        "def encode_or_die(self, values):\n"
        "    calls.append(len(values))\n"
        "    if len(calls) == int(os.environ.get('DIE_AT', 0)):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return encode(self, values)\n"
        "SentenceText.encode = encode_or_die\n"
        "task.encode_items = functools.partial(task.encode_items, chunk=32)\nmain()\n"
    )

    def fit(out, *more, **variables):
        words = ["fit", "--items", shop / "items.csv", "--events", shop / "events.csv", "--out", out, *more]
        return subprocess.run(
            [sys.executable, script, *words],
            cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert fit("model", "--cache", "cache", DIE_AT="4").returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    resumed = fit("model", "--cache", "cache")
    assert resumed.returncode == 0, resumed.stderr
    assert 0 < int(resumed.stderr.split(" from the cache")[0].split()[-1]) < 600
    fit("whole")
    assert digest(tmp_path / "model") == digest(tmp_path / "whole")

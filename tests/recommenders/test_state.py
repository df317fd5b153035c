"""A fitted recommender is a value: refits leave nothing behind, updates and extensions leave the old model as it is."""

import copy
import dataclasses
import inspect
import threading
import time

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from recotransfer import registry
from recotransfer.data import Embeddings, Filter, IdMap, Interactions
from recotransfer.errors import InputError
from recotransfer.recommenders import HybridItems, RidgeProfiles
from recotransfer.testing import ITEMS, checkerboard, colours, priced

SMALL = {
    "ALS": {"dim": 2, "epochs": 2},
    "BPR": {"dim": 2, "epochs": 2},
    "HybridRanker": {"epochs": 1},
    "SASRec": {"dim": 4, "epochs": 2},
}
CLOCK = {"seconds"}  # what differs between two equal fits


def made(name):
    return registry.recommenders.find(name)(**SMALL.get(name, {}))


def state(value):
    """`value` as plain data that compares with ==, its arrays as bytes and without clock times."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tolist() if value.dtype == object else value.tobytes())
    if isinstance(value, sparse.sparray):
        csr = sparse.csr_array(value)
        return ("sparse", csr.shape, state(csr.data), state(csr.indices), state(csr.indptr))
    if isinstance(value, pd.DataFrame):
        return ("frame", list(value), value.to_dict("list").__repr__())
    if isinstance(value, IdMap):
        return ("ids", value.ids.tolist())
    if isinstance(value, dict):
        return {str(key): state(each) for key, each in value.items() if key not in CLOCK}
    if isinstance(value, (list, tuple)):
        return [state(each) for each in value]
    if dataclasses.is_dataclass(value):
        return {field.name: state(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "__dict__") and type(value).__module__.startswith("recotransfer"):
        return {"class": type(value).__name__, **{key: state(each) for key, each in vars(value).items()}}

    return value


def settings_of(model):
    return {name: state(getattr(model, name)) for name in inspect.signature(type(model)).parameters}


def mutable(value, path, found):
    """Every list, dict, frame and object of the package below `value`, by identity; arrays are never written to."""
    if isinstance(value, (list, dict, pd.DataFrame)):
        found[id(value)] = path
    if isinstance(value, dict):
        for key, each in value.items():
            mutable(each, f"{path}.{key}", found)
    elif isinstance(value, (list, tuple)):
        for each in value:
            mutable(each, path, found)

    return found


def half():
    """The checkerboard as it was before its last ten users and two items came."""
    events = checkerboard()
    rows = np.flatnonzero((events.user < 30) & (events.item < 10))
    log = {"u": events.users.ids[events.user[rows]], "i": events.items.ids[events.item[rows]], "t": events.time[rows]}
    early = Interactions.from_frame(pd.DataFrame(log), user="u", item="i", time="t")
    return early, events.select(np.setdiff1d(np.arange(len(events)), rows))


def other_shop():
    """Another catalogue, larger in one way and smaller in another, untimed and without columns of its own."""
    rng = np.random.default_rng(3)
    users, items = IdMap([f"w{n}" for n in range(25)]), IdMap([f"i{n}" for n in range(100, 117)])
    rows = np.unique(rng.integers(0, [25, 17], (200, 2)), axis=0)
    events = Interactions(users, items, rows[:, 0], rows[:, 1], np.ones(len(rows), np.float32), np.arange(len(rows)))
    return events, colours(items, seed=5)


@pytest.mark.parametrize("name", registry.recommenders.names)
def test_a_refit_leaves_nothing_of_the_former_fit(name):
    events, items = other_shop()
    fresh = made(name).fit(events, items)
    again = made(name).fit(checkerboard(), colours(), columns=priced())
    again.partial_fit(checkerboard().select(np.arange(3)))
    if again.scores_new_items:
        again = again.extend(colours(IdMap(["i500"])))

    again.fit(events, items)
    assert sorted(vars(again)) == sorted(vars(fresh))
    for key, value in vars(fresh).items():
        assert state(vars(again)[key]) == state(value), key


@pytest.mark.parametrize("name", registry.recommenders.names)
def test_updates_and_extensions_leave_the_old_model_as_it_is(name):
    early, late = half()
    model = made(name).fit(early, colours(early.items), columns=priced(early.items))
    before = state(model)
    new = colours(IdMap(["i500", "i501"]))
    grown = [model.updated(late, colours(), columns=priced())]
    if model.scores_new_items:
        grown.append(model.extend(new, columns=priced(new.ids)))
        grown.append(grown[0].extend(new))

    assert state(model) == before
    settings = set(inspect.signature(type(model)).parameters)
    own = {key: value for key, value in vars(model).items() if key not in settings}
    for other in grown:
        theirs = {key: value for key, value in vars(other).items() if key not in settings}
        shared = mutable(own, "", {}).keys() & mutable(theirs, "", {}).keys()
        assert [mutable(own, "", {})[key] for key in shared] == []
        other.partial_fit(late)
        assert settings_of(other) == settings_of(model)

    assert state(model) == before


@pytest.mark.parametrize("name", registry.recommenders.names)
def test_a_partial_fit_is_what_updated_returns(name):
    early, late = half()
    model = made(name).fit(early, colours(early.items))
    updated = model.updated(late, colours())
    assert type(updated) is type(model)
    assert state(model.partial_fit(late, colours())) == state(updated)


def test_a_fit_or_an_update_that_fails_leaves_the_model_unchanged():
    early, _ = half()
    model = HybridItems().fit(early, colours(early.items), columns=priced(early.items))
    before = state(model)
    with pytest.raises(InputError, match="no interactions"):
        model.fit(early.select(np.zeros(0, np.int64)))
    with pytest.raises(InputError, match="have 3"):
        model.partial_fit(early, Embeddings(IdMap(["x"]), np.ones((1, 3), np.float32)))
    assert state(model) == before


def test_a_batch_goes_on_with_the_model_as_it_was():
    early, late = half()
    model = HybridItems().fit(early, colours(early.items))
    batch = model.for_batch()
    before = state(batch)
    model.partial_fit(late, colours())
    assert state(batch) == before


def test_columns_follow_the_catalogue_through_extensions_and_updates():
    early, late = half()
    model = HybridItems().fit(early, colours(early.items), columns=priced())
    cheap = Filter(where="price < 101")
    assert model.item_columns_["price"].tolist() == [float(i[1:]) for i in model.catalogue_.ids]
    new = colours(IdMap(["i100", "i102"]))
    listed = model.recommend(["u0"], ITEMS + 2, items=new, columns=priced(new.ids), filter=cheap).items[0]
    assert "i100" in listed
    assert "i102" not in listed
    assert "i100" not in model.recommend(["u0"], ITEMS + 2, items=new, filter=cheap).items[0], "an empty cell passes"
    assert model.extend(new).item_columns_["price"].isna().sum() == 2
    updated = model.updated(late, colours(), columns=priced())
    assert updated.item_columns_["price"].tolist() == [float(i[1:]) for i in updated.catalogue_.ids]
    assert model.fit(early, colours(early.items)).item_columns_ is None
    with pytest.raises(InputError, match="needs item columns"):
        model.recommend(filter=cheap)


def asked(model):
    only = Filter(where="price >= 0")
    return (
        model.recommend(["u0", "u1"], 3, filter=only, exclude_seen=False),
        model.similar_items(["i0"], 3, filter=only),
        model.label(colours(IdMap(["i3"])), 2),
    )


def test_requests_go_on_with_the_old_model_while_another_thread_updates_a_hundred_times():
    """Each update adds an item that everybody has, so that an answer made of two models would show."""
    events, users = checkerboard(), np.arange(len(checkerboard().users))
    model = RidgeProfiles().fit(events, colours(), columns=priced())
    answers, failures, ready, done = [], [], threading.Barrier(4), threading.Event()

    def read():
        ready.wait()
        while not done.is_set():
            time.sleep(0.001)  # leaves the updates a share of the processor
            try:
                answers.append(asked(model))
            except Exception as cause:
                failures.append(repr(cause))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()

    ready.wait()
    known = {len(model.catalogue_): copy.copy(model)}
    for number in range(100):
        new = IdMap([f"i{ITEMS + number}"])
        zeros, ones = np.zeros(len(users), np.int64), np.ones(len(users), np.float32)
        log = Interactions(events.users, new, users, zeros, ones, np.full(len(users), 2e9 + number))
        model.partial_fit(log, colours(new), columns=priced(new))
        known[len(model.catalogue_)] = copy.copy(model)

    done.set()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(answers) >= 3
    wanted = {size: asked(each) for size, each in known.items()}
    for answer in answers:
        for at, found in enumerate(answer[:2]):
            right = wanted[len(found.catalogue)][at]
            assert found.items.tolist() == right.items.tolist()
            np.testing.assert_allclose(found.scores, right.scores, rtol=1e-4)


# -- with and without the events ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.recommenders.names)
def test_a_model_saved_without_its_events_recommends_for_histories(name, tmp_path):
    events, new = checkerboard(), colours(IdMap(["i100"]))
    model = made(name).fit(events, colours(), columns=priced())
    if not model.scores_new_users:
        with pytest.raises(InputError, match="ranks only for users it was fitted on; save it with its events"):
            model.save(tmp_path / "m", events=False)
        return

    model.save(tmp_path / "m", events=False)
    assert not [path.name for path in (tmp_path / "m").iterdir() if "events" in path.name or "users" in path.name]
    again = type(model).load(tmp_path / "m")
    cheap = Filter(where="price < 8")
    for ask in ({}, {"filter": cheap}, {"items": new} if model.scores_new_items else {}):
        old, found = (each.recommend(k=4, histories=events, **ask) for each in (model, again))
        assert old.items.tolist() == found.items.tolist()
        np.testing.assert_array_equal(old.scores, found.scores)

    assert again.similar_items(["i0"], 2).items.tolist() == model.similar_items(["i0"], 2).items.tolist()
    for ask in (
        again.recommend,
        lambda: again.recommend(["u0"]),
        lambda: again.updated(events),
        lambda: again.label(new),
    ):
        with pytest.raises(InputError, match=f"this {name} was saved without its events, so it knows no users"):
            ask()
    again.save(tmp_path / "twice")
    assert len(type(model).load(tmp_path / "twice").catalogue_) == ITEMS
    assert len(model.events_) == len(events)


# -- ids of another type -----------------------------------------------------------------------------------------------


def numbered(users, items, at=0.0, text=False):
    kind = str if text else int
    log = {"u": [kind(u) for u in users], "i": [kind(i) for i in items], "t": at + np.arange(len(users), dtype=float)}
    return Interactions.from_frame(pd.DataFrame(log), user="u", item="i", time="t")


def vectors(ids):
    return Embeddings(IdMap(ids), np.eye(4, dtype=np.float32)[[int(i) % 4 for i in ids]])


def test_updates_histories_users_and_items_in_another_type_mean_the_known_ids():
    model = HybridItems().fit(numbered([1, 1, 2, 2], [10, 11, 11, 12]), vectors([10, 11, 12]))
    updated = model.updated(numbered(["1", "3"], ["12", "13"], at=9.0, text=True), vectors(["13"]))
    assert updated.events_.users.ids.tolist() == [1, 2, 3]
    assert updated.catalogue_.ids.tolist() == [10, 11, 12, 13]
    assert updated.update_["users"] == updated.update_["items"] == 1
    assert model.extend(vectors(["12", "14"])).catalogue_.ids.tolist() == [10, 11, 12, 14]
    assert model.recommend(["2"], 2).items.tolist() == model.recommend([2], 2).items.tolist()
    assert model.similar_items(["11"], 2).items.tolist() == model.similar_items([11], 2).items.tolist()
    history = Interactions.from_frame(pd.DataFrame({"user": ["x"], "item": ["11"], "time": [1.0]}), time="time")
    assert model.recommend(histories=history).users.tolist() == ["x"]
    assert model.label(vectors(["12"]), 2, users=["1", "2"]).users.tolist() == ["12"]


def test_ids_that_cannot_be_converted_are_named():
    model = HybridItems().fit(numbered([1, 1, 2, 2], [10, 11, 11, 12]), vectors([10, 11, 12]))
    bob = Interactions.from_frame(pd.DataFrame({"user": ["bob"], "item": [10], "time": [1.0]}), time="time")
    with pytest.raises(InputError, match=r"user ids are of mixed types: known ones are int such as 1, .* 'bob'"):
        model.updated(bob)
    with pytest.raises(InputError, match="item ids are of mixed types"):
        model.extend(Embeddings(IdMap(["mug"]), np.ones((1, 4), np.float32)))

"""Learning further from new events, finding drift, forgetting less."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.diagnostics import drift
from recotransfer.errors import InputError, NotFittedError
from recotransfer.numerics.histories import histories
from recotransfer.numerics.ridge import ease, ease_updated
from recotransfer.recommenders import (
    ALS,
    BPR,
    EASE,
    ContentProfiles,
    HybridItems,
    ItemKNN,
    Popularity,
    RidgeProfiles,
    SASRec,
    WeightedFusion,
)
from recotransfer.transfer import Replay, forgetting

USERS, ITEMS = 12, 9

CLOSED = {
    "Popularity": Popularity,
    "Popularity that forgets": lambda: Popularity(half_life=1e-4),
    "ItemKNN": ItemKNN,
    "EASE": lambda: EASE(reg=2.0),
    "EASE, local": lambda: EASE(reg=2.0, neighbours=4),
    "ContentProfiles": ContentProfiles,
    "RidgeProfiles": RidgeProfiles,
    "HybridItems": lambda: HybridItems(reg=2.0),
    "HybridItems, dense": lambda: HybridItems(reg=2.0, form="dense"),
}


def vectors(ids):
    """A vector for each item, by its id alone."""
    rows = [np.random.default_rng(int(i[1:])).normal(size=5) for i in ids]
    return Embeddings(IdMap(ids), np.array(rows, np.float32).reshape(len(ids), 5))


def log(rows, timed):
    """Events of (user, item, weight, time), whose ids are numbered as they come."""
    frame = pd.DataFrame(rows, columns=["u", "i", "w", "t"])
    frame["u"], frame["i"] = "u" + frame["u"].astype(str), "i" + frame["i"].astype(str)
    return Interactions.from_frame(frame, user="u", item="i", weight="w", time="t" if timed else None)


events = st.tuples(
    st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.sampled_from([1.0, 2.0, 0.5]), st.integers(0, 30)
)


def scores(model):
    """(users, items) scores, by id, of all that is known."""
    shape = (len(model.events_.users), len(model.catalogue_))
    found = model._scores(model.events_)
    table = pd.DataFrame(
        found if isinstance(found, np.ndarray) else found.toarray(), model.events_.users.ids, model.catalogue_.ids
    )
    assert table.shape == shape
    return table.sort_index().sort_index(axis=1)


@pytest.mark.parametrize("name", CLOSED)
@given(rows=st.lists(events, min_size=4, max_size=60), cuts=st.lists(st.integers(1, 59), max_size=3), data=st.data())
@settings(max_examples=12, deadline=None)
def test_closed_forms_end_as_a_fit_on_all_events(name, rows, cuts, data, tmp_path_factory):
    """New users and items, repeated pairs, times out of order, logs without times, a model that was saved first."""
    timed = name == "Popularity that forgets" or data.draw(st.booleans())
    bounds = sorted({cut for cut in cuts if cut < len(rows)} | {0, len(rows)})
    parts = [log(rows[a:b], timed) for a, b in itertools.pairwise(bounds)]
    reads = CLOSED[name]().needs_items or (isinstance(CLOSED[name](), HybridItems) and data.draw(st.booleans()))
    told = [vectors(list(part.items.ids)) if reads else None for part in parts]
    model = CLOSED[name]().fit(parts[0], told[0])
    if data.draw(st.booleans()):
        folder = tmp_path_factory.mktemp("model") / "m"
        model.save(folder)
        model = type(model).load(folder)
    for part, items in zip(parts[1:], told[1:], strict=True):
        model.partial_fit(part, items)
    whole = log(rows, timed)
    fresh = CLOSED[name]().fit(whole, vectors(list(whole.items.ids)) if reads else None)
    assert len(model.events_) == len(whole)
    pd.testing.assert_frame_equal(scores(model), scores(fresh), check_dtype=False, rtol=1e-3, atol=1e-4)
    popular = [pd.Series(m.popularity_, m.catalogue_.ids).sort_index() for m in (model, fresh)]
    pd.testing.assert_series_equal(*popular)


@given(seed=st.integers(0, 10_000), slices=st.integers(1, 6), reg=st.sampled_from([0.5, 20.0, 300.0]))
@settings(max_examples=25, deadline=None)
def test_the_changed_inverse_is_the_solved_one(seed, slices, reg):
    rng = np.random.default_rng(seed)
    rows = [(int(rng.integers(40)), int(rng.integers(30)), 1.0, at) for at in range(60 * (slices + 1))]
    first = log(rows[:60], True)
    known = first.concat(log([], True)) if seed % 2 else first
    weights = ease(histories(known).T @ histories(known).toarray(), reg)
    for at in range(1, slices + 1):
        new = known.concat(log(rows[60 * at : 60 * (at + 1)], True))
        before = Interactions(new.users, new.items, known.user, known.item, known.weight, known.time)
        weights = ease_updated(weights, histories(before), histories(new), reg)
        known = new
    matrix = histories(known).toarray().astype(np.float64)
    np.testing.assert_allclose(weights, ease(matrix.T @ matrix, reg), atol=2e-4)


def shop(users, items, seed, *, tastes=5, first_user=0, length=6, time=0.0):
    """A log in which each user holds items of one taste, that is of one remainder; popularity falls with the id."""
    rng = np.random.default_rng(seed)
    weight = 1 / (1 + np.arange(items)) ** 0.5
    rows = []
    for user in range(first_user, first_user + users):
        pool = np.flatnonzero(np.arange(items) % tastes == user % tastes)
        held = rng.choice(pool, min(length, len(pool) - 1), replace=False, p=weight[pool] / weight[pool].sum())
        rows += [(user, int(item), 1.0, time + rng.random()) for item in held]
    return log(rows, True)


def test_few_changed_users_change_the_inverse_instead_of_solving_anew():
    old, new = shop(200, 100, 0), shop(3, 100, 1, first_user=199)
    model = EASE().fit(old)
    other = EASE(neighbours=20).fit(old)
    assert model.partial_fit(new).update_["how"] == "inverse updated for 3 users"
    assert other.partial_fit(new).update_["how"] == "fitted again on all events"
    fresh = EASE().fit(old.concat(new))
    np.testing.assert_allclose(scores(model), scores(fresh), atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ALS(dim=8, epochs=20),
        lambda: BPR(dim=8, epochs=100),
        lambda: SASRec(dim=16, epochs=20, learning_rate=0.02),
        lambda: WeightedFusion(members=[ItemKNN(), EASE(neighbours=10)]),
    ],
)
def test_models_that_go_on_learn_new_users_and_items_and_keep_the_old(make):
    old, new = shop(150, 40, 0), shop(60, 60, 1, first_user=150, time=5.0)
    model = make().fit(old).partial_fit(new)
    found = model.recommend([f"u{i}" for i in range(210)], 3)
    own = [[int(item[1:]) % 5 for item in row] for row in found.items.tolist()]
    right = np.array(own) == (np.arange(210) % 5)[:, None]
    assert right[:150].mean() > 0.7
    assert right[150:].mean() > 0.7
    assert (found.positions >= 40).any(), "items that came with the new events are never recommended"


def test_sasrec_with_content_ranks_new_items_by_it():
    ids = [f"i{i}" for i in range(60)]
    taste = np.eye(5, 8)[np.arange(60) % 5] + 0.05 * np.random.default_rng(0).normal(size=(60, 8))
    items = Embeddings(IdMap(ids), taste.astype(np.float32))
    old = shop(150, 40, 0)
    model = SASRec(dim=16, epochs=40, learning_rate=0.01).fit(old, items.align(IdMap(ids[:40])))
    model.partial_fit(shop(20, 40, 1, first_user=145, time=5.0), items)
    fresh = [f"i{i}" for i in range(40, 60)]
    place = model.catalogue_.positions(fresh)
    best = scores(model).loc["u0", fresh]
    assert model.known_[place].all()
    assert np.mean([int(i[1:]) % 5 == 0 for i in best.nlargest(3).index]) > 0.6


def test_updates_that_cannot_be_are_refused_and_leave_the_model_as_it_was():
    timed, untimed = log([(0, 0, 1, 0), (0, 1, 1, 1), (1, 1, 1, 0)], True), log([(1, 0, 1, 0)], False)
    model = HybridItems().fit(timed)
    with pytest.raises(InputError, match="only one of the two logs has a time"):
        model.partial_fit(untimed)
    with pytest.raises(InputError, match="fitted without embeddings, the new items have 5"):
        model.partial_fit(timed, vectors(["i7"]))
    with pytest.raises(InputError, match="fitted with 5 dimensions, the new items have 3"):
        ContentProfiles().fit(timed, vectors(["i0", "i1"])).partial_fit(
            timed, Embeddings(IdMap(["i9"]), np.ones((1, 3), np.float32))
        )
    with pytest.raises(NotFittedError):
        HybridItems().partial_fit(timed)
    assert len(model.events_) == 3
    assert not hasattr(model, "update_")


def test_items_alone_join_the_catalogue():
    known = log([(0, 0, 1, 0), (0, 1, 1, 1), (1, 1, 1, 0), (1, 2, 1, 2)], True)
    model = ContentProfiles().fit(known, vectors(["i0", "i1", "i2"]))
    nothing = known.select(np.zeros(0, np.int64))
    model.partial_fit(nothing, vectors(["i1", "i8"]))
    assert model.catalogue_.ids.tolist() == ["i0", "i1", "i2", "i8"]
    assert "i8" in model.recommend(["u0"], 2).items[0].tolist()


def test_joined_logs_keep_ids_kinds_and_order():
    first = Interactions(
        IdMap(["a", "b"]), IdMap(["x"]), np.array([1, 0]), np.array([0, 0]), np.ones(2, np.float32),
        np.array([5.0, 1.0]), np.array([0, 1], np.int16), ("view", "buy"),
    )  # fmt: skip
    then = Interactions(
        IdMap(["c", "b"]), IdMap(["y", "x"]), np.array([0, 1]), np.array([0, 1]), np.ones(2, np.float32),
        np.array([2.0, 3.0]), np.array([0, 1], np.int16), ("buy", "cart"),
    )  # fmt: skip
    both = first.concat(then)
    assert both.users.take(both.user).tolist() == ["b", "a", "c", "b"]
    assert both.items.take(both.item).tolist() == ["x", "x", "y", "x"]
    assert [both.kinds[k] for k in both.kind] == ["view", "buy", "buy", "cart"]
    assert both.time.tolist() == [5.0, 1.0, 2.0, 3.0]
    nothing = Interactions(first.users, first.items, *[np.zeros(0, np.int64)] * 2, np.zeros(0, np.float32))
    assert nothing.concat(then).time.tolist() == [2.0, 3.0]
    assert len(then.concat(nothing).time) == 2


# -- drift -------------------------------------------------------------------------------------------------------------


def crowd(seed, *, users=60, first_user=0, favour=0.0, shift=0, items=50):
    """Users who prefer one taste each, all of them item 0 so far, over tastes that begin at `shift`."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(first_user, first_user + users):
        taste = shift + rng.integers(5)
        for at in range(rng.integers(2, 7)):
            item = 0 if rng.random() < favour else int(rng.integers(items // 10) * 10 + taste % 10)
            rows.append((user, item, 1.0, float(at)))
    return log(rows, True)


def test_false_alarms_are_as_rare_as_asked():
    alarms = []
    for seed in range(50):
        overlap = 60 if seed % 2 else 20  # other users, or mostly the same
        before, after = crowd(2 * seed), crowd(2 * seed + 1, first_user=overlap)
        items = vectors([f"i{i}" for i in range(50)])
        alarms.append(drift(before, after, items=items, alpha=0.1, draws=99, seed=seed).action != "nothing")
    assert sum(alarms) <= 10, "of 50 at 10%: more than 10 comes one time in a hundred"


def test_users_of_many_events_are_no_false_alarm():
    """Events of one user are alike: taken as independent, two crowds of few users would always differ."""

    def heavy(seed, first_user):
        rng = np.random.default_rng(seed)
        tastes = rng.integers(10, size=12)
        return log([(first_user + u, int(rng.integers(5) * 10 + tastes[u]), 1.0, 0.0) for u in range(12)
                    for _ in range(60)], True)  # fmt: skip

    items = vectors([f"i{i}" for i in range(50)])
    found = [drift(heavy(2 * s, 0), heavy(2 * s + 1, 12), items=items, draws=99, seed=s).action for s in range(30)]
    assert sum(action != "nothing" for action in found) <= 5


def test_planted_shifts_are_found_and_named():
    items = vectors([f"i{i}" for i in range(50)])
    before = crowd(0)
    popular = drift(before, crowd(1, first_user=60, favour=0.4), items=items, draws=199)
    assert {s.name: s.p < 0.05 for s in popular.shifts}["popularity"]
    assert popular.action == "partial_fit"
    moved = drift(before, crowd(2, first_user=60, shift=5), items=items, draws=199)
    assert all(s.p < 0.05 for s in moved.shifts)
    assert "beyond chance" in moved.words
    assert "partial_fit" in moved.words
    content = next(s for s in moved.shifts if s.name == "content")
    assert content.value > 5 * abs(content.usual)
    assert moved.to_dict()["action"] == "partial_fit"


def test_quality_that_fell_asks_for_a_refit():
    first = shop(200, 50, 0, length=5)
    model = EASE(reg=5.0).fit(first)
    same = shop(200, 50, 1, length=5)
    other = shop(200, 50, 2, length=5, tastes=7)
    assert drift(same, shop(200, 50, 3, length=5), model=model, draws=199).action == "nothing"
    fell = drift(same, other, model=model, draws=199)
    assert fell.action == "refit"
    assert next(s for s in fell.shifts if s.name == "behaviour").value < 0
    with pytest.raises(InputError, match="have a history in the model"):
        drift(first, other, model=model)


def test_periods_without_users_are_refused():
    with pytest.raises(InputError, match="users of the later period who have events: 1;"):
        drift(crowd(0), crowd(1, users=1))


# -- replay ------------------------------------------------------------------------------------------------------------


def test_replay_holds_old_events_in_runs_and_all_new_ones():
    old, new = shop(100, 50, 0), shop(40, 50, 1, first_user=100)
    mixed = Replay(60)(old, new)
    assert len(mixed) == 60 + len(new)
    again = Replay(60)(old, new)
    np.testing.assert_array_equal(mixed.item, again.item)
    replayed = mixed.select(np.arange(60))
    held = np.bincount(replayed.user)
    assert np.median(held[held > 0]) >= 5, "users come whole, or what relates items is lost"
    pairs = {(u, i) for u, i in zip(old.users.ids[old.user], old.items.ids[old.item], strict=True)}
    assert {
        (mixed.users.ids[u], mixed.items.ids[i]) for u, i in zip(replayed.user, replayed.item, strict=True)
    } <= pairs
    assert len(Replay(10_000)(old, new)) == len(old) + len(new)


def test_reservoir_draws_every_event_alike():
    old, new = shop(30, 50, 0), shop(2, 50, 1, first_user=30)
    counts = np.zeros(len(old))
    for seed in range(300):
        mixed = Replay(45, seed=seed)(old, new)
        key = old.user * 100 + old.items.positions(old.items.ids)[old.item]
        taken = mixed.user[:45] * 100 + mixed.item[:45]
        counts += np.isin(key, taken)
    share = counts / 300
    assert abs(share.mean() - 45 / len(old)) < 0.01
    assert share.min() > 0.1
    assert share.max() < 0.45


def test_herding_keeps_the_mean_of_each_label():
    rng = np.random.default_rng(0)
    ids = IdMap([f"i{i}" for i in range(400)])
    items = Embeddings(ids, (rng.normal(size=(400, 6)) + np.repeat([[3.0], [-3.0]], 200, axis=0)).astype(np.float32))
    old = Interactions.from_labels(["a"] * 200 + ["b"] * 200, ids)
    new = Interactions.from_labels(["c"] + [None] * 399, ids)

    def error(replay):
        mixed = replay(old, new, items)
        unit = items.vectors / np.linalg.norm(items.vectors, axis=1, keepdims=True)
        means = [unit[mixed.item[mixed.user == label]].mean(axis=0) for label in (0, 1)]
        return sum(np.linalg.norm(m - unit[a : a + 200].mean(axis=0)) for m, a in zip(means, (0, 200), strict=True))

    herded = Replay(20, how="herding")(old, new, items)
    assert np.bincount(herded.user).tolist() == [10, 10, 1]
    drawn = [error(Replay(20, seed=seed)) for seed in range(10)]
    assert error(Replay(20, how="herding")) < 0.5 * np.median(drawn)


def test_herding_of_many_users_draws_some_of_them():
    old, new = shop(100, 50, 0), shop(5, 50, 1, first_user=100)
    items = vectors([f"i{i}" for i in range(50)])
    mixed = Replay(30, how="herding")(old, new, items)
    assert len(np.unique(mixed.user[:30])) == 30


def test_impossible_replays_are_refused():
    old, new = shop(5, 20, 0), shop(5, 20, 1)
    with pytest.raises(InputError, match="give items"):
        Replay(5, how="herding")(old, new)
    with pytest.raises(InputError, match="size must be 1"):
        Replay(0)(old, new)
    with pytest.raises(InputError, match="only one of the two logs has a time"):
        Replay(5)(old, Interactions(new.users, new.items, new.user, new.item, new.weight))


def test_replay_makes_less_of_the_old_taste_forgotten():
    """Old users go by remainders of 5, new ones by remainders of 7."""
    old, new = shop(300, 60, 0, length=5), shop(300, 60, 1, first_user=300, length=5, tastes=7)
    old_truth, new_truth = shop(300, 60, 2, length=3), shop(300, 60, 3, first_user=300, length=3, tastes=7)
    before, known = EASE(reg=5.0).fit(old), old.concat(new)
    lost = [
        forgetting(before, EASE(reg=5.0).fit(learned), old_truth, new_truth, histories=known)
        for learned in (new, Replay(400)(old, new))
    ]
    assert lost[0].old.high < 0, "nothing was forgotten that replay could keep"
    assert lost[1].old.value > 0.6 * lost[0].old.value
    assert lost[1].old.low > lost[0].old.high
    assert lost[0].new.low > 0
    assert lost[1].new.low > 0


def test_forgetting_needs_users_whom_both_models_know():
    old, new = shop(50, 30, 0), shop(50, 30, 1, first_user=50)
    with pytest.raises(InputError, match="no user of the old events is known to both models"):
        forgetting(EASE().fit(old), EASE().fit(new), old, new)

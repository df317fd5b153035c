"""`LearnedHybrid` in logs whose users come back to items."""

import copy

import numpy as np
import pytest

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.recommenders import LearnedHybrid
from recotransfer.recommenders._lessons import Lessons

USERS, ITEMS, DAY, START = 200, 40, 86400.0, 1.7e9


def log(rows):
    """Events from (user, item, day)."""
    user, item, day = np.array(sorted(rows, key=lambda row: (row[0], row[2]))).T
    ids = IdMap([f"u{i}" for i in range(user.max() + 1)]), IdMap([f"i{i}" for i in range(ITEMS)])
    return Interactions(*ids, user, item, np.ones(len(user), np.float32), START + DAY * day)


def weekly():
    """A log in which every user has an item of their own for each day of the week, but skips one in ten."""
    rng, rows = np.random.default_rng(0), []
    for user in range(USERS):
        staples = rng.permutation(ITEMS)[:7]
        rows += [(user, staples[day % 7], day) for day in range(rng.integers(11, 20)) if rng.random() > 0.1]

    return log(rows)


def favourites(*, again):
    """A log of daily events with any items, or with `again` every other day with one of three that the user likes."""
    rng, rows = np.random.default_rng(0), []
    for user in range(USERS):
        items = rng.permutation(ITEMS)
        rows += [(user, items[day % 6 // 2] if again and day % 2 else items[3 + day], day) for day in range(20)]

    return log(rows)


def vectors(events):
    rows = np.random.default_rng(1).normal(size=(ITEMS, 4)).astype(np.float32)
    return Embeddings(events.items, rows / np.linalg.norm(rows, axis=1, keepdims=True))


def without(model):
    """The model without its part for repeats."""
    out = copy.copy(model)
    out.again_ = None
    return out


@pytest.fixture(scope="module")
def shop():
    events = favourites(again=True)
    return LearnedHybrid(neighbours=20).fit(events, vectors(events))


@pytest.fixture(scope="module")
def calendar():
    return LearnedHybrid(neighbours=20).fit(weekly())


def test_an_item_is_due_after_its_usual_gap(calendar):
    days = [(0, 1, 0), (0, 2, 6), (0, 1, 7), (0, 2, 13), (0, 3, 14)]  # item 1 was bought a week ago, item 2 yesterday
    found = calendar.recommend(k=ITEMS, histories=log(days), exclude_seen=False).items[0].tolist()
    assert found.index("i1") < found.index("i2")
    assert found.index("i1") < found.index("i3")


def test_words_say_how_often_and_when_items_are_repeated(calendar):
    said = " ".join(calendar.in_words())
    assert "of the held-out events repeat an earlier one of the user" in said
    assert "half of all repeats come within 7 visits and about 7 days." in said
    assert "Repeats are most likely after 0.75 to 1.25 times the usual gap of the item." in said


def test_favourites_lead_the_list(shop):
    rng = np.random.default_rng(0)
    likes = [set(rng.permutation(ITEMS)[:3].tolist()) for _ in range(USERS)]
    found = [each.recommend(shop.events_.users.ids, 3, exclude_seen=False) for each in (shop, without(shop))]
    own = [np.mean([len(a & set(b)) for a, b in zip(likes, top.positions.tolist(), strict=True)]) for top in found]
    assert own[0] > 2
    assert own[1] < 1.5


def test_reasons_name_what_was_bought_before(shop):
    found = shop.recommend(["u0"], ITEMS, exclude_seen=False, reason=True)
    history = set(shop.events_.item[shop.events_.user == 0].tolist())
    for item, position, reason in zip(found.items[0], found.positions[0], found.reason[0], strict=True):
        assert ("bought before" in reason.parts) == (position in history)
        if reason.parts.get("bought before", 0) > 0.5:
            assert reason.because[0][0] == item


def test_lists_without_seen_items_are_those_of_a_model_without_the_part(shop, monkeypatch):
    lists = [each.recommend(k=ITEMS) for each in (shop, without(shop))]
    np.testing.assert_array_equal(lists[0].positions, lists[1].positions)
    np.testing.assert_array_equal(lists[0].scores, lists[1].scores)
    monkeypatch.setattr(Lessons, "again", lambda self, blend: None)
    events = favourites(again=True)
    plain = LearnedHybrid(neighbours=20).fit(events, vectors(events))
    for kind in ("age", "popularity"):
        old, new = (getattr(model.blend_, kind) for model in (plain, shop))
        for name in old:
            np.testing.assert_array_equal(old[name], new[name])


def test_without_repeats_there_is_no_part(tmp_path):
    events = favourites(again=False)
    model = LearnedHybrid(neighbours=20).fit(events)
    assert model.again_ is None
    assert not any("repeat" in line for line in model.in_words())
    model.save(tmp_path / "m")
    assert not list((tmp_path / "m").glob("again*"))
    lists = [each.recommend(k=5, exclude_seen=False) for each in (model, LearnedHybrid.load(tmp_path / "m"))]
    np.testing.assert_array_equal(lists[0].scores, lists[1].scores)


def test_a_loaded_model_repeats_as_the_saved_one_and_extends(shop, tmp_path):
    shop.save(tmp_path / "m")
    loaded = LearnedHybrid.load(tmp_path / "m")
    assert loaded.in_words() == shop.in_words()
    new = Embeddings(IdMap(["new"]), np.ones((1, 4), np.float32))
    lists = [each.extend(new).recommend(k=ITEMS, exclude_seen=False) for each in (shop, loaded)]
    np.testing.assert_array_equal(lists[0].positions, lists[1].positions)
    np.testing.assert_array_equal(lists[0].scores, lists[1].scores)
    visits = log([(0, 1, 0), (0, 1, 2)])
    again = Interactions(visits.users, IdMap(["new"]), visits.user, visits.item - 1, visits.weight, visits.time)
    bigger = loaded.extend(new)
    found = [each.recommend(k=ITEMS + 1, histories=again, exclude_seen=False) for each in (bigger, without(bigger))]
    scores = [lists.scores[lists.items == "new"].sum() for lists in found]
    assert scores[0] > scores[1]


def test_without_times_the_count_decides():
    timed = favourites(again=True)
    events = Interactions(timed.users, timed.items, timed.user, timed.item, timed.weight)
    model = LearnedHybrid(neighbours=20).fit(events)
    history = Interactions(IdMap(["a"]), events.items, *np.array([[0, 0, 0], [1, 2, 1]]), np.ones(3, np.float32))
    lists = [
        model.recommend(k=ITEMS, histories=history.select(order), exclude_seen=False).items[0].tolist()
        for order in (np.array([0, 1, 2]), np.array([2, 0, 1]))
    ]
    assert lists[0] == lists[1]
    assert lists[0].index("i1") < lists[0].index("i2")


def test_users_without_repeats_or_events_get_full_lists(shop):
    visits = log([(0, 5, 0), (0, 6, 3), (1, 2, 0)]).select(np.array([0, 1]))
    found = shop.recommend(k=5, histories=visits, exclude_seen=False)
    assert (found.positions >= 0).all()


def test_repeats_that_are_all_held_out_are_learned_from():
    events = favourites(again=False)
    last = np.arange(19, len(events), 20)  # each user's last event becomes the first one again
    items = events.item.copy()
    items[last] = items[last - 19]
    repeated = Interactions(events.users, events.items, events.user, items, events.weight, events.time)
    model = LearnedHybrid(neighbours=20).fit(repeated)
    assert np.isfinite(model.again_.weights).all()
    found = model.recommend(k=3, exclude_seen=False)
    assert np.isfinite(found.scores).all()

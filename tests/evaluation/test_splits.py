"""Every way of splitting a log: what is held out, that nothing leaks, and that the counts add up."""

import dataclasses
import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from recotransfer import splits
from recotransfer.data import IdMap, Interactions
from recotransfer.errors import InputError, UnknownIdError
from recotransfer.evaluation.split import HeldOut, Split
from recotransfer.evaluation.splits import (
    by_group,
    cold_items,
    cold_users,
    hold_out_last,
    leave_last,
    random_per_user,
    time_cut,
)

PARTS = ("train", "valid", "test")
ALL_PARTS = (*PARTS, "valid_history", "test_history")
KINDS = ("view", "buy")


def log(rows, timed=True):
    """Events of (user, item, time); each weighs its row number, so that it can be told again."""
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    frame["row"] = np.arange(len(frame), dtype=np.float32)
    bare = Interactions.from_frame(frame, weight="row", time="time" if timed else None)
    return dataclasses.replace(bare, kind=(np.arange(len(frame)) % 2).astype(np.int16), kinds=KINDS)


def rows_of(part):
    return part.weight.astype(int).tolist()


def told(events):
    """(user, item) of every event."""
    return list(zip(events.users.take(events.user).tolist(), events.items.take(events.item).tolist(), strict=True))


def ids_of(events, name):
    return {pair[name == "item"] for pair in told(events)}


def assert_sound(split, events):
    """Parts are rows of the log as they were, disjoint in rows and pairs, and the facts account for the others."""
    for name in ALL_PARTS:
        part, rows = getattr(split, name), rows_of(getattr(split, name))
        assert len(set(rows)) == len(rows)
        again = events.select(np.array(rows, dtype=int))
        for column in ("user", "item", "weight", "time", "kind"):
            np.testing.assert_array_equal(getattr(part, column), getattr(again, column), err_msg=f"{name} {column}")
        assert part.kinds == KINDS
        assert rows == sorted(rows)  # untimed logs live by their order
    pairs = {name: set(told(getattr(split, name))) for name in ALL_PARTS}
    assert not pairs["train"] & (pairs["valid"] | pairs["test"])
    assert not pairs["valid"] & (pairs["test"] | pairs["valid_history"])
    assert not pairs["test"] & pairs["test_history"]
    for truth in ("valid", "test"):
        assert ids_of(getattr(split, truth), "user") <= ids_of(getattr(split, f"{truth}_history"), "user")
    told_again = json.loads(json.dumps(split.describe()))
    assert told_again["facts"] == split.facts
    placed = sum(len(getattr(split, name)) for name in PARTS)
    if split.name == "cold-users":
        placed += len(split.valid_history) + len(split.test_history)
    assert placed + sum(split.facts["left_out"].values()) == split.facts["events"] == len(events)


def events_of(users="uvwxyz", items="abcdefgh", most_time=6, **sizes):
    row = st.tuples(st.sampled_from(users), st.sampled_from(items), st.integers(0, most_time))
    return st.lists(row, **{"min_size": 12, "max_size": 60, **sizes})


def attempt(split, *args, **settings_):
    """The split, or None where the log is too small for one."""
    try:
        return split(*args, **settings_)
    except InputError:
        return None


# Leave-last


def by_hand(rows, n, least):
    """Row numbers of valid and test, and of all that a held-out pair takes out of train, user by user."""
    valid, test, gone = [], [], []
    for user in {row[0] for row in rows}:
        own = sorted((r for r in range(len(rows)) if rows[r][0] == user), key=lambda r: (rows[r][2], r))
        last = {rows[r][1]: r for r in own}
        ranked = sorted(last.values(), key=own.index)
        if len(ranked) < max(least, 2 * n + 1):
            continue
        test += ranked[-n:]
        valid += ranked[-2 * n : -n]
        held = {rows[r][1] for r in ranked[-2 * n :]}
        gone += [r for r in own if rows[r][1] in held]
    return sorted(valid), sorted(test), set(gone)


@settings(deadline=None)
@drawn(events_of(users="uvw", min_size=1, max_size=40), st.integers(1, 2), st.integers(1, 6), st.booleans())
@example([("u", "c", 9), ("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "d", 0)], 1, 3, True)
def test_leave_last_is_what_one_finds_by_hand(rows, n, least, timed):
    events = log(rows, timed)
    valid, test, gone = by_hand(rows if timed else [(u, i, 0) for u, i, _ in rows], n, least)
    split = attempt(leave_last, events, n=n, least=least)
    if not test or len(gone) == len(rows):
        assert split is None
        return
    assert_sound(split, events)
    assert (rows_of(split.valid), rows_of(split.test)) == (valid, test)
    assert set(rows_of(split.train)) == set(range(len(rows))) - gone
    assert split.facts["left_out"] == {"before a held-out repeat": len(gone) - len(valid) - len(test)}
    assert rows_of(split.valid_history) == rows_of(split.train)
    assert rows_of(split.test_history) == sorted(rows_of(split.train) + valid)
    for earlier, later in (("train", "valid"), ("valid", "test")) if timed else ():
        before, after = getattr(split, earlier), getattr(split, later)
        for user in np.unique(after.user):
            own = before.time[before.user == user]
            assert own.max(initial=-1) <= after.time[after.user == user].min()


def test_leave_one_out_on_a_file_of_sequences(tmp_path):
    draw = np.random.default_rng(3)
    lines = [[f"u{u}", *(f"i{i}" for i in draw.permutation(30)[: draw.integers(3, 12)])] for u in range(40)]
    path = tmp_path / "sequences.txt"
    path.write_text("\n".join(" ".join(line) for line in lines), encoding="utf-8")
    rows = [(user, item) for user, *items in map(str.split, path.open()) for item in items]
    for timed in (False, True):
        split = leave_last(log([(user, item, at) for at, (user, item) in enumerate(rows)], timed))
        assert told(split.test) == [(user, items[-1]) for user, *items in lines]
        assert told(split.valid) == [(user, items[-2]) for user, *items in lines]
        assert told(split.train) == [(user, item) for user, *items in lines for item in items[:-2]]
        assert told(split.test_history) == [(user, item) for user, *items in lines for item in items[:-1]]
        assert split.facts["left_out"] == {"before a held-out repeat": 0}


def test_ties_in_time_go_by_the_order_of_the_log():
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "c", 1), ("u", "d", 0)]
    assert told(leave_last(log(rows)).test) == [("u", "c")]
    assert told(leave_last(log(rows[::-1])).test) == [("u", "a")]


def test_a_user_with_too_few_items_stays_in_train():
    rows = [("u", "abcd"[n], n) for n in range(4)] + [("v", "a", 9), ("v", "b", 9), ("v", "b", 10)]
    split = leave_last(log(rows), least=1)
    assert ids_of(split.test, "user") == {"u"}
    assert [pair for pair in told(split.train) if pair[0] == "v"] == [("v", "a"), ("v", "b"), ("v", "b")]
    with pytest.raises(InputError, match="no user has 5 distinct items, so leave_last has nothing to hold out"):
        leave_last(log(rows), n=2)
    with pytest.raises(InputError, match="got n=0, least=3"):
        leave_last(log(rows), n=0)


@settings(deadline=None)
@drawn(events_of(users="uvw", min_size=1, max_size=40))
def test_the_test_of_leave_last_is_what_hold_out_last_holds_out(rows):
    events = log(rows)
    assume(attempt(leave_last, events) is not None)
    held = hold_out_last(events)
    assert isinstance(held, HeldOut)
    assert sorted(rows_of(held.valid)) == rows_of(leave_last(events).test)


# One cut in time


@settings(deadline=None)
@drawn(events_of(most_time=9), st.floats(0.05, 0.45), st.floats(0.05, 0.45))
def test_a_cut_in_time_holds_nothing_of_the_future(rows, valid, test):
    events = log(rows)
    split = attempt(time_cut, events, valid=valid, test=test)
    assume(split is not None)
    assert_sound(split, events)
    start, end = split.facts["valid_from"], split.facts["test_from"]
    times = np.array([row[2] for row in rows])
    assert rows_of(split.train) == rows_of(split.valid_history) == np.flatnonzero(times < start).tolist()
    assert rows_of(split.test_history) == np.flatnonzero(times < end).tolist()
    for truth, first, last in (("valid", start, end), ("test", end, np.inf)):
        known = {rows[r][:2] for r in range(len(rows)) if times[r] < first}
        users = {user for user, _ in known}
        window = [r for r in range(len(rows)) if first <= times[r] < last]
        strange = [r for r in window if rows[r][0] not in users]
        seen = [r for r in window if rows[r][:2] in known]
        assert rows_of(getattr(split, truth)) == [r for r in window if r not in strange and r not in seen]
        assert split.facts["left_out"][f"{truth}: user without history"] == len(strange)
        assert split.facts["left_out"][f"{truth}: already had"] == len(seen)
        assert split.facts["users_without_history"][truth] == len({rows[r][0] for r in strange})


@settings(deadline=None)
@drawn(events_of(most_time=9), st.floats(0.05, 0.45), st.floats(0.05, 0.45))
def test_cuts_fall_on_the_times_nearest_to_the_shares(rows, valid, test):
    split = attempt(time_cut, log(rows), valid=valid, test=test)
    assume(split is not None)
    times = np.array([row[2] for row in rows])
    start, end = split.facts["valid_from"], split.facts["test_from"]

    def miss_of_test(cut):
        return abs((times >= cut).sum() - test * len(rows))

    def miss_of_valid(cut):
        return abs(((times >= cut) & (times < end)).sum() - valid * len(rows))

    distinct = np.unique(times)
    assert miss_of_test(end) == pytest.approx(min(miss_of_test(cut) for cut in distinct[2:]))
    choices = distinct[(distinct > distinct[0]) & (distinct < end)]
    assert miss_of_valid(start) == pytest.approx(min(miss_of_valid(cut) for cut in choices))


def test_events_at_a_cut_go_to_the_later_part_together():
    rows = [("u", f"i{n}", t) for n, t in enumerate([0, 0, 0, 1, 1, 1, 2, 2, 2])]
    split = time_cut(log(rows), valid=0.2, test=0.2)
    assert (split.facts["valid_from"], split.facts["test_from"]) == (1.0, 2.0)
    assert [len(getattr(split, name)) for name in PARTS] == [3, 3, 3]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (86400, 172800.0),
        ("1970-01-02", "1970-01-03T00:00:00Z"),
        ("1970-01-02T02:00+02:00", datetime(1970, 1, 3)),
        (datetime(1970, 1, 2, tzinfo=UTC), pd.Timestamp("1970-01-03")),
    ],
)
def test_cuts_can_be_moments(start, end):
    rows = [("u", "a", 86399), ("u", "b", 86400), ("u", "c", 172799), ("u", "d", 172800)]
    split = time_cut(log(rows), valid_from=start, test_from=end)
    assert [rows_of(getattr(split, name)) for name in PARTS] == [[0], [1, 2], [3]]
    assert (split.facts["valid_from"], split.facts["test_from"]) == (86400.0, 172800.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"valid": 0}, "positive shares that leave some for train, got 0 and 0.1"),
        ({"valid": 0.5, "test": 0.5}, "got 0.5 and 0.5"),
        ({"valid_from": 1}, "valid_from and test_from go together"),
        ({"valid_from": 2, "test_from": 2}, "valid_from must lie before test_from, got 2 and 2"),
        ({"valid_from": float("nan"), "test_from": 2}, "valid_from must lie before test_from"),
        ({"valid_from": "soon", "test_from": 2}, "'soon' is not a time"),
        ({"valid_from": 0, "test_from": 2}, "time: no event is left for train"),
        ({"valid_from": 1, "test_from": 99}, "time: no event is left for test"),
    ],
)
def test_wrong_cuts_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        time_cut(log([("u", "abcd"[n], n) for n in range(4)]), **wrong)


def test_a_cut_in_time_needs_times():
    rows = [("u", "abcd"[n], n // 2) for n in range(4)]
    with pytest.raises(InputError, match="the log has no times; use random_per_user, or leave_last"):
        time_cut(log(rows, timed=False))
    with pytest.raises(InputError, match="the log has 2 distinct times"):
        time_cut(log(rows))


# New items, new users, drawn pairs, groups


@settings(deadline=None)
@drawn(events_of(), st.floats(0.05, 0.45), st.integers(0, 99))
def test_new_items_have_no_event_in_training(rows, share, seed):
    events = log(rows)
    split = attempt(cold_items, events, share=share, seed=seed)
    assume(split is not None)
    assert_sound(split, events)
    names = {name: set(getattr(split, f"{name}_items").ids.tolist()) for name in ("valid", "test")}
    assert not names["valid"] & names["test"]
    assert ids_of(split.train, "item") == ids_of(events, "item") - names["valid"] - names["test"]
    assert len(names["valid"]) == len(names["test"]) == max(1, round(share * len(ids_of(events, "item"))))
    assert rows_of(split.valid_history) == rows_of(split.test_history) == rows_of(split.train)
    known = ids_of(split.train, "user")
    for name, own in names.items():
        wanted = [r for r, (user, item, _) in enumerate(rows) if item in own and user in known]
        assert rows_of(getattr(split, name)) == wanted


@settings(deadline=None)
@drawn(events_of(), st.floats(0.05, 0.45), st.one_of(st.floats(0.05, 0.95), st.integers(1, 3)), st.integers(0, 99))
def test_new_users_are_wholly_out_of_training(rows, share, known, seed):
    events = log(rows)
    split = attempt(cold_users, events, share=share, given=known, seed=seed)
    assume(split is not None)
    assert_sound(split, events)
    parts = {name: ids_of(getattr(split, name), "user") for name in ALL_PARTS}
    assert not (parts["valid"] | parts["test"]) & parts["train"]
    assert not parts["valid"] & parts["test"]
    assert set.union(*parts.values()) == ids_of(events, "user")
    for truth in ("valid", "test"):
        asked, history = getattr(split, truth), getattr(split, f"{truth}_history")
        assert parts[f"{truth}_history"] == parts[truth]
        for user in np.unique(asked.user):
            later, sooner = asked.select(asked.user == user), history.select(history.user == user)
            assert sooner.time.max() <= later.time.min()
            assert len(set(told(later))) == len(later)
            had, size = len(set(told(sooner))), len(set(told(events.select(events.user == user))))
            assert had + len(later) == size
            assert had == known if known >= 1 else abs(had - known * size) <= 1


@pytest.mark.parametrize(("known", "had"), [(0.01, 1), (0.99, 3), (0.5, 2), (3, 3), (1, 1)])
def test_a_new_user_has_something_known_and_something_asked(known, had):
    rows = [(f"u{u}", "abcd"[n], n) for u in range(10) for n in range(4)]
    split = cold_users(log(rows), given=known)
    assert [item for _, item in told(split.test_history)] == [*"abcd"][:had]
    assert [item for _, item in told(split.test)] == [*"abcd"][had:]


@settings(deadline=None)
@drawn(events_of(), st.floats(0.01, 0.49), st.integers(0, 99))
def test_a_random_share_of_every_user_is_held_out(rows, share, seed):
    events = log(rows)
    split = attempt(random_per_user, events, share=share, seed=seed)
    assume(split is not None)
    assert_sound(split, events)
    assert split.facts["left_out"] == {}
    assert ids_of(split.train, "user") == ids_of(events, "user")
    assert rows_of(split.test_history) == sorted(rows_of(split.train) + rows_of(split.valid))
    for user in range(len(events.users)):
        size, held = len(np.unique(events.item[events.user == user])), {}
        for name in ("valid", "test"):
            part = getattr(split, name)
            held[name] = len(np.unique(part.item[part.user == user]))
            assert held[name] < share * size + 1
        assert sum(held.values()) > min(2 * share * size - 1, size - 2)


def test_shares_too_small_for_one_user_hold_over_all():
    rows = [(f"u{u}", f"i{(u * 7 + n) % 50}", 0) for u in range(4000) for n in range(3)]
    split = random_per_user(log(rows), share=0.1)
    assert len(split.valid) == pytest.approx(1200, rel=0.1)
    assert len(split.test) == pytest.approx(1200, rel=0.1)
    places = np.bincount(split.test.item, minlength=50)
    assert places.min() > 8  # of 24 expected: every item and every place in a history has its turn
    assert np.bincount(split.test.weight.astype(int) % 3).min() > 300


@settings(deadline=None)
@drawn(events_of(), st.lists(st.sampled_from(["p", "q", "r", "s", 5]), min_size=8, max_size=8), st.integers(0, 99))
def test_a_group_never_stands_in_two_parts(rows, groups, seed):
    events = log(rows)
    group = dict(zip("abcdefgh", groups, strict=True))
    aligned = [group[item] for item in events.items.ids]
    split = attempt(by_group, events, aligned, share=0.2, seed=seed)
    assume(split is not None)
    assert_sound(split, events)
    in_part = {name: {group[item] for item in ids_of(getattr(split, name), "item")} for name in PARTS}
    for truth in ("valid", "test"):
        own = {group[item] for item in getattr(split, f"{truth}_items").ids}
        assert in_part[truth] <= own
        assert not own & in_part["train"]
        assert set(getattr(split, f"{truth}_items").ids) == {item for item in events.items.ids if group[item] in own}
    assert not in_part["valid"] & in_part["test"]


def test_items_without_events_are_not_ranked_and_take_no_share():
    rows = [(f"u{u}", f"i{i}", 0) for u in range(3) for i in range(10)]
    events = log(rows)
    wider = dataclasses.replace(events, items=events.items.union(IdMap([f"new{n}" for n in range(90)])))
    patients = [f"p{n % 5}" for n in range(100)]
    for split in (cold_items(wider, share=0.2), by_group(wider, patients, share=0.2)):
        for ranked in (split.valid_items, split.test_items):
            assert len(ranked) == 2
            assert all(name.startswith("i") for name in ranked.ids)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_group_is_named(missing):
    events = log([("u", "a", 0), ("u", "b", 0), ("u", "c", 0)])
    with pytest.raises(InputError, match="items without a group: 1, the first is 'b'"):
        by_group(events, ["p", missing, "q"])
    with pytest.raises(InputError, match="2 groups for 3 items"):
        by_group(events, ["p", "q"])


DRAWN = {
    "cold_items": cold_items,
    "cold_users": cold_users,
    "random_per_user": random_per_user,
    "by_group": lambda events, **kw: by_group(events, [f"p{int(i[1:]) // 3}" for i in events.items.ids], **kw),
}


def many(seed=0):
    draw = np.random.default_rng(seed)
    pairs = {(f"u{u}", f"i{i}") for u, i in zip(draw.integers(0, 60, 900), draw.integers(0, 60, 900), strict=True)}
    return [(user, item, at) for at, (user, item) in enumerate(sorted(pairs))]


@pytest.mark.parametrize("split", DRAWN.values(), ids=DRAWN)
def test_a_seed_draws_the_same_whatever_the_order_of_rows(split):
    rows = many()
    shuffled = [rows[n] for n in np.random.default_rng(1).permutation(len(rows))]
    first, second = split(log(rows), seed=4), split(log(shuffled), seed=4)
    for name in ALL_PARTS:
        assert set(told(getattr(first, name))) == set(told(getattr(second, name)))
    other = split(log(rows), seed=5)
    assert set(told(first.test)) != set(told(other.test))
    assert set(told(first.test)) != set(told(first.valid))


def test_what_is_drawn_of_a_user_does_not_hang_on_other_users():
    rows = many()
    some = [row for row in rows if row[0] < "u3"]
    whole, part = random_per_user(log(rows)), random_per_user(log(some))
    for name in PARTS:
        assert {pair for pair in told(getattr(whole, name)) if pair[0] < "u3"} == set(told(getattr(part, name)))


@pytest.mark.parametrize("share", [0, 0.5, -0.1, 2, float("nan")])
@pytest.mark.parametrize("split", DRAWN.values(), ids=DRAWN)
def test_shares_out_of_range_are_refused(split, share):
    with pytest.raises(InputError, match=r"share must lie between 0 and 0\.5"):
        split(log(many()), share=share)


def test_too_little_to_draw_from_is_said():
    two = log([("u", "a", 0), ("v", "b", 1)])
    with pytest.raises(InputError, match="2 items with events are too few to take 1 for valid, 1 for test"):
        cold_items(two)
    with pytest.raises(InputError, match="1 groups with events are too few"):
        by_group(two, ["p", "p"])
    with pytest.raises(InputError, match="0 users with enough items are too few"):
        cold_users(two)
    with pytest.raises(InputError, match="random-per-user: no event is left for valid"):
        random_per_user(two)
    with pytest.raises(InputError, match=r"given must be a share .* got 1\.5"):
        cold_users(log(many()), given=1.5)
    with pytest.raises(InputError, match="got 0"):
        cold_users(log(many()), given=0)


@pytest.mark.parametrize("split", [leave_last, time_cut, *DRAWN.values()])
def test_an_empty_log_cannot_be_split(split):
    with pytest.raises(InputError):
        split(log(many()).select(np.zeros(0, int)))


# Parts that the caller already has


def test_given_parts_are_united_over_their_ids():
    train = log([("u", "a", 0), ("v", "b", 1)])
    valid = log([("w", "c", 2), ("u", "b", 2)])
    test = log([("v", "d", 3), ("u", "c", 3)])
    split = splits.given(train, valid, test, valid_items=["b", "c", "e"], test_items=IdMap(["d", "c"]))
    assert split.train.users.ids.tolist() == ["u", "v", "w"]
    assert split.train.items.ids.tolist() == ["a", "b", "c", "d", "e"]
    assert [told(getattr(split, name)) for name in PARTS] == [told(train), told(valid), told(test)]
    assert told(split.valid_history) == told(train)
    assert told(split.test_history) == told(train) + told(valid)
    assert split.test_history.time.tolist() == [0, 1, 2, 2]
    assert split.facts["events"] == 6
    assert split.facts["users_without_history"] == {"valid": 1, "test": 0}
    assert split.facts["earlier_than_history"] == {"valid": 0, "test": 0}
    assert split.describe()["parts"]["test"] == {"events": 2, "users": 2, "items": 2}
    assert split.describe()["ranked"] == {"valid": 3, "test": 2}


@settings(deadline=None)
@drawn(events_of())
def test_what_leave_last_gave_comes_back_as_given(rows):
    split = attempt(leave_last, log(rows))
    assume(split is not None)
    again = splits.given(split.train, split.valid, split.test)
    for name in ALL_PARTS:
        assert sorted(rows_of(getattr(again, name))) == rows_of(getattr(split, name))
    assert again.facts["earlier_than_history"] == {"valid": 0, "test": 0}


def test_a_history_of_ones_own_stands_for_both_questions():
    train, history = log([("u", "a", 0)]), log([("w", "a", 0), ("x", "b", 5)])
    split = splits.given(train, log([("w", "b", 1)]), log([("x", "a", 4), ("y", "a", 4)]), history=history)
    assert told(split.valid_history) == told(split.test_history) == told(history)
    assert split.facts["users_without_history"] == {"valid": 0, "test": 1}
    assert split.facts["earlier_than_history"] == {"valid": 0, "test": 1}


@pytest.mark.parametrize(
    ("train", "valid", "test", "history", "message"),
    [
        (
            "ua va",
            "ua ub",
            "va vb",
            None,
            "train and valid share pairs of user and item, for example user 'u' with item 'a' .number of pairs: 1.;",
        ),
        ("ua vc", "ub", "ua vc uc", None, "train and test share pairs of user and item, .* .number of pairs: 2.;"),
        ("ua", "ub", "ub", "ua", "valid and test share pairs of user and item, for example user 'u' with item 'b'"),
        ("ua", "wb", "xc", "wb", "valid_history and valid share pairs of user and item, for example user 'w'"),
        ("ua", "wb", "xc", "xc", "test_history and test share pairs of user and item, for example user 'x'"),
        ("ua", "", "xc", None, "given: no event is left for valid"),
    ],
)
def test_given_parts_that_leak_or_lack_are_refused(train, valid, test, history, message):
    def part(pairs):
        return None if pairs is None else log([(*pair, 0) for pair in pairs.split()])

    with pytest.raises(InputError, match=message):
        splits.given(part(train), part(valid), part(test), history=part(history))


def test_a_truth_outside_the_ranked_items_is_refused():
    parts = [log([("u", item, 0)]) for item in "abc"]
    with pytest.raises(InputError, match="test_items lacks items of test events, for example 'c'"):
        splits.given(*parts, test_items=["a", "b"])


def test_parts_join_only_where_both_have_times_and_kinds():
    train, valid, test = (log([("u", item, 0), ("v", item, 0)]) for item in "abc")
    for column, gone in (("time", {"time": None}), ("kind", {"kind": None, "kinds": ()})):
        with pytest.raises(InputError, match=f"train and valid: only one of the two logs has a {column}"):
            splits.given(train, dataclasses.replace(valid, **gone), test)
        untimed = splits.given(train, dataclasses.replace(valid, **gone), test, history=train)
        assert getattr(untimed.valid, column) is None
    assert (
        splits.given(train, valid, dataclasses.replace(test, time=None)).facts["earlier_than_history"]["test"] is None
    )


def test_kinds_of_joined_parts_keep_their_names():
    train, test = log([("u", "a", 0), ("u", "b", 0)]), log([("u", "d", 0)])
    valid = dataclasses.replace(log([("u", "c", 0)]), kind=np.array([0], np.int16), kinds=("buy", "rate"))
    history = splits.given(train, valid, test).test_history
    assert [history.kinds[n] for n in history.kind] == ["view", "buy", "buy"]


# The carrier


def test_a_split_checks_its_own_parts():
    good = leave_last(log(many()))
    other = log([("u0", "i0", 0)])
    with pytest.raises(InputError, match="test_history and train are over different users or items"):
        dataclasses.replace(good, test_history=other)
    with pytest.raises(InputError, match="train and test share pairs"):
        dataclasses.replace(good, test=good.train)
    with pytest.raises(UnknownIdError, match="'nothing'"):
        dataclasses.replace(good, valid_items=IdMap(["nothing"]))
    for odd in (np.int64(3), float("nan"), {1, 2}):
        with pytest.raises(InputError, match="facts must be plain JSON values"):
            dataclasses.replace(good, facts={"seed": odd})
    bare = Split(good.train, good.valid, good.test, good.valid_history, good.test_history)
    assert bare.describe()["facts"] == {}


@pytest.mark.parametrize("split", DRAWN.values(), ids=DRAWN)
def test_seeds_and_shares_may_be_numpy_numbers(split):
    facts = split(log(many()), share=np.float32(0.25), seed=np.int64(2)).facts
    assert (facts["share"], facts["seed"]) == (0.25, 2)

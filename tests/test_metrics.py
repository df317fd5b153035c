import numpy as np
import pandas as pd
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import IdMap, Interactions, Recommendations
from recotransfer.errors import InputError
from recotransfer.metrics import hits, ndcg, recall
from recotransfer.splits import leave_last

ITEMS = [f"i{n}" for n in range(12)]
CUTS = (1, 3, 5)


def pairs(rows, items=None, users=None):
    """Interactions from (user, item) pairs."""
    frame = pd.DataFrame(rows, columns=["user", "item"], dtype=object)
    return Interactions.from_frame(
        frame, items=None if items is None else IdMap(items), users=None if users is None else IdMap(users)
    )


def lists(rows, k=5, catalogue=ITEMS):
    """Recommendations from user -> item ids, best first; the scores of a list may tie."""
    known = IdMap(catalogue)
    positions = np.full((len(rows), k), -1)
    for row, items in enumerate(rows.values()):
        positions[row, : len(items)] = known.positions(items)
    scores = np.where(positions >= 0, np.float32(1), -np.inf).astype(np.float32)
    return Recommendations(np.array(list(rows), dtype=object), known, positions, scores)


def by_trec_eval(rows, truth, measure):
    """User -> value by trec_eval itself, which sorts by score and must therefore see none tie."""
    wanted = {}
    for user, item in truth:
        wanted.setdefault(user, {})[item] = 1
    run = {user: {item: float(-rank) for rank, item in enumerate(items)} for user, items in rows.items() if items}
    found = pytrec_eval.RelevanceEvaluator(wanted, {measure}).evaluate(run)
    name = measure.replace(".", "_")
    return {user: found.get(user, {}).get(name, 0.0) for user in wanted}


def assert_equal_to_trec_eval(rows, truth):
    events = pairs(truth)
    found = hits(lists(rows), events)
    users = events.users.ids.tolist()
    for k in CUTS:
        for ours, theirs in ((recall, f"recall.{k}"), (ndcg, f"ndcg_cut.{k}")):
            wanted = by_trec_eval(rows, truth, theirs)
            np.testing.assert_allclose(ours(found, k), [wanted[user] for user in users], atol=1e-6, err_msg=theirs)


@pytest.mark.parametrize(
    ("rows", "truth"),
    [
        ({"u": ["i0", "i1", "i2", "i3", "i4"]}, [("u", "i0")]),
        ({"u": ["i1", "i0"]}, [("u", "i0")]),
        ({"u": []}, [("u", "i0")]),
        ({"u": ["i0"], "v": ["i0"]}, [("v", "i0")]),
        ({"v": ["i0"]}, [("u", "i0"), ("v", "i0")]),
        ({"u": ["i0", "i1"]}, [("u", "i0"), ("u", "i0"), ("u", "i0")]),
        ({"u": ["i0", "i1", "i2", "i3", "i4"]}, [("u", item) for item in ITEMS]),
        ({"u": ["i11", "i0"]}, [("u", "i0"), ("u", "unheard of")]),
        ({"u": ["i11", "i0"], "v": ["i5"]}, [("v", "i0"), ("u", "i0")]),
    ],
    ids=[
        "right at once", "right late", "no list", "a user without truth", "a user without a list", "truth said twice",
        "more truth than list", "truth outside the catalogue", "users in another order",
    ],
)  # fmt: skip
def test_nasty_cases_equal_trec_eval(rows, truth):
    assert_equal_to_trec_eval(rows, truth)


some_items = st.lists(st.sampled_from(ITEMS), max_size=5, unique=True)
some_users = st.sampled_from(["u", "v", "w", "x"])


@settings(deadline=None)
@given(
    st.dictionaries(some_users, some_items, min_size=1),
    st.lists(st.tuples(some_users, st.sampled_from([*ITEMS, "unheard of"])), min_size=1),
)
def test_random_cases_equal_trec_eval(rows, truth):
    assert_equal_to_trec_eval(rows, truth)


@settings(deadline=None)
@given(st.dictionaries(some_users, some_items, min_size=1), st.lists(st.tuples(some_users, st.sampled_from(ITEMS))))
def test_metrics_lie_in_range_and_recall_only_grows(rows, truth):
    found = hits(lists(rows), pairs(truth))
    at = {k: (recall(found, k), ndcg(found, k)) for k in range(1, 6)}
    assert all(((values >= 0) & (values <= 1 + 1e-12)).all() for both in at.values() for values in both)
    assert all((at[k + 1][0] >= at[k][0]).all() for k in range(1, 5))


def test_ties_are_judged_as_listed():
    tied = lists({"u": ["i3", "i1", "i2"]})
    assert (tied.scores[0, :3] == 1).all()
    assert recall(hits(tied, pairs([("u", "i3")])), 1).tolist() == [1]
    assert recall(hits(tied, pairs([("u", "i2")])), 2).tolist() == [0]


def test_users_without_truth_do_not_count():
    truth = pairs([("v", "i0")], users=["u", "v", "w"])
    found = hits(lists({"u": ["i0"], "v": ["i0"]}), truth)
    assert found.relevant.tolist() == [1]
    assert found.found.tolist() == [[True, False, False, False, False]]


def test_padding_is_never_a_hit():
    truth = pairs([("u", "i11"), ("u", "i0")], items=ITEMS)
    assert not hits(lists({"u": []}), truth).found.any()
    assert hits(lists({"u": ["i5"]}), truth).found.sum() == 0


def test_nothing_to_find_gives_no_users():
    found = hits(lists({"u": ["i0"]}), pairs([], users=["u"]))
    assert (recall(found, 3).shape, ndcg(found, 3).shape) == ((0,), (0,))
    nobody = hits(lists({}), pairs([("u", "i0")]))
    assert (recall(nobody, 3).tolist(), ndcg(nobody, 3).tolist()) == ([0], [0])


@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_cut_the_lists_do_not_reach_is_refused(k):
    found = hits(lists({"u": ["i0"]}), pairs([("u", "i0")]))
    for metric in (recall, ndcg):
        with pytest.raises(InputError, match=f"k is {k}, but the lists were made with k = 5"):
            metric(found, k)


def log(rows, timed=True):
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    return Interactions.from_frame(frame, time="time" if timed else None)


def told(events):
    """(user, item) of every event."""
    return list(zip(events.users.take(events.user).tolist(), events.items.take(events.item).tolist(), strict=True))


def test_the_last_event_is_held_out_and_its_pair_leaves_training():
    split = leave_last(log([("u", "c", 9), ("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "a", 1), ("v", "b", 2)]))
    assert told(split.valid) == [("u", "c")]
    assert split.valid.time.tolist() == [9]
    assert told(split.train) == [("u", "a"), ("u", "b"), ("v", "a"), ("v", "b")]
    assert split.train.users == split.valid.users


def test_ties_in_time_go_to_the_later_row():
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "c", 1)]
    assert told(leave_last(log(rows)).valid) == [("u", "c")]
    assert told(leave_last(log(rows[::-1])).valid) == [("u", "a")]
    assert told(leave_last(log(rows[::-1], timed=False)).valid) == [("u", "a")]


def test_few_events_are_distinct_items_not_rows():
    rows = [("u", "a", 1), ("u", "a", 2), ("u", "b", 3)]
    assert told(leave_last(log(rows)).valid) == []
    assert told(leave_last(log(rows), least=2).valid) == [("u", "b")]
    with pytest.raises(InputError, match="least must be at least 1 item, got 0"):
        leave_last(log(rows), least=0)


events_of = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(0, 4)), min_size=1, max_size=30
)


@settings(deadline=None)
@given(events_of, st.integers(1, 4))
def test_splits_are_disjoint_and_leak_no_future(rows, least):
    events = log(rows)
    train, valid = leave_last(events, least=least)
    assert not set(told(train)) & set(told(valid))
    assert len(set(valid.user.tolist())) == len(valid)
    for user in range(len(events.users)):
        own = events.user == user
        enough = len(set(events.item[own].tolist())) >= least
        assert (user in valid.user) == enough
        if enough:
            assert valid.time[valid.user == user][0] == events.time[own].max()
        else:
            assert (train.user == user).sum() == own.sum()
    dropped = len(events) - len(train) - len(valid)
    again = [pair in set(told(valid)) for pair in told(events)]
    assert dropped == sum(again) - len(valid)


def test_an_empty_log_splits_into_nothing():
    none = log([("u", "a", 1)]).select(np.zeros(0, int))
    assert [len(part) for part in leave_last(none)] == [0, 0]

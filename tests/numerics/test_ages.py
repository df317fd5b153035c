import numpy as np
import pandas as pd
import pytest

from recotransfer.data import Interactions
from recotransfer.numerics.ages import aged_histories, order_within_moments, steps_of, transitions
from recotransfer.numerics.histories import histories


def log(rows):
    return Interactions.from_frame(pd.DataFrame(rows, columns=["user", "item", "t"]), time="t")


@pytest.fixture(scope="module")
def baskets():
    """Forty users with four baskets of five items each, in an order that means nothing."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", float(basket))
        for user in range(40)
        for basket in range(4)
        for item in rng.choice(30, 5, replace=False)
    ]
    return log(rows)


def test_items_of_one_moment_share_an_age():
    events = log([("a", "x", 1.0), ("a", "y", 2.0), ("a", "z", 2.0), ("b", "x", 5.0), ("b", "y", 6.0)])
    found = steps_of(events, by_moment=True)
    ages = dict(
        zip(zip(found.user.tolist(), events.items.take(found.item).tolist(), strict=True), found.age, strict=True)
    )
    assert ages == {(0, "x"): 1, (0, "y"): 0, (0, "z"): 0, (1, "x"): 1, (1, "y"): 0}
    assert sorted(steps_of(events, by_moment=False).age.tolist()) == [0, 0, 1, 1, 2]


def test_aged_histories_hold_every_pair_once(baskets):
    steps = steps_of(baskets, by_moment=False)
    shape = (len(baskets.users), len(baskets.items))
    total = sum(matrix.toarray() for matrix in aged_histories(steps, shape))
    np.testing.assert_allclose(total, histories(baskets).toarray(), rtol=1e-6)


def test_moments_of_one_event_are_steps_of_one_item(baskets):
    apart = Interactions(
        baskets.users, baskets.items, baskets.user, baskets.item, baskets.weight, np.arange(len(baskets), dtype=float)
    )
    n = len(apart.items)
    by_moment, by_item = (steps_of(apart, by_moment=choice) for choice in (True, False))
    for found, expected in zip(transitions(by_moment, n, 0.6, 0.8), transitions(by_item, n, 0.6, 0.8), strict=True):
        np.testing.assert_array_equal(found.toarray(), expected.toarray())


def test_no_split_falls_inside_a_moment(baskets):
    past, future = transitions(steps_of(baskets, by_moment=True), len(baskets.items), 0.5, 0.5)
    moments = len(np.unique(np.stack([baskets.user, baskets.time]), axis=1).T)
    assert past.shape[0] <= moments - len(baskets.users)
    assert (np.diff(past.indptr) > 0).all()
    assert (np.diff(future.indptr) > 0).all()


def test_order_within_baskets_counts_only_where_it_recurs(baskets):
    assert not order_within_moments(baskets)
    walked = log([(f"u{u}", f"i{i}", 0.0) for u in range(30) for i in ((u % 3) * 4 + np.arange(4)).tolist()])
    assert order_within_moments(walked)


def test_users_without_events_and_logs_without_times_have_no_ages():
    events = log([("a", "x", 1.0), ("b", "y", 2.0)]).select(np.array([1]))
    found = steps_of(events, by_moment=True)
    assert found.age.tolist() == [0]
    untimed = Interactions.from_frame(pd.DataFrame({"user": ["a", "a"], "item": ["x", "y"]}))
    assert steps_of(untimed, by_moment=True).age.tolist() == [0, 0]

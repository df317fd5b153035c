import numpy as np

from recotransfer.data import IdMap, Interactions
from recotransfer.numerics.repeats import repeats_of


def log(rows, *, timed=True):
    """Events from (user, item, time, weight)."""
    user, item, time, weight = np.array(rows, float).reshape(-1, 4).T
    ids = IdMap(range(3)), IdMap(range(4))
    positions = user.astype(np.int64), item.astype(np.int64)
    return Interactions(*ids, *positions, weight.astype(np.float32), time if timed else None)


def test_pairs_are_counted_by_moments():
    events = [(0, 1, 10, 1), (0, 2, 10, 1), (0, 1, 10, 1), (0, 3, 12, 1), (0, 1, 17, 1), (2, 1, 5, 1), (0, 2, 18, -1)]
    found = repeats_of(log(events[::-1]))
    assert list(zip(found.user, found.item, found.count, strict=True)) == [(0, 1, 2), (0, 2, 1), (0, 3, 1), (2, 1, 1)]
    assert found.chances.tolist() == [2, 2, 1, 0]
    assert found.age.tolist() == [0, 2, 1, 0]
    assert found.since.tolist() == [0, 7, 5, 0]
    assert (found.gap.tolist(), found.gap_moments.tolist(), found.gap_item.tolist()) == ([7], [2], [1])


def test_without_times_every_event_is_a_moment_and_their_order_means_nothing():
    events = [(0, 1, 0, 1), (0, 2, 0, 1), (0, 1, 0, 1), (2, 1, 0, 1)]
    for each in (events, events[::-1]):
        found = repeats_of(log(each, timed=False))
        assert list(zip(found.user, found.item, found.count, strict=True)) == [(0, 1, 2), (0, 2, 1), (2, 1, 1)]
        assert found.chances.tolist() == [2, 2, 0]
        assert not found.age.any()
        assert not found.since.any()
        assert not len(found.gap)


def test_an_empty_log_has_no_pairs():
    for timed in (True, False):
        assert not len(repeats_of(log([], timed=timed)).item)

"""What is SASRec's own: order, packing without padding, early stopping, content for new items, seeds."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.errors import InputError
from recotransfer.recommenders import SASRec
from recotransfer.recommenders._sasrec_network import Network, Sequences, _Packed, training_sequences

RING = 15


def walks(users=120, steps=6, seed=0, timed=True, items=RING):
    """Users walk around a ring of items, half of them backwards: only the order tells where they go next."""
    rng = np.random.default_rng(seed)
    first, sign = rng.integers(RING, size=(users, 1)), rng.choice([-1, 1], size=(users, 1))
    item = (first + sign * np.arange(steps)) % RING
    following = (item[:, -1] + sign[:, 0]) % RING
    user = np.repeat(np.arange(users), steps)
    time = np.tile(np.arange(steps, dtype=float), users) if timed else None
    weight = np.ones(users * steps, np.float32)
    return Interactions(IdMap(np.arange(users)), IdMap(np.arange(items)), user, item.ravel(), weight, time), following


def quick(**changes):
    return SASRec(**{"dim": 16, "learning_rate": 0.01, "batch_size": 30, "epochs": 25, "dropout": 0.1, **changes})


def ring_vectors(items=RING):
    angle = 2 * np.pi * np.arange(items) / RING
    vectors = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=1)
    return Embeddings(IdMap(np.arange(items)), vectors.astype(np.float32))


@pytest.mark.parametrize("timed", [True, False])
def test_the_next_item_follows_from_the_order_alone(timed):
    log, following = walks(timed=timed)
    found = quick(epochs=60, patience=60).fit(log).recommend(k=1)
    assert (found.positions[:, 0] == following).mean() > 0.9


def test_the_same_items_in_another_order_lead_elsewhere():
    log, _ = walks()
    model = quick(epochs=60, patience=60).fit(log)
    both = pd.DataFrame({"user": ["up"] * 4 + ["down"] * 4, "item": [3, 4, 5, 6, 6, 5, 4, 3], "time": range(8)})
    found = model.recommend(k=1, histories=Interactions.from_frame(both, time="time", items=log.items))
    assert dict(zip(found.users, found.positions[:, 0], strict=True)) == {"up": 7, "down": 2}


def test_a_seed_fixes_the_result_and_leaves_torchs_own_generator_alone():
    import torch

    log, _ = walks(users=60)
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = quick(epochs=3).fit(log)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    torch.manual_seed(2)
    np.testing.assert_array_equal(first.factors_, quick(epochs=3).fit(log).factors_)
    assert not np.array_equal(first.factors_, quick(epochs=3, seed=1).fit(log).factors_)


def test_training_stops_when_nothing_is_gained_and_keeps_the_best():
    log, _ = walks(users=60)
    rng = np.random.default_rng(0)
    noise = Interactions(log.users, log.items, log.user, rng.integers(RING, size=len(log)), log.weight, log.time)
    model = quick(epochs=200, patience=3).fit(noise)
    ndcg = np.array([row["ndcg"] for row in model.curve_])
    assert len(ndcg) == np.argmax(ndcg) + 1 + 3 < 200
    assert [row["epoch"] for row in model.curve_] == list(range(1, len(ndcg) + 1))
    last_of_best = len(ndcg) - np.argmax(ndcg[::-1])
    short = quick(epochs=int(last_of_best), patience=200).fit(noise)
    np.testing.assert_array_equal(short.factors_, model.factors_)


def test_short_histories_leave_nothing_to_hold_out():
    log, _ = walks(steps=2)
    model = quick(epochs=4).fit(log)
    assert [row["ndcg"] for row in model.curve_] == [None] * 4
    assert model.curve_[-1]["loss"] < model.curve_[0]["loss"]


def test_only_the_newest_items_are_read():
    log, _ = walks(users=60)
    model = quick(epochs=2, length=3).fit(log)
    late = log.select(log.time >= 3)
    every, cut = (model.recommend(k=5, histories=h, exclude_seen=False) for h in (log, late))
    np.testing.assert_array_equal(every.positions, cut.positions)


def test_repeats_count_where_they_last_stand_and_worthless_events_not_at_all():
    user, item = np.array([0, 0, 0, 0, 1, 1]), np.array([2, 1, 2, 0, 1, 1])
    weight = np.array([1, 1, 1, 0, 1, 1], np.float32)
    log = Interactions(IdMap(["a", "b", "c"]), IdMap(np.arange(4)), user, item, weight)
    found = training_sequences(log, np.ones(4, bool))
    assert [found.item[s:e].tolist() for s, e in zip(found.start, found.end, strict=True)] == [[1, 2], [1], []]
    found = training_sequences(log, np.array([True, False, True, True]))
    assert [found.item[s:e].tolist() for s, e in zip(found.start, found.end, strict=True)] == [[2], [], []]


def test_items_that_nothing_is_known_of_follow_by_popularity():
    log, _ = walks(users=60, items=RING + 2)
    lonely = Interactions(
        IdMap(np.arange(61)), log.items, np.append(log.user, 60), np.append(log.item, RING),
        np.append(log.weight, np.float32(1)), np.append(log.time, 0.0),
    )  # fmt: skip
    model = quick(epochs=2).fit(lonely)
    found = model.recommend(k=RING + 2, exclude_seen=False)
    assert set(found.positions[:60, -2:].ravel().tolist()) == {RING, RING + 1}
    popular = model.popularity_[found.positions[60]]
    assert (np.diff(popular) <= 0).all(), "a user of whom only such an item is known gets what is popular"


def test_items_without_events_are_ranked_on_content_and_so_are_later_ones(tmp_path):
    log, following = walks(users=200)
    items = ring_vectors()
    held = np.isin(log.item, [0, 7])
    cold = quick(epochs=60, patience=60).fit(log.select(~held), items)
    known = np.setdiff1d(np.arange(RING), [0, 7])
    old = IdMap(known)
    late = quick(epochs=60, patience=60).fit(log.select(~held).with_items(old), items.align(old)).extend(items)
    late.save(tmp_path / "m")
    for model in (cold, late, SASRec.load(tmp_path / "m")):
        vectors = model.factors_[model.catalogue_.positions([0, 7])]
        np.testing.assert_allclose(vectors, items.vectors[[0, 7]] / np.sqrt(2) @ model.map_, rtol=1e-4, atol=1e-6)
        found = model.recommend(k=3, histories=log.select(~held).with_items(model.catalogue_))
        asked = np.isin(following, [0, 7])
        assert (found.items[asked] == following[asked, None]).any(axis=1).mean() > 0.6


def test_items_without_content_have_a_vector_of_their_own():
    log, following = walks()
    present = np.arange(RING) != 4
    items = Embeddings(ring_vectors().ids, ring_vectors().vectors, present=present)
    found = quick(epochs=60, patience=60).fit(log, items).recommend(k=1)
    assert (found.positions[following == 4, 0] == 4).mean() > 0.7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropout": 1.0}, "dropout must be a number of at least 0 and below 1, got 1.0"),
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"learning_rate": 1e30}, r"learning_rate 1e\+30 is too large"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        quick(**changes).fit(walks(users=20)[0])


def test_logs_without_any_order_are_refused():
    log, _ = walks(users=20, steps=1)
    with pytest.raises(InputError, match="no user has two different items"):
        quick().fit(log)


def test_new_items_need_a_model_of_content_and_its_width():
    log, _ = walks(users=20)
    new = Embeddings(IdMap([99]), np.ones((1, 3), np.float32))
    with pytest.raises(InputError, match="fitted without embeddings"):
        quick(epochs=1).fit(log).extend(new)
    with pytest.raises(InputError, match="new items have 3 dimensions, the model was fitted with 4"):
        quick(epochs=1).fit(log, ring_vectors()).extend(new)


# -- packing -----------------------------------------------------------------------------------------------------------


def network(dim=8, length=40, blocks=2):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Network.new(50, dim, length, blocks, None)
        made.freeze()
        return made


def packed(sizes, length=40):
    end = np.cumsum(sizes)
    rows = np.random.default_rng(0).integers(50, size=int(end[-1]))
    sequences = Sequences(rows, end - sizes, end)
    return sequences, sequences.packed(np.arange(len(sizes)), length)


def states(sequences: Sequences, parts: _Packed, net):
    import torch

    with torch.inference_mode():
        return net.states(net.vectors(sequences.item[parts.rows]), parts).numpy()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_packing_keeps_the_newest_of_everyone_and_pads_at_most_twofold(sizes):
    sizes = np.array(sizes)
    sequences, parts = packed(sizes)
    assert sorted(parts.users.tolist()) == list(range(len(sizes)))
    for user, last in zip(parts.users, parts.last, strict=True):
        size = min(int(sizes[user]), 40)
        token = np.arange(last - size + 1, last + 1)
        np.testing.assert_array_equal(parts.rows[token], np.arange(sequences.end[user] - size, sequences.end[user]))
        np.testing.assert_array_equal(parts.age[token], np.arange(size)[::-1])
    assert [group.tokens.start for group in parts.groups[1:]] == [group.tokens.stop for group in parts.groups[:-1]]
    assert parts.groups[-1].tokens.stop == np.minimum(sizes, 40).sum()
    for group in parts.groups:
        assert len(np.unique(group.cell)) == len(group.cell) == group.tokens.stop - group.tokens.start
        assert group.height * group.width < 2 * len(group.cell) + group.height


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=12))
def test_users_read_together_or_alone_end_in_the_same_state(sizes):
    net = network()
    sequences, together = packed(np.array(sizes))
    ends = states(sequences, together, net)[together.last]
    for row, user in enumerate(together.users):
        alone = sequences.packed(np.array([user]), 40)
        np.testing.assert_allclose(states(sequences, alone, net)[-1], ends[row], rtol=1e-4, atol=1e-5)


def test_no_state_knows_what_comes_after_it():
    net = network()
    sequences, parts = packed(np.array([9, 4, 17]))
    before = states(sequences, parts, net)
    for last in parts.last:
        item = sequences.item.copy()
        item[parts.rows[last]] = (item[parts.rows[last]] + 1) % 50
        after = states(Sequences(item, sequences.start, sequences.end), parts, net)
        moved = np.abs(after - before).max(axis=1) > 1e-6
        assert np.flatnonzero(moved).tolist() == [last]

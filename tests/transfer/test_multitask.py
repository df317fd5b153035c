"""One map for several kinds of relations: each kind by its own data, weighed, against maps of one kind."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from planted import agreement, log, planted

from recotransfer.data import IdMap, Interactions
from recotransfer.errors import InputError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.transfer import ContrastiveHead, MultiTask

QUICK = {"epochs": 6, "learning_rate": 0.01, "hidden": 16, "batch_size": 64}
WEIGHTINGS = ("uncertainty", "gradnorm", "equal")


def kinds(first=60, seed=0):
    """Few purchases by topic and labels of a category that halves the topics; items, relations, topics."""
    items, events, topic = planted(users=first, seed=seed)
    category = (topic % 2).astype(np.int64)
    n = len(topic)
    seen = np.flatnonzero(np.arange(n) < 180)
    bought = events.select(events.item < 180)
    both = Interactions(
        IdMap([*range(first), "even", "odd"]),
        items.ids,
        np.concatenate([bought.user, first + category[seen]]),
        np.concatenate([bought.item, seen]),
        np.ones(len(bought) + len(seen), np.float32),
        kind=np.repeat(np.array([0, 1], np.int16), [len(bought), len(seen)]),
        kinds=("purchase", "category"),
    )
    return items, both, topic


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_kind_is_learned_and_new_items_are_served(weighting):
    items, relations, topic = kinds()
    new = np.arange(180, 240)
    model = MultiTask(weighting=weighting, **QUICK).fit(items, relations)
    first, best = (model.report_["curve"][at] for at in (0, model.report_["best"]))
    assert {"purchase", "category"} == set(best) - {"epoch"}
    assert all(best[kind] < first[kind] for kind in ("purchase", "category"))
    assert agreement(model.transform(items), topic, new) > agreement(items, topic, new) + 0.15
    assert agreement(model.transform(items), topic % 2, new) > agreement(items, topic % 2, new) + 0.15


def test_two_kinds_serve_both_questions_where_a_map_of_one_serves_its_own():
    items, relations, topic = kinds()
    new = np.arange(180, 240)
    category = relations.select(relations.kind == 1)
    single = MultiTask(**QUICK).fit(items, category).transform(items)
    both = MultiTask(**QUICK).fit(items, relations).transform(items)
    assert agreement(both, topic, new) > agreement(single, topic, new) + 0.1


def test_learned_weights_trust_the_task_without_noise_more():
    items, events, _ = planted()
    draw = np.random.default_rng(5)
    noise = log([(u, i) for u in range(150) for i in draw.choice(240, 5, replace=False)], 150, 240)
    relations = Interactions(
        events.users,
        items.ids,
        np.concatenate([events.user, noise.user]),
        np.concatenate([events.item, noise.item]),
        np.ones(len(events) + len(noise), np.float32),
        kind=np.repeat(np.array([0, 1], np.int16), [len(events), len(noise)]),
        kinds=("cart", "noise"),
    )
    weights = MultiTask(weighting="uncertainty", **QUICK).fit(items, relations).report_["weights"]
    assert weights["cart"] > weights["noise"]


def test_gradnorm_weights_have_mean_1_and_move():
    items, relations, _ = kinds()
    weights = MultiTask(weighting="gradnorm", **QUICK).fit(items, relations).report_["weights"]
    assert np.mean(list(weights.values())) == pytest.approx(1)
    assert min(weights.values()) < 0.99


def test_relations_without_kinds_are_one_task_the_contrastive_head_s():
    items, events, _ = planted(items=80, users=40)
    one = MultiTask(weighting="equal", **QUICK).fit(items, events).transform(items).vectors
    assert_array_equal(one, ContrastiveHead(**QUICK).fit(items, events).transform(items).vectors)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_it_is_seeded_and_kept(weighting, tmp_path):
    items, relations, _ = kinds()
    make = lambda: MultiTask(weighting=weighting, dim=8, hidden=4, epochs=1)  # noqa: E731
    model = make().fit(items, relations)
    expected = model.transform(items).vectors
    assert expected.shape == (240, 8)
    assert_array_equal(make().fit(items, relations).transform(items).vectors, expected)
    write_artifact(tmp_path / "map", "MultiTask", model.write)
    assert_array_equal(MultiTask.read(open_artifact(tmp_path / "map")).transform(items).vectors, expected)


def test_an_item_held_out_is_held_out_of_every_kind():
    items, relations, _ = kinds()
    model = MultiTask(**QUICK)
    first, second = model._tasks(torch.tensor(items.vectors), relations).values()
    assert len(second.held.rows) > 10
    for task, other in ((first, second), (second, first)):
        assert not np.isin(task.batch(np.random.default_rng(0), 5000).rows, other.held.rows[-10:]).any()


def test_a_kind_that_teaches_nothing_is_named():
    items, relations, _ = kinds()
    even = relations.users.positions(["even"])[0]
    with pytest.raises(InputError, match="category: every user has the same"):
        MultiTask(**QUICK).fit(items, relations.select((relations.kind == 0) | (relations.user == even)))
    alone = relations.kind == 1
    alone[np.unique(relations.user, return_index=True)[1]] = True
    with pytest.raises(InputError, match="purchase: no user has two items"):
        MultiTask(**QUICK).fit(items, relations.select(alone))


def test_an_unknown_weighting_is_refused():
    items, relations, _ = kinds()
    with pytest.raises(InputError, match=r"weighting must be .* got .loud"):
        MultiTask(weighting="loud").fit(items, relations)

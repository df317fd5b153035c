"""Domain adaptation: a target without relations, moved or mapped so that what the source taught holds for it."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from planted import planted

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.diagnostics import coral_distance, mmd, proxy_a_distance
from recotransfer.errors import InputError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.numerics.vectors import unit_rows
from recotransfer.transfer import Adversarial, Coral, MMDMap

QUICK = {"epochs": 8, "learning_rate": 0.003, "batch_size": 64}
TRAINED = {"mmd": MMDMap, "adversarial": Adversarial}


def two_domains(items=200):
    """Source and target with the same topics; the target is shifted along directions of no meaning. Labels, topics."""
    here, _, topic = planted(items=items, seed=0, noise=1.0)
    there, _, other = planted(items=items, seed=1, noise=1.0)
    moved = there.vectors.copy()
    moved[:, 6:10] += 3
    both = Embeddings(IdMap(range(2 * items)), np.concatenate([here.vectors, moved]))
    known = [f"topic {t}" for t in topic] + [None] * items
    return both, Interactions.from_labels(known, both.ids), topic, other


def nearest_mean(vectors, topic, asked):
    """Topic of the nearest class mean, by cosine: what a model of the source says of the target."""
    means = unit_rows(np.stack([vectors[: len(topic)][topic == t].mean(axis=0) for t in range(topic.max() + 1)]))
    return (unit_rows(vectors[asked]) @ means.T).argmax(axis=1)


def accuracy(items, topic, other):
    target = np.arange(len(topic), len(topic) + len(other))
    return float((nearest_mean(items.vectors, topic, target) == other).mean())


def test_coral_gives_the_target_the_source_s_mean_and_covariance_and_leaves_the_source():
    items, events, topic, _ = two_domains()
    out = Coral(reg=1e-9).fit(items, events).transform(items)
    n = len(topic)
    assert_array_equal(out.vectors[:n], items.vectors[:n])
    assert_allclose(out.vectors[n:].mean(axis=0), items.vectors[:n].mean(axis=0), atol=1e-3)
    covariances = [np.cov(part, rowvar=False) for part in (out.vectors[n:], items.vectors[:n])]
    assert_allclose(*covariances, atol=5e-3)
    before, after = (coral_distance(items.vectors[:n], there) for there in (items.vectors[n:], out.vectors[n:]))
    assert after < 0.01 * before


def test_coral_serves_items_unseen_in_fit_as_the_target_and_keeps_blocks():
    items, events, _, _ = two_domains()
    fitted = Coral().fit(items, events)
    renamed = Embeddings(IdMap(f"new {i}" for i in range(5)), items.vectors[-5:], blocks=(("text", 20),))
    out = fitted.transform(renamed)
    assert_allclose(out.vectors, fitted.transform(items).vectors[-5:], atol=1e-5)
    assert out.blocks == renamed.blocks


def test_coral_is_kept_with_the_ids_of_its_source(tmp_path):
    items, events, _, _ = two_domains()
    fitted = Coral().fit(items, events)
    write_artifact(tmp_path / "map", "Coral", fitted.write)
    kept = Coral.read(open_artifact(tmp_path / "map"))
    assert_array_equal(kept.transform(items).vectors, fitted.transform(items).vectors)


def test_a_model_of_the_source_serves_the_moved_target_better():
    items, events, topic, other = two_domains()
    assert accuracy(Coral().fit(items, events).transform(items), topic, other) > accuracy(items, topic, other) + 0.05


@pytest.mark.parametrize("name", TRAINED)
def test_alignment_brings_the_domains_nearer_than_the_same_map_without_it(name):
    items, events, topic, other = two_domains()
    n = len(topic)
    found = {}
    for weight in (0.0, 1.0):
        out = TRAINED[name](weight=weight, patience=20, **QUICK).fit(items, events).transform(items)
        found[weight] = mmd(out.vectors[:n], out.vectors[n:]), accuracy(out, topic, other)
    assert found[1.0][0] < 0.8 * found[0.0][0]
    assert found[1.0][1] > found[0.0][1] - 0.05, "nearer, and not by forgetting the topics"


@pytest.mark.parametrize("name", TRAINED)
def test_an_aligned_map_is_seeded_and_kept(name, tmp_path):
    items, events, _, _ = two_domains(60)
    make = lambda: TRAINED[name](hidden=8, dim=10, epochs=2, batch_size=32)  # noqa: E731
    fitted = make().fit(items, events)
    expected = fitted.transform(items).vectors
    assert expected.shape == (120, 10)
    assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    assert_array_equal(make().fit(items, events).transform(items).vectors, expected)
    write_artifact(tmp_path / "map", type(fitted).__name__, fitted.write)
    assert_array_equal(type(fitted).read(open_artifact(tmp_path / "map")).transform(items).vectors, expected)


@pytest.mark.parametrize("make", [Coral, MMDMap, Adversarial])
def test_relations_of_every_item_leave_no_target_and_are_refused(make):
    items, _, topic = planted(items=40)
    with pytest.raises(InputError, match="0 of 40 items have no relation"):
        make().fit(items, Interactions.from_labels(topic.tolist(), items.ids))


def test_a_withdrawn_relation_leaves_its_item_in_the_target():
    items, events, _, _ = two_domains()
    weight = events.weight.copy()
    weight[events.item == events.item[0]] = 0
    fitted = Coral().fit(items, replace(events, weight=weight))
    gone = items.ids.take(events.item[:1])[0]
    assert gone not in set(fitted.source_.ids.tolist())
    assert len(fitted.source_) == len(np.unique(events.item)) - 1


def test_domains_that_are_alike_are_left_about_as_they_were():
    here, _, topic = planted(items=400, noise=1.0)
    known = [f"topic {t}" if i < 200 else None for i, t in enumerate(topic)]
    out = Coral(reg=0.5).fit(here, Interactions.from_labels(known, here.ids)).transform(here)
    moved = unit_rows(out.vectors[200:]) * unit_rows(here.vectors[200:])
    assert moved.sum(axis=1).mean() > 0.95
    assert proxy_a_distance(out.vectors[:200], out.vectors[200:]) < 1

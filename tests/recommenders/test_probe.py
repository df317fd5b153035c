"""The probe, and `label`: recommending users to items."""

import numpy as np
import pandas as pd
import pytest

from recotransfer import HybridItems, RidgeProfiles, TransferTask
from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.errors import InputError
from recotransfer.recommenders import Probe
from recotransfer.testing import ITEMS, RecommenderContract, checkerboard, colours


class TestProbe(RecommenderContract):
    def make(self):
        return Probe(reg=1.0)


def clusters(n=240, labels=3, noise=0.6, dim=8, seed=0):
    """Vectors around one centre per label, and the label of all but a quarter."""
    draw = np.random.default_rng(seed)
    label = draw.integers(labels, size=n)
    vectors = np.eye(labels, dim)[label] * 2 + noise * draw.normal(size=(n, dim))
    ids = IdMap([f"x{i}" for i in range(n)])
    known = [f"class {v}" if i % 4 else None for i, v in enumerate(label)]
    return Embeddings(ids, vectors.astype(np.float32)), Interactions.from_labels(known, ids), label


def held_out(embeddings):
    rows = np.arange(0, len(embeddings.ids), 4)
    return Embeddings(IdMap(embeddings.ids.take(rows)), embeddings.vectors[rows]), rows


@pytest.mark.parametrize(
    "model",
    [Probe(reg=1.0), Probe(reg=0.01, hidden=16), RidgeProfiles(unobserved=0.1)],
    ids=["linear", "hidden", "RidgeProfiles"],
)
def test_labels_of_unlabelled_items_are_found(model):
    items, relations, label = clusters()
    asked, rows = held_out(items)
    found = model.fit(relations, items).label(asked, 3)
    right = found.items[:, 0] == np.array([f"class {v}" for v in label[rows]])
    assert right.mean() > 0.9
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_probabilities_of_one_label_sum_to_one_and_of_several_do_not():
    items, relations, _ = clusters()
    alone = Probe().fit(relations, items).label(items, 3)
    np.testing.assert_allclose(alone.scores.sum(axis=1), 1, rtol=1e-5)
    frame = pd.DataFrame({"user": ["a", "a", "b", "b", "c"], "item": ["i0", "i1", "i1", "i2", "i2"]})
    events = Interactions.from_frame(frame, items=checkerboard().items)
    several = Probe().fit(events, colours()).label(colours(), 3)
    assert (several.scores > 0).all()
    assert not np.allclose(several.scores.sum(axis=1), 1)


def test_temperature_divides_the_logits():
    items, relations, _ = clusters(noise=2.0, dim=40)
    plain, cooled = (Probe(reg=0.1, temperature=t).fit(relations, items).label(items, 3) for t in (1.0, 2.5))
    np.testing.assert_array_equal(cooled.items, plain.items)
    before, after = (np.log(found.scores[:, 0]) - np.log(found.scores[:, 1]) for found in (plain, cooled))
    np.testing.assert_allclose(after, before / 2.5, rtol=1e-3, atol=1e-4)


def test_a_label_whose_items_have_no_content_is_never_told():
    items, relations, label = clusters(labels=4, noise=0.1)
    blank = Embeddings(items.ids, items.vectors, present=label != 1)
    model = Probe().fit(relations, blank)
    asked, rows = held_out(items)
    found = model.label(asked, 4, users=["class 0", "class 2"])
    sure = found.items[:, 0] == np.array([f"class {v}" for v in label[rows]])
    assert sure[np.isin(label[rows], [0, 2])].all()
    everyone = model.label(asked, 4)
    unread = everyone.scores[everyone.items == "class 1"]
    assert (unread == 0).all()
    with pytest.raises(InputError, match="at least two labels that have items with content, got 1"):
        Probe().fit(relations, Embeddings(items.ids, items.vectors, present=label == 2))


def test_a_hidden_layer_learns_a_label_of_one_example():
    items, relations, label = clusters(n=900, labels=2)
    one = np.flatnonzero(label[relations.item] == 1)[0]
    few = relations.select((label[relations.item] == 0) | (np.arange(len(relations)) == one))
    found = Probe(hidden=4).fit(few, items).label(items, 2)
    assert (found.items[label == 0, 0] == "class 0").mean() > 0.9


def test_label_is_recommend_from_the_other_side():
    model = HybridItems(reg=1.0).fit(checkerboard(), colours())
    told = model.label(colours(), 40)
    asked = model.recommend(k=ITEMS, exclude_seen=False)
    for column in range(ITEMS):
        for row in (0, 7, 23):
            mine = asked.scores[row][asked.items[row] == f"i{column}"]
            theirs = told.scores[column][told.items[column] == f"u{row}"]
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)  # popularity fills lists


def test_users_may_be_named_and_items_without_content_have_no_label():
    items, relations, _ = clusters()
    model = Probe().fit(relations, items)
    only = model.label(items, 3, users=["class 1"])
    assert set(only.items.ravel().tolist()) == {"class 1"}
    blank = Embeddings(IdMap(["new"]), np.zeros((1, 8), np.float32), present=np.array([False]))
    assert model.label(blank).items.tolist() == [[None]]
    with pytest.raises(InputError, match="at least 1"):
        model.label(items, 0)


def test_one_label_or_no_temperature_is_refused():
    items, relations, _ = clusters()
    with pytest.raises(InputError, match="at least two labels"):
        Probe().fit(relations.select(relations.user == 0), items)
    with pytest.raises(InputError, match="temperature"):
        Probe(temperature=0.0).fit(relations, items)


def test_a_block_is_all_that_is_read_of_vectors_that_hold_several(tmp_path):
    items, relations, _ = clusters()
    noise = np.random.default_rng(1).normal(size=(len(items.ids), 3)).astype(np.float32)
    both = Embeddings(
        items.ids, np.concatenate([noise, items.vectors], axis=1), blocks=(("words", 3), ("text", items.dim))
    )
    asked = both.align(IdMap(both.ids.take(np.arange(0, len(both.ids), 4))))
    model = Probe(block="text").fit(relations, both)
    alone = Probe().fit(relations, items).label(held_out(items)[0], 3)
    np.testing.assert_allclose(model.label(asked, 3).scores, alone.scores, rtol=1e-4)
    model.save(tmp_path / "probe")
    found = Probe.load(tmp_path / "probe")
    np.testing.assert_array_equal(found.label(asked, 3).scores, model.label(asked, 3).scores)
    assert found.updated(relations, None).label(asked, 3).items[:, 0].tolist() == alone.items[:, 0].tolist()
    with pytest.raises(InputError, match="block is 'image', but the vectors hold words, text"):
        Probe(block="image").fit(relations, both)


def test_columns_keep_their_own_scales_unless_they_are_standardised():
    items, relations, label = clusters(noise=1.5)
    wild = Embeddings(items.ids, items.vectors * np.geomspace(1, 1e-4, items.dim, dtype=np.float32)[::-1])
    asked, rows = held_out(wild)
    right = {
        standardise: (
            Probe(standardise=standardise).fit(relations, wild).label(asked, 1).items[:, 0]
            == np.array([f"class {v}" for v in label[rows]])
        ).mean()
        for standardise in (True, False)
    }
    assert right[True] > right[False] + 0.2


def test_a_saved_probe_labels_the_same(tmp_path):
    items, relations, _ = clusters()
    for model in (Probe(), Probe(hidden=8, reg=0.1, temperature=1.5)):
        model.fit(relations, items).save(tmp_path / "probe")
        again = Probe.load(tmp_path / "probe")
        np.testing.assert_array_equal(again.label(items, 3).scores, model.label(items, 3).scores)


def test_task_labels_new_items_from_given_vectors():
    from recotransfer.data import Items

    vectors, relations, label = clusters()
    frame = pd.DataFrame({"note": ["x"] * len(label)})
    task = TransferTask(Probe(), encoders=[]).fit(Items(vectors.ids, frame), relations, embeddings=[vectors])
    asked, rows = held_out(vectors)
    new = Items(IdMap([f"new {i}" for i in rows]), frame.iloc[rows])
    embeddings = [Embeddings(new.ids, asked.vectors)]
    found = task.label(new, embeddings=embeddings)
    assert (found.items[:, 0] == np.array([f"class {v}" for v in label[rows]])).mean() > 0.9
    with pytest.raises(InputError, match="without encoders"):
        task.label(new)


@pytest.mark.parametrize("model", [Probe(), RidgeProfiles()], ids=["Probe", "RidgeProfiles"])
def test_items_of_a_table_with_ids_of_its_own_are_labelled(model):
    items, relations, label = clusters()
    asked, rows = held_out(items)
    numbered = Embeddings(IdMap(range(len(rows))), asked.vectors)
    found = model.fit(relations, items).label(numbered, 1)
    assert found.users.tolist() == list(range(len(rows)))
    assert (found.items[:, 0] == np.array([f"class {v}" for v in label[rows]])).mean() > 0.9

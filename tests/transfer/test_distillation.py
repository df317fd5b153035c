"""Distillation: what students learn from planted teachers, fewer layers, soft labels, resuming, refusals."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tiny import sentence_model

from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import PretrainedImage, SentenceText, StaticText
from recotransfer.encoders.base import text_values
from recotransfer.errors import InputError
from recotransfer.numerics.vectors import unit_rows
from recotransfer.transfer import Distil, DistilStatic, distillation
from recotransfer.transfer.static_distillation import crossed, regression

torch = pytest.importorskip("torch")

WORDS = [f"{a}{b}" for a in ("lin", "mor", "tek", "sul") for b in ("a", "on", "ip", "ers", "um")]


class Planted:
    """A teacher whose vector of a text is the sum of its words' vectors, and of those of some pairs of neighbours."""

    name, column, modality, dim = "Planted/words@1", "title", "text", 12

    def __init__(self, pairs: float = 0.0) -> None:
        rng = np.random.default_rng(0)
        self.rows = {word: rng.normal(size=self.dim) for word in WORDS}
        self.pairs = {(a, b): pairs * rng.normal(size=self.dim) for a in WORDS[:6] for b in WORDS[:6]}
        self.asked: list[str] = []

    def values(self, items):
        return text_values(items, (self.column,))

    def encode(self, values):
        self.asked += values
        out = np.zeros((len(values), self.dim), np.float32)
        for row, text in zip(out, values, strict=True):
            parts = text.split()
            row += sum((self.rows[p] for p in parts if p in self.rows), np.zeros(self.dim))
            row += sum((self.pairs.get(p, 0) for p in pairwise(parts)), np.zeros(self.dim))
        return out

    def explain_failure(self, value):
        return "cannot be"


def catalogue(count, seed=0, words=WORDS, lengths=(2, 6)):
    rng = np.random.default_rng(seed)
    titles = [" ".join(rng.choice(words, rng.integers(*lengths))) for _ in range(count)]
    return Items(IdMap([f"i{n}" for n in range(count)]), pd.DataFrame({"title": titles}), {"title": "text"})


def none(items):
    return Interactions(IdMap(["u"]), items.ids, np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32))


def agreement(teacher, student, texts):
    """Correlation of the cosines between texts, whatever basis and centre the student chose."""
    mine, theirs = unit_rows(student.encode(texts)), teacher.encode(texts)
    theirs = unit_rows(theirs - theirs.mean(axis=0))
    mine = unit_rows(mine - mine.mean(axis=0))
    upper = np.triu_indices(len(texts), 1)
    return np.corrcoef((mine @ mine.T)[upper], (theirs @ theirs.T)[upper])[0, 1]


def static(folder, **settings):
    small = {"dim": 12, "width": 32, "hidden": 16, "made_up": 300, "epochs": 4, "batch_size": 32}
    return DistilStatic(**{"folder": folder, **small, "learning_rate": 1e-2, **settings})


def test_a_static_student_agrees_with_a_sum_of_words_on_texts_it_never_saw(tmp_path):
    teacher, items = Planted(), catalogue(300)
    student = static(tmp_path).tune(teacher, items)
    assert isinstance(student, StaticText)
    assert student.dim == 12
    assert agreement(teacher, student, catalogue(100, seed=1).columns["title"].tolist()) > 0.93


def test_a_static_student_learns_what_neighbours_mean_together(tmp_path):
    teacher, items = Planted(pairs=1.0), catalogue(600, words=WORDS[:6], lengths=(2, 5))
    fresh = catalogue(100, seed=1, words=WORDS[:6], lengths=(2, 5)).columns["title"].tolist()
    tuner = static(tmp_path, epochs=20, width=128, hidden=64, learning_rate=3e-3, relation=0.0)
    got = agreement(teacher, tuner.tune(teacher, items), fresh)
    curve = [point["valid"] for point in tuner.report_["curve"]]
    assert max(curve) > curve[0] + 0.1, "the sums of words that it begins with cannot know pairs"
    assert got > 0.9


def test_only_the_texts_given_and_what_is_made_of_them_go_through_the_teacher(tmp_path):
    teacher, items = Planted(), catalogue(60, words=WORDS[:10])
    student = static(tmp_path, epochs=1).tune(teacher, items)
    assert {word for text in teacher.asked for word in text.split()} <= set(WORDS[:10])
    assert len(teacher.asked) == len(set(teacher.asked))
    assert np.isnan(student.encode(["unheard"])).all()


def test_pieces_of_the_teachers_tokenizer_read_words_unknown_to_the_texts(tiny, tmp_path):
    student = static(tmp_path, made_up=50, epochs=1).tune(
        SentenceText(model=tiny), catalogue(60, words=["lina", "mora"])
    )
    assert np.isfinite(student.encode(["tekum"])).all()
    assert student.encode(["tekum"]).shape == (1, 12)


def test_made_up_texts_hold_words_of_the_texts_in_their_order():
    texts = ["a b c d e f g h", "1 2 3 4 5 6 7 8"]
    made = crossed(texts, 200, 0)
    assert len(made) == 200
    assert all(made)
    assert crossed(texts, 200, 0) == made
    joined = [text.replace(" ", "") for text in made]
    crossings = [text for text in joined if not text.isalpha() and not text.isdigit()]
    assert crossings
    for text in crossings:
        letters, digits = text.strip("12345678"), text.strip("abcdefgh")
        begin, end = (letters, digits) if text[0].isalpha() else (digits, letters)
        assert "abcdefgh".startswith(begin) or "12345678".startswith(begin)
        assert "abcdefgh".endswith(end) or "12345678".endswith(end)


def test_conjugate_gradients_give_the_ridge_regression():
    rng = np.random.default_rng(0)
    features = sparse.random_array((40, 15), density=0.3, rng=rng, dtype=np.float32).tocsr()
    targets = rng.normal(size=(40, 3)).astype(np.float32)
    dense = features.toarray()
    wanted = np.linalg.solve(dense.T @ dense + 0.5 * np.eye(15), dense.T @ targets)
    np.testing.assert_allclose(regression(features, targets, 0.5, 30), wanted, atol=1e-4)


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A sentence model of four small layers with random weights."""
    return sentence_model(tmp_path_factory.mktemp("tiny"), [*WORDS, "t", "##e", "##k", "##um"], layers=4, others=4)


def depth(encoder):
    return len(encoder.network[0].auto_model.encoder.layer)


def layers(folder, **settings):
    small = {"layers": 2, "epochs": 3, "batch_size": 16, "learning_rate": 1e-3}
    return Distil(**{"folder": folder, **small, **settings})


def test_a_student_of_fewer_layers_nears_its_teacher_and_is_saved_with_its_depth(tiny, tmp_path):
    teacher, items = SentenceText(model=tiny, precision="float32"), catalogue(200)
    tuner = layers(tmp_path)
    student = tuner.tune(teacher, items, none(items))
    curve = [point["valid"] for point in tuner.report_["curve"]]
    assert max(curve) > curve[0] + 0.01
    assert (depth(student), depth(teacher)) == (2, 4)
    assert student.network[0].auto_model.config.num_hidden_layers == 2
    again = SentenceText(model=student.model, precision="float32")
    np.testing.assert_allclose(again.encode(["lina moron"]), student.encode(["lina moron"]), atol=1e-6)


def test_a_student_of_another_kind_and_width_learns_too(tiny, tmp_path):
    teacher, items = SentenceText(model=tiny, precision="float32"), catalogue(300)
    start = static(tmp_path / "start", epochs=1, made_up=20).tune(Planted(), items)
    tuner = layers(tmp_path / "own", student=start, epochs=6, learning_rate=1e-2, relation=0.0)
    student = tuner.tune(teacher, items, none(items))
    assert (student.dim, teacher.dim) == (12, 32)
    curve = [point["valid"] for point in tuner.report_["curve"]]
    assert curve[0] < 0.5 < max(curve)


def test_soft_labels_make_the_labels_easier_to_tell_apart(tiny, tmp_path):
    """A label that turns on one word, and a student that is given nothing else but the teacher's probe."""
    teacher, items = SentenceText(model=tiny, precision="float32"), catalogue(200)
    bears = np.array([WORDS[0] in text.split() for text in items.columns["title"]]).astype(int)
    labels = Interactions(IdMap(["no", "yes"]), items.ids, bears, np.arange(200), np.ones(200, np.float32))
    taught = distillation.encode_items(items, teacher, progress=False).embeddings
    soft = distillation._soft_labels(taught, labels, 1.0)
    hot = distillation._soft_labels(taught, labels, 4.0)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    assert (soft.argmax(axis=1) == bears).mean() > 0.9
    assert hot.max(axis=1).mean() < soft.max(axis=1).mean()
    odds = np.log(np.maximum(soft[:, 1], 1e-8) / np.maximum(soft[:, 0], 1e-8))
    np.testing.assert_allclose(np.log(hot[:, 1] / hot[:, 0]), odds / 4, atol=1e-3)
    tuner = layers(tmp_path, labels=1.0, epochs=2)
    tuner.tune(teacher, items, labels)
    losses = [point["loss"] for point in tuner.report_["curve"][1:]]
    assert losses[1] < losses[0]


def test_labels_that_no_item_holds_have_no_share_of_the_soft_labels(tiny):
    teacher, items = SentenceText(model=tiny, precision="float32"), catalogue(200)
    bears = np.array([WORDS[0] in text.split() for text in items.columns["title"]]).astype(int)
    taught = distillation.encode_items(items, teacher, progress=False).embeddings
    found = []
    for users in (2, 2000):
        held = bears * (users - 1)
        labels = Interactions(IdMap(range(users)), items.ids, held, np.arange(200), np.ones(200, np.float32))
        found.append(distillation._soft_labels(taught, labels, 2.0))
    assert found[1].shape == (200, 2)
    np.testing.assert_allclose(*found, atol=1e-6)


def test_items_of_several_labels_give_each_its_share(tiny):
    teacher, items = SentenceText(model=tiny, precision="float32"), catalogue(200)
    bears = np.array([[word in text.split() for word in WORDS[:3]] for text in items.columns["title"]])
    item, user = np.nonzero(bears)
    labels = Interactions(IdMap(WORDS[:3]), items.ids, user, item, np.ones(len(item), np.float32))
    taught = distillation.encode_items(items, teacher, progress=False).embeddings
    soft = distillation._soft_labels(taught, labels, 1.0)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    two = bears.sum(axis=1) == 2
    assert soft[two][bears[two]].mean() == pytest.approx(0.5, abs=0.05)


def test_a_picture_model_becomes_a_shallower_one(tmp_path):
    pytest.importorskip("PIL")
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(40)]
    items = Items(IdMap(np.arange(40)), pd.DataFrame({"image": pd.Series(pictures)}), {"image": "image"})
    teacher = PretrainedImage(model=tmp_path / "vit")
    student = layers(tmp_path / "run", layers=1, epochs=1).tune(teacher, items, none(items))
    assert student.module().network.config.num_hidden_layers == 1
    assert student.encode(pictures[:2]).shape == teacher.encode(pictures[:2]).shape


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["static", "layers"])
def test_a_run_killed_after_an_epoch_ends_as_an_undisturbed_one(kind, tiny, tmp_path, monkeypatch):
    items = catalogue(120)
    teacher = Planted() if kind == "static" else SentenceText(model=tiny, precision="float32")
    make = {"static": static, "layers": layers}[kind]
    whole = make(tmp_path / "whole").tune(teacher, items, none(items))
    learn, left = distillation.DistillationRun._learn, 14

    def dies(self, batch):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return learn(self, batch)

    monkeypatch.setattr(distillation.DistillationRun, "_learn", dies)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut").tune(teacher, items, none(items))
    left = 10**6
    tuner = make(tmp_path / "cut")
    resumed = tuner.tune(teacher, items, none(items))
    texts = items.columns["title"].tolist()[:20]
    np.testing.assert_allclose(resumed.encode(texts), whole.encode(texts), atol=1e-5)
    assert [point["epoch"] for point in tuner.report_["curve"]] == list(range(len(tuner.report_["curve"])))


def test_a_finished_run_is_only_read_and_another_run_is_refused(tmp_path):
    teacher, items = Planted(), catalogue(60)
    first = static(tmp_path, epochs=1).tune(teacher, items)
    asked = len(teacher.asked)
    again = static(tmp_path, epochs=1)
    assert again.tune(teacher, items).name == first.name
    assert again.report_["curve"]
    assert len(teacher.asked) == asked
    with pytest.raises(InputError, match="another epochs"):
        static(tmp_path, epochs=2).tune(teacher, items)


@pytest.mark.parametrize("own", [False, True])
def test_a_finished_run_on_other_texts_under_the_same_ids_is_refused(own, tiny, tmp_path):
    items = catalogue(60)
    student = SentenceText(model=tiny, column="short") if own else None
    items = Items(items.ids, items.columns.assign(short="lina"), {"title": "text", "short": "text"})
    teacher = SentenceText(model=tiny, column="title")
    tuner = layers(tmp_path, epochs=1, student=student)
    tuner.tune(teacher, items, none(items))
    assert layers(tmp_path, epochs=1, student=student).tune(teacher, items, none(items))
    reworded = Items(items.ids, items.columns.assign(**{"short" if own else "title": "mora"}), items.kinds)
    with pytest.raises(InputError, match="another items"):
        layers(tmp_path, epochs=1, student=student).tune(teacher, reworded, none(items))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layers": 4}, "keep fewer"),
        ({"layers": 0}, "Distil: layers must be a whole number of at least 1, got 0"),
        ({"epochs": True}, "Distil: epochs must be a whole number of at least 1, got True"),
        ({"temperature": 0.0}, "Distil: temperature must be a number above 0, got 0.0"),
        ({"relation": -1.0}, "Distil: relation must be a number of at least 0, got -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says, tiny, tmp_path):
    items = catalogue(30)
    with pytest.raises(InputError, match=says):
        layers(tmp_path, **settings).tune(SentenceText(model=tiny), items, none(items))


def test_too_little_to_learn_from_is_refused(tmp_path):
    items = catalogue(1)
    with pytest.raises(InputError, match="texts to learn from: 1"):
        static(tmp_path).tune(Planted(), items)

"""Diagnoses as problems: patients kept apart, figures of sensitivity, thresholds, tables, mutations."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recotransfer import Probe, TransferTask, experiments
from recotransfer.adapters import medical
from recotransfer.data import Embeddings, IdMap, Items
from recotransfer.encoders import ImageGrid, KmerSequence, StandardTable, encoder_from_spec, encoder_spec
from recotransfer.errors import InputError
from recotransfer.experiments import Predictions


def predictions(scores, ill):
    scores, ill = np.asarray(scores, np.float32), np.asarray(ill, bool)
    queries = np.arange(len(ill))
    return Predictions(queries, IdMap(["ill", "well"]), np.c_[ill, ~ill], np.c_[scores, 1 - scores], queries)


def quick(problem, settings, **changes):
    return experiments.run(problem, TransferTask(Probe(), progress=False), settings=settings, draws=20, **changes)


def patients_of(split, patients):
    return [{patients[i] for i in np.unique(getattr(split, name).item)} for name in ("train", "valid", "test")]


# -- figures -----------------------------------------------------------------------------------------------------------


def test_sensitivity_is_read_at_the_specificity_that_is_asked_for():
    a = predictions([0.1, 0.2, 0.3, 0.4, 0.95, 0.35, 0.5, 0.6, 0.9], [0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert medical.sensitivity_at(0.8, "ill")(a) == 0.75
    assert medical.sensitivity_at(0.6, "ill")(a) == 1.0
    assert medical.sensitivity_at(0.99, "ill")(a) == 0.0
    assert np.isnan(medical.sensitivity_at(0.9, "ill")(predictions([0.1, 0.2], [1, 1])))


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=40))
def test_the_threshold_has_the_best_mean_of_sensitivity_and_specificity(pairs):
    scores, ill = np.array([s / 20 for s, _ in pairs]), np.array([i for _, i in pairs])
    if ill.all() or not ill.any():
        with pytest.raises(InputError):
            medical.threshold(predictions(scores, ill), "ill")
        return

    def balanced(bar):
        return (scores[ill] > bar).mean() + (scores[~ill] <= bar).mean()

    best = max(balanced(bar) for bar in [-1.0, *scores])
    assert balanced(medical.threshold(predictions(scores, ill), "ill")) == pytest.approx(best)


def test_a_threshold_between_two_kinds_tells_them_all():
    a = predictions([0.1, 0.2, 0.6, 0.7], [0, 0, 1, 1])
    above = medical.threshold(a, "ill")
    assert above == pytest.approx(0.4)
    assert medical.accuracy_at(above, "ill")(a) == 1.0
    assert medical.log_score(a) == pytest.approx(np.log([0.9, 0.8, 0.6, 0.7]).mean(), rel=1e-5)


# -- pictures ----------------------------------------------------------------------------------------------------------


def scans(n=60, seed=0):
    """Noise with a bright spot in one corner where ill; two pictures of each patient."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 60, (n, 32, 32), dtype=np.uint8)
    ill = np.repeat(draw.random(n // 2) < 0.5, 2)
    images[ill, :8, :8] += 120
    return list(images), np.where(ill, "ill", "well").tolist(), np.repeat(np.arange(n // 2), 2).tolist()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random MobileNetV2, as narrow as it can be."""
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ImageProcessor, MobileNetV2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mobilenet")
    MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.1, image_size=32, initializer_range=0.5)).save_pretrained(
        folder
    )
    size = {"shortest_edge": 32}
    MobileNetV2ImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_grid_knows_where_and_its_mean_is_the_layers(tiny):
    corner, other = (np.zeros((32, 32, 3), np.uint8) for _ in range(2))
    corner[:8, :8], other[-8:, -8:] = 255, 255
    fine, whole = (ImageGrid(model=tiny, layer=3, cells=cells, size=32) for cells in (2, 1))
    rows = fine.encode([corner, b"no picture", other])
    assert rows.shape == (3, fine.dim)
    assert np.isnan(rows[1]).all()
    parts = rows.reshape(3, 4, -1)
    np.testing.assert_allclose(parts[0].mean(axis=0), whole.encode([corner])[0], atol=1e-4)
    blank = fine.encode([np.zeros((32, 32, 3), np.uint8)]).reshape(4, -1)
    change = np.abs(parts - blank).sum(axis=2)
    assert change[0].argmax() == 0
    assert change[2].argmax() == 3
    assert encoder_from_spec(encoder_spec(fine)).name == fine.name
    with pytest.raises(InputError, match="hidden layers"):
        ImageGrid(model=tiny, layer=99, size=32).encode([corner])


def test_pictures_of_a_patient_stay_on_one_side_and_are_told_with_their_patients(tiny):
    images, labels, patients = scans()
    encoders = [ImageGrid(model=tiny, layer=0, cells=4, size=32)]
    found = medical.image_diagnosis(images, labels, positive="ill", encoders=encoders, patients=patients, folds=2)
    for problem in found:
        train, valid, test = patients_of(problem.split, patients)
        assert not train & valid
        assert not (train | valid) & test
    whole = experiments.combine_outcomes(
        [quick(problem, [{"reg": 10.0}]) for problem in found], found[0].metrics, draws=20
    )
    assert whole.metrics["AUC"].value > 0.9
    table = medical.findings(whole, "ill")
    assert "not for clinical use" in table.attrs["notice"]
    assert len(table) == len(images)
    part = np.where(np.arange(60) % 2, "train", "test")
    with pytest.raises(InputError, match="two parts"):
        medical.image_diagnosis(images, labels, positive="ill", encoders=encoders, patients=patients, part=part)
    with pytest.raises(InputError, match="59 patients for 60 records"):
        medical.image_diagnosis(images, labels, positive="ill", encoders=encoders, patients=patients[1:])
    with pytest.raises(InputError, match="flu"):
        medical.image_diagnosis(images, labels, positive="flu", encoders=encoders)


# -- tables ------------------------------------------------------------------------------------------------------------


def table(n=240, seed=0):
    draw = np.random.default_rng(seed)
    age, stage = draw.normal(60, 10, n), draw.integers(1, 5, n).astype(float)
    ill = (age - 60) / 10 + np.array([0, 3, 0, -3.0])[stage.astype(int) - 1] + draw.normal(0, 1, n) > 0
    frame = pd.DataFrame({"age": age, "stage": stage, "sex": draw.choice(["f", "m"], n)})
    frame.loc[draw.random(n) < 0.05, "age"] = np.nan
    return frame.assign(ill=np.where(ill, "ill", "well"))


def test_a_table_is_read_on_the_scale_of_its_training_rows():
    (problem,) = medical.disease_from_table(
        table(), "ill", positive="ill", part=["train"] * 120 + ["valid", "test"] * 60
    )
    (encoder,) = problem.encoders
    assert encoder.numbers["age"][0] == pytest.approx(table()["age"][:120].mean())
    assert set(encoder.categories) == {"stage", "sex"}
    outcome = quick(problem, None)
    assert outcome.metrics["AUC"].value > 0.85  # a straight line in the stage would miss most of it
    assert outcome.validation is not None
    assert len(outcome.validation.queries) == 60


def test_sequences_that_share_a_stretch_on_either_strand_are_of_one_family():
    draw = np.random.default_rng(0)
    genome, other = ("".join(draw.choice(list("ACGT"), 200)) for _ in range(2))
    turned = genome[70:120][::-1].translate(str.maketrans("ACGT", "TGCA"))
    family = medical.overlapping([genome[:50], other[:50], genome[30:100], turned, other[30:80].lower()], letters=20)
    assert family[0] == family[2] == family[3] != family[1]
    assert family[1] == family[4]
    assert len(set(medical.overlapping(["ACGT", "ACGT", ""]).tolist())) == 3  # too short to share 25 letters
    with pytest.raises(InputError, match="letters"):
        medical.overlapping(["ACGT"], letters=0)


def test_cells_of_a_standard_table():
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0, 1000.0, np.nan], "c": ["a", "a", "b", None, "b"]})
    items = Items(IdMap(np.arange(5)), frame, {"x": "number", "c": "category"})
    encoder = StandardTable(numbers={"x": (2.0, 1.0)}, categories={"c": {"a": 0.5, "b": 0.5}})
    rows = encoder.encode(encoder.values(items))
    np.testing.assert_allclose(rows[:, 0], [-0.3, 0, 0.3, 1.2, 0], atol=1e-6)  # far out is cut, a gap is the mean
    np.testing.assert_allclose(np.linalg.norm(rows[:, 1:], axis=1), [1, 1, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(rows[0, 1:], -rows[2, 1:], atol=1e-6)
    again = encoder_from_spec(encoder_spec(encoder))
    assert (again.name, again.dim) == (encoder.name, 3)
    unseen = Items(IdMap([0]), pd.DataFrame({"x": [2.0], "c": ["z"]}), items.kinds)
    assert not encoder.encode(encoder.values(unseen)).any()


def test_a_category_that_is_empty_in_training_takes_no_place():
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "c": [None, None, "a", "b"]}, dtype=object)
    items = Items(IdMap(np.arange(4)), frame, {"x": "number", "c": "category"})
    encoder = StandardTable.of(items.take(np.arange(2)))
    assert (encoder.dim, encoder.column) == (1, ("x", "c"))
    np.testing.assert_allclose(encoder.encode(encoder.values(items))[:, 0], [-0.3, 0.3, 0.9, 1.2], atol=1e-6)
    alone = StandardTable(numbers={}, categories={"c": {}})
    with pytest.raises(InputError, match="no column with a value"):
        alone.values(items)
    rows = table().assign(ward=[None] * 180 + ["north"] * 60)
    (problem,) = medical.disease_from_table(rows, "ill", positive="ill", part=["train"] * 120 + ["valid", "test"] * 60)
    assert quick(problem, [{}]).metrics["AUC"].value > 0.8


# -- sequences ---------------------------------------------------------------------------------------------------------


def promoters(n=120, seed=0):
    draw = np.random.default_rng(seed)
    rows = ["".join(draw.choice(list("ACGT"), 30)) for _ in range(n)]
    return [row[:10] + "TATAAT" + row[16:] if i % 2 else row for i, row in enumerate(rows)], ["box", "none"][::-1] * (
        n // 2
    )


@pytest.fixture(scope="module")
def told():
    sequences, labels = promoters()
    encoders = [KmerSequence(k=(3,), placed=((1, 1), (2, 2)), dim=512)]
    problem = medical.dna(sequences, labels, positive="box", encoders=encoders, folds=2)[0]
    return quick(problem, [{"reg": 10.0}])


def test_a_box_at_its_place_is_found(told):
    assert told.metrics["AUC"].value > 0.95


def test_mutations_of_the_box_matter_most_and_effects_are_changes_of_the_label(told):
    sequence = "ACGTTGCAAC" + "TATAAT" + "GCGTACGATCGGTA"
    found = medical.point_mutations(told.task, sequence, "box")
    assert len(found) == 3 * 30
    assert (np.diff(found["effect"].abs()) <= 1e-7).all()
    box = found["place"].between(11, 16)
    assert found.loc[box, "effect"].abs().mean() > 3 * found.loc[~box, "effect"].abs().mean()
    row = found.iloc[7]
    place = row["place"] - 1
    assert sequence[place] == row["letter"]
    changed = sequence[:place] + row["change"] + sequence[place + 1 :]
    items = Items(IdMap([0]), pd.DataFrame({"sequence": [changed]}))
    assert told.task.label(items, users=["box"]).scores[0, 0] == pytest.approx(row["probability"], abs=1e-6)
    assert "not for clinical use" in found.attrs["notice"]
    with pytest.raises(InputError, match="empty"):
        medical.point_mutations(told.task, " ", "box")


def test_mutations_of_rna_are_those_of_its_dna_and_other_letters_are_refused(told):
    sequence = "ACGTTGCAACTATAAT"
    rna = medical.point_mutations(told.task, sequence.replace("T", "u").lower(), "box")
    pd.testing.assert_frame_equal(rna, medical.point_mutations(told.task, sequence, "box"))
    with pytest.raises(InputError, match="'N' at place 4, which is none of ACGT"):
        medical.point_mutations(told.task, "ACGNNX", "box")


def test_sequences_of_a_family_are_one_group_and_errors_call_it_so():
    sequences, labels = promoters(40)
    families = [f"family {at // 4}" for at in range(40)]
    for problem in medical.dna(sequences, labels, positive="box", families=families, folds=2):
        sides = [{families[at] for at in np.unique(log.item)} for log in (problem.split.train, problem.split.test)]
        assert not sides[0] & sides[1]
        assert len(np.unique(problem.groups)) == 10
    with pytest.raises(InputError, match="39 families for 40 records"):
        medical.dna(sequences, labels, positive="box", families=families[1:])


def test_given_vectors_take_the_place_of_an_encoder():
    sequences, labels = promoters(40)
    vectors = np.array([[label == "box", 1.0] for label in labels], np.float32)
    problem = medical.dna(sequences, labels, positive="box", folds=2)[0]
    embeddings = [Embeddings(problem.items.ids, vectors)]
    assert quick(replace(problem, embeddings=embeddings), [{"reg": 1.0}]).metrics["accuracy"].value == 1.0

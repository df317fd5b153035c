"""Problems as problems: splits of items, few- and zero-shot, choosing on validation, gains with intervals."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from recotransfer import ContentProfiles, Probe, RidgeProfiles, TransferTask, experiments
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders import HashingText
from recotransfer.errors import InputError
from recotransfer.evaluation.uncertainty import resampled
from recotransfer.experiments import (
    Predictions,
    Problem,
    accuracy,
    area_under_curve,
    combine_outcomes,
    described,
    few_shot,
    fold_items,
    gain,
    mean_average_precision,
    mean_reciprocal_rank,
    split_items,
    table,
)
from recotransfer.transfer import FineTune


def run(problem, task, **settings):
    return experiments.run(problem, task, draws=100, **settings)


WORDS = {"sport": "ball goal team match", "food": "soup bread salt pan", "music": "song drum band tune"}


def notes(n=180, seed=0):
    """Notes of three words of their topic each, with one word of another."""
    draw = np.random.default_rng(seed)
    topic = draw.choice(list(WORDS), n)
    pool = {name: words.split() for name, words in WORDS.items()}
    text = [" ".join([*draw.choice(pool[t], 3), draw.choice(pool[draw.choice(list(WORDS))])]) for t in topic]
    items = Items(IdMap([f"n{i}" for i in range(n)]), pd.DataFrame({"text": text}), {"text": "text"})
    return items, Interactions.from_labels(list(topic), items.ids)


def parts_of(n, seed=1):
    return np.random.default_rng(seed).choice(["train", "valid", "test"], n, p=[0.6, 0.2, 0.2])


def problem(metrics=None, **changes):
    items, relations = notes()
    settings = {"encoders": [HashingText(column="text", dim=64)], **changes}
    split = split_items(relations, parts_of(len(items)))
    return Problem("notes", items, split, metrics or {"accuracy": accuracy, "AUC": area_under_curve}, **settings)


def noise(of):
    """The same problem with vectors that know nothing."""
    ids = of.items.ids
    vectors = np.random.default_rng(0).normal(size=(len(ids), 16)).astype(np.float32)
    return Problem(of.name, of.items, of.split, of.metrics, embeddings=[Embeddings(ids, vectors)])


def test_a_probe_on_words_beats_one_on_noise_by_an_interval():
    real, blind = problem(), noise(problem())
    mine = run(real, TransferTask(Probe()), name="words")
    ablation = run(blind, TransferTask(Probe()), name="noise")
    assert mine.metrics["accuracy"].low > 0.9
    found = gain(mine, ablation, accuracy)
    assert found.low > 0.2
    assert found.p < 0.05
    rows = table([ablation, mine], real.metrics, ablation="noise").set_index("variant")
    assert rows.loc["words", "gain"] == pytest.approx(found.value)
    assert np.isnan(rows.loc["noise", "gain"])


def test_settings_are_chosen_on_validation_alone():
    real = problem()
    swapped = Interactions(
        real.split.test.users, real.split.test.items, (real.split.test.user + 1) % 3, real.split.test.item,
        real.split.test.weight,
    )  # fmt: skip
    from dataclasses import replace

    other = replace(real, split=replace(real.split, test=swapped))
    one, two = run(real, TransferTask(Probe())), run(other, TransferTask(Probe()))
    assert one.settings == two.settings
    np.testing.assert_array_equal(one.predictions.scores, two.predictions.scores)
    assert two.metrics["accuracy"].value < 0.2


def test_no_item_of_the_test_is_seen_before_it_is_asked_about():
    real = problem()
    outcome = run(real, TransferTask(Probe()))
    known = outcome.task.recommender.catalogue_
    assert not set(known.ids.tolist()) & set(real.split.test_items.ids.tolist())
    with_pool = problem(unlabelled=real.split.test_items)
    assert set(real.split.test_items.ids.tolist()) <= set(
        run(with_pool, TransferTask(RidgeProfiles())).task.recommender.catalogue_.ids.tolist()
    )


def test_every_item_is_asked_about_once_over_the_folds_and_groups_stay_whole():
    items, relations = notes()
    patient = np.arange(len(items)) // 4
    seen = []
    for split in fold_items(relations, folds=4, groups=patient):
        tested = np.unique(patient[split.test.item])
        assert not np.isin(tested, patient[split.train.item]).any()
        assert not np.isin(tested, patient[split.valid.item]).any()
        seen += split.test.item.tolist()
    assert sorted(seen) == list(range(len(items)))


def test_folds_are_judged_together():
    items, relations = notes()
    metrics = {"accuracy": accuracy}
    encoders = [HashingText(column="text", dim=64)]
    outcomes = [
        run(Problem("notes", items, split, metrics, encoders=encoders), TransferTask(RidgeProfiles()))
        for split in fold_items(relations, folds=3)
    ]
    whole = combine_outcomes(outcomes, metrics)
    assert len(whole.predictions.queries) == len(items)
    each = [len(o.predictions.queries) * o.metrics["accuracy"].value for o in outcomes]
    assert whole.metrics["accuracy"].value == pytest.approx(sum(each) / len(items))


def repeated(each=4, people=160, dim=30, seed=0):
    """Records that are alike within a person, whose label they tell little of: vectors, labels and whose they are."""
    draw = np.random.default_rng(seed)
    label = draw.integers(2, size=people)
    person = np.repeat(np.arange(people), each)
    own = draw.normal(size=(people, dim)) + 0.35 * label[:, None]
    vectors = own[person] + 0.1 * draw.normal(size=(len(person), dim))
    ids = IdMap(np.arange(len(person)))
    relations = Interactions.from_labels([f"class {v}" for v in label[person]], ids)
    return Embeddings(ids, vectors.astype(np.float32)), relations, person


def of_people(**changes):
    vectors, relations, person = repeated()
    items = Items(vectors.ids, pd.DataFrame({"x": [""] * len(person)}))
    split = next(fold_items(relations, folds=2, valid=0.5, groups=person))
    metrics = {"accuracy": accuracy, "calibration error": experiments.expected_calibration_error}
    return Problem("people", items, split, metrics, embeddings=[vectors], groups=person, **changes)


@pytest.mark.parametrize("folds", [None, 4])
def test_temperature_is_learned_from_people_whom_the_model_has_not_seen(folds):
    real, weak = of_people(), [{"reg": 0.01}]
    raw, cooled = (
        run(real, TransferTask(Probe(), encoders=[]), settings=weak, folds=folds, calibrate=on) for on in (False, True)
    )
    assert cooled.settings["temperature"] > 1.5  # records of one person would have seemed sure
    assert cooled.metrics["calibration error"].value < 0.7 * raw.metrics["calibration error"].value
    assert cooled.metrics["accuracy"].value == raw.metrics["accuracy"].value
    assert cooled.validation.scores.max(axis=1).mean() < raw.validation.scores.max(axis=1).mean()
    assert len(raw.validation.queries) == len(real.split.valid) + (0 if folds is None else len(real.split.train))


def test_settings_are_chosen_in_folds_of_what_is_not_in_the_test():
    real = problem()
    task, settings = TransferTask(Probe()), [{"reg": 1e8}, {"reg": 10.0}]
    outcome = run(real, task, settings=settings, folds=3)
    assert outcome.settings == {"reg": 10.0}
    assert set(outcome.validation.queries) == set(
        real.items.ids.take(np.concatenate([real.split.train.item, real.split.valid.item]))
    )
    with pytest.raises(InputError, match="calibrate needs a valid part or folds"):
        run(problem(), TransferTask(RidgeProfiles()), calibrate=True)


def test_an_item_without_a_label_is_not_asked_and_one_without_content_counts_as_wrong():
    items, _ = notes()
    _, relations = notes()
    part = np.array(parts_of(len(items)), dtype=object)
    test = np.flatnonzero(part == "test")
    known = np.ones(len(items), bool)
    known[test[:5]] = False
    split = split_items(relations.select(known[relations.item]), part)
    blank = items.columns.copy()
    blank.loc[test[5:8], "text"] = None
    encoders = [HashingText(column="text", dim=64)]
    metrics = {"accuracy": accuracy, "F1": experiments.macro_f1, "AUC": area_under_curve}
    real = Problem("notes", Items(items.ids, blank, items.kinds), split, metrics, encoders=encoders)
    outcome = run(real, TransferTask(Probe()))
    assert len(outcome.predictions.queries) == len(test) - 5
    assert outcome.predictions.unanswered.sum() == 3
    rest = outcome.predictions.take(np.flatnonzero(~outcome.predictions.unanswered))
    assert outcome.metrics["accuracy"].value == pytest.approx(accuracy(rest) * len(rest.queries) / (len(test) - 5))
    assert outcome.metrics["F1"].value < experiments.macro_f1(rest)
    assert np.isfinite(outcome.metrics["AUC"].value)


def test_names_of_parts_that_data_sets_use_are_known():
    _, relations = notes()
    part = parts_of(180)
    other = np.where(part == "valid", np.where(np.arange(180) % 2, "val", "dev"), part)
    np.testing.assert_array_equal(split_items(relations, other).valid.item, split_items(relations, part).valid.item)


def test_records_of_nobody_are_groups_of_their_own():
    assert experiments.group_codes(None, 3) is None
    assert experiments.group_codes(["b", None, "a", "b", float("nan")], 5).tolist() == [0, 2, 1, 0, 3]
    with pytest.raises(InputError, match="2 patients for 3 records"):
        experiments.group_codes(["a", "b"], 3, "patients")
    _, relations = notes()
    patient = [None if i % 3 else f"p{i // 12}" for i in range(180)]
    parts = [set(split.test.item.tolist()) for split in fold_items(relations, folds=3, groups=patient)]
    for whole in range(0, 180, 12):
        mine = set(range(whole, whole + 12, 3))
        assert sum(mine <= part for part in parts) == 1
    with pytest.raises(InputError, match="'p0' has items in two parts"):
        split_items(relations, ["train", "valid", "test", "test"] * 45, groups=patient)


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_folds_of_few_records_are_made_or_refused_with_the_numbers():
    ids = IdMap(np.arange(60))
    classes = Interactions.from_labels([f"c{i // 6}" for i in range(60)], ids)
    assert len(list(fold_items(classes, folds=5))) == 5
    assert len(list(fold_items(classes, folds=5, groups=[i % 5 for i in range(60)]))) == 5
    with pytest.raises(InputError, match="5 folds cannot be made of 60 records in 1 groups"):
        list(fold_items(classes, folds=5, groups=["one"] * 60))
    with pytest.raises(InputError, match="leave one group"):
        list(fold_items(classes, folds=2, groups=[i % 2 for i in range(60)]))
    with pytest.raises(InputError, match="valid must be a share"):
        list(fold_items(classes, valid=0))


def test_a_gain_in_what_cannot_be_told_is_no_finding():
    real = problem()
    mine, other = (run(real, TransferTask(Probe()), name=name) for name in "ab")
    found = gain(mine, other, lambda a: float("nan"))
    assert np.isnan([found.value, found.low, found.high, found.p]).all()


def test_zero_shot_is_recommending_to_a_subject_known_by_its_text():
    items, relations = notes()
    both, about = described(items, WORDS, "text")
    split = split_items(relations, parts_of(len(items)))
    zero = few_shot(split, 0, known=about)
    assert len(zero.train) == 3
    settings = {"encoders": [HashingText(column="text", dim=256)], "unlabelled": IdMap(items.ids.ids)}
    outcome = run(Problem("zero", both, zero, {"accuracy": accuracy}, **settings), TransferTask(ContentProfiles()))
    assert outcome.metrics["accuracy"].low > 0.8
    few = few_shot(split, 2, known=about)
    assert np.bincount(few.train.user).tolist() == [3, 3, 3]
    with pytest.raises(InputError, match="no relation is left"):
        few_shot(split, 0)


def test_retrieval_ranks_the_candidates_of_each_subject():
    """Three subjects known by their text ask for the notes of their topic among candidates of their own."""
    items, relations = notes(60)
    both, about = described(items, WORDS, "text")
    truth = relations.with_items(both.ids)
    user = about.users.positions(truth.users.ids)[truth.user]
    asked = Interactions(about.users, both.ids, user, truth.item, truth.weight)
    part = np.where(np.isin(np.arange(len(both)), truth.item), "test", "train")
    split = split_items(Interactions(
        about.users, both.ids, np.concatenate([about.user, asked.user]), np.concatenate([about.item, asked.item]),
        np.ones(len(about) + len(asked), np.float32),
    ), part)  # fmt: skip
    some = asked.select(np.arange(0, len(asked), 2))
    other = Interactions(about.users, both.ids, (some.user + 1) % 3, some.item, some.weight)
    up = Interactions(
        about.users, both.ids, np.concatenate([some.user, other.user]), np.concatenate([some.item, other.item]),
        np.ones(2 * len(some), np.float32),
    )  # fmt: skip
    metrics = {"MAP": mean_average_precision, "MRR": mean_reciprocal_rank}
    encoders = [HashingText(column="text", dim=256)]
    real = Problem("find", both, split, metrics, encoders=encoders, target="items", candidates=up)
    outcome = run(real, TransferTask(ContentProfiles()))
    assert np.isfinite(outcome.predictions.scores).sum() == 2 * len(some)
    assert outcome.metrics["MRR"].value == 1


def test_metrics_agree_with_scikit_learn():
    draw = np.random.default_rng(0)
    n, m = 40, 6
    truth = np.eye(m, dtype=bool)[draw.integers(m, size=n)]
    scores = draw.normal(size=(n, m)).astype(np.float32)
    predictions = Predictions(np.arange(n), IdMap(range(m)), truth, scores, np.arange(n))
    assert area_under_curve(predictions) == pytest.approx(roc_auc_score(truth, scores))
    each = [average_precision_score(t, s) for t, s in zip(truth, scores, strict=True)]
    assert mean_average_precision(predictions) == pytest.approx(np.mean(each))


def test_the_bootstrap_draws_whole_groups():
    groups = np.repeat(np.arange(5), 10)
    values = np.repeat(np.random.default_rng(0).normal(size=5), 10)
    of_groups = resampled(lambda rows: values[rows].mean(), groups, draws=400)
    of_rows = resampled(lambda rows: values[rows].mean(), np.arange(50), draws=400)
    assert of_groups.std() > 2 * of_rows.std()
    one = resampled(lambda rows: float(len(rows) - 10 * len(np.unique(groups[rows]))), groups, draws=50)
    assert (one >= 0).all()
    with pytest.raises(InputError, match="draws"):
        resampled(lambda rows: 0.0, groups, draws=0)


def test_wrong_cases_are_refused():
    with pytest.raises(InputError, match="target"):
        problem(target="nothing")
    with pytest.raises(InputError, match="one per item"):
        split_items(notes()[1], ["train"])
    with pytest.raises(InputError, match="no relation is left"):
        split_items(notes()[1], ["train"] * 180)
    real = problem()
    mine = run(real, TransferTask(RidgeProfiles()))
    other = Problem("less", real.items, few_shot(split_items(notes()[1], parts_of(180, 2)), 5), real.metrics,
                 encoders=real.encoders)  # fmt: skip
    with pytest.raises(InputError, match="different queries"):
        gain(mine, run(other, TransferTask(RidgeProfiles())), accuracy)
    with pytest.raises(InputError, match="nothing to choose settings on"):
        run(other, TransferTask(Probe()), settings=[{"reg": 1.0}, {"reg": 2.0}])
    with pytest.raises(InputError, match="no tuner can change"):
        run(noise(real), TransferTask(Probe(), tuners={"text": FineTune(folder="unused")}))
    with pytest.raises(InputError, match="no variant is called"):
        table([mine], real.metrics, ablation="floor")

"""Medicine and biology: pictures, tables and sequences with diagnoses as problems of the core. Not for clinical use.

Nothing here is a medical device. Figures say how well records of one collection are told apart from others of it; they
say nothing of the patients of another hospital. What the model looked at in a picture is shown by `vision.heatmap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from recotransfer import experiments
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import Encoder, KmerSequence, StandardTable
from recotransfer.errors import InputError
from recotransfer.evaluation.split import Split
from recotransfer.experiments import Metric, Outcome, Predictions, Problem
from recotransfer.task import TransferTask

NOTICE = "Research only: not validated on patients, not for clinical use."
_OTHER_STRAND = str.maketrans("ACGTU", "TGCAA")


def image_diagnosis(
    images: Sequence[Any],
    labels: Sequence[Any],
    *,
    positive: Any,
    encoders: Sequence[Encoder],
    column: str = "image",
    part: ArrayLike | None = None,
    patients: Sequence[Any] | None = None,
    folds: int = 5,
) -> list[Problem]:
    """Which diagnosis each picture bears, one problem for each fold, or one alone where `part` deals the pictures out.

    No patient stands on two sides of a split, and intervals draw whole patients. `ImageGrid` suits pictures that are
    taken alike. Take `experiments.run(calibrate=True)` where probabilities are to be believed.

    Args:
        images: as `PretrainedImage` takes them.
        labels: the diagnosis of each; None is unlabelled.
        positive: the diagnosis that sensitivity and specificity speak of.
        encoders: what reads the column.
        column: the column of the items that holds the pictures.
        part: "train", "valid" or "test" of each.
        patients: of each picture; None is a patient each.
        folds: number of problems where `part` is None.
    """
    items = Items(IdMap(np.arange(len(images))), experiments.column(images, column))
    groups = experiments.grouped(patients, len(items), "patients")
    splits = _dealt(items, labels, part, patients, folds, positive)

    return [Problem("image diagnosis", items, s, _judged(positive), encoders=encoders, groups=groups) for s in splits]


def disease_from_table(
    frame: pd.DataFrame,
    label: str,
    *,
    positive: Any,
    kinds: Mapping[str, Any] | None = None,
    part: ArrayLike | None = None,
    patients: Sequence[Any] | None = None,
    folds: int = 5,
) -> list[Problem]:
    """Which disease each row of a table tells of; arguments and problems as in `image_diagnosis`.

    Each problem reads the table by the `StandardTable` of its own training rows. A few dozen rows are too few to choose
    settings by: `experiments.run(folds=5)` chooses them in folds.

    Args:
        frame: one row per record.
        label: the column that is to be told; rows without it are unlabelled.
        positive: the value of the label that sensitivity and specificity speak of.
        kinds: column -> "number" or "category"; by default by the columns' types.
        part: "train", "valid" or "test" of each row.
        patients: of each row; None is a patient each.
        folds: number of problems where `part` is None.
    """
    if label not in frame.columns:
        raise InputError(f"the table has no column {label!r}; it has {list(frame.columns)}")

    rest = frame.drop(columns=label).reset_index(drop=True)
    if kinds is None:
        kinds = {c: "number" if pd.api.types.is_numeric_dtype(rest[c]) else "category" for c in rest.columns}

    items = Items(IdMap(np.arange(len(rest))), rest, kinds)
    labels = [None if pd.isna(value) else value for value in frame[label]]
    groups = experiments.grouped(patients, len(items), "patients")
    out = []

    for split in _dealt(items, labels, part, patients, folds, positive):
        known = items.take(np.unique(split.train.item))
        encoders = [StandardTable.of(known)]
        out.append(Problem("disease from a table", items, split, _judged(positive), encoders=encoders, groups=groups))

    return out


def dna(
    sequences: Sequence[str],
    labels: Sequence[Any],
    *,
    positive: Any,
    encoders: Sequence[Encoder] | None = None,
    column: str = "sequence",
    part: ArrayLike | None = None,
    families: Sequence[Any] | None = None,
    folds: int = 5,
) -> list[Problem]:
    """Which label, such as promoter or not, each sequence bears; arguments and problems as in `image_diagnosis`.

    Args:
        sequences: letters; where they are aligned at a site, `KmerSequence` compares them place by place.
        labels: of each; None is unlabelled.
        positive: the label that sensitivity and specificity speak of.
        encoders: what reads the column: `KmerSequence(column=column)` by default, `SentenceText(model=folder,
            column=column)` for a pretrained model of DNA.
        column: the column of the items that holds the sequences.
        part: "train", "valid" or "test" of each.
        families: sequences of one family, such as homologues, stay on one side of a split; None is a family each.
        folds: number of problems where `part` is None.
    """
    items = Items(IdMap(np.arange(len(sequences))), experiments.column(sequences, column))
    encoders, groups = encoders or [KmerSequence(column=column)], experiments.grouped(families, len(items), "families")
    splits = _dealt(items, labels, part, families, folds, positive)

    return [Problem("sequences", items, s, _judged(positive), encoders=encoders, groups=groups) for s in splits]


def overlapping(sequences: Sequence[str], *, letters: int = 25) -> NDArray[np.int64]:
    """(n,) a family for each sequence, for `dna(families=)`: those that share a stretch of so many letters are of one.

    Windows that were cut from one genome overlap, and a model that has seen one knows the other. A stretch on the other
    strand counts, and families are whole chains of such pairs.
    """
    if letters < 1:
        raise InputError(f"letters must be at least 1, got {letters}")

    owner: list[int] = []
    words: list[str] = []
    for at, sequence in enumerate(sequences):
        text = sequence.strip().upper()
        other = text[::-1].translate(_OTHER_STRAND)
        for strand in (text, other):
            found = {strand[i : i + letters] for i in range(len(strand) - letters + 1)}
            words += found
            owner += [at] * len(found)

    word = pd.Series(words, dtype=object).factorize()[0]
    shape = (len(sequences), int(word.max(initial=-1)) + 1)
    holds = sparse.coo_array((np.ones(len(word), bool), (np.array(owner, np.int64), word)), shape=shape)
    _, family = connected_components(sparse.block_array([[None, holds], [holds.T, None]]), directed=False)

    return np.asarray(family[: len(sequences)], np.int64)


def _dealt(
    items: Items, labels: Sequence[Any], part: ArrayLike | None, groups: Sequence[Any] | None, folds: int, positive: Any
) -> list[Split]:
    relations = Interactions.from_labels(labels, items.ids)
    if relations.users.positions([positive], missing="negative")[0] < 0:
        raise InputError(f"no record bears the label {positive!r}; labels are {relations.users.ids.tolist()[:10]}")
    if part is not None:
        return [experiments.split_items(relations, part, groups=groups)]

    return list(experiments.fold_items(relations, folds=folds, groups=groups))


def _judged(positive: Any) -> dict[str, Metric]:
    """The first chooses settings."""
    return {
        "AUC": experiments.area_under_curve,
        "sensitivity at specificity .90": sensitivity_at(0.9, positive),
        "accuracy": experiments.accuracy,
        "log score": log_score,
        "calibration error": experiments.expected_calibration_error,
    }


def log_score(a: Predictions) -> float:
    """Mean logarithm of the probability that was given to the true label, at most 0; a proper score."""
    given = a.scores[np.arange(len(a.truth)), a.truth.argmax(axis=1)]
    return float(np.log(np.maximum(given, 1e-7)).mean())


def sensitivity_at(specificity: float, positive: Any) -> Metric:
    """The share of `positive` queries found where at least this share of the others are not taken for such."""
    if not 0 < specificity < 1:
        raise InputError(f"specificity must lie between 0 and 1, got {specificity}")

    def sensitivity(a: Predictions) -> float:
        score, ill = _of(a, positive)
        if ill.all() or not ill.any():
            return float("nan")

        well = np.sort(score[~ill])
        bar = well[min(int(np.ceil(specificity * len(well))), len(well)) - 1]
        return float((score[ill] > bar).mean())

    return sensitivity


def accuracy_at(threshold: float, positive: Any) -> Metric:
    """Share of queries told rightly where those above the threshold, and no others, are taken for `positive`."""

    def accuracy(a: Predictions) -> float:
        score, ill = _of(a, positive)
        return float(((score > threshold) == ill).mean())

    return accuracy


def threshold(predictions: Predictions, positive: Any) -> float:
    """The probability of `positive` above which a unit is best taken for such: the best mean of sensitivity and
    specificity (Youden, 1950), the middle one where several are as good.

    It does not depend on how common the disease was in these predictions. Give those of the validation
    (`Outcome.validation`), never of the test.
    """
    score, ill = _of(predictions, positive)
    if ill.all() or not ill.any():
        raise InputError(
            f"a threshold needs queries with and without {positive!r}; these predictions have one kind only"
        )

    order = np.argsort(-score, kind="stable")
    found = np.cumsum(ill[order]) / ill.sum() - np.cumsum(~ill[order]) / (~ill).sum()
    edge = np.append(np.diff(score[order]) < 0, True)  # queries of one score are on one side
    values = np.append(score[order], -1.0)  # below all, where everyone is best taken for such
    best = np.flatnonzero(edge & (found >= found[edge].max() - 1e-12))
    at = int(best[len(best) // 2])

    return float((values[at] + values[at + 1]) / 2)


def findings(outcome: Outcome, positive: Any, *, above: float = 0.5) -> pd.DataFrame:
    """One row per unit of the test: probability of `positive`, whether it lies above the threshold, and the truth.

    `attrs["notice"]` says that this is not for clinical use.
    """
    score, ill = _of(outcome.predictions, positive)
    out = pd.DataFrame(
        {"unit": outcome.predictions.queries, "probability": score, "found": score > above, "truth": ill}
    )
    out.attrs["notice"] = NOTICE

    return out


def _of(a: Predictions, positive: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(n,) score and truth of one label."""
    at = int(a.candidates.positions([positive])[0])
    return a.scores[:, at], a.truth[:, at]


def point_mutations(
    task: TransferTask, sequence: str, positive: Any, *, letters: str = "ACGT", column: str = "sequence"
) -> pd.DataFrame:
    """Every change of one letter and how it changes the probability of `positive`, strongest first.

    In-silico mutagenesis (Zhou and Troyanskaya, "DeepSEA", 2015). `attrs` holds the probability of the sequence as it
    is ("probability") and the notice that this is not for clinical use.

    Args:
        task: fitted on a problem of `dna`.
        sequence: what to change, in these letters; U is read as T where they have T alone.
        positive: the label.
        letters: what a letter may become.
        column: of the items, which holds the sequence.

    Returns:
        Columns place (from 1), letter, change, probability, effect: the probability after minus the one before.
    """
    sequence, letters = sequence.strip().upper(), letters.upper()
    if "T" in letters and "U" not in letters:
        sequence = sequence.replace("U", "T")

    if not sequence:
        raise InputError("the sequence is empty; give one letter at least")
    if (at := next((at for at, letter in enumerate(sequence) if letter not in letters), None)) is not None:
        raise InputError(f"the sequence has {sequence[at]!r} at place {at + 1}, which is none of {letters}; replace it")

    places = [(at, new) for at, old in enumerate(sequence) for new in letters if new != old]
    mutants = [sequence] + [sequence[:at] + new + sequence[at + 1 :] for at, new in places]
    items = Items(IdMap(np.arange(len(mutants))), pd.DataFrame({column: mutants}))
    found = task.label(items, 1, users=[positive]).scores[:, 0]
    table = pd.DataFrame(
        {
            "place": [at + 1 for at, _ in places],
            "letter": [sequence[at] for at, _ in places],
            "change": [new for _, new in places],
            "probability": found[1:],
            "effect": found[1:] - found[0],
        }
    )
    order = np.argsort(-table["effect"].abs().to_numpy(), kind="stable")
    out = table.iloc[order].reset_index(drop=True)
    out.attrs |= {"probability": float(found[0]), "notice": NOTICE}

    return out

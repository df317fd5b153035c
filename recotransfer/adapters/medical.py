"""Medicine and biology: diagnosis from pictures and tables, and labelled sequences, as problems. Not for clinical use.

Nothing here is a medical device. Metrics measure how well a model separates the records of one collection; they say
nothing about patients of another hospital. `vision.heatmap` shows what a model looked at in a picture.
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
    positive: object,
    encoders: Sequence[Encoder],
    column: str = "image",
    part: ArrayLike | None = None,
    patients: Sequence[Any] | None = None,
    folds: int = 5,
) -> list[Problem]:
    """Problems of diagnosing pictures: one per cross-validation fold, or a single one if `part` is given.

    All records of a patient stay in one part, and the bootstrap resamples whole patients. `ImageGrid` suits pictures
    that are all framed alike, such as chest X-rays. Use `experiments.run(calibrate=True)` if probabilities matter.

    Args:
        images: pictures, as `PretrainedImage` takes them.
        labels: diagnosis of each; None is unlabelled.
        positive: the diagnosis whose sensitivity and specificity are measured.
        encoders: encoders of `column`.
        column: name of the items' column of pictures.
        part: "train", "valid" or "test" for each picture.
        patients: patient of each picture; None treats each picture as a patient of its own.
        folds: number of folds if `part` is None.
    """
    items = Items(IdMap(np.arange(len(images))), experiments.column(images, column))
    groups = experiments.group_codes(patients, len(items), "patients")
    splits = _splits(items, labels, part, patients, folds, positive)

    return [Problem("image diagnosis", items, s, _metrics(positive), encoders=encoders, groups=groups) for s in splits]


def disease_from_table(
    frame: pd.DataFrame,
    label: str,
    *,
    positive: object,
    kinds: Mapping[str, Any] | None = None,
    part: ArrayLike | None = None,
    patients: Sequence[Any] | None = None,
    folds: int = 5,
) -> list[Problem]:
    """Problems of predicting a disease from the other columns of a table, split as in `image_diagnosis`.

    Each problem encodes the table with a `StandardTable` fitted on its own training rows. A few dozen validation rows
    are too few to choose settings on: `experiments.run(folds=5)` chooses them by cross-validation.

    Args:
        frame: one row per record.
        label: name of the column to predict; rows without a value are unlabelled.
        positive: the value of `label` whose sensitivity and specificity are measured.
        kinds: column -> "number" or "category"; None derives them from the columns' types.
        part: "train", "valid" or "test" for each row.
        patients: patient of each row; None treats each row as a patient of its own.
        folds: number of folds if `part` is None.
    """
    if label not in frame.columns:
        raise InputError(f"the table has no column {label!r}; it has {list(frame.columns)}")

    rest = frame.drop(columns=label).reset_index(drop=True)
    if kinds is None:
        kinds = {c: "number" if pd.api.types.is_numeric_dtype(rest[c]) else "category" for c in rest.columns}

    items = Items(IdMap(np.arange(len(rest))), rest, kinds)
    labels = [None if pd.isna(value) else value for value in frame[label]]
    groups = experiments.group_codes(patients, len(items), "patients")
    out = []

    for split in _splits(items, labels, part, patients, folds, positive):
        # Means and categories come from training rows alone: those of the test would leak into the features.
        encoders = [StandardTable.of(items.take(np.unique(split.train.item)))]
        out.append(Problem("disease from a table", items, split, _metrics(positive), encoders=encoders, groups=groups))

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
    """Problems of classifying sequences, such as promoter or not, split as in `image_diagnosis`.

    Args:
        sequences: strings of bases; if they are aligned at a site, `KmerSequence` can also compare them by position.
        labels: label of each; None is unlabelled.
        positive: the label whose sensitivity and specificity are measured.
        encoders: encoders of `column`: `KmerSequence(column=column)` by default, `SentenceText(model=folder,
            column=column)` for a pretrained DNA model.
        column: name of the items' column of sequences.
        part: "train", "valid" or "test" for each sequence.
        families: family of each sequence, such as its homologues: a family stays in one part. None treats each sequence
            as a family of its own. `overlapping` finds families.
        folds: number of folds if `part` is None.
    """
    items = Items(IdMap(np.arange(len(sequences))), experiments.column(sequences, column))
    encoders = encoders or [KmerSequence(column=column)]
    groups = experiments.group_codes(families, len(items), "families")
    splits = _splits(items, labels, part, families, folds, positive)

    return [Problem("sequences", items, s, _metrics(positive), encoders=encoders, groups=groups) for s in splits]


def overlapping(sequences: Sequence[str], *, letters: int = 25) -> NDArray[np.int64]:
    """(n,) family number of each sequence, for `dna(families=)`: sequences that share a stretch are one family.

    Windows cut from one genome overlap, and a model trained on one of them has seen part of the other. Stretches on the
    opposite strand count too, and families are transitive: if A overlaps B and B overlaps C, all three are one family.

    Args:
        sequences: strings of bases.
        letters: length of the shared stretch, in bases.
    """
    if letters < 1:
        raise InputError(f"letters must be at least 1, got {letters}")

    sequence_of: list[int] = []
    kmers: list[str] = []
    for at, sequence in enumerate(sequences):
        text = sequence.strip().upper()
        reverse_complement = text[::-1].translate(_OTHER_STRAND)
        for strand in (text, reverse_complement):
            distinct = {strand[i : i + letters] for i in range(len(strand) - letters + 1)}
            kmers += distinct
            sequence_of += [at] * len(distinct)

    # Families are the connected components of the bipartite graph of sequences and k-mers.
    kmer = pd.Series(kmers, dtype=object).factorize()[0]
    shape = (len(sequences), int(kmer.max(initial=-1)) + 1)
    contains = sparse.coo_array((np.ones(len(kmer), bool), (np.array(sequence_of, np.int64), kmer)), shape=shape)
    _, family = connected_components(sparse.block_array([[None, contains], [contains.T, None]]), directed=False)

    return np.asarray(family[: len(sequences)], np.int64)


def _splits(
    items: Items, labels: Sequence[Any], part: ArrayLike | None, groups: Sequence[Any] | None, folds: int, positive: Any
) -> list[Split]:
    """The split by `part`, or one per fold."""
    relations = Interactions.from_labels(labels, items.ids)
    if relations.users.positions([positive], missing="negative")[0] < 0:
        raise InputError(
            f"no record has the label {positive!r}; set positive to one of {relations.users.ids.tolist()[:10]}"
        )
    if part is not None:
        return [experiments.split_items(relations, part, groups=groups)]

    return list(experiments.fold_items(relations, folds=folds, groups=groups))


def _metrics(positive: object) -> dict[str, Metric]:
    """The metrics of all problems here; the first chooses settings."""
    return {
        "AUC": experiments.area_under_curve,
        "sensitivity at specificity .90": sensitivity_at(0.9, positive),
        "accuracy": experiments.accuracy,
        "log score": log_score,
        "calibration error": experiments.expected_calibration_error,
    }


def log_score(a: Predictions) -> float:
    """Mean log probability of the true label, at most 0: the negative log loss, a proper scoring rule.

    Probabilities below 1e-7 count as 1e-7.
    """
    probability = a.scores[np.arange(len(a.truth)), a.truth.argmax(axis=1)]
    return float(np.log(np.maximum(probability, 1e-7)).mean())


def sensitivity_at(specificity: float, positive: object) -> Metric:
    """A metric: the sensitivity to `positive` at the lowest threshold that reaches this specificity.

    It is NaN if all queries are positive, or none is.
    """
    if not 0 < specificity < 1:
        raise InputError(f"specificity must be between 0 and 1, got {specificity}")

    def sensitivity(a: Predictions) -> float:
        score, is_positive = _scores_and_truth(a, positive)
        if is_positive.all() or not is_positive.any():
            return float("nan")

        negatives = np.sort(score[~is_positive])
        cut = negatives[min(int(np.ceil(specificity * len(negatives))), len(negatives)) - 1]
        return float((score[is_positive] > cut).mean())

    return sensitivity


def accuracy_at(threshold: float, positive: object) -> Metric:
    """A metric: the accuracy of predicting `positive` exactly where its score is above the threshold."""

    def accuracy(a: Predictions) -> float:
        score, is_positive = _scores_and_truth(a, positive)
        return float(((score > threshold) == is_positive).mean())

    return accuracy


def threshold(predictions: Predictions, positive: object) -> float:
    """The threshold on the probability of `positive` with the largest sum of sensitivity and specificity.

    This is Youden's index (1950), which does not depend on the prevalence in these predictions; of several equally good
    thresholds, the middle one is returned. Choose it on the validation predictions (`Outcome.validation`), never on the
    test's.

    Raises:
        InputError: all queries are positive, or none is.
    """
    score, is_positive = _scores_and_truth(predictions, positive)
    if is_positive.all() or not is_positive.any():
        raise InputError(
            f"a threshold needs queries with and without {positive!r}, and these predictions have one kind only; "
            "give predictions of both"
        )

    order = np.argsort(-score, kind="stable")
    sensitivity = np.cumsum(is_positive[order]) / is_positive.sum()
    false_positives = np.cumsum(~is_positive[order]) / (~is_positive).sum()
    index = sensitivity - false_positives

    edge = np.append(np.diff(score[order]) < 0, True)  # no threshold separates equal scores
    best = np.flatnonzero(edge & (index >= index[edge].max() - 1e-12))
    at = int(best[len(best) // 2])
    values = np.append(score[order], -1.0)  # a threshold below all scores predicts positive everywhere

    return float((values[at] + values[at + 1]) / 2)


def findings(outcome: Outcome, positive: object, *, above: float = 0.5) -> pd.DataFrame:
    """A table of the test predictions: columns unit (query id), probability of `positive`, found (above?) and truth.

    `attrs["notice"]` says that this is not for clinical use.

    Args:
        outcome: of a problem of this module.
        positive: the label to report.
        above: probability above which `positive` counts as found; see `threshold`.
    """
    score, is_positive = _scores_and_truth(outcome.predictions, positive)
    out = pd.DataFrame(
        {"unit": outcome.predictions.queries, "probability": score, "found": score > above, "truth": is_positive}
    )
    out.attrs["notice"] = NOTICE

    return out


def _scores_and_truth(a: Predictions, positive: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(n,) score and truth of one label."""
    at = int(a.candidates.positions([positive])[0])
    return a.scores[:, at], a.truth[:, at]


def point_mutations(
    task: TransferTask, sequence: str, positive: Any, *, letters: str = "ACGT", column: str = "sequence"
) -> pd.DataFrame:
    """A table of all single-letter substitutions and their effect on the probability of `positive`, largest first.

    This is in-silico mutagenesis (Zhou and Troyanskaya, "DeepSEA", 2015). `attrs["probability"]` is the probability of
    the unchanged sequence; `attrs["notice"]` says that this is not for clinical use.

    Args:
        task: fitted on a problem of `dna`.
        sequence: the sequence to mutate, written in `letters`; U is read as T if `letters` has T but no U.
        positive: the label.
        letters: the alphabet of substitutions.
        column: name of the items' column of sequences.

    Returns:
        Columns place (from 1), letter (before), change (after), probability (after), and effect, which is the
        probability after minus the one before.
    """
    sequence, letters = sequence.strip().upper(), letters.upper()
    if "T" in letters and "U" not in letters:
        sequence = sequence.replace("U", "T")

    if not sequence:
        raise InputError("the sequence is empty; give one letter at least")
    if (at := next((at for at, letter in enumerate(sequence) if letter not in letters), None)) is not None:
        raise InputError(f"the sequence has {sequence[at]!r} at place {at + 1}, which is none of {letters}; replace it")

    changes = [(at, new) for at, old in enumerate(sequence) for new in letters if new != old]
    mutants = [sequence[:at] + new + sequence[at + 1 :] for at, new in changes]
    items = Items(IdMap(np.arange(1 + len(mutants))), pd.DataFrame({column: [sequence, *mutants]}))
    probability = task.label(items, 1, users=[positive]).scores[:, 0]
    before = probability[0]
    table = pd.DataFrame(
        {
            "place": [at + 1 for at, _ in changes],
            "letter": [sequence[at] for at, _ in changes],
            "change": [new for _, new in changes],
            "probability": probability[1:],
            "effect": probability[1:] - before,
        }
    )
    order = np.argsort(-table["effect"].abs().to_numpy(), kind="stable")
    out = table.iloc[order].reset_index(drop=True)
    out.attrs |= {"probability": float(before), "notice": NOTICE}

    return out

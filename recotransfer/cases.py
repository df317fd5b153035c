"""A problem in the terms of the core: items, what subjects relate them, and how answers are judged.

Adapters turn their records into a `Case`; `run` fits any `TransferTask` on it and judges the answers. Classification
asks the items for their subjects, retrieval asks the subjects for their items: the same relations, from two sides.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax

from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders import Encoder
from recotransfer.errors import InputError
from recotransfer.filters import Filter
from recotransfer.metrics import calibration_error, f1, roc_auc
from recotransfer.recommenders import Recommender
from recotransfer.solvers import seen_items
from recotransfer.splits import Split
from recotransfer.task import TransferTask
from recotransfer.uncertainty import Difference, Estimate, resampled

SIDES = ("train", "valid", "test")  # the parts of a split
_ALSO = {"val": "valid", "validation": "valid", "dev": "valid"}  # names that data sets give to parts
_GRID = 7  # values tried of a setting, evenly spaced by ratio


@dataclass(frozen=True)
class Answers:
    """What a model answered, one row per unit asked.

    Attributes:
        units: (n,) ids of the items whose labels, or the subjects whose items, were asked for.
        options: what could be answered: labels or items.
        truth: (n, options) bool.
        scores: (n, options) float32, greater is better; -inf where an option was not up for choice. A label that got no
            score stands with the lowest of its unit; all labels of a unit without content share alike.
        groups: (n,) units of one group (a patient, a picture) are drawn together in intervals.
    """

    units: NDArray[Any]
    options: IdMap
    truth: NDArray[np.bool_]
    scores: NDArray[np.float32]
    groups: NDArray[Any]

    def take(self, rows: NDArray[np.int64]) -> Answers:
        """The answers at these rows."""
        return Answers(self.units[rows], self.options, self.truth[rows], self.scores[rows], self.groups[rows])

    @property
    def best(self) -> NDArray[Any]:
        """(n,) the option with the greatest score, the first of those that share it."""
        return self.options.take(self.scores.argmax(axis=1))

    @property
    def unanswered(self) -> NDArray[np.bool_]:
        """(n,) whether nothing is preferred to anything; such a unit counts as wrong."""
        return np.asarray(self.scores.max(axis=1) == self.scores.min(axis=1))


Metric = Callable[[Answers], float]


def accuracy(a: Answers) -> float:
    """Share of units whose best option is true."""
    return float((a.truth[np.arange(len(a.truth)), a.scores.argmax(axis=1)] & ~a.unanswered).mean())


def macro_f1(a: Answers) -> float:
    """Mean F1 over the options that occur, of units with one true option each."""
    true = a.truth.argmax(axis=1)
    told = np.where(a.unanswered, (true + 1) % a.truth.shape[1], a.scores.argmax(axis=1))
    return float(np.nanmean(f1(true, told, a.truth.shape[1])))


def area_under_curve(a: Answers) -> float:
    """Mean area under the ROC curve of each option against the rest, of units with one true option each.

    NaN where all units have the same.
    """
    each = roc_auc(a.truth.argmax(axis=1), a.scores)
    return float("nan") if np.isnan(each).all() else float(np.nanmean(each))


def expected_calibration_error(a: Answers) -> float:
    """Gap between probability and accuracy; smaller is better. The scores must be probabilities."""
    return calibration_error(a.truth.argmax(axis=1), a.scores)


def mean_average_precision(a: Answers) -> float:
    """Mean over units of the average precision of the ranked options; units without a true option do not count."""
    ranked = _ranked(a)
    found = ranked.sum(axis=1)
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    each = (precision * ranked).sum(axis=1) / np.maximum(found, 1)
    return float(each[found > 0].mean())


def mean_reciprocal_rank(a: Answers) -> float:
    """Mean over units of 1 / the place of the first true option; units without a true option do not count."""
    ranked = _ranked(a)
    return float((1 / (1 + ranked.argmax(axis=1)))[ranked.any(axis=1)].mean())


def _ranked(a: Answers) -> NDArray[np.bool_]:
    """(n, options) truth in the order of the scores."""
    return np.take_along_axis(a.truth, np.argsort(-a.scores, axis=1, kind="stable"), axis=1)


LABEL_METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "macro F1": macro_f1, "AUC": area_under_curve}


@dataclass(frozen=True)
class Case:
    """A problem: records as items and relations, and how answers are judged.

    Attributes:
        name: what it is called in tables.
        items: everything that has content, of all parts.
        split: relations to learn from, to choose settings by, and to judge on.
        metrics: name -> figure of answers, greater is better; the first chooses settings.
        encoders: what reads the items; None leaves that to the task.
        parts: vectors of `items`, where they do not come from an encoder one item at a time (patches of pictures).
        asks: "labels" asks each item of the test for its users, "items" each user of the test for their items.
        groups: (items or users,) group of each unit, over the split's map; None draws units one by one.
        candidates: pairs that are up for choice where "items" are asked for; None is every item that the split ranks.
        unlabelled: items that may be looked at without a label; those with a relation in train always are.
    """

    name: str
    items: Items
    split: Split
    metrics: Mapping[str, Metric]
    encoders: Sequence[Encoder] | None = None
    parts: Sequence[Embeddings] | None = None
    asks: Literal["labels", "items"] = "labels"
    groups: NDArray[Any] | None = None
    candidates: Interactions | None = None
    unlabelled: IdMap | None = None

    def __post_init__(self) -> None:
        if self.asks not in ("labels", "items"):
            raise InputError(f'asks must be "labels" or "items", got {self.asks!r}')
        if not self.metrics:
            raise InputError(f"the case {self.name!r} has no metric; name one at least, the first chooses settings")


@dataclass(frozen=True)
class Outcome:
    """A fitted task on a case, and how it did.

    Attributes:
        name: the arm's name.
        task: fitted on all but the test.
        answers: to the test's questions.
        metrics: name -> value with its 95% bootstrap interval over groups.
        settings: settings of the recommender that validation chose.
        valid: the first metric on validation.
        seconds: wall time of encoding, tuning, choosing and answering.
        reports: what tuners say of themselves, by modality.
        validation: the answers that settings were chosen on, before any refit; None where there were none.
    """

    name: str
    task: TransferTask
    answers: Answers
    metrics: Mapping[str, Estimate]
    settings: Mapping[str, Any]
    valid: float
    seconds: float
    reports: Mapping[str, Any] = field(default_factory=dict)
    validation: Answers | None = None


def run(
    case: Case,
    task: TransferTask,
    *,
    name: str = "",
    settings: Sequence[Mapping[str, Any]] | None = None,
    folds: int | None = None,
    calibrate: bool = False,
    refit: bool = True,
    draws: int = 1000,
) -> Outcome:
    """The task fitted on the case, its settings chosen on validation, judged once on the test.

    Args:
        case: the problem.
        task: recommender, transfers and tuners, not fitted. Its encoders are the case's where it names none.
        name: of the arm.
        settings: settings of the recommender to choose from; by default a grid over the one setting of its
            `search_space`, or the recommender as it is where it has none or several.
        folds: choose by the answers of so many folds of all that is not in the test, all of them together, where the
            validation part is too small to choose on.
        calibrate: learn the recommender's `temperature` (`Probe`) from the answers that settings were chosen on, whose
            groups the model had not seen.
        refit: fit again with the validation part once settings are chosen; tuned encoders stay as they are.
        draws: of the bootstrap.
    """
    begin = time.perf_counter()
    task = copy.copy(task)
    if task.encoders is None:
        task.encoders = [] if case.parts is not None else case.encoders
    train, known = case.split.train, _joined(case.split)
    tuners = task.tuners
    if tuners and case.parts is not None:
        raise InputError(f"the case {case.name!r} brings its vectors, which no tuner can change; leave the tuners out")
    if tuners:
        task = task.tuned(_seen(case, train), train)
    parts = list(case.parts) if case.parts is not None else task.encode(case.items)
    tried = [dict(s) for s in settings] if settings is not None else _grid(task.recommender)
    figures, checked = [float("nan")], []
    metric = next(iter(case.metrics.values()))
    if folds is not None:
        if tuners:
            raise InputError("tuned encoders have seen the records of all folds; leave folds out, or the tuners")
        checked = [_of_folds(case, task, s, parts, folds) for s in tried]
    elif len(case.split.valid):
        checked = [_answers(case, _fitted(case, task, s, train, parts), parts, "valid") for s in tried]
    elif settings is None:
        tried = [{}]
    elif len(tried) > 1:
        raise InputError(f"the case {case.name!r} has nothing to choose settings on; give one setting, or a valid part")
    if checked:
        figures = [metric(each) for each in checked]
    chosen = int(np.argmax(np.nan_to_num(figures, nan=-np.inf)))
    values = tried[chosen]
    if calibrate:
        if not checked or "temperature" not in task.recommender.params():
            raise InputError("calibrate needs a valid part or folds, and a recommender with a temperature (Probe)")
        by = _temperature(checked[chosen])
        values = {**values, "temperature": by * task.recommender.with_settings(values).setting("temperature")}
        checked[chosen] = _tempered(checked[chosen], by)
    fitted = _fitted(case, task, values, known if refit else train, parts)
    answers = _answers(case, fitted, parts, "test")
    found = {label: _estimate(each, answers, draws) for label, each in case.metrics.items()}
    reports = {modality: tuner.report_ for modality, tuner in tuners.items()}
    seconds = time.perf_counter() - begin
    outcome = Outcome(name or case.name, fitted, answers, found, values, figures[chosen], seconds, reports)
    return replace(outcome, validation=checked[chosen]) if checked else outcome


def joined(outcomes: Sequence[Outcome], metrics: Mapping[str, Metric], *, draws: int = 1000) -> Outcome:
    """The outcome of several folds as one: all their answers together, judged at once.

    Its task is the last fold's; a setting that the folds do not agree on is told as a list, one of each.
    """
    answers = _together([outcome.answers for outcome in outcomes])
    found = {label: _estimate(each, answers, draws) for label, each in metrics.items()}
    valid = float(np.mean([o.valid for o in outcomes]))
    seconds = float(np.sum([o.seconds for o in outcomes]))
    chosen = {name: [o.settings.get(name) for o in outcomes] for name in outcomes[0].settings}
    settings = {name: each[0] if all(value == each[0] for value in each) else each for name, each in chosen.items()}
    return replace(
        outcomes[-1], answers=answers, metrics=found, settings=settings, valid=valid, seconds=seconds, validation=None
    )


def gain(outcome: Outcome, control: Outcome, metric: Metric, *, draws: int = 1000, rng: int = 0) -> Difference:
    """How much more than the control arm, with the 95% interval of the paired bootstrap over groups.

    p is twice the share of draws on the wrong side of 0, 1 / draws at least; all is NaN where the metric is.
    """
    mine, theirs = outcome.answers, control.answers
    if len(mine.units) != len(theirs.units) or not (mine.units == theirs.units).all():
        raise InputError(f"{outcome.name} and {control.name} answered different questions; run them on one case")

    def figure(rows: NDArray[np.int64]) -> float:
        return metric(mine.take(rows)) - metric(theirs.take(rows))

    value, values = metric(mine) - metric(theirs), resampled(figure, mine.groups, draws=draws, rng=rng)
    values = values[~np.isnan(values)]
    if np.isnan(value) or not len(values):
        return Difference(value, float("nan"), float("nan"), float("nan"))
    low, high = np.percentile(values, [2.5, 97.5])
    p = max(2 * min(float((values <= 0).mean()), float((values >= 0).mean())), 1 / len(values))
    return Difference(value, float(low), float(high), min(p, 1.0))


def table(
    outcomes: Sequence[Outcome], case_metrics: Mapping[str, Metric], *, control: str | None = None
) -> pd.DataFrame:
    """One row per arm: each metric with its interval, and in the first metric the gain over the arm `control`."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    if control is not None and control not in by_name:
        raise InputError(f"no arm is called {control!r}; the arms are {', '.join(by_name)}")
    rows = []
    for outcome in outcomes:
        row: dict[str, Any] = {"arm": outcome.name}
        for label, (value, low, high) in outcome.metrics.items():
            row |= {label: value, f"{label} low": low, f"{label} high": high}
        if control is not None and outcome.name != control:
            d = gain(outcome, by_name[control], next(iter(case_metrics.values())))
            row |= {"gain": d.value, "gain low": d.low, "gain high": d.high, "p": d.p}
        rows.append({**row, "seconds": outcome.seconds})
    return pd.DataFrame(rows)


# -- from records to relations -----------------------------------------------------------------------------------------


def split_items(
    relations: Interactions, part: ArrayLike, *, groups: Sequence[Any] | None = None, name: str = "given"
) -> Split:
    """A split whose items are dealt to "train", "valid" (or "val", "validation", "dev") and "test" by `part` (items,).

    Other values leave them out, and an item without a label is not asked for one.

    Raises:
        InputError: a group, such as a patient, of `groups` (items,) has items in two parts.
    """
    place = named_parts(part)
    if len(place) != len(relations.items):
        raise InputError(f"{len(place)} parts for {len(relations.items)} items; give one per item")
    if (number := grouped(groups, len(place))) is not None and groups is not None:
        table = pd.DataFrame({"number": number, "part": place})
        parts = table[np.isin(place, SIDES)].groupby("number")["part"].nunique()
        if (torn := parts.index[parts > 1]).size:
            name = groups[int(np.flatnonzero(number == torn[0])[0])]
            raise InputError(f"group {name!r} stands in two parts; deal out whole groups, as fold_items does")
    of_event = place[relations.item]
    rows = {key: relations.select(np.flatnonzero(of_event == key)) for key in SIDES}
    ranked = {key: IdMap(relations.items.take(np.flatnonzero(place == key))) for key in ("valid", "test")}
    train = rows["train"]
    if not len(train) or not len(rows["test"]):
        raise InputError("no relation is left to learn from, or none to judge on; look at the parts of the items")
    return Split(train, rows["valid"], rows["test"], train, train, ranked["valid"], ranked["test"], name)


def named_parts(part: ArrayLike) -> NDArray[Any]:
    """(n,) "train", "valid" and "test" from the names that data sets use; other values stay as they are."""
    return pd.Series(np.asarray(part, dtype=object)).replace(_ALSO).to_numpy(object)


def fold_items(
    relations: Interactions, *, folds: int = 5, valid: float = 0.15, groups: Sequence[Any] | None = None, rng: int = 0
) -> Iterator[Split]:
    """Splits in which each labelled item is in the test once, stratified by its first label; groups stay together.

    Args:
        relations: labels as users.
        folds: number of splits.
        valid: share of what is not in the test that settings are chosen on.
        groups: (items,) such as patients.
        rng: seed.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    item, first = np.unique(relations.item, return_index=True)
    label = relations.user[first]
    number = grouped(groups, len(relations.items))
    group = item if number is None else number[item]
    if not 0 < valid < 1:
        raise InputError(f"valid must be a share between 0 and 1, got {valid}")
    if folds < 2 or _most_folds(label, group) < folds:
        raise InputError(
            f"{folds} folds cannot be made of {len(item)} records in {len(np.unique(group))} groups: each needs "
            "a group, and a record of the commonest label; give more records, or fewer folds, 2 at least"
        )
    for rest, test in StratifiedGroupKFold(folds, shuffle=True, random_state=rng).split(item, label, group):
        part = np.full(len(relations.items), "", dtype=object)
        part[item[test]] = "test"
        inner = min(max(2, round(1 / valid)), _most_folds(label[rest], group[rest]))
        if inner < 2:
            raise InputError(f"{folds} folds leave one group to learn from and to validate on; give more groups")
        cut = StratifiedGroupKFold(inner, shuffle=True, random_state=rng).split(rest, label[rest], group[rest])
        train, held = next(iter(cut))
        part[item[rest[train]]], part[item[rest[held]]] = "train", "valid"
        yield split_items(relations, part, name=f"{folds} folds")


def grouped(groups: Sequence[Any] | None, count: int, what: str = "groups") -> NDArray[np.int64] | None:
    """(count,) a number for each group, such as a patient; a record whose group is missing is a group of its own.

    Args:
        groups: of each record, or None, which stays so.
        count: number of records.
        what: the groups are called in errors.
    """
    if groups is None:
        return None
    if len(groups) != count:
        raise InputError(f"{len(groups)} {what} for {count} records; give one per record")
    found = np.asarray(pd.factorize(np.fromiter(groups, dtype=object, count=count))[0], np.int64)
    missing = np.flatnonzero(found < 0)
    found[missing] = found.max(initial=-1) + 1 + np.arange(len(missing))
    return found


def dealt(
    labels: Sequence[Any], *, test: float = 0.2, groups: Sequence[Any] | None = None, rng: int = 0
) -> NDArray[Any]:
    """(n,) "train", "valid" or "test" of each labelled record by lot, each label in proportion; "" without a label.

    Validation is 15% of what is not in the test. Groups, such as patients, stay on one side.
    """
    if not 0 < test <= 0.5:
        raise InputError(f"test must be a share above 0 and at most a half, got {test}")
    relations = Interactions.from_labels(labels, IdMap(np.arange(len(labels))))
    split = next(fold_items(relations, folds=round(1 / test), groups=groups, rng=rng))
    out = np.full(len(labels), "", dtype=object)
    for part in ("train", "valid", "test"):
        out[getattr(split, part).item] = part
    return out


def few_shot(split: Split, examples: int, *, known: Interactions | None = None, rng: int = 0) -> Split:
    """The same split with few relations to learn from, drawn by lot, and none to choose settings on.

    Args:
        split: over any items.
        examples: training relations kept of each user; 0 is zero-shot.
        known: relations to learn from besides, such as those of `described`.
        rng: seed.
    """
    train = split.train
    lot = pd.Series(np.random.default_rng(rng).random(len(train)))
    few = train.select(np.flatnonzero((lot.groupby(train.user).rank(method="first") <= examples).to_numpy()))
    if known is not None:
        items = train.items.union(known.items)
        split, few = split.with_items(items), few.with_items(items)
        both = [few, known.with_items(items)]
        user = np.concatenate([few.user, few.users.positions(known.users.take(known.user))])
        few = Interactions(
            few.users, items, user, np.concatenate([e.item for e in both]), np.concatenate([e.weight for e in both])
        )
    if not len(few):
        raise InputError("no relation is left to learn from; give examples, or descriptions of the subjects as known")
    nothing = split.valid.select(np.empty(0, np.int64))
    return replace(split, train=few, valid=nothing, valid_history=few, test_history=few)


def described(items: Items, texts: Mapping[Any, str], column: str) -> tuple[Items, Interactions]:
    """The items and one more for each subject, whose text describes it, with the subject holding its own description.

    A class's name, a question's words: what is known of a subject of whom no item is. Recommending to it from that
    alone is zero-shot classification or retrieval; see `few_shot`. Ids of descriptions are ("about", subject).
    """
    if column not in items.columns.columns:
        raise InputError(f"the items have no column {column!r}; they have {list(items.columns.columns)}")
    about = IdMap([("about", subject) for subject in texts])
    ids = items.ids.union(about)
    more = pd.DataFrame({column: list(texts.values())})
    both = Items(ids, pd.concat([items.columns, more], ignore_index=True), items.kinds)
    users = IdMap(list(texts))
    rows = np.arange(len(users))
    return both, Interactions(users, ids, rows, ids.positions(about.ids), np.ones(len(users), np.float32))


def column(values: Sequence[Any], name: str) -> pd.DataFrame:
    """A table with one column of any values, such as pictures; arrays and mappings are left whole."""
    cells = np.empty(len(values), dtype=object)
    for at, value in enumerate(values):
        cells[at] = value
    return pd.DataFrame({name: cells})


# -- inside ------------------------------------------------------------------------------------------------------------


def _most_folds(label: NDArray[Any], group: NDArray[Any]) -> int:
    """How many folds these records can be dealt to: no more than groups, nor than records of the commonest label."""
    return min(len(np.unique(group)), int(np.unique(label, return_counts=True)[1].max(initial=0)))


def _together(answers: Sequence[Answers]) -> Answers:
    """The answers of several folds as one."""
    first = answers[0]
    if any(each.options != first.options for each in answers):
        raise InputError("these folds have different labels; make them from one set of relations")
    names = ("units", "truth", "scores", "groups")
    return Answers(options=first.options, **{n: np.concatenate([getattr(each, n) for each in answers]) for n in names})


def _of_folds(
    case: Case, task: TransferTask, values: Mapping[str, Any], parts: Sequence[Embeddings], folds: int
) -> Answers:
    """Answers to all that is not in the test, each record's from the fold that it was held out of."""
    groups = None if case.groups is None else case.groups.tolist()
    found = []
    for split in fold_items(_joined(case.split), folds=folds, groups=groups):
        inner = replace(case, split=split)
        found.append(_answers(inner, _fitted(inner, task, values, _joined(split), parts), parts, "test"))
    return _together(found)


def _tempered(a: Answers, temperature: float) -> Answers:
    """The answers with the logits of their probabilities divided by a number."""
    p = np.clip(a.scores.astype(np.float64), 1e-12, 1 - 1e-12)
    if np.allclose(a.scores.sum(axis=1), 1, atol=1e-3):
        return replace(a, scores=softmax(np.log(p) / temperature, axis=1).astype(np.float32))
    return replace(a, scores=expit(logit(p) / temperature).astype(np.float32))


def _temperature(a: Answers) -> float:
    """The number that makes the true answers likeliest when logits are divided by it."""
    several = bool((a.truth.sum(axis=1) != 1).any())

    def loss(log_temperature: float) -> float:
        p = _tempered(a, float(np.exp(log_temperature))).scores.astype(np.float64)
        told = np.where(a.truth, p, 1 - p) if several else p[a.truth]
        return float(-np.log(np.maximum(told, 1e-12)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _grid(recommender: Recommender) -> list[dict[str, Any]]:
    space = recommender.search_space
    if len(space) != 1:
        return [{}]
    ((name, (low, high)),) = space.items()
    values = np.geomspace(low, high, _GRID)
    return [{name: round(v) if isinstance(low, int) else float(v)} for v in values]


def _seen(case: Case, events: Interactions) -> Items:
    """The items that may be looked at when these events are learned from."""
    seen = np.zeros(len(case.items), bool)
    seen[case.items.ids.positions(events.items.take(np.unique(events.item)))] = True
    if case.unlabelled is not None:
        seen[case.items.ids.positions(case.unlabelled.ids)] = True
    return case.items.take(np.flatnonzero(seen))


def _joined(split: Split) -> Interactions:
    """Train and validation relations as one."""
    if not len(split.valid):
        return split.train
    return split.known_before_test()


def _fitted(
    case: Case, task: TransferTask, values: Mapping[str, Any], events: Interactions, parts: Sequence[Embeddings]
) -> TransferTask:
    out = copy.copy(task)
    out.recommender = task.recommender.with_settings(values)
    out.transfers = [copy.copy(transfer) for transfer in task.transfers]
    seen = _seen(case, events) if case.asks == "labels" else case.items
    # Items of other parts stay out of the catalogue, but every label stays a user.
    used = Interactions(
        events.users, seen.ids, events.user, seen.ids.positions(events.items.ids, missing="negative")[events.item],
        events.weight, events.time, events.kind, events.kinds,
    )  # fmt: skip
    return out.fit(seen, used, parts=[part.align(seen.ids) for part in parts])


def _answers(case: Case, task: TransferTask, parts: Sequence[Embeddings], which: Literal["valid", "test"]) -> Answers:
    split = case.split
    asked: Interactions = getattr(split, which)
    ranked: IdMap | None = getattr(split, f"{which}_items")
    if case.asks == "labels":
        at = np.unique(asked.item)
        ids = IdMap(asked.items.take(at))
        rows = case.items.take(case.items.ids.positions(ids.ids))
        found = task.label(rows, len(asked.users), parts=[part.align(ids) for part in parts])
        truth = np.asarray(asked.matrix().T.tocsr()[at].toarray() > 0)
        options, units = asked.users, ids.ids
    else:
        users = np.unique(asked.user)
        options = asked.items if ranked is None else ranked
        units = asked.users.take(users)
        found = task.recommend(
            units, len(options), histories=getattr(split, f"{which}_history"), filter=Filter(allow=options.ids)
        )
        truth = (asked.matrix()[users] > 0).toarray()[:, asked.items.positions(options.ids)]
        at = users
    scores = np.full(truth.shape, -np.inf, np.float32)
    row, column = np.nonzero(found.positions >= 0)
    place = options.positions(found.catalogue.take(found.positions[row, column]), missing="negative")
    scores[row[place >= 0], place[place >= 0]] = found.scores[row, column][place >= 0]
    if case.asks == "labels":
        lowest = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, keepdims=True)
        lowest[~np.isfinite(lowest)] = 1 / len(options)
        scores = np.where(np.isfinite(scores), scores, lowest)
    elif case.candidates is not None:
        up = seen_items(case.candidates.with_items(asked.items))[case.candidates.users.positions(units)].toarray()[
            :, asked.items.positions(options.ids)
        ]
        scores[up == 0] = -np.inf
    groups = units if case.groups is None else np.asarray(case.groups)[at]
    return Answers(units, options, truth, scores, groups)


def _estimate(metric: Metric, answers: Answers, draws: int) -> Estimate:
    values = resampled(lambda rows: metric(answers.take(rows)), answers.groups, draws=draws)
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return Estimate(metric(answers), float(low), float(high))

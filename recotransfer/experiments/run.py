"""Fit a task on a problem, choose on validation, judge once, with intervals."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.errors import InputError
from recotransfer.evaluation.uncertainty import Difference, Estimate, resampled
from recotransfer.experiments.item_splits import fold_items, training_and_validation
from recotransfer.experiments.problem import Answers, Case, Metric
from recotransfer.numerics.histories import seen_items
from recotransfer.recommenders import Recommender
from recotransfer.task import TransferTask

_GRID = 7  # values tried of a setting, evenly spaced by ratio


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
    train, known = case.split.train, training_and_validation(case.split)
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
    for split in fold_items(training_and_validation(case.split), folds=folds, groups=groups):
        inner = replace(case, split=split)
        found.append(
            _answers(inner, _fitted(inner, task, values, training_and_validation(split), parts), parts, "test")
        )
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

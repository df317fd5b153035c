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

from recotransfer.arguments import checked, checked_class
from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.errors import InputError
from recotransfer.evaluation.uncertainty import Difference, Estimate, resampled
from recotransfer.experiments.item_splits import fold_items, training_and_validation
from recotransfer.experiments.problem import Metric, Predictions, Problem
from recotransfer.numerics.histories import seen_items
from recotransfer.numerics.rounding import DOUBLE, first_best
from recotransfer.recommenders import Recommender
from recotransfer.task import TransferTask

_GRID = 7  # values tried of a setting, evenly spaced by ratio


@checked_class
@dataclass(frozen=True)
class Outcome:
    """A fitted task on a problem, and how it did.

    Attributes:
        name: the variant's name.
        task: fitted on all but the test.
        predictions: to the test's questions.
        metrics: name -> value with its 95% bootstrap interval over groups.
        settings: settings of the recommender that validation chose.
        valid: the first metric on validation.
        seconds: wall time of encoding, tuning, choosing and answering.
        reports: what tuners say of themselves, by modality.
        validation: the predictions that settings were chosen on, before any refit; None where there were none.
    """

    name: str
    task: TransferTask
    predictions: Predictions
    metrics: Mapping[str, Estimate]
    settings: Mapping[str, Any]
    valid: float
    seconds: float
    reports: Mapping[str, Any] = field(default_factory=dict)
    validation: Predictions | None = None


@checked
def run(
    problem: Problem,
    task: TransferTask,
    *,
    name: str = "",
    settings: Sequence[Mapping[str, Any]] | None = None,
    folds: int | None = None,
    calibrate: bool = False,
    refit: bool = True,
    draws: int = 1000,
) -> Outcome:
    """The task fitted on the problem, its settings chosen on validation, judged once on the test.

    Args:
        problem: the problem.
        task: recommender, transfers and tuners, not fitted. Its encoders are the problem's where it names none.
        name: of the variant.
        settings: settings of the recommender to choose from; by default a grid over the one setting of its
            `search_space`, or the recommender as it is where it has none or several.
        folds: choose by the predictions of so many folds of all that is not in the test, all of them together, where
            the validation part is too small to choose on.
        calibrate: learn the recommender's `temperature` (`Probe`) from the predictions that settings were chosen on,
            whose groups the model had not seen.
        refit: fit again with the validation part once settings are chosen; tuned encoders stay as they are.
        draws: of the bootstrap.
    """
    begin = time.perf_counter()
    task = copy.copy(task)
    if task.encoders is None:
        task.encoders = [] if problem.embeddings is not None else problem.encoders

    train, known = problem.split.train, training_and_validation(problem.split)
    tuners = task.tuners
    if tuners and problem.embeddings is not None:
        raise InputError(
            f"the problem {problem.name!r} brings its vectors, which no tuner can change; leave the tuners out"
        )

    if tuners:
        task = task.tuned(_seen(problem, train), train)

    embeddings = list(problem.embeddings) if problem.embeddings is not None else task.encode(problem.items)
    tried = [dict(s) for s in settings] if settings is not None else _grid(task.recommender)
    if not tried:
        raise InputError("settings is empty; give the settings to choose from, [{}] for those that the task has")

    figures, checked = [float("nan")], []
    metric = next(iter(problem.metrics.values()))
    if folds is not None:
        if tuners:
            raise InputError("tuned encoders have seen the records of all folds; leave folds out, or the tuners")

        checked = [_of_folds(problem, task, s, embeddings, folds) for s in tried]
    elif len(problem.split.valid):
        checked = [
            _predictions(problem, _fitted(problem, task, s, train, embeddings), embeddings, "valid") for s in tried
        ]
    elif settings is None:
        tried = [{}]
    elif len(tried) > 1:
        raise InputError(
            f"the problem {problem.name!r} has nothing to choose settings on; give one setting, or a valid part"
        )

    if checked:
        figures = [metric(each) for each in checked]

    chosen = first_best(figures)
    values = tried[chosen]
    if calibrate:
        if not checked or "temperature" not in task.recommender.params():
            raise InputError("calibrate needs a valid part or folds, and a recommender with a temperature (Probe)")

        by = _temperature(checked[chosen])
        values = {**values, "temperature": by * task.recommender.with_settings(values).setting("temperature")}
        checked[chosen] = _tempered(checked[chosen], by)

    fitted = _fitted(problem, task, values, known if refit else train, embeddings)
    predictions = _predictions(problem, fitted, embeddings, "test")
    found = {label: _estimate(each, predictions, draws) for label, each in problem.metrics.items()}
    reports = task.tuning_reports_ if tuners else {}
    seconds = time.perf_counter() - begin
    outcome = Outcome(name or problem.name, fitted, predictions, found, values, figures[chosen], seconds, reports)

    return replace(outcome, validation=checked[chosen]) if checked else outcome


@checked
def joined(outcomes: Sequence[Outcome], metrics: Mapping[str, Metric], *, draws: int = 1000) -> Outcome:
    """The outcome of several folds as one: all their predictions together, judged at once.

    Its task is the last fold's; a setting that the folds do not agree on is told as a list, one of each.
    """
    if not outcomes:
        raise InputError("there are no outcomes; give one per fold")

    predictions = _together([outcome.predictions for outcome in outcomes])
    found = {label: _estimate(each, predictions, draws) for label, each in metrics.items()}
    valid = float(np.mean([o.valid for o in outcomes]))
    seconds = float(np.sum([o.seconds for o in outcomes]))
    chosen = {name: [o.settings.get(name) for o in outcomes] for name in outcomes[0].settings}
    settings = {name: each[0] if all(value == each[0] for value in each) else each for name, each in chosen.items()}

    return replace(
        outcomes[-1],
        predictions=predictions,
        metrics=found,
        settings=settings,
        valid=valid,
        seconds=seconds,
        validation=None,
    )


@checked
def gain(outcome: Outcome, ablation: Outcome, metric: Metric, *, draws: int = 1000, seed: int = 0) -> Difference:
    """How much more than the ablation, with the 95% interval of the paired bootstrap over groups.

    p is twice the share of draws on the wrong side of 0, 1 / draws at least; all is NaN where the metric is.
    """
    mine, theirs = outcome.predictions, ablation.predictions
    if len(mine.queries) != len(theirs.queries) or not (mine.queries == theirs.queries).all():
        raise InputError(f"{outcome.name} and {ablation.name} answered different questions; run them on one problem")

    def figure(rows: NDArray[np.int64]) -> float:
        return metric(mine.take(rows)) - metric(theirs.take(rows))

    value, values = metric(mine) - metric(theirs), resampled(figure, mine.groups, draws=draws, seed=seed)
    values = values[~np.isnan(values)]
    values[np.abs(values) <= DOUBLE * max(abs(metric(mine)), abs(metric(theirs)))] = 0  # equal but for rounding
    if np.isnan(value) or not len(values):
        return Difference(value, float("nan"), float("nan"), float("nan"))

    low, high = np.percentile(values, [2.5, 97.5])
    p = max(2 * min(float((values <= 0).mean()), float((values >= 0).mean())), 1 / len(values))

    return Difference(value, float(low), float(high), min(p, 1.0))


@checked
def table(
    outcomes: Sequence[Outcome], problem_metrics: Mapping[str, Metric], *, ablation: str | None = None
) -> pd.DataFrame:
    """One row per variant: each metric with its interval, and the first metric's gain over the variant `ablation`."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    if ablation is not None and ablation not in by_name:
        raise InputError(f"no variant is called {ablation!r}; the variants are {', '.join(by_name)}")

    rows = []
    for outcome in outcomes:
        row: dict[str, Any] = {"variant": outcome.name}
        for label, (value, low, high) in outcome.metrics.items():
            row |= {label: value, f"{label} low": low, f"{label} high": high}

        if ablation is not None and outcome.name != ablation:
            d = gain(outcome, by_name[ablation], next(iter(problem_metrics.values())))
            row |= {"gain": d.value, "gain low": d.low, "gain high": d.high, "p": d.p}

        rows.append({**row, "seconds": outcome.seconds})

    return pd.DataFrame(rows)


def _together(predictions: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds as one."""
    first = predictions[0]
    if any(each.candidates != first.candidates for each in predictions):
        raise InputError("these folds have different labels; make them from one set of relations")

    names = ("queries", "truth", "scores", "groups")
    return Predictions(
        candidates=first.candidates, **{n: np.concatenate([getattr(each, n) for each in predictions]) for n in names}
    )


def _of_folds(
    problem: Problem, task: TransferTask, values: Mapping[str, Any], embeddings: Sequence[Embeddings], folds: int
) -> Predictions:
    """Predictions to all that is not in the test, each record's from the fold that it was held out of."""
    groups = None if problem.groups is None else problem.groups.tolist()
    found = []

    for split in fold_items(training_and_validation(problem.split), folds=folds, groups=groups):
        inner = replace(problem, split=split)
        found.append(
            _predictions(
                inner, _fitted(inner, task, values, training_and_validation(split), embeddings), embeddings, "test"
            )
        )

    return _together(found)


def _tempered(a: Predictions, temperature: float) -> Predictions:
    """The predictions with the logits of their probabilities divided by a number."""
    p = np.clip(a.scores.astype(np.float64), 1e-12, 1 - 1e-12)
    if np.allclose(a.scores.sum(axis=1), 1, atol=1e-3):
        return replace(a, scores=softmax(np.log(p) / temperature, axis=1).astype(np.float32))

    return replace(a, scores=expit(logit(p) / temperature).astype(np.float32))


def _temperature(a: Predictions) -> float:
    """The number that makes the true predictions likeliest when logits are divided by it."""
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


def _seen(problem: Problem, events: Interactions) -> Items:
    """The items that may be looked at when these events are learned from."""
    seen = np.zeros(len(problem.items), bool)
    seen[problem.items.ids.positions(events.items.take(np.unique(events.item)))] = True
    if problem.unlabelled is not None:
        seen[problem.items.ids.positions(problem.unlabelled.ids)] = True

    return problem.items.take(np.flatnonzero(seen))


def _fitted(
    problem: Problem,
    task: TransferTask,
    values: Mapping[str, Any],
    events: Interactions,
    embeddings: Sequence[Embeddings],
) -> TransferTask:
    out = copy.copy(task)
    out.recommender = task.recommender.with_settings(values)
    seen = _seen(problem, events) if problem.asks == "labels" else problem.items
    # Items of other parts stay out of the catalogue, but every label stays a user.
    used = Interactions(
        events.users, seen.ids, events.user, seen.ids.positions(events.items.ids, missing="negative")[events.item],
        events.weight, events.time, events.kind, events.kinds,
    )  # fmt: skip

    return out.fit(seen, used, embeddings=[part.align(seen.ids) for part in embeddings])


def _predictions(
    problem: Problem, task: TransferTask, embeddings: Sequence[Embeddings], which: Literal["valid", "test"]
) -> Predictions:
    split = problem.split
    asked: Interactions = getattr(split, which)
    ranked: IdMap | None = getattr(split, f"{which}_items")
    if problem.asks == "labels":
        at = np.unique(asked.item)
        ids = IdMap(asked.items.take(at))
        rows = problem.items.take(problem.items.ids.positions(ids.ids))
        found = task.label(rows, len(asked.users), embeddings=[part.align(ids) for part in embeddings])
        truth = np.asarray(asked.matrix().T.tocsr()[at].toarray() > 0)
        candidates, queries = asked.users, ids.ids
    else:
        users = np.unique(asked.user)
        candidates = asked.items if ranked is None else ranked
        queries = asked.users.take(users)
        found = task.recommend(
            queries, len(candidates), histories=getattr(split, f"{which}_history"), filter=Filter(allow=candidates.ids)
        )
        truth = (asked.matrix()[users] > 0).toarray()[:, asked.items.positions(candidates.ids)]
        at = users

    scores = np.full(truth.shape, -np.inf, np.float32)
    row, column = np.nonzero(found.positions >= 0)
    place = candidates.positions(found.catalogue.take(found.positions[row, column]), missing="negative")
    scores[row[place >= 0], place[place >= 0]] = found.scores[row, column][place >= 0]
    if problem.asks == "labels":
        lowest = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, keepdims=True)
        lowest[~np.isfinite(lowest)] = 1 / len(candidates)
        scores = np.where(np.isfinite(scores), scores, lowest)
    elif problem.candidates is not None:
        up = seen_items(problem.candidates.with_items(asked.items))[
            problem.candidates.users.positions(queries)
        ].toarray()[:, asked.items.positions(candidates.ids)]
        scores[up == 0] = -np.inf

    groups = queries if problem.groups is None else np.asarray(problem.groups)[at]

    return Predictions(queries, candidates, truth, scores, groups)


def _estimate(metric: Metric, predictions: Predictions, draws: int) -> Estimate:
    values = resampled(lambda rows: metric(predictions.take(rows)), predictions.groups, draws=draws)
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return Estimate(metric(predictions), float(low), float(high))

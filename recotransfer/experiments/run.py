"""Fit a task on a problem, choose settings on validation, evaluate once on the test, with intervals."""

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

_GRID = 7  # grid points of a setting, spaced evenly on a log scale


@checked_class
@dataclass(frozen=True)
class Outcome:
    """A task fitted on a problem, with its test results.

    Attributes:
        name: the variant's name.
        task: fitted on everything but the test.
        predictions: predictions on the test.
        metrics: name -> test value with its 95% bootstrap interval over groups.
        settings: settings of the recommender, chosen on validation.
        valid: the first metric on validation.
        seconds: wall time of encoding, tuning, the choice of settings and prediction.
        reports: modality -> report of its tuner.
        validation: the predictions that settings were chosen on, before any refit; None if nothing was validated.
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
    """The outcome of a task: settings chosen on validation, fitted, and evaluated once on the test.

    Args:
        problem: the problem.
        task: recommender, transfers and tuners, not fitted. Without encoders of its own it takes the problem's.
        name: name of the variant.
        settings: settings of the recommender to choose from. By default a grid over its `search_space` if that has one
            setting, otherwise the recommender as it is.
        folds: choose settings by cross-validation over everything outside the test, with this many folds, for problems
            whose validation part is too small.
        calibrate: fit the recommender's `temperature` (`Probe`) to the predictions that settings were chosen on, whose
            groups the model has not seen.
        refit: fit again with the validation part after settings are chosen; tuned encoders are kept.
        draws: number of bootstrap resamples.

    Raises:
        InputError: the arguments contradict each other or the problem, as when there is nothing to choose settings on.
    """
    start = time.perf_counter()
    task = copy.copy(task)  # the caller's task is left as it is
    if task.encoders is None:
        task.encoders = [] if problem.embeddings is not None else problem.encoders

    train, train_and_valid = problem.split.train, training_and_validation(problem.split)
    tuners = task.tuners
    if tuners and problem.embeddings is not None:
        raise InputError(
            f"the problem {problem.name!r} comes with vectors, which no tuner can change; leave the tuners out"
        )

    if tuners:
        task = task.tuned(_visible_items(problem, train), train)

    embeddings = list(problem.embeddings) if problem.embeddings is not None else task.encode(problem.items)
    grid = [dict(s) for s in settings] if settings is not None else _default_grid(task.recommender)
    if not grid:
        raise InputError("settings is empty; give the settings to choose from, or [{}] to keep the task's own")

    # The settings are chosen on predictions for records that the model was not fitted on.
    valid_scores, valid_predictions = [float("nan")], []
    metric = next(iter(problem.metrics.values()))
    if folds is not None:
        if tuners:
            raise InputError("tuned encoders have seen the records of all folds; leave out either folds or the tuners")

        valid_predictions = [_cross_validate(problem, task, s, embeddings, folds) for s in grid]
    elif len(problem.split.valid):
        valid_predictions = [
            _predict(problem, _fit(problem, task, s, train, embeddings), embeddings, "valid") for s in grid
        ]
    elif settings is None:
        grid = [{}]
    elif len(grid) > 1:
        raise InputError(
            f"the problem {problem.name!r} has nothing to choose settings on; give one setting, or a valid part"
        )

    if valid_predictions:
        valid_scores = [metric(each) for each in valid_predictions]

    chosen = first_best(valid_scores)
    values = grid[chosen]
    if calibrate:
        if not valid_predictions or "temperature" not in task.recommender.params():
            raise InputError("calibrate needs a valid part or folds, and a recommender with a temperature (Probe)")

        # The predictions were made at the recommender's present temperature, so the fitted one multiplies it.
        factor = _fit_temperature(valid_predictions[chosen])
        values = {**values, "temperature": factor * task.recommender.with_settings(values).setting("temperature")}
        valid_predictions[chosen] = _with_temperature(valid_predictions[chosen], factor)

    fitted = _fit(problem, task, values, train_and_valid if refit else train, embeddings)
    predictions = _predict(problem, fitted, embeddings, "test")
    estimates = {label: _estimate(each, predictions, draws) for label, each in problem.metrics.items()}
    reports = task.tuning_reports_ if tuners else {}
    seconds = time.perf_counter() - start
    outcome = Outcome(
        name or problem.name, fitted, predictions, estimates, values, valid_scores[chosen], seconds, reports
    )

    return replace(outcome, validation=valid_predictions[chosen]) if valid_predictions else outcome


@checked
def combine_outcomes(outcomes: Sequence[Outcome], metrics: Mapping[str, Metric], *, draws: int = 1000) -> Outcome:
    """The outcomes of several folds combined into one, with the metrics computed on all their predictions at once.

    Its task is the last fold's. A setting on which the folds differ is reported as a list with one value per fold.
    """
    if not outcomes:
        raise InputError("outcomes is empty; give the outcome of each fold")

    predictions = _concatenated([outcome.predictions for outcome in outcomes])
    estimates = {label: _estimate(each, predictions, draws) for label, each in metrics.items()}
    valid = float(np.mean([o.valid for o in outcomes]))
    seconds = float(np.sum([o.seconds for o in outcomes]))
    chosen = {name: [o.settings.get(name) for o in outcomes] for name in outcomes[0].settings}
    settings = {name: each[0] if all(value == each[0] for value in each) else each for name, each in chosen.items()}

    return replace(
        outcomes[-1],
        predictions=predictions,
        metrics=estimates,
        settings=settings,
        valid=valid,
        seconds=seconds,
        validation=None,
    )


@checked
def gain(outcome: Outcome, ablation: Outcome, metric: Metric, *, draws: int = 1000, seed: int = 0) -> Difference:
    """The metric's gain over the ablation, with its 95% interval from a paired bootstrap over groups.

    p is twice the share of resamples on the other side of 0, and at least 1 / draws. All values are NaN if the metric
    is.
    """
    mine, theirs = outcome.predictions, ablation.predictions
    if len(mine.queries) != len(theirs.queries) or not (mine.queries == theirs.queries).all():
        raise InputError(f"{outcome.name} and {ablation.name} answered different queries; run them on the same problem")

    def figure(rows: NDArray[np.int64]) -> float:
        return metric(mine.take(rows)) - metric(theirs.take(rows))

    value, values = metric(mine) - metric(theirs), resampled(figure, mine.groups, draws=draws, seed=seed)
    values = values[~np.isnan(values)]
    # Differences within rounding error are ties.
    values[np.abs(values) <= DOUBLE * max(abs(metric(mine)), abs(metric(theirs)))] = 0
    if np.isnan(value) or not len(values):
        return Difference(value, float("nan"), float("nan"), float("nan"))

    low, high = np.percentile(values, [2.5, 97.5])
    p = max(2 * min(float((values <= 0).mean()), float((values >= 0).mean())), 1 / len(values))

    return Difference(value, float(low), float(high), min(p, 1.0))


@checked
def table(
    outcomes: Sequence[Outcome], problem_metrics: Mapping[str, Metric], *, ablation: str | None = None
) -> pd.DataFrame:
    """One row per variant: every metric with its interval, and the first metric's gain over the variant `ablation`."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    if ablation is not None and ablation not in by_name:
        raise InputError(f"no variant is called {ablation!r}; choose the ablation from {', '.join(by_name)}")

    rows = []
    for outcome in outcomes:
        row: dict[str, Any] = {"variant": outcome.name}
        for label, (value, low, high) in outcome.metrics.items():
            row |= {label: value, f"{label} low": low, f"{label} high": high}

        if ablation is not None and outcome.name != ablation:
            difference = gain(outcome, by_name[ablation], next(iter(problem_metrics.values())))
            row |= {
                "gain": difference.value,
                "gain low": difference.low,
                "gain high": difference.high,
                "p": difference.p,
            }

        rows.append({**row, "seconds": outcome.seconds})

    return pd.DataFrame(rows)


def _concatenated(predictions: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds, one after the other."""
    first = predictions[0]
    if any(each.candidates != first.candidates for each in predictions):
        raise InputError("the folds have different labels; make them all from the same relations")

    names = ("queries", "truth", "scores", "groups")
    return Predictions(
        candidates=first.candidates, **{n: np.concatenate([getattr(each, n) for each in predictions]) for n in names}
    )


def _cross_validate(
    problem: Problem, task: TransferTask, values: Mapping[str, Any], embeddings: Sequence[Embeddings], folds: int
) -> Predictions:
    """Predictions for every record outside the test, each by the model of the fold that held the record out."""
    groups = None if problem.groups is None else problem.groups.tolist()
    predictions = []

    for split in fold_items(training_and_validation(problem.split), folds=folds, groups=groups):
        fold = replace(problem, split=split)
        fitted = _fit(fold, task, values, training_and_validation(split), embeddings)
        predictions.append(_predict(fold, fitted, embeddings, "test"))

    return _concatenated(predictions)


def _with_temperature(a: Predictions, temperature: float) -> Predictions:
    """The predictions with the logits of their probabilities divided by the temperature."""
    p = np.clip(a.scores.astype(np.float64), 1e-12, 1 - 1e-12)
    if np.allclose(a.scores.sum(axis=1), 1, atol=1e-3):  # probabilities of exclusive labels
        return replace(a, scores=softmax(np.log(p) / temperature, axis=1).astype(np.float32))

    return replace(a, scores=expit(logit(p) / temperature).astype(np.float32))


def _fit_temperature(a: Predictions) -> float:
    """The temperature with the greatest likelihood of the truth."""
    multilabel = bool((a.truth.sum(axis=1) != 1).any())

    def loss(log_temperature: float) -> float:
        p = _with_temperature(a, float(np.exp(log_temperature))).scores.astype(np.float64)
        likelihood = np.where(a.truth, p, 1 - p) if multilabel else p[a.truth]
        return float(-np.log(np.maximum(likelihood, 1e-12)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _default_grid(recommender: Recommender) -> list[dict[str, Any]]:
    """Values of the recommender's one searchable setting; one empty dict if it has none or several."""
    space = recommender.search_space
    if len(space) != 1:
        return [{}]

    ((name, (low, high)),) = space.items()
    values = np.geomspace(low, high, _GRID)
    return [{name: round(v) if isinstance(low, int) else float(v)} for v in values]


def _visible_items(problem: Problem, events: Interactions) -> Items:
    """The items whose content may be used when training on these events."""
    visible = np.zeros(len(problem.items), bool)
    visible[problem.items.ids.positions(events.items.take(np.unique(events.item)))] = True
    if problem.unlabelled is not None:
        visible[problem.items.ids.positions(problem.unlabelled.ids)] = True

    return problem.items.take(np.flatnonzero(visible))


def _fit(
    problem: Problem,
    task: TransferTask,
    values: Mapping[str, Any],
    events: Interactions,
    embeddings: Sequence[Embeddings],
) -> TransferTask:
    """A copy of the task with these settings, fitted on the events."""
    out = copy.copy(task)
    out.recommender = task.recommender.with_settings(values)
    items = _visible_items(problem, events) if problem.target == "labels" else problem.items
    # Items of other parts stay out of the catalogue, but every label stays a user.
    relations = Interactions(
        events.users, items.ids, events.user, items.ids.positions(events.items.ids, missing="negative")[events.item],
        events.weight, events.time, events.kind, events.kinds,
    )  # fmt: skip

    return out.fit(items, relations, embeddings=[each.align(items.ids) for each in embeddings])


def _predict(
    problem: Problem, task: TransferTask, embeddings: Sequence[Embeddings], part: Literal["valid", "test"]
) -> Predictions:
    """The fitted task's predictions for one part of the split."""
    split = problem.split
    relations: Interactions = getattr(split, part)
    ranked: IdMap | None = getattr(split, f"{part}_items")
    if problem.target == "labels":
        at = np.unique(relations.item)
        ids = IdMap(relations.items.take(at))
        items = problem.items.take(problem.items.ids.positions(ids.ids))
        lists = task.label(items, len(relations.users), embeddings=[each.align(ids) for each in embeddings])
        truth = np.asarray(relations.matrix().T.tocsr()[at].toarray() > 0)
        candidates, queries = relations.users, ids.ids
    else:
        at = np.unique(relations.user)
        candidates = relations.items if ranked is None else ranked
        queries = relations.users.take(at)
        lists = task.recommend(
            queries, len(candidates), histories=getattr(split, f"{part}_history"), filter=Filter(allow=candidates.ids)
        )
        truth = (relations.matrix()[at] > 0).toarray()[:, relations.items.positions(candidates.ids)]

    # The lists are ranked; their scores go back into one column per candidate.
    scores = np.full(truth.shape, -np.inf, np.float32)
    row, rank = np.nonzero(lists.positions >= 0)
    column = candidates.positions(lists.catalogue.take(lists.positions[row, rank]), missing="negative")
    scores[row[column >= 0], column[column >= 0]] = lists.scores[row, rank][column >= 0]
    if problem.target == "labels":
        # Every label needs a finite score: the lowest of its query, or equal shares where the query has none.
        lowest = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, keepdims=True)
        lowest[~np.isfinite(lowest)] = 1 / len(candidates)
        scores = np.where(np.isfinite(scores), scores, lowest)
    elif problem.candidates is not None:
        eligible = seen_items(problem.candidates.with_items(relations.items))[
            problem.candidates.users.positions(queries)
        ].toarray()[:, relations.items.positions(candidates.ids)]
        scores[eligible == 0] = -np.inf

    groups = queries if problem.groups is None else np.asarray(problem.groups)[at]

    return Predictions(queries, candidates, truth, scores, groups)


def _estimate(metric: Metric, predictions: Predictions, draws: int) -> Estimate:
    """The metric with its 95% percentile bootstrap interval over groups."""
    values = resampled(lambda rows: metric(predictions.take(rows)), predictions.groups, draws=draws)
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return Estimate(metric(predictions), float(low), float(high))

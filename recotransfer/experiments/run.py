"""Experiments: settings chosen on validation, one evaluation on the test, and intervals for every metric."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from recotransfer.arguments import checked, checked_class
from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items, Recommendations
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
        valid: the first metric on validation; NaN if nothing was validated.
        seconds: wall time of encoding, tuning, choosing settings and predicting.
        reports: modality -> report of its tuner.
        validation: the predictions that settings were chosen by, before any refit; None if nothing was validated.
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
        task: an unfitted task with its recommender, transfers and tuners; it is left unchanged. Without encoders of its
            own it takes the problem's.
        name: name of the variant.
        settings: settings of the recommender to choose from. By default a grid over its `search_space` if that has one
            setting, otherwise the recommender as it is.
        folds: choose settings by cross-validation with this many folds over everything outside the test, for problems
            whose validation part is too small.
        calibrate: fit the recommender's `temperature` (`Probe`) to the predictions that settings were chosen by, made
            for groups that the model was not fitted on.
        refit: fit again with the validation part after settings are chosen; tuned encoders are kept.
        draws: number of bootstrap resamples.

    Raises:
        InputError: the arguments contradict each other or the problem, as when there is nothing to choose settings on.
    """
    start = time.perf_counter()
    grid = _grid(problem, task, settings, folds)
    task, embeddings, reports = _encoded(problem, task)

    # Settings are chosen by predictions for records that the model was not fitted on.
    values, validation, valid = grid[0], None, float("nan")
    if folds is not None or len(problem.split.valid):
        tried = [_validate(problem, task, each, embeddings, folds) for each in grid]
        metric = next(iter(problem.metrics.values()))
        scores = [metric(each) for each in tried]
        chosen = first_best(scores)
        values, validation, valid = grid[chosen], tried[chosen], scores[chosen]

    if calibrate:
        if validation is None or "temperature" not in task.recommender.params():
            raise InputError("calibrate needs a valid part or folds, and a recommender with a temperature (Probe)")

        # The predictions were made at the recommender's present temperature, so the fitted one multiplies it.
        factor = _fit_temperature(validation)
        values = {**values, "temperature": factor * task.recommender.with_settings(values).setting("temperature")}
        validation = _with_temperature(validation, factor)

    events = training_and_validation(problem.split) if refit else problem.split.train
    fitted = _fit(problem, task, values, events, embeddings)
    predictions = _predict(problem, fitted, embeddings, "test")
    metrics = {label: _estimate(each, predictions, draws) for label, each in problem.metrics.items()}
    seconds = time.perf_counter() - start

    return Outcome(
        name or problem.name,
        fitted,
        predictions,
        metrics,
        values,
        valid,
        seconds,
        reports=reports,
        validation=validation,
    )


@checked
def combine_outcomes(outcomes: Sequence[Outcome], metrics: Mapping[str, Metric], *, draws: int = 1000) -> Outcome:
    """The outcomes of several folds as one, with the metrics computed on all their predictions together.

    Its task is that of the last fold. A setting on which the folds differ is a list with one value per fold.

    Args:
        outcomes: the outcome of each fold.
        metrics: name -> function of predictions, as in `Problem`.
        draws: number of bootstrap resamples.

    Raises:
        InputError: no outcomes, or folds with different candidates.
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

    Args:
        outcome: the variant.
        ablation: the variant to compare it with, on the same queries.
        metric: the metric, greater is better.
        draws: number of bootstrap resamples.
        seed: random seed of the resamples.
    """
    mine, theirs = outcome.predictions, ablation.predictions
    if len(mine.queries) != len(theirs.queries) or not (mine.queries == theirs.queries).all():
        raise InputError(f"{outcome.name} and {ablation.name} answered different queries; run them on the same problem")

    def difference(rows: NDArray[np.int64]) -> float:
        return metric(mine.take(rows)) - metric(theirs.take(rows))

    value = metric(mine) - metric(theirs)
    values = resampled(difference, mine.groups, draws=draws, seed=seed)
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
    """One row per variant: every metric with its interval, and the first metric's gain over the variant `ablation`.

    Args:
        outcomes: the outcome of each variant.
        problem_metrics: the problem's metrics.
        ablation: name of the variant to compare the others with; None leaves the gains out.
    """
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


def _grid(
    problem: Problem, task: TransferTask, settings: Sequence[Mapping[str, Any]] | None, folds: int | None
) -> list[dict[str, Any]]:
    """The settings to choose from; one set of them if there is nothing to choose on."""
    if task.tuners and problem.embeddings is not None:
        raise InputError(
            f"the problem {problem.name!r} comes with vectors, which no tuner can change; leave the tuners out"
        )
    if task.tuners and folds is not None:
        raise InputError("tuned encoders have seen the records of all folds; leave out either folds or the tuners")

    grid = _default_grid(task.recommender) if settings is None else [dict(each) for each in settings]
    if not grid:
        raise InputError("settings is empty; give the settings to choose from, or [{}] to keep the task's own")
    if folds is not None or len(problem.split.valid) or len(grid) == 1:
        return grid
    if settings is None:
        return [{}]

    raise InputError(
        f"the problem {problem.name!r} has nothing to choose settings on; give one setting, or a valid part"
    )


def _encoded(problem: Problem, task: TransferTask) -> tuple[TransferTask, list[Embeddings], Mapping[str, Any]]:
    """A copy of the task with its encoders, tuned on the training part; the items' vectors; reports of the tuners."""
    task = copy.copy(task)
    if task.encoders is None:
        task.encoders = [] if problem.embeddings is not None else problem.encoders

    reports: Mapping[str, Any] = {}
    if task.tuners:
        train = problem.split.train
        task = task.tuned(_visible_items(problem, train), train)
        reports = task.tuning_reports_

    embeddings = task.encode(problem.items) if problem.embeddings is None else list(problem.embeddings)

    return task, embeddings, reports


def _validate(
    problem: Problem,
    task: TransferTask,
    settings: Mapping[str, Any],
    embeddings: Sequence[Embeddings],
    folds: int | None,
) -> Predictions:
    """Predictions with these settings, for the validation part or by cross-validation over all outside the test."""
    if folds is None:
        fitted = _fit(problem, task, settings, problem.split.train, embeddings)
        return _predict(problem, fitted, embeddings, "valid")

    groups = None if problem.groups is None else problem.groups.tolist()
    predictions = []
    for split in fold_items(training_and_validation(problem.split), folds=folds, groups=groups):
        fold = replace(problem, split=split)
        fitted = _fit(fold, task, settings, training_and_validation(split), embeddings)
        predictions.append(_predict(fold, fitted, embeddings, "test"))

    return _concatenated(predictions)


def _with_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The predictions with the logits of their probabilities divided by the temperature."""
    p = np.clip(predictions.scores.astype(np.float64), 1e-12, 1 - 1e-12)
    if np.allclose(predictions.scores.sum(axis=1), 1, atol=1e-3):  # probabilities of exclusive labels
        return replace(predictions, scores=softmax(np.log(p) / temperature, axis=1).astype(np.float32))

    return replace(predictions, scores=expit(logit(p) / temperature).astype(np.float32))


def _fit_temperature(predictions: Predictions) -> float:
    """The temperature that makes the truth most likely (temperature scaling; Guo et al., 2017)."""
    from scipy.optimize import minimize_scalar

    truth = predictions.truth
    multilabel = bool((truth.sum(axis=1) != 1).any())

    def loss(log_temperature: float) -> float:
        p = _with_temperature(predictions, float(np.exp(log_temperature))).scores.astype(np.float64)
        likelihood = np.where(truth, p, 1 - p) if multilabel else p[truth]
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
    settings: Mapping[str, Any],
    events: Interactions,
    embeddings: Sequence[Embeddings],
) -> TransferTask:
    """A copy of the task with these settings, fitted on the events."""
    out = copy.copy(task)
    out.recommender = task.recommender.with_settings(settings)

    # Where labels are predicted, items of the other parts are hidden, but every label stays a user.
    items = _visible_items(problem, events) if problem.target == "labels" else problem.items
    relations = Interactions(
        events.users, items.ids, events.user, items.ids.positions(events.items.ids, missing="negative")[events.item],
        events.weight, events.time, events.kind, events.kinds,
    )  # fmt: skip

    return out.fit(items, relations, embeddings=[each.align(items.ids) for each in embeddings])


def _predict(
    problem: Problem, task: TransferTask, embeddings: Sequence[Embeddings], part: Literal["valid", "test"]
) -> Predictions:
    """The fitted task's predictions for one part of the split."""
    if problem.target == "labels":
        return _predict_labels(problem, task, embeddings, part)

    return _predict_items(problem, task, part)


def _predict_labels(
    problem: Problem, task: TransferTask, embeddings: Sequence[Embeddings], part: Literal["valid", "test"]
) -> Predictions:
    """Scores of every label for each labelled item of the part."""
    relations: Interactions = getattr(problem.split, part)
    labels = relations.users
    at = np.unique(relations.item)
    ids = IdMap(relations.items.take(at))
    items = problem.items.take(problem.items.ids.positions(ids.ids))
    lists = task.label(items, len(labels), embeddings=[each.align(ids) for each in embeddings])
    truth = np.asarray(relations.matrix().T.tocsr()[at].toarray() > 0)

    # Every label needs a finite score: the lowest of its query, or equal shares where the query has none.
    scores = _score_table(lists, labels)
    lowest = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, keepdims=True)
    lowest[~np.isfinite(lowest)] = 1 / len(labels)
    scores = np.where(np.isfinite(scores), scores, lowest)

    return Predictions(ids.ids, labels, truth, scores, _groups_of(problem, ids.ids, at))


def _predict_items(problem: Problem, task: TransferTask, part: Literal["valid", "test"]) -> Predictions:
    """Scores of the candidate items for each user of the part; -inf for items that a user's list leaves out."""
    split = problem.split
    relations: Interactions = getattr(split, part)
    ranked: IdMap | None = getattr(split, f"{part}_items")
    candidates = relations.items if ranked is None else ranked
    columns = relations.items.positions(candidates.ids)
    at = np.unique(relations.user)
    users = relations.users.take(at)
    history = getattr(split, f"{part}_history")
    lists = task.recommend(users, len(candidates), histories=history, filter=Filter(allow=candidates.ids))
    truth = (relations.matrix()[at] > 0).toarray()[:, columns]

    scores = _score_table(lists, candidates)
    if problem.candidates is not None:
        pairs = seen_items(problem.candidates.with_items(relations.items))
        eligible = pairs[problem.candidates.users.positions(users)].toarray()[:, columns]
        scores[eligible == 0] = -np.inf

    return Predictions(users, candidates, truth, scores, _groups_of(problem, users, at))


def _score_table(lists: Recommendations, candidates: IdMap) -> NDArray[np.float32]:
    """(lists, candidates) the scores of ranked lists, one column per candidate; -inf for candidates not in a list."""
    scores = np.full((len(lists.positions), len(candidates)), -np.inf, np.float32)
    row, rank = np.nonzero(lists.positions >= 0)
    column = candidates.positions(lists.catalogue.take(lists.positions[row, rank]), missing="negative")
    known = column >= 0
    scores[row[known], column[known]] = lists.scores[row[known], rank[known]]

    return scores


def _groups_of(problem: Problem, queries: NDArray[Any], at: NDArray[np.int64]) -> NDArray[Any]:
    """The group of each query, given its place in the split; a query without one is a group of its own."""
    return queries if problem.groups is None else np.asarray(problem.groups)[at]


def _estimate(metric: Metric, predictions: Predictions, draws: int) -> Estimate:
    """The metric with its 95% percentile bootstrap interval over groups."""
    values = resampled(lambda rows: metric(predictions.take(rows)), predictions.groups, draws=draws)
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return Estimate(metric(predictions), float(low), float(high))

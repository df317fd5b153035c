"""Choice of settings and modality weights on held-out events; the test set is never seen here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from tqdm import tqdm

from recotransfer.data import Embeddings, Interactions, Items
from recotransfer.encoders import Fusion
from recotransfer.errors import InputError
from recotransfer.filters import Filter
from recotransfer.metrics import hits, ndcg, recall
from recotransfer.splits import leave_last
from recotransfer.task import TransferTask

_LEAST_WEIGHT, _MOST_WEIGHT = 0.05, 20.0
_WEIGHT = "weight."  # what the name of a modality's weight begins with among the settings tried


@dataclass(frozen=True)
class Tuned:
    """What tuning chose.

    Attributes:
        params: constructor arguments of the recommender.
        weights: modality -> weight; None where there is one modality or none.
        trials: one row per trial: settings, ndcg, recall, in the order tried; the first is the starting point.
        parts: vectors of all items, for `TransferTask.fit` to take instead of encoding them again.
    """

    params: Mapping[str, Any]
    weights: Mapping[str, float] | None
    trials: pd.DataFrame
    parts: list[Embeddings]

    metric: ClassVar[str] = "ndcg"


def tune(
    task: TransferTask,
    items: Items,
    interactions: Interactions,
    *,
    valid: Interactions | None = None,
    allow: ArrayLike | None = None,
    trials: int = 20,
    k: int = 10,
    rng: int = 0,
) -> Tuned:
    """The settings with the best NDCG@k on held-out events, found by a seeded search (TPE; Bergstra et al., 2011).

    Args:
        task: its recommender's current settings and weights are the first trial; its recommender is not fitted.
        items: the catalogue.
        interactions: the log to learn from.
        valid: events to predict from `interactions`; by default each user's last event is held out of the log. Users
            whom the log does not know are left out.
        allow: rank only these items (the cold items of a cold-start protocol, say).
        trials: models to fit.
        k: length of the lists.
        rng: seed.
    """
    space = task.recommender.search_space
    if not space:
        raise InputError(f"{type(task.recommender).__name__} has nothing to tune; fit it without trials")
    if trials < 1 or k < 1:
        raise InputError(f"trials and k must be at least 1, got trials={trials}, k={k}")
    filter = None if allow is None else Filter(allow=np.asarray(allow))
    if filter is not None:
        filter.mask(items.ids.union(interactions.items), None)  # an unknown id is named before any work
    train, valid = _held_out(interactions.with_items(items.ids.union(interactions.items)), valid)
    users = pd.unique(valid.users.take(valid.user))
    parts = task.encode(items)
    fusion = Fusion().fit(parts) if parts else None
    names = [name for name, _ in fusion.transform(parts).blocks] if fusion is not None and len(parts) > 1 else []
    rows: list[dict[str, Any]] = []

    def score(values: Mapping[str, Any]) -> float:
        params, weights = _split(values)
        model = type(task.recommender)(**{**task.recommender.params(), **params})
        if fusion is not None:
            fusion.weights = weights
        model.fit(train, None if fusion is None else fusion.transform(parts))
        found = hits(model.recommend(users, k, filter=filter), valid)
        rows.append({**values, "ndcg": float(ndcg(found, k).mean()), "recall": float(recall(found, k).mean())})
        return float(rows[-1][Tuned.metric])

    given = task.modality_weights() or dict.fromkeys(names, 1.0)
    start = {name: task.recommender.params()[name] for name in space} | {f"{_WEIGHT}{n}": given[n] for n in names}
    bounds = {**space, **{f"{_WEIGHT}{name}": (_LEAST_WEIGHT, _MOST_WEIGHT) for name in names}}
    params, weights = _split(_search(score, start, bounds, trials, rng, task.progress))
    return Tuned({**task.recommender.params(), **params}, weights, pd.DataFrame(rows), parts)


def _search(
    score: Callable[[Mapping[str, Any]], float],
    start: dict[str, Any],
    bounds: Mapping[str, tuple[float, float]],
    trials: int,
    rng: int,
    progress: bool,
) -> dict[str, Any]:
    """The values with the greatest score: `start`, or one of the points within `bounds` tried after it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=rng, multivariate=True))
    ranges = {name: _distribution(low, high) for name, (low, high) in bounds.items()}
    tried = [(start, score(start))]
    if all(start[name] is not None and low <= start[name] <= high for name, (low, high) in bounds.items()):
        study.add_trial(optuna.trial.create_trial(params=start, distributions=ranges, value=tried[0][1]))
    for _ in tqdm(range(trials - 1), desc="choosing settings", disable=None if progress else True):
        trial = study.ask(ranges)
        tried.append((trial.params, score(trial.params)))
        study.tell(trial, tried[-1][1])
    return max(tried, key=lambda pair: pair[1])[0]


def _held_out(interactions: Interactions, valid: Interactions | None) -> tuple[Interactions, Interactions]:
    """The log to learn from, and the events to predict."""
    if valid is None:
        interactions, valid = leave_last(interactions)
    else:
        known = interactions.users.positions(valid.users.ids, missing="negative") >= 0
        valid = valid.select(known[valid.user])
    if not len(valid):
        raise InputError(
            "no events to choose settings on; users need at least three items each, or give validation events of users "
            "in the log"
        )
    return interactions, valid


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float] | None]:
    """Settings of the recommender, and weights of the modalities or None."""
    weights = {name.removeprefix(_WEIGHT): float(v) for name, v in values.items() if name.startswith(_WEIGHT)}
    return {name: value for name, value in values.items() if not name.startswith(_WEIGHT)}, weights or None


def _distribution(low: float, high: float) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=True)
    return FloatDistribution(low, high, log=True)

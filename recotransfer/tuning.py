"""Choice of settings and modality weights on held-out events; the test set is never seen here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from recotransfer.data import Embeddings, Interactions, Items
from recotransfer.encoders import Fusion
from recotransfer.errors import InputError
from recotransfer.filters import Filter
from recotransfer.metrics import hits, ndcg, recall
from recotransfer.splits import leave_last
from recotransfer.task import TransferTask

_LEAST_WEIGHT, _MOST_WEIGHT = 0.05, 20.0


@dataclass(frozen=True)
class Tuned:
    """What tuning chose.

    Attributes:
        params: constructor arguments of the recommender.
        weights: modality -> weight; None where there is one modality or none.
        trials: one row per trial: settings, ndcg, recall, in the order tried; the first is the starting point.
    """

    params: Mapping[str, Any]
    weights: Mapping[str, float] | None
    trials: pd.DataFrame

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
        task: its recommender's current settings are the first trial; it is not changed.
        items: the catalogue.
        interactions: the log to learn from.
        valid: events to predict from `interactions`; by default each user's last event is held out of the log.
        allow: rank only these items (the cold items of a cold-start protocol, say).
        trials: models to fit.
        k: length of the lists.
        rng: seed.
    """
    import optuna

    space = task.recommender.search_space
    if not space:
        raise InputError(f"{type(task.recommender).__name__} has nothing to tune; fit it without trials")
    train, valid = leave_last(interactions) if valid is None else (interactions, valid)
    if not len(valid):
        raise InputError("no events to validate on; users need at least three items each, or give validation events")
    parts = task.encode(items)
    names = [name for part in parts for name, _ in part.blocks] if len(parts) > 1 else []
    start = {name: task.recommender.params()[name] for name in space}
    start |= {f"weight.{name}": (task.weights or {}).get(name, 1.0) for name in names}
    rows: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        chosen = {name: _suggest(trial, name, bounds) for name, bounds in space.items()}
        weights = {name: trial.suggest_float(f"weight.{name}", _LEAST_WEIGHT, _MOST_WEIGHT, log=True) for name in names}
        model = type(task.recommender)(**{**task.recommender.params(), **chosen})
        model.fit(train, _fused(parts, weights))
        filter = None if allow is None else Filter(allow=np.asarray(allow))
        found = hits(model.recommend(np.unique(valid.users.take(valid.user)), k, filter=filter), valid)
        score = {"ndcg": float(ndcg(found, k).mean()), "recall": float(recall(found, k).mean())}
        rows.append({**trial.params, **score})
        return score[Tuned.metric]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=rng, multivariate=True))
    study.enqueue_trial(start)
    study.optimize(objective, n_trials=trials, show_progress_bar=task.progress)
    best = dict(study.best_params)
    weights = {name: best.pop(f"weight.{name}") for name in names}
    return Tuned({**task.recommender.params(), **best}, weights or None, pd.DataFrame(rows))


def _fused(parts: list[Embeddings], weights: Mapping[str, float]) -> Embeddings | None:
    if not parts:
        return None
    return Fusion(weights=weights or None).fit(parts).transform(parts)


def _suggest(trial: Any, name: str, bounds: tuple[float, float]) -> float | int:
    low, high = bounds
    if isinstance(low, int) and isinstance(high, int):
        return int(trial.suggest_int(name, low, high, log=True))
    return float(trial.suggest_float(name, low, high, log=True))

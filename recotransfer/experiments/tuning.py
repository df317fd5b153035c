"""Hyperparameter search on held-out events: settings of the recommender and modality weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from recotransfer._version import __version__
from recotransfer.arguments import checked, checked_class
from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items, Recommendations
from recotransfer.encoders import Fusion
from recotransfer.errors import InputError, require
from recotransfer.evaluation.metrics import hits, ndcg, recall
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.io.artifacts import digest, digest_of_events, read_json, write_json
from recotransfer.progress import counted
from recotransfer.recommenders import Recommender
from recotransfer.registry import transfers
from recotransfer.task import TransferTask

_LEAST_WEIGHT, _MOST_WEIGHT = 0.05, 20.0
_WEIGHT = "weight."  # prefix of modality weights among the searched settings


@checked_class
@dataclass(frozen=True)
class Tuned:
    """The result of tuning.

    Attributes:
        params: constructor arguments of the recommender.
        weights: modality -> weight; None with fewer than two modalities.
        trials: one row per trial, in order, with settings, ndcg and recall; the first is the starting point.
        embeddings: vectors of all items, which `TransferTask.fit` takes to save encoding them again. If the task had
            tuners, the encoders were tuned without the held-out events.
    """

    params: Mapping[str, Any]
    weights: Mapping[str, float] | None
    trials: pd.DataFrame
    embeddings: Sequence[Embeddings]

    metric: ClassVar[str] = "ndcg"


@checked
def tune(
    task: TransferTask,
    items: Items,
    interactions: Interactions,
    *,
    valid: Interactions | None = None,
    histories: Interactions | None = None,
    allow: ArrayLike | None = None,
    trials: int = 20,
    k: int = 10,
    seed: int = 0,
    embeddings: Sequence[Embeddings] | None = None,
    journal: Path | None = None,
) -> Tuned:
    """The settings with the best NDCG@k on held-out events, found by a seeded search (TPE; Bergstra et al., 2011).

    Args:
        task: the task to tune; its current settings and weights are the first trial. It is left unchanged: its tuners
            run once, and copies of its transfers are fitted in each trial, on the events that are not held out.
        items: the catalogue.
        interactions: the log to learn from.
        valid: events to predict; by default each user's last event is held out of the log. Users without a history are
            left out.
        histories: users' histories when `valid` is predicted; by default the log.
        allow: rank only these items (such as the cold items of a cold-start protocol).
        trials: number of models to fit.
        k: length of the lists.
        seed: random seed.
        embeddings: result of `task.encode` for these items, to save encoding them again; not for a task with tuners.
        journal: file of finished trials. With it, an interrupted search resumes and ends in the same choice, and a
            finished one continues if `trials` is greater.
    """
    space = task.recommender.search_space
    if not space:
        raise InputError(f"{type(task.recommender).__name__} has nothing to tune; fit it without trials")
    if trials < 1 or k < 1:
        raise InputError(f"trials and k must be at least 1, got trials={trials}, k={k}")

    catalogue = items.ids.union(interactions.items)
    # An unknown id is named before any work.
    allowed = None if allow is None else Filter(allow=np.asarray(allow)).mask(catalogue, None)
    train, valid = _held_out(interactions.with_items(catalogue), valid, histories)
    if task.tuners:
        if embeddings is not None:
            raise InputError(
                "vectors are given, but the task has tuners; leave embeddings out, or give task.tuned(...)"
            )

        task = task.tuned(items, train)

    embeddings = task.encode(items) if embeddings is None else embeddings
    if not embeddings and (task.transfers or task.weights):
        raise InputError("transfers and weights are for vectors, and there are none without content; give encoders")

    fusion = Fusion(weights=task.weights).fit(embeddings) if embeddings else None
    names = (
        [name for name, _ in fusion.transform(embeddings).blocks] if fusion is not None and len(embeddings) > 1 else []
    )

    @functools.lru_cache(maxsize=1)  # with one modality, all trials have these vectors
    def content(weights: tuple[tuple[str, float], ...]) -> Embeddings | None:
        if fusion is None:
            return None

        fusion.weights = dict(weights) or None
        vectors = fusion.transform(embeddings)
        for transfer in task.transfers:
            vectors = transfer.unfitted().fit(vectors, train).transform(vectors)

        return vectors

    def score(values: Mapping[str, Any]) -> dict[str, float]:
        params, weights = _split(values)
        model = task.recommender.with_settings(params)
        model.fit(train, content(tuple((weights or {}).items())))
        found = hits(lists_for(model, valid, k, histories=histories, allow=allow), valid)
        # Rounded, so that which of two equal trials is better does not depend on the order of a sum.
        return {"ndcg": round(float(ndcg(found, k).mean()), 9), "recall": round(float(recall(found, k).mean()), 9)}

    given = {name: float((task.weights or {}).get(name, 1.0)) for name in names}
    start = {name: task.recommender.setting(name) for name in space} | {f"{_WEIGHT}{n}": given[n] for n in names}
    bounds = {**space, **{f"{_WEIGHT}{name}": (_LEAST_WEIGHT, _MOST_WEIGHT) for name in names}}
    job = {
        "recommender": type(task.recommender).__name__,
        "start": {**task.recommender.params(), **start},
        "bounds": {name: list(bound) for name, bound in bounds.items()},
        "transfers": [[transfers.name_of(type(transfer)), transfer.params()] for transfer in task.transfers],
        "data": digest(*(p.vectors.ravel() for p in embeddings), [digest_of_events(train), digest_of_events(valid)]),
        "histories": "the log" if histories is None else digest_of_events(histories),
        "allow": "all items" if allowed is None else digest(allowed),
        "k": k,
        "seed": seed,
        "package": __version__,
    }
    rows = _search(score, start, bounds, trials, seed, task.progress, _Journal(journal, job))
    best = max(rows, key=lambda row: row[Tuned.metric])
    params, weights = _split({name: best[name] for name in bounds})

    return Tuned(task.recommender.with_settings(params).params(), weights, pd.DataFrame(rows), embeddings)


@checked
def lists_for(
    model: Recommender,
    truth: Interactions,
    k: int,
    *,
    histories: Interactions | None = None,
    allow: ArrayLike | None = None,
) -> Recommendations:
    """The model's lists for the users of `truth`, given their histories.

    A model that cannot use new histories ranks as fitted, without the items of the histories; users that it does not
    know get no list.
    """
    users = pd.unique(truth.users.take(truth.user))
    filter = None if allow is None else Filter(allow=np.asarray(allow))
    if histories is None or model.scores_new_users:
        return model.recommend(users, k, filter=filter, histories=histories)

    users = users[model.events_.users.positions(users, missing="negative") >= 0]
    seen = histories.with_items(model.catalogue_)
    row = IdMap(users).positions(seen.users.ids, missing="negative")[seen.user]
    width = len(model.catalogue_)
    pairs = np.unique((row * width + seen.item)[row >= 0])
    most = int(np.bincount(pairs // width, minlength=1).max()) if len(pairs) else 0
    found = model.recommend(users, min(k + most, width), filter=filter)
    own = np.isin(np.arange(len(users))[:, None] * width + found.positions, pairs)
    kept = np.argsort(own | (found.positions < 0), axis=1, kind="stable")[:, :k]
    positions, scores = found.positions.copy(), found.scores.copy()
    positions[own], scores[own] = -1, -np.inf
    at = np.arange(len(users))[:, None]

    return Recommendations(found.users, found.catalogue, positions[at, kept], scores[at, kept])


class _Journal:
    """Finished trials in a file, so that an interrupted search can be resumed; without a file, in memory."""

    rows: list[dict[str, Any]]

    def __init__(self, path: Path | None, job: Mapping[str, Any]) -> None:
        self.path = path
        self.job = json.loads(json.dumps(job))
        self.rows = []
        if path is None or not path.exists():
            return

        earlier = read_json(path)
        before, rows = earlier.get("job"), earlier.get("trials")
        if not isinstance(before, dict) or not isinstance(rows, list):
            raise InputError(f"{path} holds no trials; give another folder, or remove this one and begin again")
        if changed := sorted(name for name in self.job if before.get(name) != self.job[name]):
            raise InputError(f"{path} holds the trials of another search: {', '.join(changed)} changed; "
                             "give another folder, or the same settings")  # fmt: skip

        self.rows = rows

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.path is not None:
            write_json(self.path, {"job": self.job, "trials": self.rows})


def _search(
    score: Callable[[Mapping[str, Any]], dict[str, float]],
    start: dict[str, Any],
    bounds: Mapping[str, tuple[float, float]],
    trials: int,
    seed: int,
    progress: bool,
    journal: _Journal,
) -> list[dict[str, Any]]:
    """One row of settings and scores per trial: `start`, then points within `bounds`.

    Every point depends on the seed, its number, `trials` and the points before it only, so that a search which is
    stopped and taken up again tries the same points. Finished trials count at the points that they were measured at:
    a search may be taken up with more trials, which then are not those of a longer search from the start.
    """
    optuna = require("optuna")

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    ranges = {name: _distribution(low, high) for name, (low, high) in bounds.items()}
    inside = all(start[name] is not None and low <= start[name] <= high for name, (low, high) in bounds.items())

    for number in counted(range(trials), desc="choosing settings", shown=progress):
        trial = None
        if number == len(journal.rows):
            if number:
                # Trials are few: a quarter of them at random, the others near what did well.
                few = trials // 4
                study.sampler = optuna.samplers.TPESampler(seed=seed + number, n_startup_trials=few, multivariate=True)
                trial = study.ask(ranges)

            values = start if trial is None else trial.params
            journal.add({**values, **score(values)})

        row = journal.rows[number]
        if trial is not None:
            study.tell(trial, row[Tuned.metric])
        elif number or inside:
            params = {name: row[name] for name in bounds}
            done = optuna.trial.create_trial(params=params, distributions=ranges, value=row[Tuned.metric])
            study.add_trial(done)

    return journal.rows[:trials]


def _held_out(
    interactions: Interactions, valid: Interactions | None, histories: Interactions | None
) -> tuple[Interactions, Interactions]:
    """The log to learn from, and the events to predict."""
    if valid is None:
        interactions, valid = hold_out_last(interactions)
    else:
        users = (interactions if histories is None else histories).users
        valid = valid.select((users.positions(valid.users.ids, missing="negative") >= 0)[valid.user])

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
    FloatDistribution = require("optuna.distributions").FloatDistribution
    IntDistribution = require("optuna.distributions").IntDistribution

    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=True)

    return FloatDistribution(low, high, log=True)

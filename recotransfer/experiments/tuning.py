"""Hyperparameter search on held-out events, over settings of the recommender and weights of the modalities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from recotransfer.progress import progress_bar
from recotransfer.recommenders import Recommender
from recotransfer.registry import transfers
from recotransfer.task import TransferTask
from recotransfer.transfer import fit_transfers

_WEIGHT = "weight."  # prefix of modality weights among the searched settings
_WEIGHT_BOUNDS = (0.05, 20.0)
_METRICS = {"ndcg": ndcg, "recall": recall}


@checked_class
@dataclass(frozen=True)
class Tuned:
    """The result of tuning.

    Attributes:
        params: the best constructor arguments of the recommender.
        weights: modality -> its best weight; None with fewer than two modalities.
        trials: one row per trial, in order, with settings, ndcg and recall; the first is the starting point.
        embeddings: vectors of all items, to pass to `TransferTask.fit` so that they are not encoded again. If the task
            had tuners, the encoders were tuned without the held-out events.
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
        task: the task to tune; its current settings and weights are the first trial. It is left unchanged. Its tuners
            run once, and each trial fits copies of its transfers, on the events that are not held out.
        items: the catalogue.
        interactions: the log to learn from.
        valid: events to predict; by default each user's last event is held out of the log. Users without a history are
            left out.
        histories: users' histories when `valid` is predicted; by default the log.
        allow: rank only these items, such as the cold items of a cold-start protocol.
        trials: number of models to fit.
        k: length of the lists.
        seed: random seed.
        embeddings: result of `task.encode` for these items, to save encoding them again; not for a task with tuners.
        journal: file of finished trials. With it, an interrupted search resumes and ends in the same choice, and a
            finished one continues if `trials` is greater.

    Raises:
        InputError: there is nothing to tune, or nothing to choose settings on; the arguments contradict each other; or
            the journal is that of another search.
    """
    if not task.recommender.search_space:
        raise InputError(f"{type(task.recommender).__name__} has nothing to tune; fit it without trials")
    if trials < 1 or k < 1:
        raise InputError(f"trials and k must be at least 1, got trials={trials}, k={k}")

    # Before any work, so that an unknown id in `allow` is reported at once.
    catalogue = items.ids.union(interactions.items)
    allowed = None if allow is None else Filter(allow=np.asarray(allow)).mask(catalogue, None)
    train, valid = _held_out(interactions.with_items(catalogue), valid, histories)
    task, embeddings = _encoded(task, items, train, embeddings)

    objective = _Objective(task, embeddings, train, valid, histories, allow, k)
    job = {
        **objective.description(),
        "histories": "the log" if histories is None else digest_of_events(histories),
        "allow": "all items" if allowed is None else digest(allowed),
        "k": k,
        "seed": seed,
        "package": __version__,
    }
    rows = _search(objective, trials, seed, _Journal(journal, job))
    best = max(rows, key=lambda row: row[Tuned.metric])
    params, weights = _split({name: best[name] for name in objective.bounds})

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

    A model that cannot use new histories ranks as fitted, and the items of the histories are then removed from its
    lists; users it was not fitted on get no list.

    Args:
        model: a fitted recommender.
        truth: the events to predict.
        k: length of the lists.
        histories: what is known of each user; by default the events that the model was fitted on.
        allow: rank only these items.
    """
    users = pd.unique(truth.users.take(truth.user))
    filter = None if allow is None else Filter(allow=np.asarray(allow))
    if histories is None or model.scores_new_users:
        return model.recommend(users, k, filter=filter, histories=histories)

    users = users[model.events_.users.positions(users, missing="negative") >= 0]
    histories = histories.with_items(model.catalogue_)
    row = IdMap(users).positions(histories.users.ids, missing="negative")[histories.user]
    width = len(model.catalogue_)
    seen = np.unique((row * width + histories.item)[row >= 0])  # (user, item) pairs as single numbers

    # The lists are longer by the longest history, so that k items are left without the seen ones.
    longest = int(np.bincount(seen // width, minlength=1).max()) if len(seen) else 0
    lists = model.recommend(users, min(k + longest, width), filter=filter)
    is_seen = np.isin(np.arange(len(users))[:, None] * width + lists.positions, seen)
    first = np.argsort(is_seen | (lists.positions < 0), axis=1, kind="stable")[:, :k]
    positions = np.where(is_seen, -1, lists.positions)
    scores = np.where(is_seen, np.float32(-np.inf), lists.scores)
    at = np.arange(len(users))[:, None]

    return Recommendations(lists.users, lists.catalogue, positions[at, first], scores[at, first])


@dataclass
class _Objective:
    """What is maximised: the accuracy of the task on held-out events, as a function of its settings.

    The settings are those in the recommender's search space and, with several modalities, a weight for each, such as
    "weight.text".
    """

    task: TransferTask
    embeddings: Sequence[Embeddings]
    train: Interactions
    valid: Interactions
    histories: Interactions | None
    allow: ArrayLike | None
    k: int
    start: dict[str, Any] = field(init=False)  # the task's current settings
    bounds: dict[str, tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self._fusion = Fusion(weights=self.task.weights).fit(self.embeddings) if self.embeddings else None
        self._content: tuple[Mapping[str, float], Embeddings] | None = None  # of the last trial, with its weights
        names = []
        if self._fusion is not None and len(self.embeddings) > 1:
            names = [name for name, _ in self._fusion.transform(self.embeddings).blocks]

        model, weights = self.task.recommender, self.task.weights or {}
        self.start = {name: model.setting(name) for name in model.search_space}
        self.start |= {f"{_WEIGHT}{name}": float(weights.get(name, 1.0)) for name in names}
        self.bounds = {**model.search_space, **{f"{_WEIGHT}{name}": _WEIGHT_BOUNDS for name in names}}

    def __call__(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """NDCG and recall of the task fitted with these settings."""
        params, weights = _split(settings)
        model = self.task.recommender.with_settings(params)
        model.fit(self.train, self._vectors(weights or {}))
        lists = lists_for(model, self.valid, self.k, histories=self.histories, allow=self.allow)
        found = hits(lists, self.valid)
        # Rounded, so that which of two equal trials is better does not depend on the order of a sum.
        return {name: round(float(metric(found, self.k).mean()), 9) for name, metric in _METRICS.items()}

    def _vectors(self, weights: Mapping[str, float]) -> Embeddings | None:
        """The fused and mapped vectors under these weights; None without content."""
        if self._fusion is None:
            return None

        # With one modality there are no weights, and all trials share the vectors of the first.
        if self._content is None or self._content[0] != weights:
            self._fusion.weights = weights or None
            fused = self._fusion.transform(self.embeddings)
            self._content = weights, fit_transfers(self.task.transfers, fused, self.train)[1]

        return self._content[1]

    def description(self) -> dict[str, Any]:
        """What is searched, on which data, as plain JSON; a journal is continued only if it is the same."""
        model = self.task.recommender
        vectors = (each.vectors.ravel() for each in self.embeddings)
        return {
            "recommender": type(model).__name__,
            "start": {**model.params(), **self.start},
            "bounds": {name: list(bound) for name, bound in self.bounds.items()},
            "transfers": [[transfers.name_of(type(each)), each.params()] for each in self.task.transfers],
            "data": digest(*vectors, [digest_of_events(self.train), digest_of_events(self.valid)]),
        }


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
            raise InputError(f"{path} holds no trials; give another folder, or remove this one and start again")
        if changed := sorted(name for name in self.job if before.get(name) != self.job[name]):
            raise InputError(f"{path} holds the trials of another search: {', '.join(changed)} changed; "
                             "give the same settings, or remove that file to start again")  # fmt: skip

        self.rows = rows

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.path is not None:
            write_json(self.path, {"job": self.job, "trials": self.rows})


def _search(objective: _Objective, trials: int, seed: int, journal: _Journal) -> list[dict[str, Any]]:
    """One row of settings and metrics per trial: the starting point, then points within the bounds.

    Each point depends only on the seed, its number, `trials` and the points before it, so an interrupted search resumes
    with the same points. Trials in the journal keep the points they were measured at. A search that is continued with
    more trials may therefore differ from one that was that long from the start.
    """
    optuna = require("optuna")

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    start, bounds = objective.start, objective.bounds
    ranges = {name: _distribution(low, high) for name, (low, high) in bounds.items()}
    inside = all(start[name] is not None and low <= start[name] <= high for name, (low, high) in bounds.items())

    with progress_bar(trials, desc="choosing settings", unit=" trials", shown=objective.task.progress) as bar:
        for number in range(trials):
            trial = None
            if number == len(journal.rows):
                if number:
                    # Trials are few: a quarter of them are random, the others near the best so far.
                    random = trials // 4
                    study.sampler = optuna.samplers.TPESampler(
                        seed=seed + number, n_startup_trials=random, multivariate=True
                    )
                    trial = study.ask(ranges)

                settings = start if trial is None else trial.params
                journal.add({**settings, **objective(settings)})

            # The sampler learns from every trial within the bounds, whether it was run now or read from the journal.
            row = journal.rows[number]
            if trial is not None:
                study.tell(trial, row[Tuned.metric])
            elif number or inside:
                params = {name: row[name] for name in bounds}
                done = optuna.trial.create_trial(params=params, distributions=ranges, value=row[Tuned.metric])
                study.add_trial(done)

            best = max(row[Tuned.metric] for row in journal.rows[: number + 1])
            bar.set_postfix_str(f"best NDCG@{objective.k} {best:.4f}")
            bar.update()

    # In one order, whether a row was measured now or read from the journal.
    names = [*bounds, *_METRICS]
    return [{name: row[name] for name in names} for row in journal.rows[:trials]]


def _encoded(
    task: TransferTask, items: Items, train: Interactions, embeddings: Sequence[Embeddings] | None
) -> tuple[TransferTask, Sequence[Embeddings]]:
    """The task, its encoders tuned on the training events if it has tuners, and the items' vectors."""
    if task.tuners:
        if embeddings is not None:
            raise InputError(
                "vectors are given, but the task has tuners; leave embeddings out, or give task.tuned(...)"
            )

        task = task.tuned(items, train)

    embeddings = task.encode(items) if embeddings is None else embeddings
    if not embeddings and (task.transfers or task.weights):
        raise InputError("transfers and weights are for vectors, and there are none without content; give encoders")

    return task, embeddings


def _held_out(
    interactions: Interactions, valid: Interactions | None, histories: Interactions | None
) -> tuple[Interactions, Interactions]:
    """The events to learn from, and those to predict."""
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


def _split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float] | None]:
    """The settings of the recommender, and the weights of the modalities, None if there are none."""
    weights = {name.removeprefix(_WEIGHT): float(v) for name, v in settings.items() if name.startswith(_WEIGHT)}
    return {name: value for name, value in settings.items() if not name.startswith(_WEIGHT)}, weights or None


def _distribution(low: float, high: float) -> Any:
    """The range of a setting, whole numbers if its bounds are; sampled evenly on a log scale."""
    FloatDistribution = require("optuna.distributions").FloatDistribution
    IntDistribution = require("optuna.distributions").IntDistribution

    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=True)

    return FloatDistribution(low, high, log=True)

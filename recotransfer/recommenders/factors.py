"""Matrix factorisation by the `implicit` package: ALS and BPR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import require
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.histories import histories
from recotransfer.numerics.ridge import half_step, unobserved_metric
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders.factor_model import FactorModel
from recotransfer.settings import NonNegative, NonNegativeInt, Positive, PositiveInt

_FEWER = 5  # a fit makes this many times the sweeps of an update


def _train(
    kind: Any, events: Interactions, begin: tuple[Float, Float] | None = None, **settings: Any
) -> tuple[Float, Float]:
    """User and item factors of a model of the `implicit` package, trained from `begin` where it is given."""
    # implicit runs threads of its own; BLAS pools inside them slow it many times over.
    with require("threadpoolctl").threadpool_limits(1, "blas"):
        model = kind(**settings)
        if begin is not None:  # `fit` continues from factors that are there
            model.user_factors, model.item_factors = begin

        model.fit(sparse.csr_matrix(histories(events)), show_progress=False)

    return np.asarray(model.user_factors), np.asarray(model.item_factors)


class ALS(FactorModel):
    """Implicit-feedback ALS (Hu, Koren and Volinsky, 2008). Each user vector is one half-step from their history.

    Args:
        dim: number of factors.
        reg: ridge on the factors.
        alpha: weight of an observed pair against 1 for an unobserved one.
        epochs: sweeps.
        seed: random seed.
    """

    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "dim": (16, 256),
        "reg": (0.001, 100.0),
        "alpha": (0.5, 100.0),
        "epochs": (5, 30),
    }

    def __init__(
        self,
        *,
        dim: PositiveInt = 64,
        reg: NonNegative = 0.1,
        alpha: NonNegative = 10.0,
        epochs: PositiveInt = 15,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.dim = dim
        self.reg = reg
        self.alpha = alpha
        self.epochs = epochs
        self.seed = seed

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        self._sweep(events, self.epochs)

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        known, sweeps = self.factors_, max(1, self.epochs // _FEWER)
        factors = np.random.default_rng(self.seed).random((len(events.items), self.dim), np.float32) * np.float32(0.01)
        factors[: len(known)] = known
        users = np.zeros((len(events.users), self.dim), np.float32)  # a sweep first solves them from the item factors
        self._sweep(events, sweeps, (users, factors))
        return f"{sweeps} sweeps from the present factors"

    def _sweep(self, events: Interactions, epochs: int, begin: tuple[Float, Float] | None = None) -> None:
        AlternatingLeastSquares = require("implicit.cpu.als").AlternatingLeastSquares

        _, factors = _train(
            AlternatingLeastSquares,
            events,
            begin,
            factors=self.dim,
            regularization=self.reg,
            alpha=self.alpha,
            iterations=epochs,
            random_state=self.seed,
            dtype=np.float32,
        )
        self._set_factors(factors)
        self.metric_ = unobserved_metric(self.factors_, self.reg, 1.0)

    def _queries(self, events: Interactions) -> Float:
        history = histories(events)
        history.data *= self.alpha
        return np.asarray(half_step(history, self.factors_, self.metric_) @ self.factors_ @ self.metric_, np.float32)

    def _contributions(
        self, history: NDArray[np.int64], strength: Float, items: NDArray[np.int64]
    ) -> Mapping[str, Float]:
        row = sparse.csr_array((strength * self.alpha, history, [0, len(history)]), shape=(1, len(self.factors_)))
        weights = half_step(row, self.factors_, self.metric_).data
        likeness = self.factors_[history] @ self.metric_ @ self.factors_[items].T
        return {"behaviour": np.asarray(weights[:, None] * likeness, np.float32)}

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.array("metric", self.metric_)

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.metric_ = artifact.array("metric")


class BPR(FactorModel):
    """Bayesian personalised ranking (Rendle et al., 2009). Users are learned rows: new ones need a refit.

    Args:
        dim: number of factors.
        learning_rate: step of the stochastic gradient.
        reg: ridge on the factors.
        epochs: sweeps.
        seed: random seed.
    """

    scores_new_users: ClassVar[bool] = False
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "dim": (16, 256),
        "learning_rate": (0.005, 0.2),
        "reg": (0.0001, 0.1),
        "epochs": (30, 300),
    }

    def __init__(
        self,
        *,
        dim: PositiveInt = 64,
        learning_rate: Positive = 0.05,
        reg: NonNegative = 0.01,
        epochs: PositiveInt = 100,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.dim = dim
        self.learning_rate = learning_rate
        self.reg = reg
        self.epochs = epochs
        self.seed = seed

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        self._sweep(events, self.epochs)

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        rng, sweeps = np.random.default_rng(self.seed), max(1, self.epochs // _FEWER)

        def grown(old: Float, count: int) -> Float:  # new rows are random, as those `implicit` starts from
            new = (rng.random((count - len(old), old.shape[1]), np.float32) - np.float32(0.5)) / self.dim
            return np.concatenate([old, new])

        users, factors = grown(self.users_, len(events.users)), grown(self.factors_, len(events.items))
        users[:, -1] = 1  # multiplies the item's bias
        self._sweep(events, sweeps, (users, factors))

        return f"{sweeps} sweeps from the present factors"

    def _sweep(self, events: Interactions, epochs: int, begin: tuple[Float, Float] | None = None) -> None:
        BayesianPersonalizedRanking = require("implicit.cpu.bpr").BayesianPersonalizedRanking

        self.users_, factors = _train(
            BayesianPersonalizedRanking,
            events,
            begin,
            factors=self.dim,
            learning_rate=self.learning_rate,
            regularization=self.reg,
            iterations=epochs,
            random_state=self.seed,
            num_threads=1,  # threads would race on shared rows, and a seed would no longer fix the result
        )
        self._set_factors(factors)

    def _queries(self, events: Interactions) -> Float:
        return self.users_[self.events_.users.positions(events.users.ids)]

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.array("user_factors", self.users_)

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.users_ = artifact.array("user_factors")

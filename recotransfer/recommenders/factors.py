"""Matrix factorisation with the `implicit` package: ALS and BPR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import require
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.histories import histories
from recotransfer.numerics.ridge import half_step, unobserved_metric
from recotransfer.numerics.threads import one_blas_thread
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders.factor_model import FactorModel
from recotransfer.settings import NonNegative, NonNegativeInt, Positive, PositiveInt

_FIT_TO_UPDATE = 5  # ratio of the epochs of a fit to those of an update


def _train(
    kind: Callable[..., Any], events: Interactions, begin: tuple[Float, Float] | None = None, **settings: Any
) -> tuple[Float, Float]:
    """User and item factors of a model of the `implicit` package.

    Args:
        kind: the model's class.
        events: the log.
        begin: user and item factors to start from; random if None.
        settings: arguments of the model.
    """
    # implicit starts its own threads, and BLAS threads inside them would slow training many times over.
    with one_blas_thread():
        model = kind(**settings)
        if begin is not None:  # implicit continues from factors that are already set
            model.user_factors, model.item_factors = begin

        model.fit(sparse.csr_matrix(histories(events)), show_progress=False)

    return np.asarray(model.user_factors), np.asarray(model.item_factors)


class ALS(FactorModel):
    """Alternating least squares for implicit feedback (Hu, Koren and Volinsky, 2008).

    Only item factors are kept: a user vector is one half-step from the history, so new users need no refit.

    Args:
        dim: number of factors.
        reg: ridge penalty on the factors.
        alpha: weight of an observed pair, relative to 1 for an unobserved one.
        epochs: number of alternating sweeps.
        seed: random seed of the initial factors.
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
        known, sweeps = self.factors_, max(1, self.epochs // _FIT_TO_UPDATE)
        factors = np.random.default_rng(self.seed).random((len(events.items), self.dim), np.float32) * np.float32(0.01)
        factors[: len(known)] = known
        users = np.zeros((len(events.users), self.dim), np.float32)  # a sweep begins by solving for them
        self._sweep(events, sweeps, (users, factors))
        return f"{sweeps} sweeps from the current factors"

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
        similarity = self.factors_[history] @ self.metric_ @ self.factors_[items].T
        return {"behaviour": np.asarray(weights[:, None] * similarity, np.float32)}

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.array("metric", self.metric_)

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.metric_ = artifact.array("metric")


class BPR(FactorModel):
    """Bayesian personalised ranking (Rendle et al., 2009). User vectors are learned, so new users need a refit.

    Args:
        dim: number of factors.
        learning_rate: step size of stochastic gradient descent.
        reg: ridge penalty on the factors.
        epochs: passes over the events.
        seed: random seed of the initial factors and the samples.
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
        rng, sweeps = np.random.default_rng(self.seed), max(1, self.epochs // _FIT_TO_UPDATE)

        def grown(old: Float, count: int) -> Float:
            """`old` with random rows appended up to `count`, from the distribution that `implicit` starts from."""
            new = (rng.random((count - len(old), old.shape[1]), np.float32) - np.float32(0.5)) / self.dim
            return np.concatenate([old, new])

        users, factors = grown(self.users_, len(events.users)), grown(self.factors_, len(events.items))
        users[:, -1] = 1  # the last column of the item factors is their bias
        self._sweep(events, sweeps, (users, factors))

        return f"{sweeps} sweeps from the current factors"

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
            num_threads=1,  # threads would race on shared rows, so that a seed would not reproduce the result
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

"""One network for several kinds of relations at once: views, carts, purchases, categories."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Interactions
from recotransfer.errors import require
from recotransfer.settings import NonNegativeInt, Positive, PositiveInt
from recotransfer.transfer.base import Array
from recotransfer.transfer.networks import NetworkTransfer, RelationLoss, Step

Weighting = Literal["uncertainty", "gradnorm", "equal"]
_ALPHA, _RATE = 1.0, 0.025  # GradNorm's pull towards tasks that lag, and the step of its weights


class MultiTask(NetworkTransfer):
    """A network shared by one task for each kind of event in the relations; rows come out of length 1.

    Each kind is told by its own data (`RelationLoss` in `networks.py`): labels, or items taken together. Relations
    without kinds are one task. `report_["weights"]` tells the weight that each task had at the end.

    Args:
        dim: width of what comes out; None is that of the vectors.
        hidden: width of the hidden layer; 0 makes the map linear.
        weighting: "uncertainty" weighs each task by a learned variance (Kendall, Gal and Cipolla, "Multi-task learning
            using uncertainty to weigh losses", 2018); "gradnorm" keeps the gradients of all tasks at the shared map of
            one size, more for tasks that lag (Chen et al., "GradNorm", 2018); "equal" adds the losses.
        batch_size: pairs, or labelled items, of each task per step.
        learning_rate: of Adam.
        epochs: sweeps over the largest task's relations, at most.
        patience: sweeps without gain on held-out items after which training ends.
        seed: random seed.
    """

    def __init__(
        self,
        *,
        dim: PositiveInt | None = None,
        hidden: NonNegativeInt = 256,
        weighting: Weighting = "uncertainty",
        batch_size: PositiveInt = 256,
        learning_rate: Positive = 0.0003,
        epochs: NonNegativeInt = 10,
        patience: PositiveInt = 2,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.dim = dim
        self.hidden = hidden
        self.weighting = weighting
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.patience = patience
        self.seed = seed

    def _kinds(self, relations: Interactions) -> dict[str, Interactions]:
        if relations.kind is None or not len(relations):
            return super()._kinds(relations)

        present = np.unique(relations.kind).tolist()
        return {relations.kinds[kind]: relations.select(relations.kind == kind) for kind in present}

    def _tasks(self, vectors: Array, relations: Interactions) -> dict[str, RelationLoss]:
        found = super()._tasks(vectors, relations)
        self._share = dict.fromkeys(found, 1.0)
        self._first: dict[str, float] = {}
        self._names = list(found)
        return found

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        state = super()._learn(vectors, relations)
        self.report_["weights"] = self._share
        return state

    def _extras(self, dim: int) -> dict[str, Any]:
        torch = require("torch")

        return {"log variance": torch.zeros(len(self._names))} if self.weighting == "uncertainty" else {}

    def _total(self, losses: dict[str, Any], outputs: Any, step: Step) -> Any:
        if self.weighting == "equal":
            return super()._total(losses, outputs, step)

        if self.weighting == "gradnorm":
            self._rebalance(losses, step.weights["skip"])
            return sum(self._share[name] * loss for name, loss in losses.items())

        log_variance = step.weights["log variance"]
        weights = (-log_variance).exp()
        self._share = dict(zip(losses, weights.tolist(), strict=True))

        return sum(loss * weights[at] for at, loss in enumerate(losses.values())) + log_variance.sum() / 2

    def _rebalance(self, losses: dict[str, Any], shared: Any) -> None:
        """One step of GradNorm's own gradient: of sum |w_i |g_i| - target_i| by w_i, then weights of mean 1."""
        torch = require("torch")

        now = {name: float(loss.detach()) for name, loss in losses.items()}
        self._first = self._first or now
        norms = np.array(
            [float(torch.autograd.grad(loss, shared, retain_graph=True)[0].norm()) for loss in losses.values()]
        )
        share = np.array([self._share[name] for name in losses])
        lag = np.array([now[name] / max(self._first[name], 1e-12) for name in losses])
        target = (share * norms).mean() * (lag / lag.mean()) ** _ALPHA
        share = np.maximum(share - _RATE * np.sign(share * norms - target) * norms / max(norms.mean(), 1e-12), 0.01)
        self._share = dict(zip(losses, (share / share.mean()).tolist(), strict=True))

"""One network for several kinds of relations at once: views, carts, purchases, categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Interactions
from recotransfer.errors import require
from recotransfer.settings import NonNegativeInt, Positive, PositiveInt
from recotransfer.transfer.base import Array
from recotransfer.transfer.networks import NetworkTransfer, RelationLoss, Step

if TYPE_CHECKING:
    from torch import Tensor

Weighting = Literal["uncertainty", "gradnorm", "equal"]
_ALPHA, _RATE = 1.0, 0.025  # GradNorm: strength of the pull towards slow tasks, learning rate of the task weights


class MultiTask(NetworkTransfer):
    """One network shared by several tasks, one per event kind of the relations. Output rows have unit length.

    Each task's loss follows from its own relations (`RelationLoss` in `networks.py`): classification where they are
    labels, else contrastive. Relations without kinds are a single task. `report_["weights"]` has the final weight of
    each task.

    Args:
        dim: output width; None keeps that of the input.
        hidden: width of the hidden layer; 0 makes the map linear.
        weighting: "uncertainty" weights each task by a learned variance (Kendall, Gal and Cipolla, "Multi-task learning
            using uncertainty to weigh losses", 2018); "gradnorm" balances the tasks' gradient norms on the shared map,
            with larger ones for tasks that learn more slowly (Chen et al., "GradNorm", 2018); "equal" sums the losses.
        batch_size: pairs, or labelled items, of each task per step.
        learning_rate: of Adam.
        epochs: maximum number of passes over the relations of the largest task.
        patience: epochs without improvement on held-out items after which training stops.
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
        tasks = super()._tasks(vectors, relations)
        self._weights = dict.fromkeys(tasks, 1.0)
        self._first_losses: dict[str, float] = {}
        self._names = list(tasks)
        return tasks

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        state = super()._learn(vectors, relations)
        self.report_["weights"] = self._weights
        return state

    def _extras(self, dim: int) -> dict[str, Tensor]:
        torch = require("torch")

        return {"log variance": torch.zeros(len(self._names))} if self.weighting == "uncertainty" else {}

    def _total(self, losses: dict[str, Tensor], outputs: Tensor, step: Step) -> Tensor:
        if self.weighting == "equal":
            return super()._total(losses, outputs, step)

        if self.weighting == "gradnorm":
            self._rebalance(losses, step.weights["skip"])
            return sum(self._weights[name] * loss for name, loss in losses.items())

        log_variance = step.weights["log variance"]
        weights = (-log_variance).exp()
        self._weights = dict(zip(losses, weights.tolist(), strict=True))

        # The last term is the log of the standard deviations: without it all weights would shrink to 0.
        return sum(loss * weights[at] for at, loss in enumerate(losses.values())) + log_variance.sum() / 2

    def _rebalance(self, losses: dict[str, Tensor], shared: Tensor) -> None:
        """One gradient step of GradNorm on the task weights w, which minimise sum |w_i |g_i| - target_i|, at mean 1."""
        torch = require("torch")

        current = {name: float(loss.detach()) for name, loss in losses.items()}
        self._first_losses = self._first_losses or current
        norms = np.array(
            [float(torch.autograd.grad(loss, shared, retain_graph=True)[0].norm()) for loss in losses.values()]
        )
        weights = np.array([self._weights[name] for name in losses])
        lag = np.array([current[name] / max(self._first_losses[name], 1e-12) for name in losses])
        target = (weights * norms).mean() * (lag / lag.mean()) ** _ALPHA
        step = _RATE * np.sign(weights * norms - target) * norms / max(norms.mean(), 1e-12)
        weights = np.maximum(weights - step, 0.01)
        self._weights = dict(zip(losses, (weights / weights.mean()).tolist(), strict=True))

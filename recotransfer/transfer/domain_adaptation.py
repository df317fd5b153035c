"""Domain adaptation: items with relations are the source, items without any the unlabelled target domain.

Fit on the vectors of both, with the source's relations. Whether there is a gap to close is what `coral_distance`, `mmd`
and `proxy_a_distance` of `transferability.py` measure.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.settings import NonNegative, NonNegativeInt, Positive, PositiveInt
from recotransfer.transfer.base import Array, Ints, Transfer
from recotransfer.transfer.networks import NetworkTransfer, RelationLoss, Step, forward

_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, times the mean squared distance
_SHARPNESS = 10.0  # of the adversary's slow start
_JUDGE = 64  # hidden units of the adversary
_PENALTY = 1.0  # on its squared slope


class Coral(Transfer):
    """Target vectors with the source's mean and covariance; source vectors as they came.

    A model of the source's items then reads the target's. Sun, Feng and Saenko, "Return of frustratingly easy domain
    adaptation" (2016), who move the source to the target instead; here the model stays where it was trained. Every item
    that had no relation in `fit`, new ones included, is of the target.

    Args:
        reg: share of the mean variance added to each direction of both domains.
    """

    is_linear: ClassVar[bool] = True

    def __init__(self, *, reg: NonNegative = 0.1) -> None:
        self.reg = reg

    def fit(self, items: Embeddings, relations: Interactions) -> Self:
        """Learn both domains' mean and covariance, and which items are of the source."""
        super().fit(items, relations)
        self.source_ = IdMap(relations.items.take(np.unique(relations.binary_matrix().indices)))
        return self

    def transform(self, items: Embeddings) -> Embeddings:
        """The embeddings with the target's rows moved."""
        moved = super().transform(items)
        own = self.source_.positions(items.ids.ids, missing="negative") >= 0
        vectors = np.where(own[:, None], items.vectors, moved.vectors)
        return Embeddings(items.ids, vectors, moved.source, items.has_content, moved.blocks)

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        outside = _outside(relations)
        inside = np.setdiff1d(np.arange(len(vectors)), outside)
        (here, spread), (there, own) = (_spread(vectors[rows], self.reg) for rows in (inside, outside))
        weights = _power(own, -0.5) @ _power(spread, 0.5)

        return {
            "target": there.astype(np.float32),
            "source": here.astype(np.float32),
            "weights": weights.astype(np.float32),
        }

    def _apply(self, vectors: Array) -> Array:
        moved = (vectors - self.state_["target"]) @ self.state_["weights"] + self.state_["source"]
        return np.asarray(moved, np.float32)

    def write(self, writer: ArtifactWriter) -> None:
        """Store what was learned."""
        super().write(writer)
        writer.ids("source", self.source_.ids)

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """Take back what `write` stored."""
        out = super().read(artifact)
        out.source_ = IdMap(artifact.ids("source"))
        return out


class _Aligned(NetworkTransfer):
    """A network trained for the source's relations, and for the two domains to look alike in what comes out."""

    def __init__(
        self,
        *,
        dim: PositiveInt | None = None,
        hidden: NonNegativeInt = 0,
        weight: NonNegative = 1.0,
        batch_size: PositiveInt = 256,
        learning_rate: Positive = 0.0003,
        epochs: NonNegativeInt = 10,
        patience: PositiveInt = 3,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.dim = dim
        self.hidden = hidden
        self.weight = weight
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.patience = patience
        self.seed = seed

    def _tasks(self, vectors: Array, relations: Interactions) -> dict[str, RelationLoss]:
        self._targets = _outside(relations)
        return super()._tasks(vectors, relations)

    def _both(self, outputs: Any, step: Step) -> tuple[Any, Any]:
        """Vectors of the batch's labelled items, or of its pairs' first items, and of as many target items."""
        torch = require("torch")

        source = outputs[: self.batch_size]
        rows = torch.from_numpy(self._targets[step.draw.integers(len(self._targets), size=len(source))])
        return source, forward(step.weights, step.inputs[rows])


class MMDMap(_Aligned):
    """A network for the source's relations whose outputs have the same distribution in both domains, by kernel MMD.

    The squared maximum mean discrepancy under a sum of Gaussian kernels is added to the loss: Long et al., "Learning
    transferable features with deep adaptation networks" (2015). Rows come out of length 1.

    Args:
        dim: width of what comes out; None is that of the vectors.
        hidden: width of the hidden layer; 0 makes the map linear.
        weight: of the discrepancy against the loss on relations; 0 leaves the target out.
        batch_size: pairs, or labelled items, per step.
        learning_rate: of Adam.
        epochs: sweeps over the relations, at most.
        patience: sweeps without gain on held-out source items after which training ends.
        seed: random seed.
    """

    def _total(self, losses: dict[str, Any], outputs: Any, step: Step) -> Any:
        torch = require("torch")

        source, target = self._both(outputs, step)
        n = len(source)
        both = torch.cat([source, target])
        apart = (2 - 2 * both @ both.T).clamp(min=0)
        width = apart.detach().mean()
        kernel = sum(torch.exp(-apart / (factor * width)) for factor in _WIDTHS) / len(_WIDTHS)
        within = (kernel[:n, :n].sum() + kernel[n:, n:].sum() - 2 * n) / (n * (n - 1))  # without the diagonal's ones

        return sum(losses.values()) + self.weight * (within - 2 * kernel[:n, n:].mean())


class Adversarial(_Aligned):
    """A network for the source's relations whose outputs do not tell the domains apart, by gradient reversal.

    A judge learns to tell source from target; its gradient reaches the map with the sign turned. The reversal starts at
    0 and grows to `weight` along the paper's schedule. Ganin et al., "Domain-adversarial training of neural networks"
    (2016). A penalty on the judge's slope keeps the two from circling each other without end: Mescheder et al., "Which
    training methods for GANs do actually converge?" (2018). Rows come out of length 1.

    Args:
        dim: width of what comes out; None is that of the vectors.
        hidden: width of the hidden layer; 0 makes the map linear.
        weight: of the reversed gradient at the end; 0 leaves the target out.
        batch_size: pairs, or labelled items, per step.
        learning_rate: of Adam.
        epochs: sweeps over the relations, at most.
        patience: sweeps without gain on held-out source items after which training ends.
        seed: random seed.
    """

    def _extras(self, dim: int) -> dict[str, Any]:
        torch = require("torch")

        return {
            "judge": torch.randn(dim, _JUDGE) / dim**0.5,
            "judge bias": torch.zeros(_JUDGE),
            "verdict": torch.randn(_JUDGE) / _JUDGE**0.5,
        }

    def _total(self, losses: dict[str, Any], outputs: Any, step: Step) -> Any:
        torch = require("torch")
        functional = require("torch.nn.functional")

        source, target = self._both(outputs, step)
        strength = self.weight * (2 / (1 + np.exp(-_SHARPNESS * step.progress)) - 1)
        both = torch.cat([source, target])
        shown = (both.detach() * source.shape[1] ** 0.5).requires_grad_()  # coordinates of about unit size
        seen = shown + strength * (both.detach() - both)  # the value of `shown`, the gradient reversed
        truth = torch.cat([torch.ones(len(source)), torch.zeros(len(target))])
        loss = functional.binary_cross_entropy_with_logits(_judged(seen, step), truth)
        slope = torch.autograd.grad(_judged(shown, step).sum(), shown, create_graph=True)[0]

        return sum(losses.values()) + loss + _PENALTY * (slope**2).sum(dim=1).mean()


def _judged(vectors: Any, step: Step) -> Any:
    """(n,) the judge's log odds of the source."""
    hidden = (vectors @ step.weights["judge"] + step.weights["judge bias"]).relu()
    return hidden @ step.weights["verdict"]


def _outside(relations: Interactions) -> Ints:
    """Positions of the items without a relation.

    Raises:
        InputError: fewer than two of them, or of the others.
    """
    counts = np.bincount(relations.binary_matrix().indices, minlength=len(relations.items))
    outside = np.flatnonzero(counts == 0)
    if min(len(outside), len(counts) - len(outside)) < 2:
        raise InputError(
            f"{len(outside)} of {len(counts)} items have no relation; give the target's items without relations beside "
            "the source's with theirs, two of each at least"
        )

    return outside


def _spread(vectors: Array, reg: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance, shrunk."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    out = centred.T @ centred / len(vectors)
    out[np.diag_indices_from(out)] += reg * np.trace(out) / len(out) + 1e-12
    return mean, out


def _power(matrix: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """The symmetric positive matrix to a power."""
    size, turn = np.linalg.eigh(matrix)
    return np.asarray((turn * size**power) @ turn.T)

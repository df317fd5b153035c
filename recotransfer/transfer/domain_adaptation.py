"""Unsupervised domain adaptation: items with relations are the source domain, items without any are the target.

Fit on the vectors of both domains and the relations of the source. `coral_distance`, `mmd` and `proxy_a_distance` in
`diagnostics.transferability` measure how far the two are apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.settings import NonNegative, NonNegativeInt, Positive, PositiveInt
from recotransfer.transfer.base import Array, Ints, Transfer
from recotransfer.transfer.networks import NetworkTransfer, RelationLoss, Step, forward

if TYPE_CHECKING:
    from torch import Tensor

_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths of the kernels, relative to the mean squared distance
_SHARPNESS = 10.0  # gamma of the schedule by which the reversed gradient grows
_JUDGE = 64  # hidden units of the domain classifier
_PENALTY = 1.0  # weight of the penalty on the domain classifier's squared gradient


class Coral(Transfer):
    """Aligns the mean and covariance of target vectors with the source's; source vectors are unchanged.

    A model trained on source items can then be applied to target items. CORAL is from Sun, Feng and Saenko, "Return of
    frustratingly easy domain adaptation" (2016), who move the source to the target; here the target moves, so that the
    model need not be refitted. Every item without a relation in `fit` belongs to the target, new items included.

    Args:
        reg: ridge on both covariances, as a share of the mean variance.
    """

    is_linear: ClassVar[bool] = True

    def __init__(self, *, reg: NonNegative = 0.1) -> None:
        self.reg = reg

    def fit(self, items: Embeddings, relations: Interactions) -> Self:
        """Learn the mean and covariance of both domains and which items belong to the source; returns self."""
        super().fit(items, relations)
        self.source_ = IdMap(relations.items.take(np.unique(relations.binary_matrix().indices)))
        return self

    def transform(self, items: Embeddings) -> Embeddings:
        """The embeddings, with the vectors of target items aligned to the source."""
        moved = super().transform(items)
        in_source = self.source_.positions(items.ids.ids, missing="negative") >= 0
        vectors = np.where(in_source[:, None], items.vectors, moved.vectors)
        return Embeddings(items.ids, vectors, moved.source, items.has_content, moved.blocks)

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        target = _target_items(relations)
        source = np.setdiff1d(np.arange(len(vectors)), target)
        source_mean, source_covariance = _statistics(vectors[source], self.reg)
        target_mean, target_covariance = _statistics(vectors[target], self.reg)
        weights = _power(target_covariance, -0.5) @ _power(source_covariance, 0.5)  # whiten, then recolour

        return {
            "target": target_mean.astype(np.float32),
            "source": source_mean.astype(np.float32),
            "weights": weights.astype(np.float32),
        }

    def _apply(self, vectors: Array) -> Array:
        moved = (vectors - self.state_["target"]) @ self.state_["weights"] + self.state_["source"]
        return np.asarray(moved, np.float32)

    def write(self, writer: ArtifactWriter) -> None:
        """Store the maps and the ids of the source items."""
        super().write(writer)
        writer.ids("source", self.source_.ids)

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """The transfer that `write` stored."""
        out = super().read(artifact)
        out.source_ = IdMap(artifact.ids("source"))
        return out


class _Aligned(NetworkTransfer):
    """A network trained on the source's relations and to make the two domains indistinguishable in its outputs."""

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
        self._target_rows = _target_items(relations)
        return super()._tasks(vectors, relations)

    def _both(self, outputs: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Output vectors of the batch's source items (the first of each pair) and of as many random target items."""
        torch = require("torch")

        source = outputs[: self.batch_size]
        rows = torch.from_numpy(self._target_rows[step.draw.integers(len(self._target_rows), size=len(source))])
        return source, forward(step.weights, step.inputs[rows])


class MMDMap(_Aligned):
    """A network trained on the source's relations, with the MMD between the domains' outputs as a penalty.

    The squared maximum mean discrepancy under a sum of Gaussian kernels is added to the loss: Long et al., "Learning
    transferable features with deep adaptation networks" (2015). Output rows have unit length.

    Args:
        dim: output width; None keeps that of the input.
        hidden: width of the hidden layer; 0 makes the map linear.
        weight: of the discrepancy against the loss on relations; 0 ignores the target.
        batch_size: pairs, or labelled items, per step.
        learning_rate: of Adam.
        epochs: maximum number of passes over the relations.
        patience: epochs without improvement on held-out source items after which training stops.
        seed: random seed.
    """

    def _total(self, losses: dict[str, Tensor], outputs: Tensor, step: Step) -> Tensor:
        torch = require("torch")

        source, target = self._both(outputs, step)
        n = len(source)
        both = torch.cat([source, target])
        distances = (2 - 2 * both @ both.T).clamp(min=0)  # squared, of unit rows
        width = distances.detach().mean()
        kernel = sum(torch.exp(-distances / (factor * width)) for factor in _WIDTHS) / len(_WIDTHS)
        within = (kernel[:n, :n].sum() + kernel[n:, n:].sum() - 2 * n) / (n * (n - 1))  # without the diagonal's ones

        return sum(losses.values()) + self.weight * (within - 2 * kernel[:n, n:].mean())


class Adversarial(_Aligned):
    """A network trained on the source's relations and against a domain classifier, by gradient reversal.

    The classifier learns to tell source from target, and its gradient reaches the map with the sign reversed. The
    reversal grows from 0 to `weight` along the schedule of Ganin et al., "Domain-adversarial training of neural
    networks" (2016). A penalty on the classifier's gradient keeps the training from oscillating: Mescheder et al.,
    "Which training methods for GANs do actually converge?" (2018). Output rows have unit length.

    Args:
        dim: output width; None keeps that of the input.
        hidden: width of the hidden layer; 0 makes the map linear.
        weight: of the reversed gradient at the end of training; 0 ignores the target.
        batch_size: pairs, or labelled items, per step.
        learning_rate: of Adam.
        epochs: maximum number of passes over the relations.
        patience: epochs without improvement on held-out source items after which training stops.
        seed: random seed.
    """

    def _extras(self, dim: int) -> dict[str, Tensor]:
        torch = require("torch")

        return {
            "judge": torch.randn(dim, _JUDGE) / dim**0.5,
            "judge bias": torch.zeros(_JUDGE),
            "verdict": torch.randn(_JUDGE) / _JUDGE**0.5,
        }

    def _total(self, losses: dict[str, Tensor], outputs: Tensor, step: Step) -> Tensor:
        torch = require("torch")
        functional = require("torch.nn.functional")

        source, target = self._both(outputs, step)
        strength = self.weight * (2 / (1 + np.exp(-_SHARPNESS * step.progress)) - 1)
        both = torch.cat([source, target])
        fixed = (both.detach() * source.shape[1] ** 0.5).requires_grad_()  # scaled to coordinates of about unit size
        reversed_ = fixed + strength * (both.detach() - both)  # the value of `fixed`, the gradient reversed
        truth = torch.cat([torch.ones(len(source)), torch.zeros(len(target))])
        loss = functional.binary_cross_entropy_with_logits(_domain_logits(reversed_, step), truth)
        gradient = torch.autograd.grad(_domain_logits(fixed, step).sum(), fixed, create_graph=True)[0]

        return sum(losses.values()) + loss + _PENALTY * (gradient**2).sum(dim=1).mean()


def _domain_logits(vectors: Tensor, step: Step) -> Tensor:
    """(n,) the domain classifier's logits of the source."""
    hidden = (vectors @ step.weights["judge"] + step.weights["judge bias"]).relu()
    return hidden @ step.weights["verdict"]


def _target_items(relations: Interactions) -> Ints:
    """Positions of the items without a relation.

    Raises:
        InputError: either domain has fewer than two items.
    """
    counts = np.bincount(relations.binary_matrix().indices, minlength=len(relations.items))
    target = np.flatnonzero(counts == 0)
    if min(len(target), len(counts) - len(target)) < 2:
        raise InputError(
            f"{len(target)} of {len(counts)} items have no relation; give the target's items without relations beside "
            "the source's with theirs, two of each at least"
        )

    return target


def _statistics(vectors: Array, reg: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and shrunk covariance."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    out = centred.T @ centred / len(vectors)
    out[np.diag_indices_from(out)] += reg * np.trace(out) / len(out) + 1e-12
    return mean, out


def _power(matrix: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """A power of a symmetric positive definite matrix."""
    size, turn = np.linalg.eigh(matrix)
    return np.asarray((turn * size**power) @ turn.T)

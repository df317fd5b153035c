"""Small networks on vectors, trained by gradient on relations."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions
from recotransfer.errors import InputError, require
from recotransfer.numerics.rounding import SINGLE, exceeds
from recotransfer.numerics.vectors import unit_rows
from recotransfer.transfer.base import Array, Ints, Transfer

if TYPE_CHECKING:
    from torch import Tensor

_FEWEST, _MOST_HELD = 20, 1024  # related items below which none is held out; maximum number of held-out pairs
_HEAD_PACE = 10.0  # learning rate of heads and classifiers relative to the network's, with which they must keep up
_LEAST_STEPS = 20  # per epoch, so that a few relations are passed over several times


class Step(NamedTuple):
    """The state of training at one step.

    Attributes:
        weights: all trainable weights by name.
        inputs: (n, dim) the network's inputs.
        draw: the random generator.
        progress: share of the training done.
    """

    weights: dict[str, Tensor]
    inputs: Tensor
    draw: np.random.Generator
    progress: float


class NetworkTransfer(Transfer):
    """A small network on the vectors, trained by gradient descent; subclasses define the tasks and the total loss.

    A vector is centred, scaled to unit length, and passed through a linear map `skip` plus one hidden layer whose
    output starts at 0: before the first step the network is the identity, or the projection on the leading principal
    directions where `dim` is smaller. Output rows have unit length. A tenth of the related items (none if there are
    fewer than 20) is held out from all tasks; the weights with the lowest loss on them are kept, which may be the
    initial ones.

    Attributes:
        report_: plain JSON about the last `fit`: the held-out loss before training and after each epoch, and the best
            epoch.
    """

    report_: dict[str, Any]
    dim: int | None
    hidden: int
    temperature: float = 0.1
    batch_size: int
    learning_rate: float
    epochs: int
    patience: int
    seed: int

    @abstractmethod
    def __init__(self) -> None:
        """Store the settings."""

    def _kinds(self, relations: Interactions) -> dict[str, Interactions]:
        """The relations of each task, by name; a single task by default."""
        return {"relations": relations}

    def _tasks(self, vectors: Array, relations: Interactions) -> dict[str, RelationLoss]:
        """The loss of each task, by name."""
        related = np.unique(relations.binary_matrix().indices)
        held = np.zeros(len(relations.items), bool)
        if len(related) >= _FEWEST:
            held[np.random.default_rng(self.seed).permutation(related)[: len(related) // 10]] = True

        kinds = self._kinds(relations)
        return {name: RelationLoss(name, vectors, kind, held, self.temperature) for name, kind in kinds.items()}

    def _extras(self, dim: int) -> dict[str, Tensor]:
        """Further weights to train, by name."""
        return {}

    def _total(self, losses: dict[str, Tensor], outputs: Tensor, step: Step) -> Tensor:
        """The total loss from those of the tasks; `outputs` are the vectors of the first task's batch."""
        return sum(losses.values())

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        torch = require("torch")

        mean = vectors.mean(axis=0)
        inputs = unit_rows(vectors - mean)
        dim = inputs.shape[1] if self.dim is None else min(self.dim, inputs.shape[1])
        skip = np.eye(dim, dtype=np.float32)
        if dim < inputs.shape[1]:
            skip = np.linalg.eigh(inputs.T @ inputs)[1][:, ::-1][:, :dim].astype(np.float32)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = {"skip": torch.tensor(skip)}
            if self.hidden:
                network["inner"] = torch.randn(len(mean), self.hidden) / len(mean) ** 0.5
                network["bias"], network["outer"] = torch.zeros(self.hidden), torch.zeros(self.hidden, dim)

            tasks = self._tasks(forward(network, inputs), relations)
            trained = network | self._extras(dim)
            trained |= {f"head of {name}": task.head for name, task in tasks.items() if task.head is not None}
            for weight in trained.values():
                weight.requires_grad_()

            self._descend(inputs, tasks, network, trained)

        return {"mean": mean} | {name: weight.detach().numpy() for name, weight in network.items()}

    def _descend(
        self, inputs: Array, tasks: dict[str, RelationLoss], network: dict[str, Tensor], trained: dict[str, Tensor]
    ) -> None:
        """Train `trained`, which includes the weights of `network`, in place and leave the best weights there."""
        torch = require("torch")

        x, draw = torch.from_numpy(inputs), np.random.default_rng(self.seed)
        groups: dict[float, list[Tensor]] = {1.0: [], _HEAD_PACE: []}

        for name, weight in trained.items():
            groups[1.0 if name in network else _HEAD_PACE].append(weight)

        optimizer = torch.optim.Adam([{"params": g, "lr": p * self.learning_rate} for p, g in groups.items() if g])
        steps = max(_LEAST_STEPS, -(-max(task.events for task in tasks.values()) // self.batch_size))
        curve, best, kept = [], 0, {name: weight.detach().clone() for name, weight in trained.items()}

        for epoch in range(self.epochs + 1):
            for step in range(steps if epoch else 0):
                batches = {name: task.batch(draw, self.batch_size) for name, task in tasks.items()}
                outputs = {name: forward(network, x[batch.rows]) for name, batch in batches.items()}
                losses = {name: tasks[name].loss(outputs[name], batch) for name, batch in batches.items()}
                progress = (step / steps + epoch - 1) / self.epochs
                total = self._total(losses, outputs[next(iter(tasks))], Step(trained, x, draw, progress))
                optimizer.zero_grad()
                total.backward()
                optimizer.step()

            with torch.inference_mode():
                held = {n: float(t.loss(forward(network, x[t.held.rows]), t.held)) for n, t in tasks.items() if t.held}

            curve.append({"epoch": epoch, **held})
            # A loss that is lower only by rounding does not count, so that every machine keeps the same epoch.
            if not held or (epoch and exceeds(sum(curve[best][name] for name in held), sum(held.values()), SINGLE)):
                best = epoch

            if best == epoch:
                kept = {name: weight.detach().clone() for name, weight in trained.items()}

            if epoch - best >= self.patience:
                break

        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(kept[name])

        self.report_ = {"curve": curve, "best": best}

    def _apply(self, vectors: Array) -> Array:
        inputs = unit_rows(vectors - self.state_["mean"])
        out = inputs @ self.state_["skip"]
        if "inner" in self.state_:
            out += np.maximum(inputs @ self.state_["inner"] + self.state_["bias"], 0) @ self.state_["outer"]

        return unit_rows(out)


def forward(network: dict[str, Tensor], inputs: Tensor | Array) -> Tensor:
    """(n, dim) the network's outputs, rows of unit length."""
    torch = require("torch")
    functional = require("torch.nn.functional")

    x = torch.as_tensor(inputs)
    out = x @ network["skip"]
    if "inner" in network:
        out = out + torch.relu(x @ network["inner"] + network["bias"]) @ network["outer"]

    return functional.normalize(out, dim=1)


class Batch(NamedTuple):
    """The items of one training step.

    Attributes:
        rows: positions of the items; for pairs the anchors, then the positives, then the random negatives.
        user: the user of each pair; empty for labels.
    """

    rows: Ints
    user: Ints


class RelationLoss:
    """The loss of one set of relations: classification where no item has two users, else a contrastive loss on pairs.

    Labels: a softmax over users, whose weights start at the mean of each user's items. Pairs: a user, then two of their
    items, are drawn uniformly. The second is the positive; negatives are the other positives of the batch and as many
    random items, except those that the user has. The softmax over cosines is corrected for sampling frequency (logQ:
    Yi et al., "Sampling-bias-corrected neural modeling", 2019).

    Args:
        name: of the relations, for messages.
        vectors: (n, dim) outputs of the untrained network.
        relations: over those n items.
        held: (n,) bool, the held-out items.
        temperature: of the softmax.
    """

    def __init__(
        self, name: str, vectors: Tensor, relations: Interactions, held: NDArray[np.bool_], temperature: float
    ) -> None:
        torch = require("torch")

        self.temperature = temperature
        self.head = None
        self.taken = relations.binary_matrix()
        user, item = self.taken.nonzero()
        check_apart(user[~held[item]], item[~held[item]], name)
        count = np.bincount(item, minlength=len(held))
        self.trained = np.flatnonzero((count > 0) & ~held)
        self.labels = bool(count.max() <= 1)
        self.held = None
        if self.labels:
            self.label = np.full(len(count), -1)
            names, self.label[item] = np.unique(user, return_inverse=True)
            shape = (len(names), len(count))
            known = (np.ones(len(self.trained)), (self.label[self.trained], self.trained))
            means = sparse.csr_array(known, shape=shape) @ vectors.detach().numpy()
            self.head = torch.from_numpy(unit_rows(means.astype(np.float32)))
            self.events = len(self.trained)
            if len(own := np.intersect1d(item, np.flatnonzero(held))):
                self.held = Batch(own, np.empty(0, np.int64))

            return

        self.own, self.start, self.users = _two_or_more(self.taken, ~held)
        if not len(self.users):
            raise InputError(
                f"{name}: no user has two items with content, so there is nothing to learn; give more relations"
            )

        self.events = len(self.own)
        size = np.diff(self.start)
        self.often = np.bincount(self.own, np.repeat(1 / (len(size) * size), size), len(count))
        place = np.searchsorted(self.users, user)
        ready = held[item] & (self.users[np.minimum(place, len(self.users) - 1)] == user)
        if ready.any():
            self.often += np.bincount(item[ready], minlength=len(count)) / ready.sum()
            picked = np.random.default_rng(0).permutation(np.flatnonzero(ready))[:_MOST_HELD]
            anchor = self.own[self.start[place[picked]]]
            self.held = Batch(np.concatenate([anchor, item[picked]]), user[picked])

    def batch(self, draw: np.random.Generator, size: int) -> Batch:
        """A random training batch: `size` labelled items, or `size` pairs and as many random negatives."""
        if self.labels:
            return Batch(draw.choice(self.trained, min(size, len(self.trained)), replace=False), np.empty(0, np.int64))

        at = draw.integers(len(self.users), size=size)
        first, width = self.start[at], np.diff(self.start)[at]
        one = draw.integers(width)
        other = (one + 1 + draw.integers(width - 1)) % width
        negatives = self.trained[draw.integers(len(self.trained), size=size)]

        return Batch(np.concatenate([self.own[first + one], self.own[first + other], negatives]), self.users[at])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean loss of a batch; `outputs` are the network's outputs for its rows."""
        torch = require("torch")
        functional = require("torch.nn.functional")

        if self.labels:
            logits = outputs @ functional.normalize(self.head, dim=1).T / self.temperature
            return functional.cross_entropy(logits, torch.from_numpy(self.label[batch.rows]))

        n = len(batch.user)
        other = batch.rows[n:]
        often = np.log(self.often[other] + (len(other) > n) / len(self.trained))
        logits = outputs[:n] @ outputs[n:].T / self.temperature - torch.from_numpy(often.astype(np.float32))
        same = self.taken[batch.user][:, other].toarray() > 0
        same[np.arange(n), np.arange(n)] = False

        return functional.cross_entropy(logits.masked_fill(torch.from_numpy(same), -torch.inf), torch.arange(n))


def check_apart(user: NDArray[Any], item: NDArray[Any], name: str = "relations") -> None:
    """Raise `InputError` if all users have the same items, so that nothing can be learned; pairs must be distinct."""
    users, items = len(np.unique(user)), len(np.unique(item))
    if not items:
        raise InputError(f"{name}: no item with content that is not held out has a user; give more of weights above 0")
    if len(user) == users * items:
        raise InputError(
            f"{name}: every user has the same {items} items with content, so nothing tells them apart; give two users "
            "or labels at least that differ in their items"
        )


def _two_or_more(taken: sparse.csr_array, usable: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Usable items of the users with at least two, concatenated; where each user's begin; and those users."""
    user, item = taken.nonzero()
    kept = usable[item]
    user, item = user[kept], item[kept]
    size = np.bincount(user, minlength=taken.shape[0])
    kept = size[user] >= 2
    users = np.flatnonzero(size >= 2)
    order = np.argsort(user[kept], kind="stable")

    return item[kept][order], np.concatenate([[0], np.cumsum(size[users])]), users

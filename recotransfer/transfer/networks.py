"""Small networks on vectors, trained by gradient on relations."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions
from recotransfer.errors import InputError, require
from recotransfer.numerics.rounding import SINGLE, exceeds
from recotransfer.numerics.vectors import unit_rows
from recotransfer.transfer.base import Array, Ints, Transfer

_FEWEST, _MOST_HELD = 20, 1024  # related items, or none is held out; held-out pairs that are looked at
_HEAD_PACE = 10.0  # steps of heads and judges against those of the network, which they must keep up with
_LEAST_STEPS = 20  # of an epoch: few relations are gone through several times


class Step(NamedTuple):
    """The state of training: all weights by name, the network's inputs (n, dim), the generator, the share done."""

    weights: dict[str, Any]
    inputs: Any
    draw: np.random.Generator
    progress: float


class NetworkTransfer(Transfer):
    """A small network on the vectors, trained by gradient on the relations; subclasses say how tasks add up.

    An item's vector is centred, scaled to length 1, and goes through `skip` plus one hidden layer that starts silent:
    before the first step the map is the identity, or the leading directions where `dim` is smaller. Rows come out of
    length 1. A tenth of the related items, none where there are fewer than 20, is held out from all tasks; the weights
    that serve them best are kept, the starting ones included.

    Attributes:
        report_: plain JSON on the last `fit`: the held-out loss before training and after each epoch, and the best.
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
        """The relations of each task, by name; one task unless a subclass knows better."""
        return {"relations": relations}

    def _tasks(self, vectors: Array, relations: Interactions) -> dict[str, RelationLoss]:
        """What is learned, by name."""
        related = np.unique(relations.binary_matrix().indices)
        held = np.zeros(len(relations.items), bool)
        if len(related) >= _FEWEST:
            held[np.random.default_rng(self.seed).permutation(related)[: len(related) // 10]] = True

        kinds = self._kinds(relations)
        return {name: RelationLoss(name, vectors, kind, held, self.temperature) for name, kind in kinds.items()}

    def _extras(self, dim: int) -> dict[str, Any]:
        """Further weights to train, by name."""
        return {}

    def _total(self, losses: dict[str, Any], outputs: Any, step: Step) -> Any:
        """One loss from those of the tasks; `outputs` are the vectors of the first task's batch."""
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
        self, inputs: Array, tasks: dict[str, RelationLoss], network: dict[str, Any], trained: dict[str, Any]
    ) -> None:
        torch = require("torch")

        x, draw = torch.from_numpy(inputs), np.random.default_rng(self.seed)
        groups: dict[float, list[Any]] = {1.0: [], _HEAD_PACE: []}

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
            # A loss that is lower by rounding alone is no gain: which epoch is kept must not depend on the machine.
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


def forward(network: dict[str, Any], inputs: Any) -> Any:
    """(n, dim) unit rows of the network's outputs; numpy or torch in, torch out."""
    torch = require("torch")
    functional = require("torch.nn.functional")

    x = torch.as_tensor(inputs)
    out = x @ network["skip"]
    if "inner" in network:
        out = out + torch.relu(x @ network["inner"] + network["bias"]) @ network["outer"]

    return functional.normalize(out, dim=1)


class Batch(NamedTuple):
    """Items that go through the network, and for pairs the user of each; `rows` are anchors, others, strangers."""

    rows: Ints
    user: Ints


class RelationLoss:
    """One loss on relations, chosen by the data: labels where no item has two users, else items taken together.

    Labels: softmax over users, weights starting at the mean of each user's items. Pairs: a user, and two of their items
    in turn, are drawn uniformly. The second is the positive among the batch's others and as many random items, by a
    softmax over cosines corrected for how often each is drawn (logQ: Yi et al., "Sampling-bias-corrected neural
    modeling", 2019); items that the user also has are not negatives.

    Args:
        name: of the relations, for messages.
        vectors: (n, dim) torch tensor, what the network gives before training.
        relations: over those n items.
        held: (n,) bool, items that are held out.
        temperature: of the softmax.
    """

    def __init__(
        self, name: str, vectors: Any, relations: Interactions, held: NDArray[np.bool_], temperature: float
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
        """Training items drawn with `draw`: `size` labelled ones, or `size` pairs and as many strangers."""
        if self.labels:
            return Batch(draw.choice(self.trained, min(size, len(self.trained)), replace=False), np.empty(0, np.int64))

        at = draw.integers(len(self.users), size=size)
        first, width = self.start[at], np.diff(self.start)[at]
        one = draw.integers(width)
        other = (one + 1 + draw.integers(width - 1)) % width
        strangers = self.trained[draw.integers(len(self.trained), size=size)]

        return Batch(np.concatenate([self.own[first + one], self.own[first + other], strangers]), self.users[at])

    def loss(self, outputs: Any, batch: Batch) -> Any:
        """The mean loss of a batch whose rows have these vectors."""
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
    """Raise `InputError` for distinct user-item pairs in which every user has the same items: nothing to learn."""
    users, items = len(np.unique(user)), len(np.unique(item))
    if not items:
        raise InputError(f"{name}: no item with content that is not held out has a user; give more of weights above 0")
    if len(user) == users * items:
        raise InputError(
            f"{name}: every user has the same {items} items with content, so nothing tells them apart; give two users "
            "or labels at least that differ in their items"
        )


def _two_or_more(taken: sparse.csr_array, usable: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Usable items of users who have two or more, end to end; where each user's begin; which users."""
    user, item = taken.nonzero()
    kept = usable[item]
    user, item = user[kept], item[kept]
    size = np.bincount(user, minlength=taken.shape[0])
    kept = size[user] >= 2
    users = np.flatnonzero(size >= 2)
    order = np.argsort(user[kept], kind="stable")

    return item[kept][order], np.concatenate([[0], np.cumsum(size[users])]), users

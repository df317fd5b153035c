"""The objectives of fine-tuning: labels, pairs of items, or users' rows. Each gives batches, a loss and a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions, Items
from recotransfer.encoders import TrainableEncoder, encode_items
from recotransfer.errors import InputError, require
from recotransfer.transfer.training import in_batches, lengths

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Ints = NDArray[np.int64]
_HELD_OUT, _MOST_HELD, _FEWEST = 0.1, 1000, 20  # share held out, at most so many; none of fewer items than the last
# Training items in the histories and users that validation samples. With a much smaller sample of items the close
# neighbours would be missing, and vectors that only tell broad topics apart would score best.
_HISTORY, _USERS = 20_000, 3000
_CUT, _SHARPNESS = 20, 5  # cutoff of the NDCG, and exponent of the content kernel, as in `HybridItems`
_TEMPERATURE = 0.05
# Batches among which texts are sorted by length, at most a quarter of an epoch: where labels correlate with length, a
# batch of texts of one length holds few different labels.
_AMONG = 4
_HEAD_STEPS, _HEAD_RATE, _HEAD_BATCH, _HEAD_DECAY = 300, 0.01, 1024, 0.01


@dataclass(frozen=True)
class Related:
    """The items that have content and at least one relation.

    Attributes:
        values: content of each item.
        frozen: (items, dim) vectors before training.
        taken: (users, items) binary matrix.
        users_of: its transpose.
        train, valid: positions of the training items and of the held-out ones.
    """

    values: list[Any]
    frozen: NDArray[np.float32]
    taken: sparse.csr_array
    users_of: sparse.csr_array
    train: Ints
    valid: Ints


def related(encoder: TrainableEncoder, items: Items, relations: Interactions) -> Related:
    """The related items with content; the same tenth, at most 1000, is held out whatever the settings.

    Raises:
        InputError: fewer than two such items.
    """
    vectors = encode_items(items, encoder, progress=False).embeddings
    taken = relations.binary_matrix()
    at = relations.items.positions(items.ids.ids, missing="negative")
    has_users = np.append(np.bincount(taken.indices, minlength=taken.shape[1]) > 0, False)  # -1, unknown, is the last
    rows = np.flatnonzero(has_users[at] & vectors.has_content)
    if len(rows) < 2:
        raise InputError(f"{len(rows)} related items have content to learn from; give more, see the encoder's report")

    # Keep the columns of these items, and the users who have any of them.

    taken = taken[:, at[rows]]
    taken = _rows(taken, np.diff(taken.indptr) > 0)
    taken.sort_indices()
    held = min(_MOST_HELD, int(_HELD_OUT * len(rows))) if len(rows) >= _FEWEST else 0
    order = np.random.default_rng(0).permutation(len(rows))
    content = encoder.values(items)

    return Related(
        [content[row] for row in rows],
        vectors.vectors[rows],
        taken,
        sparse.csr_array(taken.T),
        np.sort(order[held:]),
        np.sort(order[:held]),
    )


class Batch(NamedTuple):
    """The distinct items of a batch, and the arrays that the objective's loss needs besides their vectors."""

    items: Ints
    parts: tuple[Any, ...]


class Objective(ABC):
    """Training batches, their loss, and a validation score.

    Attributes:
        head: a module with further weights to train, if the objective has any.
    """

    head: Module | None = None

    def __init__(self, data: Related, size: int, seed: int) -> None:
        self.data = data
        self.size = size

    @abstractmethod
    def epoch(self, rng: np.random.Generator) -> list[Batch]:
        """The batches of one pass."""

    @abstractmethod
    def loss(self, batch: Batch, vectors: Tensor) -> Tensor:
        """The scalar loss, given the vectors (items, dim) of the batch's items."""

    @property
    @abstractmethod
    def scored_items(self) -> Ints:
        """Items whose vectors `score` needs, in this order; empty where there is nothing to validate on."""

    @abstractmethod
    def score(self, vectors: Tensor) -> float:
        """Validation score of the held-out items; higher is better."""


class _Labels(Objective):
    """Classification: a linear head with one output per user."""

    head: Module

    def __init__(self, data: Related, size: int, seed: int) -> None:
        torch = require("torch")

        super().__init__(data, size, seed)
        self.text_lengths = lengths(data.values)
        self.single = bool((np.diff(data.users_of.indptr) == 1).all())

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = torch.nn.Linear(data.frozen.shape[1], data.taken.shape[0])

        self._fit_head(np.random.default_rng([seed, 1]))

    def _fit_head(self, rng: np.random.Generator) -> None:
        """Fit the head on the frozen vectors, with a linearly decaying learning rate."""
        torch = require("torch")

        frozen = torch.from_numpy(self.data.frozen)
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=_HEAD_RATE, weight_decay=_HEAD_DECAY)

        for step in range(_HEAD_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _HEAD_RATE * (1 - step / _HEAD_STEPS)

            batch = rng.choice(self.data.train, min(len(self.data.train), _HEAD_BATCH), replace=False)
            optimizer.zero_grad()
            self.loss(Batch(batch, ()), frozen[batch]).backward()
            optimizer.step()

    def epoch(self, rng: np.random.Generator) -> list[Batch]:
        train = self.data.train
        among = min(_AMONG, max(1, len(train) // (_AMONG * self.size)))
        return [Batch(items, ()) for items in in_batches(train, self.size, among, self.text_lengths, rng)]

    def loss(self, batch: Batch, vectors: Tensor) -> Tensor:
        return self._loss(batch.items, self.head(vectors))

    def _loss(self, items: Ints, logits: Tensor) -> Tensor:
        torch = require("torch")

        rows = self.data.users_of[items]
        if self.single:
            target = torch.from_numpy(rows.indices.astype(np.int64)).to(logits.device)
            return torch.nn.functional.cross_entropy(logits, target)

        wanted = torch.from_numpy(rows.toarray()).to(logits.device)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)

    @property
    def scored_items(self) -> Ints:
        return self.data.valid

    def score(self, vectors: Tensor) -> float:
        """Accuracy where every item has exactly one user, else the negative loss."""
        logits = self.head(vectors)
        if not self.single:
            return -float(self._loss(self.data.valid, logits))

        hit = logits.argmax(dim=1).cpu().numpy() == self.data.users_of[self.data.valid].indices
        return float(hit.mean())


class _Retrieval(Objective):
    """Base of the objectives on cosines: held-out items are ranked for a sample of their users, as new items.

    Attributes:
        known: (users, items) binary, without the held-out items.
        history: training items that stand for a user's history in validation.
        users: those validated on, who have both held-out items and items in `history`.
    """

    def __init__(self, data: Related, size: int, seed: int) -> None:
        super().__init__(data, size, seed)
        held = np.zeros(len(data.values), bool)
        held[data.valid] = True
        self.known = _columns(data.taken, ~held)
        if not (np.diff(self.known.indptr) > 1).any():
            raise InputError("no user has two items with content, so there are no pairs to learn from")

        rng = np.random.default_rng(0)
        self.history = np.sort(rng.permutation(data.train)[:_HISTORY])
        in_history = np.zeros(len(data.values), bool)
        in_history[self.history] = True
        both = (_columns(data.taken, in_history).sum(axis=1) > 0) & (_columns(data.taken, held).sum(axis=1) > 0)
        self.users = np.sort(rng.permutation(np.flatnonzero(both))[:_USERS])

    @property
    def scored_items(self) -> Ints:
        return np.concatenate([self.data.valid, self.history]) if len(self.users) else np.empty(0, np.int64)

    def score(self, vectors: Tensor) -> float:
        """Mean NDCG@20 of the held-out items over the sampled users, by their content similarity to the history."""
        rows = vectors.float().cpu().numpy()
        rows = rows - rows.mean(axis=0)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        held, known = rows[: len(self.data.valid)], rows[len(self.data.valid) :]
        kernel = _scaled(np.maximum(known @ held.T, 0)) ** _SHARPNESS
        scores = self.data.taken[self.users][:, self.history] @ kernel
        truth = self.data.taken[self.users][:, self.data.valid].toarray() > 0
        top = np.argsort(-scores, axis=1, kind="stable")[:, :_CUT]
        discount = 1 / np.log2(np.arange(2, top.shape[1] + 2))
        gain = (np.take_along_axis(truth, top, axis=1) * discount).sum(axis=1)
        best = np.cumsum(discount)[np.minimum(truth.sum(axis=1), top.shape[1]) - 1]

        return float((gain / best).mean())


class _Pairs(_Retrieval):
    """Contrastive learning: for each item, a softmax over the batch for another item of the same user.

    Attributes:
        several: rows of `known` of the users with two items or more; `holders` is its transpose.
        anchors: items of those users.
        log_share: (items,) log of how often an epoch draws each item, as anchor or as partner.
    """

    def __init__(self, data: Related, size: int, seed: int) -> None:
        super().__init__(data, size, seed)
        lengths = np.diff(self.known.indptr)
        self.several = _rows(self.known, lengths > 1)
        self.holders = sparse.csr_array(self.several.T)
        degree = np.diff(self.holders.indptr)
        self.anchors = np.flatnonzero(degree)
        share = np.divide(1.0, degree, out=np.zeros(len(degree)), where=degree > 0)
        others = np.diff(self.several.indptr) - 1
        # An anchor picks one of its users, then one of the user's other items; summed over anchors, per partner.
        partner = self.holders @ ((self.several @ share) / others) - share * (self.holders @ (1 / others))
        self.log_share = np.log(np.maximum((degree > 0) + partner, 1e-12)).astype(np.float32)

    def epoch(self, rng: np.random.Generator) -> list[Batch]:
        order = rng.permutation(self.anchors)
        user = _draw(self.holders, order, rng)
        place = (rng.random(len(user)) * (np.diff(self.several.indptr)[user] - 1)).astype(np.int64)
        first = self.several.indptr[user]
        partner = self.several.indices[first + place].astype(np.int64)
        # The draw left out each user's last item; where it hit the anchor itself, that last item takes its place.
        last = self.several.indices[self.several.indptr[user + 1] - 1]
        partner = np.where(partner == order, last, partner).astype(np.int64)
        batches = []

        for at in range(0, len(order), self.size):
            pair = np.stack([order[at : at + self.size], partner[at : at + self.size]])
            items, where = np.unique(pair, return_inverse=True)
            batches.append(Batch(items, tuple(where.reshape(pair.shape))))

        return batches

    def loss(self, batch: Batch, vectors: Tensor) -> Tensor:
        torch = require("torch")

        anchor, partner = (torch.from_numpy(places).to(vectors.device) for places in batch.parts)
        unit = torch.nn.functional.normalize(vectors, dim=1)
        log_share = torch.from_numpy(self.log_share[batch.items]).to(vectors.device)
        logits = unit[anchor] @ unit.T / _TEMPERATURE - log_share
        itself = torch.nn.functional.one_hot(anchor, len(batch.items)).bool()
        return torch.nn.functional.cross_entropy(logits.masked_fill(itself, -torch.inf), partner)


class _Elsa(_Retrieval):
    """Reconstruction: users' rows rebuilt from the cosines of the batch's items, as in ELSA."""

    def epoch(self, rng: np.random.Generator) -> list[Batch]:
        order = rng.permutation(np.flatnonzero(np.diff(self.known.indptr) > 1))
        chosen = np.zeros(len(self.data.values), bool)
        batches, users = [], []

        # Users are added until their items fill the batch; half of it at most is one user's.
        for at, user in enumerate(order.tolist(), 1):
            items = _row(self.known, user)
            chosen[items if len(items) <= self.size // 2 else rng.choice(items, self.size // 2, replace=False)] = True
            users.append(user)
            if chosen.sum() >= self.size or at == len(order):
                batches.append(Batch(np.flatnonzero(chosen), (np.array(users),)))
                chosen[:] = False
                users = []

        return batches

    def loss(self, batch: Batch, vectors: Tensor) -> Tensor:
        torch = require("torch")

        unit = torch.nn.functional.normalize(vectors, dim=1)
        rows = torch.from_numpy(self.known[batch.parts[0]][:, batch.items].toarray()).to(vectors.device)
        rebuilt = torch.nn.functional.normalize(rows @ unit @ unit.T - rows, dim=1)
        error = rebuilt - torch.nn.functional.normalize(rows, dim=1)
        return error.square().sum() / len(rows)


OBJECTIVES: dict[str, type[Objective]] = {"labels": _Labels, "pairs": _Pairs, "elsa": _Elsa}


def _scaled(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Locally scaled cosines: over the root of the mean to the 20 nearest, on both sides, as in `HybridItems`."""
    for axis in (0, 1):
        largest = np.sort(cosines, axis=axis).take(range(-min(_CUT, cosines.shape[axis]), 0), axis=axis)
        scale = np.sqrt(largest.mean(axis=axis, keepdims=True))
        cosines = np.divide(cosines, scale, out=np.zeros_like(cosines), where=scale > 0)

    return cosines


def _row(matrix: sparse.csr_array, row: int) -> NDArray[np.int32]:
    out: NDArray[np.int32] = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
    return out


def _rows(matrix: sparse.csr_array, kept: NDArray[np.bool_]) -> sparse.csr_array:
    return sparse.csr_array(matrix[np.flatnonzero(kept)])


def _columns(matrix: sparse.csr_array, kept: NDArray[np.bool_]) -> sparse.csr_array:
    """The matrix with all columns but those of `kept` emptied; its shape stays."""
    out = sparse.csr_array(matrix @ sparse.diags_array(kept.astype(np.float32)))
    out.eliminate_zeros()
    return out


def _draw(matrix: sparse.csr_array, rows: Ints, rng: np.random.Generator) -> Ints:
    """A random column of each of these rows, none of which may be empty."""
    first, last = matrix.indptr[rows], matrix.indptr[rows + 1]
    place: Ints = first + (rng.random(len(rows)) * (last - first)).astype(np.int64)
    return np.asarray(matrix.indices[place], np.int64)

"""What fine-tuning learns from relations: labels, pairs of items, or users' rows; batches, loss and validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions, Items
from recotransfer.encoders import TrainableEncoder, encode_items
from recotransfer.errors import InputError, require
from recotransfer.transfer.training import in_batches, lengths

Ints = NDArray[np.int64]
_HELD_OUT, _MOST_HELD, _FEWEST = 0.1, 1000, 20  # share of items validated on, at most so many, none below so many
# Training items that speak for the users of the validation. Of many fewer than the model has, the near ones would be
# missing, and vectors that know no more than the broad field would look best.
_HISTORY, _USERS = 20_000, 3000
_CUT, _SHARPNESS = 20, 5  # NDCG of lists so long, by the flagship's kernel of content
_TEMPERATURE = 0.05
# Texts are sorted by length among so many batches, a quarter of an epoch at most: where labels follow the length of the
# text, a batch of one length holds few of them.
_AMONG = 4
_HEAD_STEPS, _HEAD_RATE, _HEAD_BATCH, _HEAD_DECAY = 300, 0.01, 1024, 0.01


@dataclass(frozen=True)
class Related:
    """The items with content and a relation.

    Attributes:
        values: their contents.
        frozen: (items, dim) their vectors before training.
        taken: (users, items) binary.
        users_of: its transpose.
        train, valid: positions of the items trained on and of those held out.
    """

    values: list[Any]
    frozen: NDArray[np.float32]
    taken: sparse.csr_array
    users_of: sparse.csr_array
    train: Ints
    valid: Ints


def related(encoder: TrainableEncoder, items: Items, relations: Interactions) -> Related:
    """The related items with content; a tenth of them, at most 1000, is held out, the same whatever the settings.

    Raises:
        InputError: fewer than two of them.
    """
    vectors = encode_items(items, encoder, progress=False).embeddings
    taken = relations.binary_matrix()
    at = relations.items.positions(items.ids.ids, missing="negative")
    known = np.append(np.bincount(taken.indices, minlength=taken.shape[1]) > 0, False)  # the last is that of no column
    rows = np.flatnonzero(known[at] & vectors.has_content)
    if len(rows) < 2:
        raise InputError(f"{len(rows)} related items have content to learn from; give more, see the encoder's report")

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
    """Distinct items, and what the objective wants to know of them."""

    items: Ints
    parts: tuple[Any, ...]


class Objective(ABC):
    """Batches, their loss, and how well held-out items are served; `head` holds weights of its own."""

    head: Any = None

    def __init__(self, data: Related, size: int, seed: int) -> None:
        self.data = data
        self.size = size

    @abstractmethod
    def epoch(self, rng: np.random.Generator) -> list[Batch]:
        """The batches of one pass."""

    @abstractmethod
    def loss(self, batch: Batch, vectors: Any) -> Any:
        """A scalar tensor from the vectors (items, dim) of the batch."""

    @property
    @abstractmethod
    def asked(self) -> Ints:
        """Items whose vectors `score` wants; none where nothing can be scored."""

    @abstractmethod
    def score(self, vectors: Any) -> float:
        """Greater is better: how well held-out items are served."""


class _Labels(Objective):
    """A linear head over users."""

    def __init__(self, data: Related, size: int, seed: int) -> None:
        torch = require("torch")

        super().__init__(data, size, seed)
        self.kin = lengths(data.values)
        self.single = bool((np.diff(data.users_of.indptr) == 1).all())

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = torch.nn.Linear(data.frozen.shape[1], data.taken.shape[0])

        self._fit_head(np.random.default_rng([seed, 1]))

    def _fit_head(self, rng: np.random.Generator) -> None:
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
        return [Batch(items, ()) for items in in_batches(train, self.size, among, self.kin, rng)]

    def loss(self, batch: Batch, vectors: Any) -> Any:
        return self._loss(batch.items, self.head(vectors))

    def _loss(self, items: Ints, logits: Any) -> Any:
        torch = require("torch")

        rows = self.data.users_of[items]
        if self.single:
            target = torch.from_numpy(rows.indices.astype(np.int64)).to(logits.device)
            return torch.nn.functional.cross_entropy(logits, target)

        wanted = torch.from_numpy(rows.toarray()).to(logits.device)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)

    @property
    def asked(self) -> Ints:
        return self.data.valid

    def score(self, vectors: Any) -> float:
        """Accuracy where an item has one user, else the negative loss."""
        logits = self.head(vectors)
        if not self.single:
            return -float(self._loss(self.data.valid, logits))

        hit = logits.argmax(dim=1).cpu().numpy() == self.data.users_of[self.data.valid].indices
        return float(hit.mean())


class _Retrieval(Objective):
    """What the objectives on cosines share: held-out items are ranked for their users as new items."""

    def __init__(self, data: Related, size: int, seed: int) -> None:
        super().__init__(data, size, seed)
        held = np.zeros(len(data.values), bool)
        held[data.valid] = True
        self.known = _columns(data.taken, ~held)
        if not (np.diff(self.known.indptr) > 1).any():
            raise InputError("no user has two items with content, so there are no pairs to learn from")

        draws = np.random.default_rng(0)
        self.history = np.sort(draws.permutation(data.train)[:_HISTORY])
        spoken = np.zeros(len(data.values), bool)
        spoken[self.history] = True
        both = (_columns(data.taken, spoken).sum(axis=1) > 0) & (_columns(data.taken, held).sum(axis=1) > 0)
        self.users = np.sort(draws.permutation(np.flatnonzero(both))[:_USERS])

    @property
    def asked(self) -> Ints:
        return np.concatenate([self.data.valid, self.history]) if len(self.users) else np.empty(0, np.int64)

    def score(self, vectors: Any) -> float:
        """NDCG@20 of the held-out items for a sample of users."""
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
    """Softmax over the items of a batch for what goes with each."""

    def __init__(self, data: Related, size: int, seed: int) -> None:
        super().__init__(data, size, seed)
        lengths = np.diff(self.known.indptr)
        self.several = _rows(self.known, lengths > 1)  # users with a pair
        self.holders = sparse.csr_array(self.several.T)
        degree = np.diff(self.holders.indptr)
        self.anchors = np.flatnonzero(degree)
        share = np.divide(1.0, degree, out=np.zeros(len(degree)), where=degree > 0)
        others = np.diff(self.several.indptr) - 1
        partner = self.holders @ ((self.several @ share) / others) - share * (self.holders @ (1 / others))
        self.log_share = np.log(np.maximum((degree > 0) + partner, 1e-12)).astype(np.float32)

    def epoch(self, rng: np.random.Generator) -> list[Batch]:
        order = rng.permutation(self.anchors)
        user = _draw(self.holders, order, rng)
        place = (rng.random(len(user)) * (np.diff(self.several.indptr)[user] - 1)).astype(np.int64)
        first = self.several.indptr[user]
        partner = self.several.indices[first + place].astype(np.int64)
        # The draw was among all but one item: who met the anchor itself takes the last, which was left out.
        last = self.several.indices[self.several.indptr[user + 1] - 1]
        partner = np.where(partner == order, last, partner).astype(np.int64)
        batches = []

        for at in range(0, len(order), self.size):
            pair = np.stack([order[at : at + self.size], partner[at : at + self.size]])
            items, where = np.unique(pair, return_inverse=True)
            batches.append(Batch(items, tuple(where.reshape(pair.shape))))

        return batches

    def loss(self, batch: Batch, vectors: Any) -> Any:
        torch = require("torch")

        anchor, partner = (torch.from_numpy(part).to(vectors.device) for part in batch.parts)
        unit = torch.nn.functional.normalize(vectors, dim=1)
        drawn = torch.from_numpy(self.log_share[batch.items]).to(vectors.device)
        logits = unit[anchor] @ unit.T / _TEMPERATURE - drawn
        own = torch.nn.functional.one_hot(anchor, len(batch.items)).bool()
        return torch.nn.functional.cross_entropy(logits.masked_fill(own, -torch.inf), partner)


class _Elsa(_Retrieval):
    """Users' rows rebuilt from the cosines of the items in the batch."""

    def epoch(self, rng: np.random.Generator) -> list[Batch]:
        order = rng.permutation(np.flatnonzero(np.diff(self.known.indptr) > 1))
        held = np.zeros(len(self.data.values), bool)
        batches, users = [], []

        for at, user in enumerate(order.tolist(), 1):
            own = _row(self.known, user)
            held[own if len(own) <= self.size // 2 else rng.choice(own, self.size // 2, replace=False)] = True
            users.append(user)
            if held.sum() >= self.size or at == len(order):
                batches.append(Batch(np.flatnonzero(held), (np.array(users),)))
                held[:] = False
                users = []

        return batches

    def loss(self, batch: Batch, vectors: Any) -> Any:
        torch = require("torch")

        unit = torch.nn.functional.normalize(vectors, dim=1)
        rows = torch.from_numpy(self.known[batch.parts[0]][:, batch.items].toarray()).to(vectors.device)
        unlike = torch.nn.functional.normalize(rows @ unit @ unit.T - rows, dim=1)
        unlike = unlike - torch.nn.functional.normalize(rows, dim=1)
        return unlike.square().sum() / len(rows)


OBJECTIVES: dict[str, type[Objective]] = {"labels": _Labels, "pairs": _Pairs, "elsa": _Elsa}


def _scaled(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines over the roots of both sides' mean to their 20 nearest, as the flagship scales them."""
    for axis in (0, 1):
        largest = np.sort(cosines, axis=axis).take(range(-min(_CUT, cosines.shape[axis]), 0), axis=axis)
        reach = np.sqrt(largest.mean(axis=axis, keepdims=True))
        cosines = np.divide(cosines, reach, out=np.zeros_like(cosines), where=reach > 0)

    return cosines


def _row(matrix: sparse.csr_array, row: int) -> NDArray[np.int32]:
    out: NDArray[np.int32] = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
    return out


def _rows(matrix: sparse.csr_array, kept: NDArray[np.bool_]) -> sparse.csr_array:
    return sparse.csr_array(matrix[np.flatnonzero(kept)])


def _columns(matrix: sparse.csr_array, kept: NDArray[np.bool_]) -> sparse.csr_array:
    """The matrix with the other columns emptied."""
    out = sparse.csr_array(matrix @ sparse.diags_array(kept.astype(np.float32)))
    out.eliminate_zeros()
    return out


def _draw(matrix: sparse.csr_array, rows: Ints, rng: np.random.Generator) -> Ints:
    """One column of each of the rows at random; they have some."""
    first, last = matrix.indptr[rows], matrix.indptr[rows + 1]
    place: Ints = first + (rng.random(len(rows)) * (last - first)).astype(np.int64)
    return np.asarray(matrix.indices[place], np.int64)

"""The transformer of `SASRec`, and the users' sequences of items that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Interactions
from recotransfer.errors import require
from recotransfer.numerics.vectors import Float

if TYPE_CHECKING:
    from torch import Tensor

Int = NDArray[np.int64]
_LEAST_HELD_OUT, _MOST_HELD_OUT = 200, 2000  # bounds on the users held out for early stopping, a tenth in between
SPREAD = 0.02  # standard deviation of initial item vectors and positions
_LENGTH = 0.5  # root mean square length of the mapped content before training
_USERS = 512  # histories read at a time, which bounds memory


class _Group(NamedTuple):
    """Users with histories of similar length, padded to a (height, width) array for attention.

    Attributes:
        tokens: the group's tokens in the packed order.
        cell: position of each token in the flattened array.
        height: number of users.
        width: length of the longest history.
    """

    tokens: slice
    cell: Int
    height: int
    width: int


class _Packed(NamedTuple):
    """Histories concatenated without padding, shortest first; each item is one token.

    Attributes:
        users: (users,) the users in this order.
        rows: (tokens,) rows of `Sequences.item`.
        age: (tokens,) number of the user's tokens after this one.
        last: (users,) last token of each user.
        groups: the same tokens in groups for attention.
    """

    users: Int
    rows: Int
    age: Int
    last: Int
    groups: list[_Group]


@dataclass
class Sequences:
    """Each user's distinct items, oldest first: user u has `item[start[u] : end[u]]`."""

    item: Int
    start: Int
    end: Int

    def hold_out(self, rng: np.random.Generator, among: Int | None = None) -> Int:
        """Hold out the newest item of some users, in place, and return these users.

        They are a tenth of the users with three or more items, within bounds of 200 and 2,000, and never more than
        half of them. The held-out item of user u is `item[end[u]]`.

        Args:
            rng: random generator of the sample.
            among: positions of the users to sample from; None for all.
        """
        long = np.flatnonzero(self.end - self.start >= 3)
        long = long if among is None else np.intersect1d(long, among)
        count = min(int(np.clip(len(long) // 10, _LEAST_HELD_OUT, _MOST_HELD_OUT)), len(long) // 2)
        held = np.sort(rng.permutation(long)[:count])
        self.end[held] -= 1
        return held

    def items_in_order(self) -> Int:
        """The items that occur in sequences of two or more items, as input or as target."""
        long = np.flatnonzero(self.end - self.start >= 2)
        return np.unique(self.item[ranges(self.start[long], (self.end - self.start)[long])])

    def packed(self, users: Int, length: int, ahead: int = 0) -> _Packed:
        """The newest `length` items of each of `users` before the last `ahead`. Every user must have at least one."""
        end = self.end[users] - ahead
        size = np.minimum(end - self.start[users], length)
        order = np.argsort(size, kind="stable")
        end, size = end[order], size[order]
        token = np.cumsum(size)
        place = ranges(np.zeros_like(size), size)

        # Users whose lengths differ by at most a factor of two are padded together, so that little of it is padding.
        cuts = np.unique(np.searchsorted(size, 2 ** np.arange(int(size[-1]).bit_length() + 1), side="right"))
        groups = []

        for low, high in zip(np.concatenate([[0], cuts]).tolist(), cuts.tolist(), strict=False):
            if low == high:
                continue

            tokens = slice(int(token[low] - size[low]), int(token[high - 1]))
            width = int(size[high - 1])
            row = np.repeat(np.arange(high - low), size[low:high])
            groups.append(_Group(tokens, row * width + place[tokens], high - low, width))

        age = np.repeat(size, size) - 1 - place

        return _Packed(users[order], ranges(end - size, size), age, token - 1, groups)


def training_sequences(events: Interactions, known: NDArray[np.bool_]) -> Sequences:
    """Each user's distinct known items, in the order of their last events of positive weight.

    Args:
        events: the log, sorted by user and time.
        known: (items,) bool, the items to keep.
    """
    rows = np.flatnonzero((events.weight > 0) & known[events.item])
    user, item = events.user[rows], events.item[rows]
    pair = user * len(events.items) + item
    _, back = np.unique(pair[::-1], return_index=True)  # in reversed order the first is a pair's last event
    last = np.sort(len(pair) - 1 - back)
    bounds = np.searchsorted(user[last], np.arange(len(events.users) + 1))
    return Sequences(item[last], bounds[:-1].astype(np.int64), bounds[1:].astype(np.int64))


def ranges(first: Int, size: Int) -> Int:
    """The concatenated ranges first[i], first[i] + 1, ..., first[i] + size[i] - 1."""
    out: Int = np.arange(int(size.sum())) + np.repeat(first - (np.cumsum(size) - size), size)
    return out


def read_users(network: Network, factors: Float, sequences: Sequences, users: Int, length: int) -> Float:
    """(users, dim) state after each user's newest item; zero for users without items."""
    torch = require("torch")

    out = np.zeros((len(users), factors.shape[1]), np.float32)
    size = np.minimum((sequences.end - sequences.start)[users], length)
    order = np.argsort(size, kind="stable")
    order = order[np.searchsorted(size[order], 1) :]

    with torch.inference_mode():
        for first in range(0, len(order), _USERS):
            block = order[first : first + _USERS]
            packed = sequences.packed(users[block], length)  # keeps the order, which is by length already
            vectors = torch.from_numpy(factors[sequences.item[packed.rows]]).to(network.device)
            out[block] = network.states(vectors, packed)[torch.from_numpy(packed.last)].cpu().numpy()

    return out


class Network:
    """The network's weights by name, and its forward pass. It is no `torch.nn.Module`, so that torch is imported late.

    An item's vector is its row of the weight "own" (items, dim), plus its content times the weight "map" (content
    dimension, dim) if there is content. All other weights belong to the transformer.

    Args:
        weights: name -> weight; includes "position".
        content: (items, content dimension) content vectors.
    """

    def __init__(self, weights: dict[str, Tensor], content: Tensor | None = None) -> None:
        self.weights = weights
        self.content = content
        self.device = weights["position"].device

    @classmethod
    def new(cls, items: int, dim: int, length: int, blocks: int, content: Float | None) -> Network:
        """A network with random weights from torch's global generator, ready to train.

        Args:
            items: number of items.
            dim: dimension of vectors and states.
            length: maximum length of a history.
            blocks: number of attention blocks.
            content: (items, content dimension) unit vectors; None for free vectors only.
        """
        torch = require("torch")

        weights = {"position": torch.randn(length, dim) * SPREAD}
        if content is None:
            weights["own"] = torch.randn(items, dim) * SPREAD
        else:
            weights["own"] = torch.zeros(items, dim)
            # A random rotation spreads the principal components over all dimensions.
            rotation = torch.linalg.qr(torch.randn(dim, dim)).Q
            components = torch.from_numpy(_principal_components(content, dim))
            weights["map"] = components @ rotation[: components.shape[1]]

        for block in range(blocks):
            for name in ("query", "key", "value", "out", "inner", "outer"):
                weights[f"{block}.{name}"] = torch.nn.init.xavier_normal_(torch.empty(dim, dim))
                weights[f"{block}.{name}.bias"] = torch.zeros(dim)

        for norm in [f"{block}.{name}" for block in range(blocks) for name in ("before", "between")] + ["after"]:
            weights[norm], weights[f"{norm}.bias"] = torch.ones(dim), torch.zeros(dim)

        out = cls(weights, None if content is None else torch.from_numpy(content))
        out.learn()

        return out

    @classmethod
    def of(cls, arrays: Mapping[str, Float]) -> Network:
        """A network with these weights, on the CPU, to read histories."""
        torch = require("torch")

        return cls({name: torch.tensor(np.asarray(values)) for name, values in arrays.items()})

    def learn(self) -> None:
        """Enable gradients, and move the weights to the GPU if there is one."""
        torch = require("torch")

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.weights = {name: weight.to(self.device).requires_grad_() for name, weight in self.weights.items()}
        self.content = None if self.content is None else self.content.to(self.device)

    def freeze(self) -> None:
        """Disable gradients."""
        self.weights = {name: weight.detach() for name, weight in self.weights.items()}

    def to_numpy(self) -> dict[str, Float]:
        """The weights as arrays."""
        return {name: weight.detach().cpu().numpy() for name, weight in self.weights.items()}

    def vectors(self, items: Int) -> Tensor:
        """(len(items), dim) vectors of the items at these positions."""
        torch = require("torch")
        functional = require("torch.nn.functional")

        rows = torch.from_numpy(items).to(self.device)
        own = functional.embedding(rows, self.weights["own"])
        return own if self.content is None else own + self.content[rows] @ self.weights["map"]

    def all_vectors(self) -> Float:
        """(all items, dim) item vectors, without gradients."""
        torch = require("torch")

        with torch.no_grad():
            out = self.weights["own"]
            out = out if self.content is None else out + self.content @ self.weights["map"]
            return np.asarray(out.detach().cpu().numpy().copy(), np.float32)

    def states(self, vectors: Tensor, packed: _Packed, dropout: float = 0.0) -> Tensor:
        """(tokens, dim) state after each token: it depends on the user's tokens up to this one.

        Args:
            vectors: (tokens, dim) item vectors.
            packed: the histories.
            dropout: dropout rate; 0 outside training.
        """
        torch = require("torch")
        functional = require("torch.nn.functional")

        def linear(name: str, x: Tensor) -> Tensor:
            return functional.linear(x, self.weights[name], self.weights[f"{name}.bias"])

        def norm(name: str, x: Tensor) -> Tensor:
            return functional.layer_norm(x, x.shape[1:], self.weights[name], self.weights[f"{name}.bias"])

        def drop(x: Tensor) -> Tensor:
            return functional.dropout(x, dropout) if dropout else x

        # Positions count back from the newest item, so that the newest has the same position in every history.
        age = torch.from_numpy(packed.age).to(self.device)
        x = drop(vectors + functional.embedding(age, self.weights["position"]))
        for block in range(sum(name.endswith(".query") for name in self.weights)):
            query = norm(f"{block}.before", x)
            projected = linear(f"{block}.query", query), linear(f"{block}.key", x), linear(f"{block}.value", x)
            x = norm(f"{block}.between", query + linear(f"{block}.out", _attention(projected, packed.groups, dropout)))
            x = x + drop(linear(f"{block}.outer", drop(torch.relu(linear(f"{block}.inner", x)))))

        return norm("after", x)


def _principal_components(content: Float, most: int) -> Float:
    """(content dimension, at most `most`) map of the content vectors onto their principal components.

    The standard deviation along each component is replaced by its square root, so that the first ones do not dominate
    and the last ones, which are mostly noise, stay small.
    """
    value, vector = np.linalg.eigh(content.T.astype(np.float64) @ content)
    kept = np.argsort(-value)[:most]
    kept = kept[value[kept] > 1e-6 * max(value.max(), 1e-12)]
    out = vector[:, kept] * value[kept] ** -0.25

    # The sum of squares of the mapped vectors is the sum of the roots of `value`; scaled to the length _LENGTH.
    return np.asarray(out * _LENGTH * np.sqrt(len(content) / max(np.sqrt(value[kept]).sum(), 1e-12)), np.float32)


def _attention(projected: tuple[Tensor, Tensor, Tensor], groups: list[_Group], dropout: float) -> Tensor:
    """(tokens, dim) causal attention over projected queries, keys and values, padded group by group."""
    torch = require("torch")
    functional = require("torch.nn.functional")

    out = []

    for tokens, cell, height, width in groups:
        cells = torch.from_numpy(cell).to(projected[0].device)
        query, key, value = (
            torch.zeros(height * width, each.shape[1], device=each.device)
            .index_copy(0, cells, each[tokens])
            .view(height, 1, width, -1)
            for each in projected
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        out.append(functional.embedding(cells, mixed.reshape(height * width, -1)))

    return torch.cat(out)

"""The network of `SASRec` and the sequences that it reads."""

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
_FEW, _MANY = 200, 2000  # bounds on the number of users held out for early stopping, a tenth of all between them
SPREAD = 0.02  # standard deviation of item vectors and positions before training
_LENGTH = 0.5  # root mean square length of mapped content before training
_USERS = 512  # histories read at a time


class _Group(NamedTuple):
    """Users of similar length, padded together: their tokens, the cell of each, and the padded height and width."""

    tokens: slice
    cell: Int
    height: int
    width: int


class _Packed(NamedTuple):
    """Histories end to end without padding, shortest first.

    `rows` of `Sequences.item`, `age` of each from the user's newest (0), `last` token of each of `users`.
    """

    users: Int
    rows: Int
    age: Int
    last: Int
    groups: list[_Group]


@dataclass
class Sequences:
    """Each user's distinct items, oldest first: those of user u are `item[start[u] : end[u]]`."""

    item: Int
    start: Int
    end: Int

    def hold_out(self, rng: np.random.Generator, among: Int | None = None) -> Int:
        """Hold out the newest item of some users with three or more, at most half of them; returns these users.

        The held-out item of user u is `item[end[u]]`.
        """
        long = np.flatnonzero(self.end - self.start >= 3)
        long = long if among is None else np.intersect1d(long, among)
        count = min(int(np.clip(len(long) // 10, _FEW, _MANY)), len(long) // 2)
        held = np.sort(rng.permutation(long)[:count])
        self.end[held] -= 1
        return held

    def items_in_order(self) -> Int:
        """Items in sequences of two or more: those that follow another, or are followed by one."""
        long = np.flatnonzero(self.end - self.start >= 2)
        return np.unique(self.item[ranges(self.start[long], (self.end - self.start)[long])])

    def packed(self, users: Int, length: int, ahead: int = 0) -> _Packed:
        """The newest `length` items of each of `users`, without the last `ahead`. Each must have one at least."""
        end = self.end[users] - ahead
        size = np.minimum(end - self.start[users], length)
        order = np.argsort(size, kind="stable")
        end, size = end[order], size[order]
        token = np.cumsum(size)
        place = ranges(np.zeros_like(size), size)
        # Users within a factor of two in length are padded together: attention over padding is then cheap.
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
    """Distinct known items of each user by their last event of positive weight; `events` are in user and time order."""
    rows = np.flatnonzero((events.weight > 0) & known[events.item])
    user, item = events.user[rows], events.item[rows]
    pair = user * len(events.items) + item
    _, back = np.unique(pair[::-1], return_index=True)
    last = np.sort(len(pair) - 1 - back)
    bounds = np.searchsorted(user[last], np.arange(len(events.users) + 1))
    return Sequences(item[last], bounds[:-1].astype(np.int64), bounds[1:].astype(np.int64))


def ranges(first: Int, size: Int) -> Int:
    """first[0], first[0] + 1, ... (size[0] of them), first[1], ... end to end."""
    out: Int = np.arange(int(size.sum())) + np.repeat(first - (np.cumsum(size) - size), size)
    return out


def read_users(network: Network, factors: Float, sequences: Sequences, users: Int, length: int) -> Float:
    """(users, dim) state after each user's newest item; zero for an empty history."""
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
    """The weights by name, and what they compute. A plain class, so that torch is not imported with this file.

    `own` (items, dim) and `map` (content, dim) make the item vectors, all else the transformer.
    """

    def __init__(self, weights: dict[str, Tensor], content: Tensor | None = None) -> None:
        self.weights = weights
        self.content = content
        self.device = weights["position"].device

    @classmethod
    def new(cls, items: int, dim: int, length: int, blocks: int, content: Float | None) -> Network:
        """Random weights from torch's generator, on the GPU where there is one."""
        torch = require("torch")

        weights = {"position": torch.randn(length, dim) * SPREAD}
        if content is None:
            weights["own"] = torch.randn(items, dim) * SPREAD
        else:
            weights["own"] = torch.zeros(items, dim)
            turn = torch.linalg.qr(torch.randn(dim, dim)).Q
            main = torch.from_numpy(_principal_components(content, dim))
            weights["map"] = main @ turn[: main.shape[1]]

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
        """The transformer with these weights, to read histories on the CPU."""
        torch = require("torch")

        return cls({name: torch.tensor(np.asarray(values)) for name, values in arrays.items()})

    def learn(self) -> None:
        """Gradients from here on, on the GPU where there is one."""
        torch = require("torch")

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.weights = {name: weight.to(self.device).requires_grad_() for name, weight in self.weights.items()}
        self.content = None if self.content is None else self.content.to(self.device)

    def freeze(self) -> None:
        """No gradients from here on."""
        self.weights = {name: weight.detach() for name, weight in self.weights.items()}

    def to_numpy(self) -> dict[str, Float]:
        """The weights as arrays."""
        return {name: weight.detach().cpu().numpy() for name, weight in self.weights.items()}

    def vectors(self, items: Int) -> Tensor:
        """(len(items), dim) item vectors."""
        torch = require("torch")
        functional = require("torch.nn.functional")

        rows = torch.from_numpy(items).to(self.device)
        own = functional.embedding(rows, self.weights["own"])
        return own if self.content is None else own + self.content[rows] @ self.weights["map"]

    def all_vectors(self) -> Float:
        """(items, dim) vectors of the whole catalogue."""
        torch = require("torch")

        with torch.no_grad():
            out = self.weights["own"]
            out = out if self.content is None else out + self.content @ self.weights["map"]
            return np.asarray(out.detach().cpu().numpy().copy(), np.float32)

    def states(self, vectors: Tensor, packed: _Packed, dropout: float = 0.0) -> Tensor:
        """(tokens, dim) state after each token, from the token's vector and those before it of the same user."""
        torch = require("torch")
        functional = require("torch.nn.functional")

        def linear(name: str, x: Tensor) -> Tensor:
            return functional.linear(x, self.weights[name], self.weights[f"{name}.bias"])

        def norm(name: str, x: Tensor) -> Tensor:
            return functional.layer_norm(x, x.shape[1:], self.weights[name], self.weights[f"{name}.bias"])

        def drop(x: Tensor) -> Tensor:
            return functional.dropout(x, dropout) if dropout else x

        age = torch.from_numpy(packed.age).to(self.device)
        x = drop(vectors + functional.embedding(age, self.weights["position"]))
        for block in range(sum(name.endswith(".query") for name in self.weights)):
            query = norm(f"{block}.before", x)
            projected = linear(f"{block}.query", query), linear(f"{block}.key", x), linear(f"{block}.value", x)
            x = norm(f"{block}.between", query + linear(f"{block}.out", _attention(projected, packed.groups, dropout)))
            x = x + drop(linear(f"{block}.outer", drop(torch.relu(linear(f"{block}.inner", x)))))

        return norm("after", x)


def _principal_components(content: Float, most: int) -> Float:
    """(width, at most `most`) map onto the directions along which unit vectors differ most.

    The spread along each direction becomes its root, so that the largest do not drown the rest and noise stays small.
    """
    value, vector = np.linalg.eigh(content.T.astype(np.float64) @ content)
    kept = np.argsort(-value)[:most]
    kept = kept[value[kept] > 1e-6 * max(value.max(), 1e-12)]
    out = vector[:, kept] * value[kept] ** -0.25

    # The mapped rows have the roots of `value` as their total squares.
    return np.asarray(out * _LENGTH * np.sqrt(len(content) / max(np.sqrt(value[kept]).sum(), 1e-12)), np.float32)


def _attention(projected: tuple[Tensor, Tensor, Tensor], groups: list[_Group], dropout: float) -> Tensor:
    """(tokens, dim) causal attention of queries, keys and values; only attention itself sees padding."""
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

"""A causal transformer over each user's items: SASRec, with the items' content where it is given."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.artifacts import Artifact, ArtifactWriter
from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError
from recotransfer.recommenders.base import FactorModel
from recotransfer.scoring import TopK, top_k
from recotransfer.solvers import Float, changed_users, unit_rows

Int = NDArray[np.int64]

_FEW, _MANY = 200, 2000  # users whose newest item tells when to stop: a tenth, within these where there are as many
_K = 10
_SPREAD = 0.02  # standard deviation of item vectors and positions before training
_LENGTH = 0.5  # root mean square length of mapped content before training
_MAP_STEP = 0.02  # of the learning rate: one entry of the map moves every item, a vector's entry only its own
_USERS = 512  # histories read at a time
_FEWER = 3  # users visited by a fit to those by an update, at most


class SASRec(FactorModel):
    """The next item from the order of the user's items, by a causal transformer (Kang and McAuley, 2018).

    Trained as Klenitskiy and Vasilev, "Turning dross into gold loss" (2023), found best: cross-entropy of the true next
    item against sampled ones, here the same for a whole batch. A user is what the network makes of the last `length`
    distinct items, so new users need no refit; the order of an untimed log is its time.

    Fitted with embeddings, an item's vector is a map of its content plus a vector of its own. The map begins as the
    main components of the content, drawn together in size, and learns slowly; the own vectors begin at zero. Items that
    no sequence holds keep zero, so they are ranked on content, beside all others; new ones enter through `extend`.
    Without embeddings they follow by popularity. A seed gives one result for a machine and number of threads.

    Args:
        dim: width of the item vectors and of the network.
        blocks: attention layers.
        dropout: share of values zeroed while training, below 1.
        length: newest items of a history that are read.
        negatives: items drawn for each batch; all of them where there are no more.
        learning_rate: step of Adam.
        batch_size: users per step.
        epochs: sweeps at most.
        patience: sweeps without a better NDCG@10 on held-out items until training stops; the best weights are kept.
        rng: seed.

    Attributes:
        curve_: one row per sweep: epoch, loss, ndcg (None where no user could be held out), seconds.
    """

    scores_new_items: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "dim": (32, 128),
        "dropout": (0.1, 0.7),
        "learning_rate": (0.0005, 0.005),
        "negatives": (128, 1024),
    }

    curve_: list[dict[str, Any]]

    def __init__(
        self,
        *,
        dim: int = 64,
        blocks: int = 1,
        dropout: float = 0.5,
        length: int = 50,
        negatives: int = 512,
        learning_rate: float = 0.002,
        batch_size: int = 128,
        epochs: int = 100,
        patience: int = 5,
        rng: int = 0,
    ) -> None:
        self.dim, self.blocks, self.dropout, self.length = dim, blocks, dropout, length
        self.negatives, self.learning_rate, self.batch_size = negatives, learning_rate, batch_size
        self.epochs, self.patience, self.rng = epochs, patience, rng

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        import torch

        if self.dropout >= 1:
            raise InputError(f"SASRec: dropout must be below 1, got {self.dropout}")
        rng = np.random.default_rng(self.rng)
        sequences = _sequences(events, np.ones(len(events.items), bool))
        held = sequences.hold_out(rng)
        learned = sequences.items_in_order()
        if not len(learned):
            raise InputError("SASRec learns what follows what, but no user has two different items; use another model")
        content = None if items is None else unit_rows(items.vectors)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.rng)
            network = _Network.new(len(events.items), self.dim, self.length, self.blocks, content)
            self._train(network, sequences, held, learned, rng, self.epochs)
        known = np.zeros(len(events.items), bool)
        known[learned] = True
        network.weights["own"][torch.from_numpy(~known).to(network.device)] = 0  # never trained: noise from the start
        self._set_factors(network.all_vectors())
        self.known_ = known if items is None else known | items.has_content
        arrays = network.to_numpy()
        del arrays["own"]
        self.map_, self.network_ = arrays.pop("map", None), arrays

    def _width(self) -> int | None:
        return None if self.map_ is None else len(self.map_)

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        """Vectors go on from where they are, those of new items from their mapped content; the map itself stays."""
        import torch

        rng = np.random.default_rng(self.rng)
        sequences, changed = _sequences(events, np.ones(len(events.items), bool)), changed_users(before, events)
        held, learned = sequences.hold_out(rng, changed), sequences.items_in_order()
        known, own = np.zeros(len(events.items), bool), np.zeros((len(events.items), self.dim), np.float32)
        known[: len(self.known_)], own[: len(self.known_)] = self.known_, self.factors_
        if self.map_ is not None and fresh is not None:
            known[len(self.known_) :] = fresh.has_content
            own[len(self.known_) :] = unit_rows(fresh.vectors) @ self.map_
        without = learned[~known[learned]]
        own[without] = _SPREAD * rng.normal(size=(len(without), self.dim))
        known[without] = True
        long = sequences.end - sequences.start >= 2
        visited = min(2 * int(long[changed].sum()), int(long.sum()))
        sweeps = min(self.epochs, max(1, self.epochs * int(long.sum()) // (_FEWER * max(visited, 1))))
        if visited:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed(self.rng)
                network = _Network.of({**self.network_, "own": own})
                network.learn()
                self._train(network, sequences, held, learned, rng, sweeps, changed)
            self.network_ = network.to_numpy()
            own = self.network_.pop("own")
        self._set_factors(own)
        self.known_ = known
        done = f"{len(self.curve_)} sweeps from the present weights" if visited else "weights as they were"
        return f"{done}, over {visited} changed users and others"

    def _train(
        self,
        network: _Network,
        sequences: _Sequences,
        held: Int,
        learned: Int,
        rng: np.random.Generator,
        epochs: int,
        changed: Int | None = None,
    ) -> None:
        """Sweeps over the sequences until nothing is gained; `network` ends with the best weights.

        Of all users, or of those `changed` and as many others, drawn for each sweep.
        """
        import torch
        from tqdm import tqdm

        steps = [
            {"params": [weight], "lr": self.learning_rate * (_MAP_STEP if name == "map" else 1)}
            for name, weight in network.weights.items()
        ]
        optimiser = torch.optim.Adam(steps, fused=True)
        best, best_epoch, kept = -1.0, 0, None
        self.curve_ = []
        long = np.flatnonzero(sequences.end - sequences.start >= 2)
        others = long[:0] if changed is None else np.setdiff1d(long, changed)
        users = long if changed is None else np.intersect1d(long, changed)
        for epoch in tqdm(range(1, epochs + 1), desc="SASRec", unit="epoch", disable=None, delay=10):
            start = time.perf_counter()
            replayed = rng.permutation(others)[: len(users)]
            order = rng.permutation(np.concatenate([users, replayed]))
            loss = self._sweep(network, optimiser, sequences, order, learned, rng)
            ndcg = self._validate(network, sequences, held, learned) if len(held) else None
            if not np.isfinite([loss, ndcg or 0]).all():
                raise InputError(f"SASRec: training diverged; learning_rate {self.learning_rate} is too great")
            seconds = round(time.perf_counter() - start, 3)
            self.curve_.append({"epoch": epoch, "loss": loss, "ndcg": ndcg, "seconds": seconds})
            if ndcg is None:
                continue
            if ndcg >= best:  # of equals the later, which has learned more
                kept = {name: weight.detach().clone() for name, weight in network.weights.items()}
            if ndcg > best:
                best, best_epoch = ndcg, epoch
            elif epoch - best_epoch >= self.patience:
                break
        if kept is not None:
            network.weights = kept
        network.freeze()

    def _sweep(
        self,
        network: _Network,
        optimiser: Any,
        sequences: _Sequences,
        users: Int,
        learned: Int,
        rng: np.random.Generator,
    ) -> float:
        """One pass over `users` in their order; the mean loss."""
        import torch
        from torch.nn import functional

        total, count = 0.0, 0
        for first in range(0, len(users), self.batch_size):
            packed = sequences.packed(users[first : first + self.batch_size], self.length, ahead=1)
            negatives = learned
            if len(learned) > self.negatives:
                negatives = learned[rng.integers(0, len(learned), self.negatives)]
            past, future = sequences.item[packed.rows], sequences.item[packed.rows + 1]
            items, place = np.unique(np.concatenate([past, future, negatives]), return_inverse=True)
            vectors = network.vectors(items)
            past, future, negatives = (
                torch.from_numpy(part).to(network.device) for part in np.split(place, [len(past), 2 * len(past)])
            )
            states = network.states(functional.embedding(past, vectors), packed, self.dropout)
            true = (states * functional.embedding(future, vectors)).sum(dim=1, keepdim=True)
            others = states @ functional.embedding(negatives, vectors).T
            others = others.masked_fill(future[:, None] == negatives, -torch.inf)
            loss = (torch.logsumexp(torch.cat([true, others], dim=1), dim=1) - true[:, 0]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total, count = total + loss.item() * len(states), count + len(states)
        return total / count

    def _validate(self, network: _Network, sequences: _Sequences, held: Int, learned: Int) -> float:
        """NDCG@10 of the held-out items among all that were trained on, items in the history left out."""
        factors = network.all_vectors()
        queries = _read_users(network, factors, sequences, held, self.length)
        if not np.isfinite(queries).all():
            return np.nan
        size = sequences.end[held] - sequences.start[held]
        own = sequences.item[_ranges(sequences.start[held], size)]
        pairs = (np.ones(len(own), np.float32), (np.repeat(np.arange(len(held)), size), own))
        seen = sparse.coo_array(pairs, shape=(len(held), len(factors))).tocsr()
        mask = np.isin(np.arange(len(factors)), learned)
        found = top_k(queries, factors, min(_K, len(factors)), exclude=seen, mask=mask).positions
        hit = found == sequences.item[sequences.end[held]][:, None]
        return float((hit / np.log2(np.arange(2, found.shape[1] + 2))).sum(axis=1).mean())

    # -- results -------------------------------------------------------------------------------------------------------

    def _queries(self, events: Interactions) -> Float:
        sequences = _sequences(events, self.known_)
        return _read_users(
            _Network.of(self.network_), self.factors_, sequences, np.arange(len(events.users)), self.length
        )

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        if not self.known_.all():  # the zeros of an item that nothing is known of would outrank dislike
            mask = self.known_ if mask is None else mask & self.known_
        return super()._rank(events, k, exclude, mask)

    def _extend(self, items: Embeddings) -> None:
        if self.map_ is None:
            raise InputError("this SASRec was fitted without embeddings, so new items mean nothing to it")
        if items.dim != len(self.map_):
            raise InputError(f"new items have {items.dim} dimensions, the model was fitted with {len(self.map_)}")
        self.known_ = np.concatenate([self.known_, items.has_content])
        self.index_ = self.index_.extended(unit_rows(items.vectors) @ self.map_)

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.json("network", sorted(self.network_))
        for name, values in self.network_.items():
            writer.array(f"network.{name}", values)
        if self.map_ is not None:
            writer.array("map", self.map_)
        writer.array("known", self.known_)
        writer.json("curve", self.curve_)

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.network_ = {name: artifact.array(f"network.{name}") for name in artifact.json("network")}
        self.map_ = artifact.array("map") if "map.npy" in artifact else None
        self.known_ = artifact.array("known")
        self.curve_ = artifact.json("curve")


# -- sequences ---------------------------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """Neighbouring users of like length: their tokens, the cell of each, and the cells' height and width."""

    tokens: slice
    cell: Int
    height: int
    width: int


class _Packed(NamedTuple):
    """Histories end to end without padding, shortest first.

    `rows` of `_Sequences.item`, `age` of each from the user's newest (0), `last` token of each of `users`.
    """

    users: Int
    rows: Int
    age: Int
    last: Int
    groups: list[_Group]


@dataclass
class _Sequences:
    """Each user's distinct items, oldest first: those of user u are `item[start[u] : end[u]]`."""

    item: Int
    start: Int
    end: Int

    def hold_out(self, rng: np.random.Generator, among: Int | None = None) -> Int:
        """Users with three items or more whose newest is taken off and stands at `end`; at most half of them."""
        long = np.flatnonzero(self.end - self.start >= 3)
        long = long if among is None else np.intersect1d(long, among)
        count = min(int(np.clip(len(long) // 10, _FEW, _MANY)), len(long) // 2)
        held = np.sort(rng.permutation(long)[:count])
        self.end[held] -= 1
        return held

    def items_in_order(self) -> Int:
        """Items of users with two or more: those that follow, or are followed by, another."""
        long = np.flatnonzero(self.end - self.start >= 2)
        return np.unique(self.item[_ranges(self.start[long], (self.end - self.start)[long])])

    def packed(self, users: Int, length: int, ahead: int = 0) -> _Packed:
        """The newest `length` items of some users who have any, less the last `ahead`."""
        end = self.end[users] - ahead
        size = np.minimum(end - self.start[users], length)
        order = np.argsort(size, kind="stable")
        end, size = end[order], size[order]
        token = np.cumsum(size)
        place = _ranges(np.zeros_like(size), size)
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
        return _Packed(users[order], _ranges(end - size, size), age, token - 1, groups)


def _sequences(events: Interactions, known: NDArray[np.bool_]) -> _Sequences:
    """Distinct known items of each user by their last event of positive weight; `events` are in user and time order."""
    rows = np.flatnonzero((events.weight > 0) & known[events.item])
    user, item = events.user[rows], events.item[rows]
    pair = user * len(events.items) + item
    _, back = np.unique(pair[::-1], return_index=True)
    last = np.sort(len(pair) - 1 - back)
    bounds = np.searchsorted(user[last], np.arange(len(events.users) + 1))
    return _Sequences(item[last], bounds[:-1].astype(np.int64), bounds[1:].astype(np.int64))


def _ranges(first: Int, size: Int) -> Int:
    """first[0], first[0] + 1, ... (size[0] of them), first[1], ... end to end."""
    out: Int = np.arange(int(size.sum())) + np.repeat(first - (np.cumsum(size) - size), size)
    return out


def _read_users(network: _Network, factors: Float, sequences: _Sequences, users: Int, length: int) -> Float:
    """(users, dim) state after each user's newest item; zero for an empty history."""
    import torch

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


# -- network -----------------------------------------------------------------------------------------------------------


class _Network:
    """The weights by name, and what they compute. A plain class, so that torch is not imported with this file.

    `own` (items, dim) and `map` (content, dim) make the item vectors, all else the transformer.
    """

    def __init__(self, weights: dict[str, Any], content: Any = None) -> None:
        self.weights, self.content = weights, content
        self.device = weights["position"].device

    @classmethod
    def new(cls, items: int, dim: int, length: int, blocks: int, content: Float | None) -> _Network:
        """Random weights from torch's generator, on the GPU where there is one."""
        import torch

        weights = {"position": torch.randn(length, dim) * _SPREAD}
        if content is None:
            weights["own"] = torch.randn(items, dim) * _SPREAD
        else:
            weights["own"] = torch.zeros(items, dim)
            turn = torch.linalg.qr(torch.randn(dim, dim)).Q
            main = torch.from_numpy(_main_components(content, dim))
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
    def of(cls, arrays: Mapping[str, Float]) -> _Network:
        """The transformer with these weights, to read histories on the CPU."""
        import torch

        return cls({name: torch.tensor(np.asarray(values)) for name, values in arrays.items()})

    def learn(self) -> None:
        """Gradients from here on, on the GPU where there is one."""
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.weights = {name: weight.to(self.device).requires_grad_() for name, weight in self.weights.items()}
        self.content = None if self.content is None else self.content.to(self.device)

    def freeze(self) -> None:
        """No gradients from here on."""
        self.weights = {name: weight.detach() for name, weight in self.weights.items()}

    def to_numpy(self) -> dict[str, Float]:
        """The weights as arrays."""
        return {name: weight.detach().cpu().numpy() for name, weight in self.weights.items()}

    def vectors(self, items: Int) -> Any:
        """(len(items), dim) item vectors."""
        import torch
        from torch.nn import functional

        rows = torch.from_numpy(items).to(self.device)
        own = functional.embedding(rows, self.weights["own"])
        return own if self.content is None else own + self.content[rows] @ self.weights["map"]

    def all_vectors(self) -> Float:
        """(items, dim) vectors of the whole catalogue."""
        import torch

        with torch.no_grad():
            out = self.weights["own"]
            out = out if self.content is None else out + self.content @ self.weights["map"]
            return np.asarray(out.detach().cpu().numpy().copy(), np.float32)

    def states(self, vectors: Any, packed: _Packed, dropout: float = 0.0) -> Any:
        """(tokens, dim) state after each token, from the token's vector and those before it of the same user."""
        import torch
        from torch.nn import functional

        def linear(name: str, x: Any) -> Any:
            return functional.linear(x, self.weights[name], self.weights[f"{name}.bias"])

        def norm(name: str, x: Any) -> Any:
            return functional.layer_norm(x, x.shape[1:], self.weights[name], self.weights[f"{name}.bias"])

        def drop(x: Any) -> Any:
            return functional.dropout(x, dropout) if dropout else x

        age = torch.from_numpy(packed.age).to(self.device)
        x = drop(vectors + functional.embedding(age, self.weights["position"]))
        for block in range(sum(name.endswith(".query") for name in self.weights)):
            query = norm(f"{block}.before", x)
            parts = linear(f"{block}.query", query), linear(f"{block}.key", x), linear(f"{block}.value", x)
            x = norm(f"{block}.between", query + linear(f"{block}.out", _attended(parts, packed.groups, dropout)))
            x = x + drop(linear(f"{block}.outer", drop(torch.relu(linear(f"{block}.inner", x)))))
        return norm("after", x)


def _main_components(content: Float, most: int) -> Float:
    """(width, at most `most`) map onto the directions in which unit vectors differ most.

    Spread along each is brought to its root, so that the greatest do not drown the rest and noise stays small.
    """
    value, vector = np.linalg.eigh(content.T.astype(np.float64) @ content)
    kept = np.argsort(-value)[:most]
    kept = kept[value[kept] > 1e-6 * max(value.max(), 1e-12)]
    out = vector[:, kept] * value[kept] ** -0.25
    # The mapped rows have the roots of `value` as their total squares.
    return np.asarray(out * _LENGTH * np.sqrt(len(content) / max(np.sqrt(value[kept]).sum(), 1e-12)), np.float32)


def _attended(parts: tuple[Any, Any, Any], groups: list[_Group], dropout: float) -> Any:
    """(tokens, dim) causal attention of queries, keys and values; only attention itself sees padding."""
    import torch
    from torch.nn import functional

    out = []
    for tokens, cell, height, width in groups:
        cells = torch.from_numpy(cell).to(parts[0].device)
        query, key, value = (
            torch.zeros(height * width, part.shape[1], device=part.device)
            .index_copy(0, cells, part[tokens])
            .view(height, 1, width, -1)
            for part in parts
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        out.append(functional.embedding(cells, mixed.reshape(height * width, -1)))
    return torch.cat(out)

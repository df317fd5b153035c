"""SASRec: a causal transformer over each user's sequence of items, optionally with item content."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.histories import changed_users
from recotransfer.numerics.topk import TopK, top_k
from recotransfer.numerics.vectors import Float, unit_rows
from recotransfer.progress import counted
from recotransfer.recommenders._sasrec_network import (
    SPREAD,
    Int,
    Network,
    Sequences,
    ranges,
    read_users,
    training_sequences,
)
from recotransfer.recommenders.factor_model import FactorModel
from recotransfer.settings import Bounds, NonNegativeInt, Positive, PositiveInt

if TYPE_CHECKING:
    from torch.optim import Optimizer

_K = 10  # list length of the NDCG for early stopping
_MAP_STEP = 0.02  # relative learning rate of the content map, each entry of which affects every item
_FIT_TO_UPDATE = 3  # a fit visits at least this many times as many users as an update, counted over all epochs


class SASRec(FactorModel):
    """Next-item prediction from the order of the user's items, by a causal transformer (Kang and McAuley, 2018).

    The loss is the cross-entropy of the true next item against sampled negatives, which Klenitskiy and Vasilev,
    "Turning dross into gold loss" (2023), found best; here a batch shares its negatives. A user is represented by the
    network's state after the last `length` distinct items, so new users need no refit. Logs without times are taken to
    be in order of time.

    With embeddings, an item's vector is a linear map of its content plus a free vector. The map starts from the
    principal components of the content, with their variances evened out, and has a small learning rate; free vectors
    start at zero. Items in no training sequence keep a free vector of zero, so they are ranked by content in the same
    list as the others, and `extend` can add new items. Without embeddings, such items are ranked by popularity, after
    the others. Results are reproducible for a given seed, machine and number of threads.

    Args:
        dim: dimension of the item vectors and of the network.
        blocks: number of attention blocks.
        dropout: dropout rate, below 1.
        length: number of most recent items read from a history.
        negatives: number of negatives sampled per batch; if there are no more items than that, all are used.
        learning_rate: learning rate of Adam.
        batch_size: users per step.
        epochs: maximum number of epochs.
        patience: epochs without a better NDCG@10 on held-out items before training stops; the best weights are kept.
        seed: random seed of the weights, the held-out users, the batches and the negatives.

    Attributes:
        curve_: one row per epoch: epoch, loss, ndcg (None if no user could be held out), seconds.
        known_: (items,) bool, items with a meaningful vector, from training or content; the others are never scored.
        map_: (content dimension, dim) linear map of the content; None without embeddings.
        network_: the transformer's weights by name.
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
        dim: PositiveInt = 64,
        blocks: PositiveInt = 1,
        dropout: Annotated[float, Bounds(least=0, below=1)] = 0.5,
        length: PositiveInt = 50,
        negatives: PositiveInt = 512,
        learning_rate: Positive = 0.002,
        batch_size: PositiveInt = 128,
        epochs: PositiveInt = 100,
        patience: PositiveInt = 5,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.dim = dim
        self.blocks = blocks
        self.dropout = dropout
        self.length = length
        self.negatives = negatives
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.seed = seed

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        torch = require("torch")

        rng = np.random.default_rng(self.seed)
        sequences = training_sequences(events, np.ones(len(events.items), bool))
        held = sequences.hold_out(rng)
        learned = sequences.items_in_order()
        if not len(learned):
            raise InputError(
                "SASRec learns from the order of items, but no user has two different items; use another recommender"
            )

        content = None if items is None else unit_rows(items.vectors)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.seed)
            network = Network.new(len(events.items), self.dim, self.length, self.blocks, content)
            self._train(network, sequences, held, learned, rng, self.epochs)

        known = np.zeros(len(events.items), bool)
        known[learned] = True
        network.weights["own"][torch.from_numpy(~known).to(network.device)] = 0  # clear initial values never trained
        self._set_factors(network.all_vectors())
        self.known_ = known if items is None else known | items.has_content
        arrays = network.to_numpy()
        del arrays["own"]
        self.map_, self.network_ = arrays.pop("map", None), arrays

    def _width(self) -> int | None:
        return None if self.map_ is None else len(self.map_)

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        """Continue training from the current item vectors, with the map fixed. New items start from mapped content."""
        torch = require("torch")

        rng = np.random.default_rng(self.seed)
        sequences, changed = training_sequences(events, np.ones(len(events.items), bool)), changed_users(before, events)
        held, learned = sequences.hold_out(rng, changed), sequences.items_in_order()
        known, own = np.zeros(len(events.items), bool), np.zeros((len(events.items), self.dim), np.float32)
        known[: len(self.known_)], own[: len(self.known_)] = self.known_, self.factors_
        if self.map_ is not None and fresh is not None:
            known[len(self.known_) :] = fresh.has_content
            own[len(self.known_) :] = unit_rows(fresh.vectors) @ self.map_

        # Items with neither training nor content start from random vectors, as in a fit.
        without = learned[~known[learned]]
        own[without] = SPREAD * rng.normal(size=(len(without), self.dim))
        known[without] = True

        # Each epoch visits as many other users as changed ones, to prevent forgetting.
        long = sequences.end - sequences.start >= 2
        visited = min(2 * int(long[changed].sum()), int(long.sum()))
        sweeps = min(self.epochs, max(1, self.epochs * int(long.sum()) // (_FIT_TO_UPDATE * max(visited, 1))))
        if visited:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed(self.seed)
                network = Network.of({**self.network_, "own": own})
                network.learn()
                self._train(network, sequences, held, learned, rng, sweeps, changed)

            self.network_ = network.to_numpy()
            own = self.network_.pop("own")

        self._set_factors(own)
        self.known_ = known
        done = f"{len(self.curve_)} epochs from the current weights" if visited else "weights unchanged"

        return f"{done}, on {visited} users, changed ones and others"

    def _train(
        self,
        network: Network,
        sequences: Sequences,
        held: Int,
        learned: Int,
        rng: np.random.Generator,
        epochs: int,
        changed: Int | None = None,
    ) -> None:
        """Train `network` in place with early stopping by NDCG@10, and restore the weights of the best epoch.

        Args:
            network: the network.
            sequences: the users' items.
            held: positions of the users whose newest item is held out.
            learned: positions of the items to train on.
            rng: random generator of the order of users and the negatives.
            epochs: maximum number of epochs.
            changed: positions of the users with new events; each epoch visits these, and as many others drawn at
                random. None visits all users.
        """
        torch = require("torch")

        groups = [
            {"params": [weight], "lr": self.learning_rate * (_MAP_STEP if name == "map" else 1)}
            for name, weight in network.weights.items()
        ]
        optimiser = torch.optim.Adam(groups, fused=True)
        best, best_epoch, kept = -1.0, 0, None
        self.curve_ = []
        long = np.flatnonzero(sequences.end - sequences.start >= 2)
        others = long[:0] if changed is None else np.setdiff1d(long, changed)
        users = long if changed is None else np.intersect1d(long, changed)

        for epoch in counted(range(1, epochs + 1), desc="SASRec", unit="epoch", delay=10):
            start = time.perf_counter()
            replayed = rng.permutation(others)[: len(users)]
            order = rng.permutation(np.concatenate([users, replayed]))
            loss = self._sweep(network, optimiser, sequences, order, learned, rng)
            ndcg = self._validate(network, sequences, held, learned) if len(held) else None
            if not np.isfinite([loss, ndcg or 0]).all():
                raise InputError(
                    f"SASRec: training diverged; learning_rate {self.learning_rate} is too large, use a smaller one"
                )

            seconds = round(time.perf_counter() - start, 3)
            self.curve_.append({"epoch": epoch, "loss": loss, "ndcg": ndcg, "seconds": seconds})
            if ndcg is None:
                continue

            if ndcg >= best:  # of equally good epochs the last, which has trained longest
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
        network: Network,
        optimiser: Optimizer,
        sequences: Sequences,
        users: Int,
        learned: Int,
        rng: np.random.Generator,
    ) -> float:
        """Train for one epoch over `users`, in their order, and return the mean loss per token."""
        torch = require("torch")
        functional = require("torch.nn.functional")

        total, count = 0.0, 0

        for first in range(0, len(users), self.batch_size):
            packed = sequences.packed(users[first : first + self.batch_size], self.length, ahead=1)
            negatives = learned
            if len(learned) > self.negatives:
                negatives = learned[rng.integers(0, len(learned), self.negatives)]

            # Each token predicts the item after it; every distinct item of the batch is embedded once.
            past, future = sequences.item[packed.rows], sequences.item[packed.rows + 1]
            items, place = np.unique(np.concatenate([past, future, negatives]), return_inverse=True)
            vectors = network.vectors(items)
            past, future, negatives = (
                torch.from_numpy(part).to(network.device) for part in np.split(place, [len(past), 2 * len(past)])
            )
            states = network.states(functional.embedding(past, vectors), packed, self.dropout)
            true = (states * functional.embedding(future, vectors)).sum(dim=1, keepdim=True)
            others = states @ functional.embedding(negatives, vectors).T
            others = others.masked_fill(future[:, None] == negatives, -torch.inf)  # the true item is no negative
            loss = (torch.logsumexp(torch.cat([true, others], dim=1), dim=1) - true[:, 0]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total, count = total + loss.item() * len(states), count + len(states)

        return total / count

    def _validate(self, network: Network, sequences: Sequences, held: Int, learned: Int) -> float:
        """Mean NDCG@10 of the held-out items, ranked among the items trained on that are not in the history."""
        factors = network.all_vectors()
        queries = read_users(network, factors, sequences, held, self.length)
        if not np.isfinite(queries).all():
            return np.nan

        size = sequences.end[held] - sequences.start[held]
        history = sequences.item[ranges(sequences.start[held], size)]
        pairs = (np.ones(len(history), np.float32), (np.repeat(np.arange(len(held)), size), history))
        seen = sparse.coo_array(pairs, shape=(len(held), len(factors))).tocsr()
        mask = np.isin(np.arange(len(factors)), learned)
        found = top_k(queries, factors, min(_K, len(factors)), exclude=seen, mask=mask).positions
        hit = found == sequences.item[sequences.end[held]][:, None]

        return float((hit / np.log2(np.arange(2, found.shape[1] + 2))).sum(axis=1).mean())

    # -- results -------------------------------------------------------------------------------------------------------

    def _queries(self, events: Interactions) -> Float:
        sequences = training_sequences(events, self.known_)
        return read_users(
            Network.of(self.network_), self.factors_, sequences, np.arange(len(events.users)), self.length
        )

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        if not self.known_.all():  # items without a vector score 0, which would outrank negative scores
            mask = self.known_ if mask is None else mask & self.known_

        return super()._rank(events, k, exclude, mask)

    def _extend(self, items: Embeddings) -> None:
        if self.map_ is None:
            raise InputError("this SASRec cannot rank new items: it was fitted without embeddings")
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

"""`HybridRanker`, a two-stage recommender: a small network re-ranks the best items of a `HybridItems`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import ArtifactError, InputError, require
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.ages import steps_of, transitions
from recotransfer.numerics.candidates import add_candidate_cosines, add_candidate_sums, network_scores
from recotransfer.numerics.histories import seen_items, sequences, subset
from recotransfer.numerics.sparse import by_line, scaled, smoothed
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float, reciprocal, unit_rows
from recotransfer.recommenders.base import BLOCK, Recommender
from recotransfer.recommenders.hybrid import HybridItems
from recotransfer.settings import NonNegative, NonNegativeInt, PositiveInt

_HIDDEN = 96  # width of the hidden layer
_MOST_USERS = 20_000  # sampled users whose held-out events the network learns from
_COLD = 0.1  # share of the items made artificially cold while the network learns
_FEW = 5  # pseudo-count added to the number of events after an item, to discount what followed it once or twice
_NEVER = -1e4  # logit of padding past the end of a list
_FLAT = 60.0  # difference from the best logit at which others are clipped, before exp underflows float32
_NETWORK = ("low", "high", "inner", "bias", "outer")  # arrays of the network; see `_trained`
_BATCH, _LEARNING_RATE, _DROPOUT, _WEIGHT_DECAY = 128, 0.006, 0.1, 0.01
# Features from the history: matrix -> sums of the candidate's cells over the items of the history. "decayed" weights
# items by `history_decay`, "newest" takes only the newest, "flat" weights all equally, "number" counts positive cells.
_KINDS = ("decayed", "newest", "flat", "number")  # as `candidate_sums` orders them
_SUMS = {
    "cooccurrence": ("decayed", "newest", "flat", "number"),
    "order": ("decayed", "newest"),
    "next": ("decayed", "newest"),
    "reversed": ("decayed",),
    "bridged": ("decayed",),
    "content": ("decayed", "newest", "flat"),
}
_PLAIN = ("score", "popularity", "popularity of the history", "length of the history")
_OF_CONTENT = ("cosine to the history", "density", "coherence")
_OF_NEWEST = ("popularity of the newest", "cosine to the newest")


class _Lessons(NamedTuple):
    """Training lists that contain the user's held-out item.

    Attributes:
        features: (n, depth, features) of the candidates.
        scores: (n, depth) first-stage scores.
        answer: (n,) place of the held-out item in the list.
    """

    features: Float
    scores: Float
    answer: NDArray[np.int64]


class HybridRanker(Recommender):
    """The first `depth` items of a `HybridItems`, re-ranked by a network with one hidden layer.

    Two stages, candidate generation and ranking, are common in large recommenders (Covington, Adams and Sargin, 2016).
    The features of a candidate are the components of its first-stage score (co-occurrence, order, content), for the
    whole history and for its newest item, as well as cosines, popularity and the length of the history. The network
    learns to rank the user's last event first, by the cross-entropy of the softmax over each list (ListNet; Cao et al.,
    2007). For training, the first stage is fitted without these events and without all events of a tenth of the items,
    so that the network also sees cold items, in lists of all items and in lists of cold items only. Afterwards the
    first stage is fitted on all events.

    The network's output is added to the logarithm of the first-stage score and starts at 0, so that with very few users
    the order of the first stage is kept.

    The share of cold items among the items users want differs between shops, and from the tenth used in training.
    `cold_odds` corrects for this prior (Saerens, Latinne and Decaestecker, 2002): it shifts cold items as a group
    relative to the others, and keeps the order within both groups.

    Args:
        base: settings of the first stage, a sparse `HybridItems`; None for its defaults.
        depth: number of candidates per user that are re-ranked; the rest keep the order of the first stage.
        epochs: passes over the held-out events.
        cold_odds: factor on the odds of candidates without events; above 1 if users want new items more often than in
            training.
        seed: random seed of the held-out items, the sample of users and the network.
    """

    scores_new_items: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "base.reg": (10.0, 500.0),
        "base.sequence_weight": (0.3, 2.0),
        "base.content_weight": (0.05, 0.6),
        "base.sharpness": (3.0, 10.0),
        "base.prior_events": (0.1, 3.0),
        "base.history_decay": (0.4, 0.9),
        "base.neighbours": (60, 250),
        "cold_odds": (0.5, 16.0),
    }

    def __init__(
        self,
        *,
        base: Mapping[str, Any] | None = None,
        depth: PositiveInt = 100,
        epochs: PositiveInt = 8,
        cold_odds: NonNegative = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.base = base
        self.depth = depth
        self.epochs = epochs
        self.cold_odds = cold_odds
        self.seed = seed

    # -- settings ------------------------------------------------------------------------------------------------------

    def check_settings(self) -> None:
        """Validate the settings, those of the first stage too; raises `InputError` for a value that is not allowed."""
        self._first_stage().check_settings()
        super().check_settings()

    def _first_stage(self) -> HybridItems:
        """An unfitted first stage."""
        if self.base is not None and not isinstance(self.base, Mapping):
            raise InputError(f"{type(self).__name__}: base must be the settings of a HybridItems, got {self.base!r}")

        try:
            out = HybridItems(**(self.base or {}))
        except TypeError as cause:
            raise InputError(f"{type(self).__name__}: base does not fit HybridItems: {cause}") from None

        if out.form != "sparse":
            raise InputError(f'{type(self).__name__} reads sparse matrices; leave form at "sparse" in base')

        return out

    def setting(self, name: str) -> Any:
        """The value of the setting called `name`; "base.reg" is `reg` of the first stage."""
        head, _, inner = name.partition(".")
        return self._first_stage().setting(inner) if inner and head == "base" else super().setting(name)

    def with_settings(self, values: Mapping[str, Any]) -> Self:
        """A new, unfitted model with some settings changed; "base.reg" is `reg` of the first stage."""
        inner = {name.removeprefix("base."): value for name, value in values.items() if name.startswith("base.")}
        own = {name: value for name, value in values.items() if not name.startswith("base.")}
        if inner:
            own["base"] = {**(own.get("base", self.base) or {}), **inner}

        return super().with_settings(own)

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        lessons = copy.copy(self)._training_lists(events, items)
        self._set_base(self._first_stage().fit(events, items), events)
        self.network_ = _trained(lessons, len(self.columns_), self.epochs, self.seed)

    def _training_lists(self, events: Interactions, items: Embeddings | None) -> list[_Lessons]:
        """Training lists from a first stage fitted without the last events and without some of the items."""
        rng = np.random.default_rng(self.seed)
        train, valid = _held_out(events, rng)
        cold = np.zeros(len(events.items), bool)
        if items is not None:
            known = np.flatnonzero(items.has_content & (self.popularity_ > 0))
            cold[rng.permutation(known)[: int(_COLD * len(known))]] = True

        unseen, train = train.select(cold[train.item]), train.select(~cold[train.item])
        if not len(train):
            return []

        self._set_base(self._first_stage().fit(train, items), train)

        return self._lessons(train, valid, None, rng) + self._lessons(train, unseen, cold, rng)

    def _set_base(self, base: HybridItems, events: Interactions) -> None:
        """Set the first stage, fitted on `events`, and compute the matrices for features that it does not store."""
        base.events_ = events  # shared, not an equal copy
        self.base_ = base
        self.parts_ = {"cooccurrence": sparse.csr_array(base.cooccurrence_)}
        if events.time is not None:
            past, future = transitions(steps_of(events, by_moment=False), len(events.items), 1.0, 1.0, horizon=1)
            follows = sparse.csr_array(past.T @ future)
            self.parts_["next"] = scaled(follows, 1 / (follows.sum(axis=1) + _FEW), None)

        if base.order_ is not None:
            self.parts_["order"] = sparse.csr_array(base.order_)
            if base.items_ is not None:
                self.parts_["bridged"] = _bridged(self.parts_["order"], base.lookalikes_, 2 * base.neighbours)

        self._set_matrices()

    def _set_matrices(self) -> None:
        """Prepare the matrices for the compiled loops, and assign a column to every feature."""
        found, timed, names = dict(self.parts_), "next" in self.parts_, list(_PLAIN)
        if "order" in found:
            found["reversed"] = sparse.csr_array(found["order"].T)

        if self.base_.items_ is not None:
            found["content"] = self.base_.content_
            names += _OF_CONTENT

        if timed:
            names += _OF_NEWEST if self.base_.items_ is not None else _OF_NEWEST[:1]

        for name in found:
            names += [f"{kind} {name}" for kind in _SUMS[name] if timed or kind in ("flat", "number")]

        self.matrices_ = {name: by_line(matrix) for name, matrix in found.items()}
        self.columns_ = {name: at for at, name in enumerate(names)}

    def _lessons(
        self, train: Interactions, valid: Interactions, mask: NDArray[np.bool_] | None, rng: np.random.Generator
    ) -> list[_Lessons]:
        """Training lists for a sample of users, each with one event of `valid` that is among the candidates.

        Args:
            train: the events that the first stage was fitted on.
            valid: the held-out events.
            mask: (items,) True for items that may be candidates; None allows all.
            rng: random generator of the sample.
        """
        rows = rng.permutation(len(valid))
        users, first = np.unique(valid.user[rows], return_index=True)
        item = valid.item[rows[first]]
        kept = np.flatnonzero(np.diff(train.offsets)[users] > 0)
        kept = np.sort(rng.permutation(kept)[:_MOST_USERS])
        out = []

        for start in range(0, len(kept), BLOCK):
            at = kept[start : start + BLOCK]
            block = subset(train, users[at])
            top = self.base_._rank(block, min(self.depth, len(train.items)), seen_items(block), mask)
            hit = top.positions == item[at][:, None]
            listed = np.flatnonzero(hit.any(axis=1))
            top = TopK(top.positions[listed], top.scores[listed])
            out.append(_Lessons(self._features(subset(block, listed), top), top.scores, hit[listed].argmax(axis=1)))

        return out

    # -- results -------------------------------------------------------------------------------------------------------

    def _features(self, events: Interactions, top: TopK) -> Float:
        """(users, m, features) of the candidates in `top` (users, m), in the order of `columns_`; 0 for padding."""
        base = self.base_
        item, strength, age, start = sequences(events)
        user = np.repeat(np.arange(len(events.users)), np.diff(start))
        decay = base.history_decay if events.time is not None else 1.0
        weight = np.stack([strength * decay**age, strength * (age == 0), strength], axis=1).astype(np.float32)
        out = np.zeros((*top.positions.shape, len(self.columns_)), np.float32)

        for name, matrix in self.matrices_.items():
            columns = np.array([self.columns_.get(f"{kind} {name}", -1) for kind in _KINDS])
            add_candidate_sums(out, (start, item, weight), matrix, top.positions, columns)

        def put(name: str, values: NDArray[Any]) -> None:
            if name in self.columns_:
                out[..., self.columns_[name]] = values

        def mean(values: NDArray[Any], weight: Float) -> NDArray[np.float64]:
            total = np.bincount(user, weight, len(events.users))
            return np.bincount(user, weight * values, len(events.users)) * reciprocal(total)

        popularity = np.log1p(base.popularity_)
        put("score", np.log(np.maximum(top.scores, 0) + 1e-3))
        put("popularity", popularity[top.positions])
        put("popularity of the history", mean(popularity[item], weight[:, 0])[:, None])
        put("popularity of the newest", mean(popularity[item], weight[:, 1])[:, None])
        put("length of the history", np.log(np.maximum(np.diff(start), 1))[:, None])
        if base.items_ is not None:
            put("density", base.local_scale_[top.positions])
            for name, column in (("cosine to the newest", 1), ("cosine to the history", 2)):
                if name in self.columns_:
                    shape = (len(events.users), len(events.items))
                    own = sparse.csr_array((weight[:, column], item, start), shape=shape)
                    profile = np.asarray(scaled(own, reciprocal(own.sum(axis=1)), None) @ base.items_.vectors)
                    column = self.columns_[name]
                    add_candidate_cosines(out, unit_rows(profile), base.items_.vectors, top.positions, column)

            put("coherence", np.linalg.norm(profile, axis=1)[:, None])

        return out

    def _logits(self, features: Float, scores: Float) -> Float:
        """(users, m) logits of the softmax over each list; padding has a logit far below all others.

        Features are clipped to their range in training.
        """
        low, high, *weights = self.network_.values()
        added = network_scores(np.clip(features, low, high), *weights)
        listed = scores > 0

        return np.where(listed, np.log(np.where(listed, scores, 1)) + added, _NEVER).astype(np.float32)

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        width = min(max(k, self.depth), len(self.catalogue_))
        positions, scores = self.base_._rank(events, width, exclude, mask)
        head = TopK(positions[:, : self.depth], scores[:, : self.depth])
        odds = np.where(self.base_.popularity_[head.positions] == 0, np.float32(self.cold_odds), np.float32(1))

        # The head is sorted by the network; its scores are softmax probabilities.
        logits = self._logits(self._features(events, head), head.scores * odds)
        order = np.argsort(-logits, axis=1, kind="stable")
        best = np.take_along_axis(logits, order, axis=1)
        share = np.exp(np.maximum(best - best[:, :1], -_FLAT))
        share /= share.sum(axis=1, keepdims=True)
        share[np.take_along_axis(head.positions, order, axis=1) < 0] = -np.inf

        # The tail keeps its order, with scores scaled to lie below the last one of the head.
        tail = scores[:, self.depth :]
        with np.errstate(invalid="ignore"):  # 0 / 0 if the list ends before the tail
            below = np.where(tail > 0, tail / tail[:, :1] * share[:, -1:], -np.inf)

        positions[:, : self.depth] = np.take_along_axis(head.positions, order, axis=1)

        return TopK(positions[:, :k], np.concatenate([share, below], axis=1)[:, :k].astype(np.float32))

    def _scores(self, events: Interactions) -> sparse.csr_array:
        top = self._rank(events, self.depth, None, None)
        user, place = np.nonzero(top.positions >= 0)
        shape = (len(events.users), len(self.catalogue_))
        return sparse.coo_array((top.scores[user, place], (user, top.positions[user, place])), shape=shape).tocsr()

    def _history_weights(self, events: Interactions) -> sparse.csr_array:
        return self.base_._history_weights(events)

    def _contributions(
        self, history: NDArray[np.int64], strength: Float, items: NDArray[np.int64]
    ) -> Mapping[str, Float]:
        return self.base_._contributions(history, strength, items)

    # -- new events and items ------------------------------------------------------------------------------------------

    def _content(self) -> Embeddings | None:
        return self.base_.items_

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        items = None if self.base_.items_ is None or fresh is None else self.base_.items_.concat(fresh)
        self._set_base(self._first_stage().fit(events, items), events)
        return "first stage fitted again on all events, network kept"

    def _extend(self, items: Embeddings) -> None:
        self.base_ = self.base_.extend(items)
        n = len(self.catalogue_)
        self.parts_ = {name: _padded(matrix, n) for name, matrix in self.parts_.items()}
        self._set_matrices()

    def _forget_events(self) -> None:
        super()._forget_events()
        self.base_ = self.base_.without_events()

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        self.base_.write(writer.within("base"))
        for name, matrix in self.parts_.items():
            writer.matrix(name, matrix)

        for name, values in self.network_.items():
            writer.array(f"network.{name}", values)

        writer.json("features", {"parts": list(self.parts_), "names": list(self.columns_)})

    def _read(self, artifact: Artifact) -> None:
        self.base_ = HybridItems.read(artifact.within("base"))
        facts = artifact.json("features")
        self.parts_ = {name: artifact.matrix(name) for name in facts["parts"]}
        self._set_matrices()
        if list(self.columns_) != facts["names"]:
            raise ArtifactError(f"{artifact.folder}: the network reads other features than this version; fit it again")

        self.network_ = {name: np.array(artifact.array(f"network.{name}")) for name in _NETWORK}


def _held_out(events: Interactions, rng: np.random.Generator) -> tuple[Interactions, Interactions]:
    """Training and held-out events: each user's last event is held out, or a random one in a log without times."""
    if events.time is None:
        events = events.select(rng.permutation(len(events)))

    held = hold_out_last(events, least=2)
    return held.train, held.valid


def _bridged(order: sparse.csr_array, lookalikes: sparse.csr_array, keep: int) -> sparse.csr_array:
    """What follows similar items: lookalikes' @ order, with the `keep` largest entries of each column."""
    n = order.shape[0]
    nothing, whole = np.zeros(n, np.float32), np.ones(n, np.float32)
    return smoothed(order, lookalikes, whole, lookalikes, nothing, sparse.csr_array((n, n), dtype=np.float32), keep)


def _padded(matrix: sparse.csr_array, n: int) -> sparse.csr_array:
    """The matrix with empty rows and columns appended, to shape (n, n)."""
    indptr = np.pad(matrix.indptr, (0, n - matrix.shape[0]), mode="edge")
    return sparse.csr_array((matrix.data, matrix.indices, indptr), shape=(n, n))


def _trained(lessons: list[_Lessons], width: int, epochs: int, seed: int) -> dict[str, Float]:
    """The trained network's arrays by name; its output relu(x @ inner + bias) @ outer is added to the log score.

    The inputs x are raw features, clipped to the range `low` to `high` of the training lists. The network is trained
    with AdamW and a one-cycle learning rate schedule (Smith and Topin, 2019).
    """
    torch = require("torch")
    Dropout = require("torch.nn").Dropout
    Linear = require("torch.nn").Linear
    ReLU = require("torch.nn").ReLU
    Sequential = require("torch.nn").Sequential
    functional = require("torch.nn.functional")

    if not sum(len(lesson.answer) for lesson in lessons):
        none, hidden = np.zeros(width, np.float32), np.zeros(_HIDDEN, np.float32)
        return dict(zip(_NETWORK, (none, none, np.outer(none, hidden), hidden, hidden), strict=True))

    # Standardised features are easier to learn from; the scaling is folded into the first layer below.
    features, scores, answer = (np.concatenate(parts) for parts in zip(*lessons, strict=True))
    lessons.clear()
    listed = scores > 0
    seen = features[listed]
    low, high, mean, spread = seen.min(axis=0), seen.max(axis=0), seen.mean(axis=0), seen.std(axis=0) + 1e-3
    del seen
    features -= mean
    features /= spread
    x, y = torch.from_numpy(features), torch.from_numpy(answer)
    offset = torch.from_numpy(np.where(listed, np.log(np.where(listed, scores, 1)), _NEVER).astype(np.float32))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Sequential(Linear(width, _HIDDEN), ReLU(), Dropout(_DROPOUT), Linear(_HIDDEN, 1, bias=False))
        torch.nn.init.zeros_(net[3].weight)  # the output starts at 0: the order of the first stage
        adam = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        steps = epochs * -(-len(y) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, _LEARNING_RATE, total_steps=max(steps, 2))
        for _ in range(epochs):
            for rows in torch.randperm(len(y)).split(_BATCH):
                loss = functional.cross_entropy(net(x[rows])[..., 0] + offset[rows], y[rows])
                adam.zero_grad()
                loss.backward()
                adam.step()
                schedule.step()

    inner = (net[0].weight.detach().numpy().T / spread[:, None]).astype(np.float32)
    bias = net[0].bias.detach().numpy() - mean @ inner
    outer = net[3].weight.detach().numpy()[0].copy()

    return dict(zip(_NETWORK, (low, high, inner, bias, outer), strict=True))

"""`HybridRanker`, a two-stage recommender: a small network re-ranks the best items of a `LearnedHybrid`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import ArtifactError, InputError, require
from recotransfer.evaluation.metrics import Hits, ndcg
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.candidates import network_scores
from recotransfer.numerics.histories import seen_items, subset
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders._candidate_features import CandidateFeatures, log_score, stored_at
from recotransfer.recommenders._lessons import Lessons
from recotransfer.recommenders.base import BLOCK, Recommender
from recotransfer.recommenders.learned_hybrid import LearnedHybrid
from recotransfer.settings import NonNegative, NonNegativeInt, PositiveInt

_FOLDS, _HIDDEN = 3, 48  # networks that are averaged, and the width of the hidden layer of each
_SHARES = (0, 0.25, 0.5, 0.75, 1, 1.25)  # of the networks' output, to choose from
_JUDGED = 20  # places of a list by which its network is judged
_MOST_USERS = 20_000  # sampled users whose held-out events the network learns from
_NEVER = -1e4  # logit of padding past the end of a list
_FLAT = 60.0  # difference from the best logit at which others are clipped, before exp underflows float32
_NETWORK = ("low", "high", "inner", "bias", "outer")  # arrays of the network; see `_trained`
_BATCH, _LEARNING_RATE, _DROPOUT, _WEIGHT_DECAY = 128, 0.006, 0.1, 0.01


class _Lists(NamedTuple):
    """Training lists with at least one of the user's left-out items.

    Attributes:
        features: (n, depth, features) of the candidates.
        scores: (n, depth) log scores of the first stage; `_NEVER` for padding.
        chosen: (n, depth) True for the left-out items.
    """

    features: Float
    scores: Float
    chosen: NDArray[np.bool_]


class HybridRanker(Recommender):
    """The first `depth` items of a `LearnedHybrid`, re-ranked by a network with one hidden layer.

    Two stages, candidate generation and ranking, are common in large recommenders (Covington, Adams and Sargin, 2016).
    The features of a candidate are the parts of its first-stage score (co-occurrence, order, content), for the whole
    history and for its newest items, as well as transitions, cosines, popularity and the length of the history. The
    network learns to rank left-out events first, by the cross-entropy of the softmax over each list (ListNet; Cao et
    al., 2007). They are the events that the first stage learns its weights from: each user's last ones and all those of
    some items, so that the network also sees cold items, in lists of all items and in lists of cold items only.

    The network's output is added to the logarithm of the first-stage score, as far as that ranks lists better that it
    has not learned from: a log with too little to learn from keeps the order of the first stage. With
    `exclude_seen=False`, items of the history keep their first-stage score among the others.

    The share of cold items among the items users want differs between shops, and from the tenth used in training.
    `cold_odds` corrects for this prior (Saerens, Latinne and Decaestecker, 2002): it shifts cold items as a group
    relative to the others, and keeps the order within both groups.

    Args:
        base: settings of the first stage, a `LearnedHybrid`; None for its defaults.
        depth: number of candidates per user that are re-ranked; the rest keep the order of the first stage.
        epochs: passes over the held-out events.
        cold_odds: factor on the odds of candidates without events; above 1 if users want new items more often than in
            training.
        seed: random seed of the held-out items, the sample of users and the network.
    """

    scores_new_items: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
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

    def _first_stage(self) -> LearnedHybrid:
        """An unfitted first stage."""
        if self.base is not None and not isinstance(self.base, Mapping):
            raise InputError(f"{type(self).__name__}: base must be the settings of a LearnedHybrid, got {self.base!r}")

        try:
            return LearnedHybrid(**(self.base or {}))
        except TypeError as cause:
            raise InputError(f"{type(self).__name__}: base does not fit LearnedHybrid: {cause}") from None

    def setting(self, name: str) -> Any:
        """The value of the setting called `name`; "base.neighbours" is `neighbours` of the first stage."""
        head, _, inner = name.partition(".")
        return self._first_stage().setting(inner) if inner and head == "base" else super().setting(name)

    def with_settings(self, values: Mapping[str, Any]) -> Self:
        """A new, unfitted model with some settings changed; "base.neighbours" is `neighbours` of the first stage."""
        inner = {name.removeprefix("base."): value for name, value in values.items() if name.startswith("base.")}
        own = {name: value for name, value in values.items() if not name.startswith("base.")}
        if inner:
            own["base"] = {**(own.get("base", self.base) or {}), **inner}

        return super().with_settings(own)

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        whole = self._first_stage()
        first, lessons = whole._fit_twice(events, items)
        rng = np.random.default_rng(self.seed)
        found = _training_lists(CandidateFeatures.of(first, lessons.first), lessons, self.depth, rng)
        self._set_base(whole, events)
        self.network_ = _trained(found, len(self.features_.columns), self.epochs, self.seed)

    def _set_base(self, base: LearnedHybrid, events: Interactions) -> None:
        """Set the first stage, fitted on `events`, and the matrices for features that it does not store."""
        base.events_ = events  # shared, not an equal copy
        self.base_ = base
        self.features_ = CandidateFeatures.of(base, events)

    # -- results -------------------------------------------------------------------------------------------------------

    def _logits(self, features: Float, log_scores: Float) -> Float:
        """(users, m) logits of the softmax over each list.

        Features are clipped to their range in training.
        """
        low, high, *weights = self.network_.values()
        return log_scores + network_scores(np.clip(features, low, high), *weights)

    def _with_repeats(self, logits: Float, events: Interactions, head: TopK) -> Float:
        """The logits with what the network adds to items of the history replaced by its mean over the list.

        The network never saw such items; their place among the others is up to the first stage.
        """
        seen = stored_at(seen_items(events), head.positions)
        new = (head.positions >= 0) & ~seen
        added = (logits - log_score(head.scores)) * new
        mean = added.sum(axis=1, keepdims=True) / np.maximum(new.sum(axis=1, keepdims=True), 1)
        return np.asarray(np.where(seen, log_score(head.scores) + mean, logits), np.float32)

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        width = min(max(k, self.depth), len(self.catalogue_))
        positions, scores = self.base_._rank(events, width, exclude, mask)
        head = TopK(positions[:, : self.depth], scores[:, : self.depth])

        # The head is sorted by the network; its scores are softmax probabilities.
        logits = self._logits(self.features_.values(events, head), log_score(head.scores))
        if exclude is None:
            logits = self._with_repeats(logits, events, head)

        if self.cold_odds != 1:
            cold = self.base_.popularity_[head.positions] == 0
            logits = logits + cold * np.float32(np.log(max(self.cold_odds, 1e-30)))

        logits = np.where(head.positions >= 0, logits, _NEVER)
        order = np.argsort(-logits, axis=1, kind="stable")
        best = np.take_along_axis(logits, order, axis=1)
        share = np.exp(np.maximum(best - best[:, :1], -_FLAT))
        share /= share.sum(axis=1, keepdims=True)
        share[np.take_along_axis(head.positions, order, axis=1) < 0] = -np.inf

        # The tail keeps its order, with scores that fall from the last one of the head.
        places = 1 + np.arange(positions.shape[1] - head.positions.shape[1])
        below = np.where(positions[:, self.depth :] >= 0, share[:, -1:] / (1 + places), -np.inf)
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
        self._set_base(self.base_._refitted(events, items), events)
        return "first stage fitted again on all events, its weights and the network kept"

    def _extend(self, items: Embeddings) -> None:
        self.base_ = self.base_.extend(items)
        self.features_ = self.features_.extended(self.base_)

    def _forget_events(self) -> None:
        super()._forget_events()
        self.base_ = self.base_.without_events()

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        self.base_.write(writer.within("base"))
        for name, matrix in self.features_.extra.items():
            writer.matrix(name, matrix)

        for name, values in self.network_.items():
            writer.array(f"network.{name}", values)

        writer.json("features", {"parts": list(self.features_.extra), "names": list(self.features_.columns)})

    def _read(self, artifact: Artifact) -> None:
        self.base_ = LearnedHybrid.read(artifact.within("base"))
        facts = artifact.json("features")
        self.features_ = CandidateFeatures(self.base_, {name: artifact.matrix(name) for name in facts["parts"]})
        if list(self.features_.columns) != facts["names"]:
            raise ArtifactError(f"{artifact.folder}: the network reads other features than this version; fit it again")

        self.network_ = {name: np.array(artifact.array(f"network.{name}")) for name in _NETWORK}


def _training_lists(
    features: CandidateFeatures, lessons: Lessons, depth: int, rng: np.random.Generator
) -> list[_Lists]:
    """Lists of all items and of items made cold only, from a first stage fitted without the left-out events."""
    n = len(lessons.first.items)
    out = _lists(features, lessons.first, lessons.answers, None, depth, rng)
    if len(lessons.cold):
        cold = np.isin(np.arange(n), lessons.cold)
        out += _lists(features, lessons.first, lessons.cold_answers, cold, depth, rng)

    return out


def _lists(
    features: CandidateFeatures,
    first: Interactions,
    answers: Interactions,
    mask: NDArray[np.bool_] | None,
    depth: int,
    rng: np.random.Generator,
) -> list[_Lists]:
    """Training lists for a sample of users with any of `answers` among their first `depth` candidates.

    Args:
        features: of the first stage.
        first: the events that it was fitted on.
        answers: the left-out events.
        mask: (items,) True for items that may be candidates; None allows all.
        depth: candidates in a list.
        rng: random generator of the sample.
    """
    right = answers.binary_matrix()
    users = np.flatnonzero((np.diff(right.indptr) > 0) & (np.diff(first.offsets) > 0))
    users = np.sort(rng.permutation(users)[:_MOST_USERS])
    out = []
    for start in range(0, len(users), BLOCK):
        at = users[start : start + BLOCK]
        block = subset(first, at)
        top = features.base._rank(block, min(depth, len(first.items)), seen_items(block), mask)
        chosen = stored_at(right[at], top.positions)
        hit = np.flatnonzero(chosen.any(axis=1))
        top = TopK(top.positions[hit], top.scores[hit])
        scores = np.where(top.positions >= 0, log_score(top.scores), np.float32(_NEVER))
        out.append(_Lists(features.values(subset(block, hit), top), scores, chosen[hit]))

    return out


def _trained(lists: list[_Lists], width: int, epochs: int, seed: int) -> dict[str, Float]:
    """The trained network's arrays by name; its output relu(x @ inner + bias) @ outer is added to the log score.

    The inputs x are raw features, clipped to the range `low` to `high` of the training lists. The network is the mean
    of three, side by side in one hidden layer. Each is trained on two thirds of the lists and ranks the last third with
    several shares of its output; the share that ranks best is kept, so that a log with too little to learn from keeps
    the order of the first stage.
    """
    torch = require("torch")

    if sum(len(some.chosen) for some in lists) < _FOLDS:
        none, hidden = np.zeros(width, np.float32), np.zeros(_FOLDS * _HIDDEN, np.float32)
        return dict(zip(_NETWORK, (none, none, np.outer(none, hidden), hidden, hidden), strict=True))

    # Standardised features are easier to learn from; the scaling is folded into the first layer below.
    features, scores, chosen = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    lists.clear()
    seen = features[scores > _NEVER]
    low, high, mean, spread = seen.min(axis=0), seen.max(axis=0), seen.mean(axis=0), seen.std(axis=0) + 1e-3
    del seen
    features -= mean
    features /= spread

    added, layers = np.zeros(scores.shape, np.float32), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fold = torch.randperm(len(scores)).numpy() % _FOLDS
        for at in range(_FOLDS):
            layers.append(_layers(features, scores, chosen, np.flatnonzero(fold != at), epochs))
            others = np.flatnonzero(fold == at)
            for rows in np.split(others, np.arange(BLOCK, len(others), BLOCK)):
                added[rows] = network_scores(features[rows], *layers[-1])

    quality = [_quality(scores + share * added, chosen) for share in _SHARES]
    share = _SHARES[int(np.argmax(quality))] / _FOLDS
    inner, bias, outer = (np.concatenate(parts, axis=-1) for parts in zip(*layers, strict=True))
    inner = (inner / spread[:, None]).astype(np.float32)

    return dict(zip(_NETWORK, (low, high, inner, bias - mean @ inner, share * outer), strict=True))


def _layers(
    features: Float, scores: Float, chosen: NDArray[np.bool_], rows: NDArray[np.int64], epochs: int
) -> tuple[Float, Float, Float]:
    """(features, hidden), (hidden,) and (hidden,) weights of one network, trained on some of the lists.

    It is trained with AdamW and a one-cycle learning rate schedule (Smith and Topin, 2019).
    """
    torch = require("torch")
    nn = require("torch.nn")
    functional = require("torch.nn.functional")
    target = (chosen / chosen.sum(axis=1, keepdims=True)).astype(np.float32)
    x, y, offset = (torch.from_numpy(values) for values in (features, target, scores))

    net = nn.Sequential(
        nn.Linear(x.shape[2], _HIDDEN), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_HIDDEN, 1, bias=False)
    )
    nn.init.zeros_(net[3].weight)  # the output starts at 0: the order of the first stage
    adam = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    steps = epochs * -(-len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, _LEARNING_RATE, total_steps=max(steps, 2))
    taught = torch.from_numpy(rows)
    for _ in range(epochs):
        for batch in taught[torch.randperm(len(rows))].split(_BATCH):
            loss = functional.cross_entropy(net(x[batch])[..., 0] + offset[batch], y[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()

    arrays = [net[0].weight.T, net[0].bias, net[3].weight[0]]
    inner, bias, outer = (np.array(part.detach().numpy(), np.float32, order="C") for part in arrays)
    return inner, bias, outer


def _quality(logits: Float, chosen: NDArray[np.bool_]) -> float:
    """Mean NDCG of lists of candidates (lists, depth) by falling logit."""
    found = np.take_along_axis(chosen, np.argsort(-logits, axis=1, kind="stable"), axis=1)
    return float(ndcg(Hits(found, chosen.sum(axis=1)), min(_JUDGED, found.shape[1])).mean())

"""`LearnedHybrid`: an item-item model of behaviour and content whose weights are learned from the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import popularity_bucket
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.ages import AGE_EDGES, aged_histories, order_within_moments, steps_of
from recotransfer.numerics.histories import seen_items
from recotransfer.numerics.sparse import product_top_k
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders._blend import BlendWeights, Lists, candidates, learn, prior
from recotransfer.recommenders._item_parts import BORROWED, ItemParts, extended_parts, item_parts, with_content
from recotransfer.recommenders._stacked import RARE, Stacked, appeal
from recotransfer.recommenders.base import Recommender
from recotransfer.recommenders.item_item import cells
from recotransfer.settings import NonNegativeInt, PositiveInt

_MOST_HELD_OUT = 5  # events held out per user: a fifth of them, but at least one and at most this many
_LEAST_HISTORY = 3  # users with fewer events have none held out
_COLD_SHARE = 0.1  # share of the items that the first fit does not see, so that weights of new items can be learned
_ROUGH = 0.8  # weight of an age bucket against the one before, where each part lists candidates
_COLD_LEAST = 5  # users of an item whose events are left out: fewer would say little of who likes it
_USERS, _COLD_USERS, _WIDTH = 3000, 1000, 200  # lists learned from, and candidates in each


class LearnedHybrid(Recommender):
    """Scores are sums over the parts of `item_parts`, weighted by what predicts this log's held-out events.

    A first fit leaves out each user's last events (at most five, or a fifth) and every event of a tenth of the items.
    Under `learn`, the weights of each part by age of the history item and by popularity of the candidate are those that
    make the left-out events most probable, so that known and new items share one scale. The parts are then fitted
    again on all events. A user is their history, so new users need no refit.

    Args:
        neighbours: how many items each item is scored from, in each part.
        seed: random seed of the items that are left out and of the candidates.
    """

    scores_new_items: ClassVar[bool] = True

    def __init__(self, *, neighbours: PositiveInt = 100, seed: NonNegativeInt = 0) -> None:
        self.neighbours = neighbours
        self.seed = seed

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        rng = np.random.default_rng(self.seed)
        self.by_moment_ = events.time is not None and not order_within_moments(events)
        first, answers, cold_answers, cold = _left_out(events, items is not None, rng)
        parts = self._parts(first, items)
        lists = [self._lists(parts, first, answers, np.arange(len(events.items)), _USERS, rng)]
        if len(cold):
            lists.append(self._lists(parts, first, cold_answers, cold, _COLD_USERS, rng))

        self.blend_ = learn([each for each in lists if len(each.chosen)], parts.curve_of)
        self.parts_, self.items_ = self._parts(events, items), items
        self.stacked_ = Stacked(self.parts_, self.blend_)

    def _parts(self, events: Interactions, items: Embeddings | None) -> ItemParts:
        steps = steps_of(events, by_moment=self.by_moment_)
        return item_parts(steps, events.time is not None, items, len(events.items), self.neighbours)

    def _aged(self, events: Interactions) -> list[sparse.csr_array]:
        shape = (len(events.users), len(events.items))
        return aged_histories(steps_of(events, by_moment=self.by_moment_), shape)

    def _lists(
        self,
        parts: ItemParts,
        first: Interactions,
        answers: Interactions,
        pool: NDArray[np.int64],
        most: int,
        rng: np.random.Generator,
    ) -> Lists:
        """The lists of a sample of users with both a history and answers, and the features of their candidates."""
        right = answers.binary_matrix()
        users = np.flatnonzero((np.diff(right.indptr) > 0) & (np.diff(first.offsets) > 0))
        users = np.sort(rng.permutation(users)[:most])
        aged = [matrix[users] for matrix in self._aged(first)]
        seen, right = seen_items(first)[users], right[users]

        # Three quarters of a list are what the prior and each part for itself would recommend; the rest is sampled.
        inside = np.zeros(len(parts.users), bool)
        inside[pool] = True
        believed = Stacked(replace(parts, vectors={}), prior(parts.curve_of))
        history = sum(matrix * np.float32(_ROUGH**age) for age, matrix in enumerate(aged))
        best = [believed.top_k(believed.history(aged), _WIDTH // 3, seen, inside).positions]
        each = max(5, _WIDTH // 3 // len(parts.matrices))
        best += [
            product_top_k(sparse.csr_array(history), part, each, seen, inside)[0] for part in parts.matrices.values()
        ]
        items, chosen, log_weight = candidates(right, seen, np.concatenate(best, axis=1), pool, _WIDTH, rng)

        fit = chosen.any(axis=1) & ((items >= 0) & ~chosen).any(axis=1)
        aged = [matrix[fit] for matrix in aged]
        items, chosen, log_weight = items[fit], chosen[fit], log_weight[fit]
        present, at = items >= 0, np.maximum(items, 0)
        bucket = popularity_bucket(parts.users[at])
        blocks = [_cells(aged, part, at, present) for part in parts.matrices.values()]
        blocks += [_products(aged, vectors, at, present & (bucket <= RARE)) for vectors in parts.vectors.values()]
        features = sparse.csr_array(sparse.hstack(blocks, format="csr"))

        return Lists(features, chosen, present, log_weight, bucket, appeal(parts.users)[at])

    # -- scores --------------------------------------------------------------------------------------------------------

    def _history_weights(self, events: Interactions) -> sparse.csr_array:
        return self.stacked_.history(self._aged(events))

    def _scores(self, events: Interactions) -> Float:
        return self.stacked_.scores(self._history_weights(events))

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        return self.stacked_.top_k(self._history_weights(events), k, exclude, mask)

    def _contributions(
        self, history: NDArray[np.int64], strength: Float, items: NDArray[np.int64]
    ) -> Mapping[str, Float]:
        n, parts = len(self.parts_.users), self.parts_
        bucket = popularity_bucket(parts.users[items])
        # An item has one entry per curve; all that it contributes is counted at its first entry.
        _, first, which = np.unique(history % n, return_index=True, return_inverse=True)
        at = first[which]
        out: dict[str, Float] = {}
        for name, curve in parts.curve_of.items():
            modality = name.partition(" ")[2] if name.startswith(("near ", "far ")) else None
            component = modality or ("behaviour of similar items" if name == BORROWED else "behaviour")
            whole = out.setdefault(component, np.zeros((len(history), len(items)), np.float32))
            for which_curve, (key, used) in enumerate(self.stacked_.curves):
                if key != curve:
                    continue

                of = np.flatnonzero(history // n == which_curve)
                rows = history[of] % n
                weight = self.blend_.popularity[name][bucket] * ((bucket > 0) == used)
                if name in parts.matrices:
                    values = cells(parts.matrices[name], rows, items)
                else:
                    values = parts.vectors[name][rows] @ parts.vectors[name][items].T * (bucket <= RARE)

                np.add.at(whole, at[of], strength[of, None] * values * weight)

        return out

    # -- new items -----------------------------------------------------------------------------------------------------

    def _content(self) -> Embeddings | None:
        return self.items_

    def _extend(self, items: Embeddings) -> None:
        if self.items_ is None:
            raise InputError("this LearnedHybrid cannot rank new items: it was fitted without embeddings")

        if items.dim != self.items_.dim:
            raise InputError(f"new items have {items.dim} dimensions, the model was fitted with {self.items_.dim}")

        self.parts_ = extended_parts(self.parts_, items, self.neighbours)
        old = self.items_
        vectors = np.concatenate([old.vectors, items.vectors])
        present = np.concatenate([old.has_content, items.has_content])
        self.items_ = Embeddings(self.catalogue_, vectors, old.source, present, old.blocks)
        self.stacked_ = Stacked(self.parts_, self.blend_)

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        parts, blend = self.parts_, self.blend_
        writer.array("counts", parts.users)
        for name, matrix in parts.matrices.items():
            writer.matrix(name, matrix)

        facts = {
            "by_moment": self.by_moment_,
            "matrices": list(parts.matrices),
            "age": {curve: values.tolist() for curve, values in blend.age.items()},
            "popularity": {part: values.tolist() for part, values in blend.popularity.items()},
            "appeal": blend.appeal,
            "lists": blend.lists,
        }
        if self.items_ is not None:
            assert parts.lookalikes is not None  # there are lookalikes where there is content
            writer.matrix("lookalikes", parts.lookalikes)
            writer.array("vectors", self.items_.vectors)
            writer.array("present", self.items_.has_content)
            facts |= {"source": self.items_.source, "blocks": self.items_.blocks}
            for name, kernel in parts.kernels.items():
                for field in ("scale", "row_root", "column_root"):
                    writer.array(f"kernel {name}.{field}", getattr(kernel, field))

            for name, root in parts.whitening.items():
                writer.array(f"whitening {name}", root)

        writer.json("blend", facts)

    def _read(self, artifact: Artifact) -> None:
        facts = artifact.json("blend")
        self.by_moment_ = facts["by_moment"]
        age = {curve: np.array(values) for curve, values in facts["age"].items()}
        popularity = {part: np.array(values) for part, values in facts["popularity"].items()}
        self.blend_ = BlendWeights(age, popularity, facts["appeal"], facts["lists"])
        matrices = {name: artifact.matrix(name) for name in facts["matrices"]}
        self.items_, self.parts_ = None, ItemParts(artifact.array("counts"), matrices)
        if "blocks" in facts:
            blocks = tuple((name, width) for name, width in facts["blocks"])
            vectors, present = artifact.array("vectors"), artifact.array("present")
            self.items_ = Embeddings(self.catalogue_, vectors, facts["source"], present, blocks)
            names = [name for name, _ in blocks]
            self.parts_ = with_content(
                self.parts_,
                self.items_,
                artifact.matrix("lookalikes"),
                {
                    name: [artifact.array(f"kernel {name}.{field}") for field in ("scale", "row_root", "column_root")]
                    for name in ("", *names)
                },
                {f"far {name}": artifact.array(f"whitening far {name}") for name in names},
            )

        self.stacked_ = Stacked(self.parts_, self.blend_)


def _left_out(
    events: Interactions, with_content: bool, rng: np.random.Generator
) -> tuple[Interactions, Interactions, Interactions, NDArray[np.int64]]:
    """Events for the first fit, each user's last events, the events of items made cold, and those items."""
    order = events.order
    if events.time is None:  # the order means nothing: any events may be held out
        order = rng.permutation(order)
        order = order[np.argsort(events.user[order], kind="stable")]

    count = np.bincount(events.user, minlength=len(events.users))
    place = np.arange(len(order)) - (np.cumsum(count) - count)[events.user[order]]
    out = np.minimum(_MOST_HELD_OUT, np.maximum(count // 5, count >= _LEAST_HISTORY))
    held = place >= (count - out)[events.user[order]]

    cold = np.zeros(len(events.items), bool)
    if with_content:
        users = np.bincount(events.item, minlength=len(events.items))
        warm = np.flatnonzero(users >= min(_COLD_LEAST, users.max()))
        cold[rng.permutation(warm)[: int(_COLD_SHARE * len(warm))]] = True

    of_cold = cold[events.item[order]]
    first, answers = events.select(order[~held & ~of_cold]), events.select(order[held])
    return first, answers, events.select(order[of_cold]), np.flatnonzero(cold)


def _cells(
    aged: list[sparse.csr_array], part: sparse.csr_array, items: NDArray[np.int64], present: NDArray[np.bool_]
) -> sparse.csr_array:
    """(users x candidates, 8) score of each candidate from the history items of each age bucket."""
    row = np.repeat(np.arange(len(items)), items.shape[1])
    columns = [sparse.csr_array(matrix @ part)[row, items.ravel()] for matrix in aged]
    out = np.stack([np.asarray(column.todense() if sparse.issparse(column) else column).ravel() for column in columns])
    return sparse.csr_array((out * present.ravel()).T, dtype=np.float32)


def _products(
    aged: list[sparse.csr_array], vectors: Float, items: NDArray[np.int64], present: NDArray[np.bool_]
) -> sparse.csr_array:
    """The same for a part given by vectors."""
    out = np.zeros((len(AGE_EDGES), *items.shape), np.float32)
    for at, matrix in enumerate(aged):
        for row in np.flatnonzero(np.diff(matrix.indptr)):
            entries = slice(matrix.indptr[row], matrix.indptr[row + 1])
            profile = matrix.data[entries] @ vectors[matrix.indices[entries]]
            out[at, row] = vectors[items[row]] @ profile

    return sparse.csr_array((out * present).reshape(len(AGE_EDGES), -1).T)

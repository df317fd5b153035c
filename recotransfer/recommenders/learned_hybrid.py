"""`LearnedHybrid`: an item-item model of behaviour and content whose weights are learned from the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import popularity_bucket
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.ages import aged_histories, order_within_moments, steps_of
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders._again import Again
from recotransfer.recommenders._blend import BlendWeights
from recotransfer.recommenders._item_parts import (
    BORROWED,
    Content,
    ItemParts,
    behaviour_parts,
    content_of,
    extended_parts,
    joined,
    with_content,
)
from recotransfer.recommenders._lessons import Lessons, Verdict, in_words
from recotransfer.recommenders._stacked import AGAIN, RARE, Stacked
from recotransfer.recommenders.base import Recommender
from recotransfer.recommenders.item_item import cells
from recotransfer.settings import NonNegativeInt, PositiveInt


class LearnedHybrid(Recommender):
    """Scores are sums over the parts of `item_parts`, weighted by what predicts this log's held-out events.

    A first fit leaves out each user's last events (at most five, or a fifth). Under `learn`, the weights of each part
    by age of the history item and by popularity of the candidate are those that rank the left-out events best; in
    turns, tenths of the items count as new, so that known and new items share one scale. The parts are then fitted
    again on all events. A user is their history, so new users need no refit. If users come back to items, a part for
    repeats ranks these among the others; it only counts with `exclude_seen=False`.

    Args:
        neighbours: how many items each item is scored from, in each part.
        guard: whether content must improve the lists of held-out events to count for items that have users. It always
            counts for items without users, which have nothing else.
        seed: random seed of the items that are left out and of the candidates.
    """

    scores_new_items: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"neighbours": (60, 250)}

    def __init__(self, *, neighbours: PositiveInt = 100, guard: bool = True, seed: NonNegativeInt = 0) -> None:
        self.neighbours = neighbours
        self.guard = guard
        self.seed = seed

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        content = None if items is None else content_of(items, self.neighbours)
        self._learn(events, content)
        self._fit_parts(events, items, content)

    def _learn(self, events: Interactions, content: Content | None) -> Lessons:
        """Set the weights, and return the lessons that they were learned from."""
        self.by_moment_ = events.time is None or not order_within_moments(events)
        lessons = Lessons(events, content, self.neighbours, by_moment=self.by_moment_, seed=self.seed)
        self.blend_, self.verdict_ = lessons.learned(guarded=self.guard)
        self.again_ = lessons.again(self.blend_)
        return lessons

    def _fit_parts(self, events: Interactions, items: Embeddings | None, content: Content | None) -> None:
        self.again_ = None if self.again_ is None else self.again_.refitted(events)
        self.parts_ = behaviour_parts(events, self.neighbours, by_moment=self.by_moment_)
        if content is not None:
            self.parts_ = joined(self.parts_, content, self.neighbours, agree=self.verdict_.kept)

        self.items_ = items
        self._stack()

    def _fit_twice(self, events: Interactions, items: Embeddings | None) -> tuple[Self, Lessons]:
        """The model fitted on the events that its weights did not learn from, and the lessons; self is fitted on all.

        For a second stage, which needs a first stage that has not seen the events it learns from.

        Args:
            events: the log, sorted by user and time.
            items: embeddings aligned with `events.items`.
        """
        content = None if items is None else content_of(items, self.neighbours)
        self._take(events)
        lessons = self._learn(events, content)
        first = self._copied()
        first._take(lessons.first)
        first.parts_, first.items_ = lessons.parts, items
        first._stack()
        self._fit_parts(events, items, content)

        return first, lessons

    def _refitted(self, events: Interactions, items: Embeddings | None) -> Self:
        """A copy with its parts fitted on other events, and the weights kept; arguments as in `_fit_twice`."""
        out = self._copied()
        out._take(events)
        out._fit_parts(events, items, None if items is None else content_of(items, self.neighbours))
        return out

    def _stack(self) -> None:
        self.stacked_ = Stacked(self.parts_, self.blend_, None if self.again_ is None else self.again_.diagonal)

    def in_words(self) -> list[str]:
        """What the weights say of the log: how much order, age and content count, and what the guard decided."""
        self._check_fitted()
        return in_words(self.blend_, self.verdict_, self.again_)

    # -- scores --------------------------------------------------------------------------------------------------------

    def _history_weights(self, events: Interactions, *, repeats: bool = True) -> sparse.csr_array:
        steps = steps_of(events, by_moment=self.by_moment_)
        again = self.again_.history(events) if repeats and self.again_ is not None else None
        return self.stacked_.history(aged_histories(steps, (len(events.users), len(events.items))), again)

    def _scores(self, events: Interactions) -> Float:
        return self.stacked_.scores(self._history_weights(events))

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        top = self.stacked_.top_k(self._history_weights(events, repeats=exclude is None), k, exclude, mask)
        unknown = np.diff(events.offsets) == 0  # an empty list is filled by popularity
        top.positions[unknown], top.scores[unknown] = -1, -np.inf
        return top

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

        if self.again_ is not None:
            of = np.flatnonzero(history // n == self.stacked_.curves.index((AGAIN, 1)))
            rows = history[of] % n
            out[AGAIN] = np.zeros((len(history), len(items)), np.float32)
            values = self.again_.diagonal[rows, None] * (rows[:, None] == items)
            np.add.at(out[AGAIN], at[of], strength[of, None] * values)

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
        self.again_ = None if self.again_ is None else self.again_.extended(len(items.ids))
        old = self.items_
        vectors = np.concatenate([old.vectors, items.vectors])
        present = np.concatenate([old.has_content, items.has_content])
        self.items_ = Embeddings(self.catalogue_, vectors, old.source, present, old.blocks)
        self._stack()

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        parts, blend = self.parts_, self.blend_
        writer.array("counts", parts.users)
        writer.array("lately", parts.lately)
        for name, matrix in parts.matrices.items():
            writer.matrix(name, matrix)

        facts = {
            "by_moment": self.by_moment_,
            "matrices": list(parts.matrices),
            "age": {curve: values.tolist() for curve, values in blend.age.items()},
            "popularity": {part: values.tolist() for part, values in blend.popularity.items()},
            "appeal": blend.appeal,
            "lists": blend.lists,
            "shares": {part: values.tolist() for part, values in blend.shares.items()},
            "verdict": asdict(self.verdict_),
        }
        if self.again_ is not None:
            writer.array("again.rate", self.again_.rate)
            writer.array("again.gap", self.again_.gap)
            facts["again"] = self.again_.facts()

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
        shares = {part: np.array(values) for part, values in facts["shares"].items()}
        self.blend_ = BlendWeights(age, popularity, tuple(facts["appeal"]), facts["lists"], shares)
        self.verdict_ = Verdict(**facts["verdict"])
        self.again_ = None  # as in models saved before there was this part
        if "again" in facts:
            arrays = artifact.array("again.rate"), artifact.array("again.gap")
            self.again_ = Again.from_facts(*arrays, facts["again"])

        matrices = {name: artifact.matrix(name) for name in facts["matrices"]}
        self.items_, self.parts_ = None, ItemParts(artifact.array("counts"), artifact.array("lately"), matrices)
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
                {name: artifact.array(f"whitening {name}") for name in facts["popularity"] if name.startswith("far ")},
            )

        self._stack()

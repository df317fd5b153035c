"""The contract of indexes as a suite of tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.errors import InputError, NotFittedError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.numerics.topk import TopK, top_k
from recotransfer.registry import indexes
from recotransfer.retrieval import Index, load_index, save_index


class IndexContract:
    """Derive from it, and define `make()`.

    Attributes:
        exact: it finds the true best; otherwise at least `least_recall` of them.
        least_recall: share of the true best ten found, over all queries, where it is not exact.
        items: vectors to search among.
    """

    exact = True
    least_recall = 0.85
    items = 1500

    def make(self) -> Index:
        """A new index, not built."""
        raise NotImplementedError

    def vectors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(items, 16) clustered vectors of unequal length, as trained factors are, and (20, 16) queries."""
        rng = np.random.default_rng(3)
        centres = rng.standard_normal((20, 16))
        items = centres[rng.integers(0, 20, self.items)] + 0.6 * rng.standard_normal((self.items, 16))
        items *= rng.lognormal(0, 0.3, (self.items, 1))
        queries = centres[rng.integers(0, 20, 20)] + 0.6 * rng.standard_normal((20, 16))

        return items.astype(np.float32), queries.astype(np.float32)

    def check(self, found: TopK, wanted: TopK) -> None:
        """Fail where `found` is not the true answer, or too little of it."""
        np.testing.assert_array_equal((found.positions >= 0).sum(axis=1), (wanted.positions >= 0).sum(axis=1))
        assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
        if self.exact:
            np.testing.assert_array_equal(found.positions, wanted.positions)
            np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5, atol=1e-5)
            return

        pairs = zip(found.positions, wanted.positions, strict=True)
        hits = sum(np.isin(some, true[true >= 0]).sum() for some, true in pairs)
        assert hits >= self.least_recall * (wanted.positions >= 0).sum()

    def test_it_finds_the_best(self) -> None:
        """The k greatest inner products, best first, for many queries and for one."""
        items, queries = self.vectors()
        index = self.make().build(items)
        assert len(index) == len(items)
        np.testing.assert_array_equal(index.vectors, items)
        self.check(index.search(queries, 10), top_k(queries, items, 10))
        self.check(index.search(queries[:1], 10), top_k(queries[:1], items, 10))

    def test_filters_never_shorten_a_list_that_could_be_filled(self) -> None:
        """Masked items and excluded pairs are not found, and others take their place."""
        items, queries = self.vectors()
        index = self.make().build(items)
        best = top_k(queries, items, 5).positions
        rows = np.repeat(np.arange(len(queries)), 5)
        pairs = (np.ones(len(rows), np.float32), (rows, best.ravel()))
        exclude = sparse.csr_array(pairs, shape=(len(queries), len(items)))
        mask = np.arange(len(items)) % 3 > 0

        for barred, allowed in ((exclude, None), (None, mask), (exclude, mask)):
            found = index.search(queries, 10, exclude=barred, mask=allowed)
            self.check(found, top_k(queries, items, 10, exclude=barred, mask=allowed))

        few = np.arange(len(items)) < 4
        np.testing.assert_array_equal((index.search(queries, 10, mask=few).positions >= 0).sum(axis=1), 4)

    def test_k_beyond_what_there_is(self) -> None:
        """Lists end in -1 and -inf where there is nothing more."""
        items, queries = self.vectors()
        found = self.make().build(items[:5]).search(queries, 8)
        assert found.positions.shape == (len(queries), 8)
        assert (found.positions[:, 5:] == -1).all()
        assert (found.scores[:, 5:] == -np.inf).all()

    def test_added_vectors_are_found_and_a_copy_leaves_the_original(self) -> None:
        """`add` grows the index, `extended` a copy of it; rebuilding leaves nothing of before."""
        items, queries = self.vectors()
        most = len(items) - 100
        index = self.make().build(items[:most])
        copy = index.extended(items[most:])
        assert (len(index), len(copy)) == (most, len(items))
        self.check(index.search(queries, 10), top_k(queries, items[:most], 10))
        self.check(copy.search(queries, 10), top_k(queries, items, 10))
        index.add(items[most:])
        self.check(index.search(queries, 10), top_k(queries, items, 10))
        assert len(index.build(items[:7])) == 7

    def test_saved_and_loaded_it_answers_the_same(self, tmp_path: Path) -> None:
        """`save_index` and `load_index` give an index of the same class, vectors and answers."""
        items, queries = self.vectors()
        index = self.make().build(items)
        write_artifact(tmp_path / "saved", "Test", lambda writer: save_index(index, writer, "index"))
        again = load_index(open_artifact(tmp_path / "saved"), "index")
        assert type(again) is type(index)
        before, after = index.search(queries, 10), again.search(queries, 10)
        np.testing.assert_array_equal(before.positions, after.positions)
        np.testing.assert_array_equal(before.scores, after.scores)

    def test_what_cannot_be_held_or_asked_is_refused(self) -> None:
        """Vectors that are not finite or of another width, a list of no length, an index not built."""
        items, queries = self.vectors()
        with pytest.raises(NotFittedError):
            self.make().search(queries, 1)
        with pytest.raises(InputError):
            self.make().build(np.full_like(items, np.nan))
        index = self.make().build(items)
        with pytest.raises(InputError):
            index.add(np.ones((2, items.shape[1] + 1), np.float32))
        with pytest.raises(InputError):
            index.search(queries, 0)

    def test_what_is_given_stays_as_it_was(self) -> None:
        """Neither vectors nor queries are written to."""
        items, queries = self.vectors()
        before = items.copy(), queries.copy()
        index = self.make().build(items[:-1])
        index.add(items[-1:])
        index.search(queries, 3)
        np.testing.assert_array_equal(items, before[0])
        np.testing.assert_array_equal(queries, before[1])

    def test_the_registry_finds_the_class_again(self) -> None:
        """The class can be named in a saved model."""
        kind = type(self.make())
        assert indexes.find(indexes.name_to_save(kind)) is kind

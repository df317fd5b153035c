"""The contract of transfers as a suite of tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.errors import InputError, NotFittedError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.numerics.vectors import unit_rows
from recotransfer.registry import transfers
from recotransfer.testing.checkerboard import ITEMS, checkerboard, colours, parities
from recotransfer.transfer import Transfer


class TransferContract:
    """Derive from it, and define `make()`.

    Attributes:
        keeps_neighbours: items of one colour lie nearer to each other than to others afterwards too.
        reads_vectors_only: equal vectors are mapped alike, whichever item they are of.
        batch_tolerance: relative difference that a vector may have alone and among others.
    """

    keeps_neighbours = True
    reads_vectors_only = True
    batch_tolerance = 1e-4

    def make(self) -> Transfer:
        """A new transfer, not fitted, with settings that suit a dozen items."""
        raise NotImplementedError

    def vectors(self, ids: IdMap | None = None) -> Embeddings:
        """(items, 8) vectors in which the parity of an item's number can be seen."""
        return colours(ids)

    def relations(self) -> Interactions:
        """Who relates which items."""
        return checkerboard()

    def fitted(self) -> Transfer:
        """A new transfer that learned from `vectors` and `relations`."""
        return self.make().fit(self.vectors(), self.relations())

    def test_vectors_in_vectors_out(self) -> None:
        """Ids stay, values are finite, the source names the map, and what was given stays as it was."""
        given = self.vectors()
        before = given.vectors.copy()
        transfer = self.make()
        assert transfer.fit(given, self.relations()) is transfer
        found = transfer.transform(given)
        assert found.ids == given.ids
        assert len(found.vectors) == ITEMS
        assert np.isfinite(found.vectors).all()
        assert found.source.endswith(f" > {type(transfer).__name__}")
        np.testing.assert_array_equal(given.vectors, before)

    def test_what_belongs_together_stays_together(self) -> None:
        """Each item's nearest other is of its colour."""
        if not self.keeps_neighbours:
            pytest.skip("the transfer does not promise to keep neighbours")

        found = self.fitted().transform(self.vectors())
        near = unit_rows(found.vectors) @ unit_rows(found.vectors).T
        np.fill_diagonal(near, -np.inf)
        colour = parities(found.ids)
        assert (colour[near.argmax(axis=1)] == colour).all()

    def test_new_items_are_mapped_as_known_ones_are(self) -> None:
        """A vector's map does not depend on its id, or on what stands beside it."""
        if not self.reads_vectors_only:
            pytest.skip("the transfer looks at which item a vector is of")

        transfer, given = self.fitted(), self.vectors()
        whole = transfer.transform(given).vectors
        for row in (0, ITEMS - 1):
            alone = Embeddings(IdMap(["new"]), given.vectors[[row]], given.source)
            found = transfer.transform(alone)
            assert found.ids.ids.tolist() == ["new"]
            np.testing.assert_allclose(found.vectors[0], whole[row], rtol=self.batch_tolerance, atol=1e-5)

    def test_items_without_content_stay_without(self) -> None:
        """They take no part in learning, and have no content afterwards."""
        given = self.vectors()
        present = np.arange(ITEMS) != 3
        gap = Embeddings(given.ids, np.where(present[:, None], given.vectors, 0), given.source, present)
        found = self.make().fit(gap, self.relations()).transform(gap)
        np.testing.assert_array_equal(found.has_content, present)
        nothing = Embeddings(given.ids, np.zeros_like(given.vectors), given.source, np.zeros(ITEMS, bool))
        with pytest.raises(InputError, match="content"):
            self.make().fit(nothing, self.relations())

    def test_a_refit_is_a_fresh_fit(self) -> None:
        """The same seed gives the same map, whatever was learned before."""
        once, fresh = self.fitted(), self.fitted()
        twice = once.fit(self.vectors(), self.relations())
        np.testing.assert_array_equal(twice.transform(self.vectors()).vectors, fresh.transform(self.vectors()).vectors)

    def test_unfitted_maps_and_other_widths_are_refused(self) -> None:
        """Neither can give a vector that means anything."""
        with pytest.raises(NotFittedError, match="fit or load"):
            self.make().transform(self.vectors())
        given = self.vectors()
        wide = Embeddings(given.ids, np.hstack([given.vectors, given.vectors]), given.source)
        with pytest.raises(InputError, match="dimensions"):
            self.fitted().transform(wide)

    def test_stored_and_read_it_maps_the_same(self, tmp_path: Path) -> None:
        """All that was learned is in the saved parts."""
        transfer = self.fitted()
        write_artifact(tmp_path / "saved", "Test", lambda writer: transfer.write(writer.within("transfer 0")))
        again = type(transfer).read(open_artifact(tmp_path / "saved").within("transfer 0"))
        found, wanted = again.transform(self.vectors()), transfer.transform(self.vectors())
        np.testing.assert_array_equal(found.vectors, wanted.vectors)

    def test_settings_are_kept_and_allowed(self) -> None:
        """Settings fit their declaration, and `params` gives those that the constructor takes."""
        transfer = self.make()
        transfer.check_settings()
        again = type(transfer)(**transfer.params())
        assert again.params() == transfer.params()

    def test_the_registry_finds_the_class_again(self) -> None:
        """The class can be named in a saved task."""
        kind = type(self.make())
        assert transfers.find(transfers.name_to_save(kind)) is kind

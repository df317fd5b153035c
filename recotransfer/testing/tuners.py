"""The contract of tuners as a suite of tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from recotransfer.data import Interactions, Items
from recotransfer.encoders import TrainableEncoder, encode_items, store_encoders, stored_encoders
from recotransfer.errors import InputError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.registry import tuners
from recotransfer.settings import check_settings
from recotransfer.testing.checkerboard import checkerboard, titles
from recotransfer.transfer import Tuner


class Tuned(NamedTuple):
    """An encoder before and after a tuner, and that tuner."""

    before: TrainableEncoder
    after: TrainableEncoder
    tuner: Tuner


class TunerContract:
    """Derive from it, and define `make()` and `encoder()`.

    Attributes:
        keeps_kind: the encoder that comes out is of the class that went in.
    """

    keeps_kind = True

    def make(self, folder: Path) -> Tuner:
        """A new tuner with settings that suit a dozen items; what it keeps on disk goes below `folder`."""
        raise NotImplementedError

    def encoder(self) -> TrainableEncoder:
        """A small encoder whose weights can be trained."""
        raise NotImplementedError

    def items(self) -> Items:
        """Items that the encoder reads, by default with the text of the checkerboard."""
        return titles()

    def relations(self) -> Interactions:
        """Who relates which items."""
        return checkerboard()

    @pytest.fixture(scope="class")
    @classmethod
    def tuned(cls, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
        """The encoder before and after, and the tuner; trained once for all tests."""
        suite = cls()
        tuner, before = suite.make(tmp_path_factory.mktemp("tuner")), suite.encoder()
        return Tuned(before, tuner.tune(before, suite.items(), suite.relations()), tuner)

    def test_an_encoder_comes_out(self, tuned: Tuned) -> None:
        """It reads the same items, with other vectors, and has another name, by which its vectors are cached."""
        before, after = tuned.before, tuned.after
        assert after.modality == before.modality
        assert after.name != before.name
        assert not self.keeps_kind or type(after) is type(before)
        found = encode_items(self.items(), after, progress=False).embeddings
        assert found.has_content.all()
        assert np.isfinite(found.vectors).all()

    def test_the_encoder_that_was_given_stays_as_it_was(self, tuned: Tuned) -> None:
        """Its vectors are those of an encoder that was never tuned."""
        before = tuned.before
        fresh = self.encoder()
        assert before.name == fresh.name
        values = before.values(self.items())[:3]
        np.testing.assert_array_equal(before.encode(values), fresh.encode(values))

    def test_it_reports_what_it_did(self, tuned: Tuned) -> None:
        """`report_` is plain JSON."""
        report = tuned.tuner.report_
        assert json.loads(json.dumps(report)) == report

    def test_what_comes_out_is_stored_with_a_task(self, tuned: Tuned, tmp_path: Path) -> None:
        """Read from a saved folder, the tuned encoder gives the same vectors."""
        after = tuned.after
        specs: list[dict[str, Any]] = []
        write_artifact(tmp_path / "saved", "Test", lambda writer: specs.extend(store_encoders([after], writer)))
        again = stored_encoders(json.loads(json.dumps(specs)), open_artifact(tmp_path / "saved"))[0]
        values = after.values(self.items())[:3]
        np.testing.assert_allclose(again.encode(values), after.encode(values), rtol=1e-5, atol=1e-6)

    def test_nothing_to_learn_from_is_refused(self, tmp_path: Path) -> None:
        """Items without content are refused in a sentence."""
        items = self.items()
        table = items.columns.astype(object)
        table.loc[:] = None
        with pytest.raises(InputError):
            self.make(tmp_path).tune(self.encoder(), Items(items.ids, table, items.kinds), self.relations())

    def test_settings_are_kept_and_allowed(self, tmp_path: Path) -> None:
        """The constructor keeps its arguments as attributes of the same names, which fit their declaration."""
        check_settings(self.make(tmp_path))

    def test_the_registry_finds_the_class_again(self, tmp_path: Path) -> None:
        """The class can be named on the command line."""
        kind = type(self.make(tmp_path))
        assert tuners.find(tuners.name_to_save(kind)) is kind

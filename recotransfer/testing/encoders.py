"""The contract of encoders as a suite of tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from recotransfer.data import Items
from recotransfer.encoders import Encoder, TrainableEncoder, encode_items, encoder_from_spec, encoder_spec
from recotransfer.encoders.base import one_or_many
from recotransfer.errors import InputError, RecoTransferError, require
from recotransfer.settings import check_settings
from recotransfer.testing.checkerboard import titles


class EncoderContract:
    """Derive from it, and define `make()`; an encoder of other content than text defines `items()` too.

    Attributes:
        batch_tolerance: difference, relative to the largest value, that a vector may have alone and in a batch.
        trains_to_itself: the module that `module()` gives returns, before any training, what `encode` returns.
    """

    batch_tolerance = 1e-5
    trains_to_itself = True

    def make(self) -> Encoder:
        """A new encoder."""
        raise NotImplementedError

    def items(self) -> Items:
        """A few items, all with content that the encoder reads, not all with the same."""
        return titles(one_or_many(self.make().column))

    def unreadable(self) -> Sequence[Any]:
        """Values that are present and cannot be read, if there are any."""
        return ()

    def close(self, found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
        """Fail where two tables of vectors differ by more than `batch_tolerance`."""
        largest = float(np.abs(wanted).max(initial=0)) or 1.0
        np.testing.assert_allclose(found, wanted, rtol=0, atol=self.batch_tolerance * largest)

    def test_it_says_what_it_is(self) -> None:
        """Name, width and modality are stable, for they are part of what is cached and saved."""
        one, other = self.make(), self.make()
        assert isinstance(one.name, str)
        assert one.name == other.name
        assert one.dim == other.dim >= 1
        assert isinstance(one.modality, str)
        check_settings(one)

    def test_a_vector_for_each_value_in_order(self) -> None:
        """(n, dim) finite numbers, not all the same; reversed values give reversed vectors."""
        encoder = self.make()
        values = encoder.values(self.items())
        rows = encoder.encode(values)
        assert rows.shape == (len(values), encoder.dim)
        assert np.isfinite(rows).all()
        assert len(np.unique(rows, axis=0)) > 1
        self.close(encoder.encode(values[::-1])[::-1], rows)

    def test_no_values_give_no_vectors(self) -> None:
        """An empty batch is a batch."""
        encoder = self.make()
        assert np.asarray(encoder.encode([])).shape == (0, encoder.dim)

    def test_a_vector_does_not_depend_on_its_batch(self) -> None:
        """Alone, in a batch and once more, a value has the same vector."""
        encoder = self.make()
        values = encoder.values(self.items())[:4]
        rows = encoder.encode(values)
        self.close(np.concatenate([encoder.encode([value]) for value in values]), rows)
        np.testing.assert_array_equal(encoder.encode(values), rows)

    def test_items_without_content_have_no_value(self) -> None:
        """A missing cell gives None, a zero vector and no content, and the report counts it."""
        encoder, items = self.make(), self.items()
        table = items.columns.astype(object)
        table.loc[1] = None
        gap = Items(items.ids, table, items.kinds)
        assert encoder.values(gap)[1] is None
        done = encode_items(gap, encoder, progress=False)
        assert not done.embeddings.has_content[1]
        assert not done.embeddings.vectors[1].any()
        assert done.report.empty == 1

    def test_a_missing_column_is_named(self) -> None:
        """Items without the column that is read are refused."""
        encoder = self.make()
        names = one_or_many(encoder.column)
        items = self.items()
        left = {name: kind for name, kind in items.kinds.items() if name not in names}
        bare = Items(items.ids, items.columns.drop(columns=list(names)), left)
        with pytest.raises(InputError, match=names[0]):
            encoder.values(bare)

    def test_what_cannot_be_read_is_explained(self) -> None:
        """An unreadable value gives NaN, and a sentence."""
        encoder = self.make()
        for value in self.unreadable():
            assert np.isnan(np.asarray(encoder.encode([value]))).any()
            assert len(encoder.explain_failure(value)) > 10

    def test_its_settings_build_it_again(self) -> None:
        """Class and settings, as JSON, give an encoder of the same name and vectors."""
        encoder = self.make()
        again = encoder_from_spec(json.loads(json.dumps(encoder_spec(encoder))))
        assert type(again) is type(encoder)
        assert again.name == encoder.name
        values = encoder.values(self.items())[:2]
        self.close(again.encode(values), encoder.encode(values))

    def test_the_cache_gives_the_same_vectors(self, tmp_path: Path) -> None:
        """Encoding once more takes everything from the cache, byte for byte."""
        encoder, items = self.make(), self.items()
        first = encode_items(items, encoder, cache=tmp_path, progress=False)
        second = encode_items(items, encoder, cache=tmp_path, progress=False)
        assert second.report.encoded == 0
        np.testing.assert_array_equal(first.embeddings.vectors, second.embeddings.vectors)

    def test_its_weights_can_be_trained_and_saved(self, tmp_path: Path) -> None:
        """The module gives what `encode` gives, and `saved` an encoder with its weights; for trainable encoders."""
        encoder = self.make()
        if not hasattr(encoder, "module"):
            pytest.skip("the encoder has no weights to train")

        torch = require("torch")
        trainable = cast(TrainableEncoder, encoder)
        values = encoder.values(self.items())[:3]
        module = trainable.module().eval()
        with torch.no_grad():
            pooled = module(trainable.collate(values)).pooled.float().cpu().numpy()

        if self.trains_to_itself:
            self.close(pooled, encoder.encode(values))

        again = trainable.saved(module, tmp_path / "saved")
        assert type(again) is type(encoder)
        self.close(again.encode(values), encoder.encode(values))

    def test_errors_are_the_packages_own(self) -> None:
        """A setting that is not allowed is refused by name, before anything is encoded."""
        spec = encoder_spec(self.make())
        with pytest.raises(RecoTransferError):
            encoder_from_spec({**spec, "no_such_setting": 1})

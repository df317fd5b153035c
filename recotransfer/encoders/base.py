"""The interfaces of encoders, and what they share: reading columns, missing cells, saving settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked
from recotransfer.data import Items
from recotransfer.errors import InputError
from recotransfer.registry import encoders
from recotransfer.settings import settings_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class Encoder(Protocol):
    """Turns one modality of an item into a vector. Encoders are pretrained or stateless; they are never fitted.

    `encode` is called with present values only. It returns a row of NaN for a value that cannot be read, and
    `explain_failure` says why.

    An encoder is saved as its class and its settings: the constructor's arguments, kept as attributes of the same
    names. An encoder that keeps them otherwise needs a method `spec()` that returns them as plain JSON.
    """

    @property
    def name(self) -> str:
        """Stable name with the revision of the weights and the settings; part of the cache key."""

    @property
    def column(self) -> str | Sequence[str]:
        """The column or columns of `Items` that the encoder reads."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    @property
    def modality(self) -> str:
        """Name of the modality: "text", "image" or "attributes"."""

    def values(self, items: Items) -> list[Any]:
        """One value per item, None where the item has no content."""

    def encode(self, values: Sequence[Any]) -> NDArray[np.float32]:
        """(len(values), dim) float32 in the order of `values`; rows need not be normalised."""

    def explain_failure(self, value: object) -> str:
        """Why a value could not be read, in a sentence."""


class Features(NamedTuple):
    """The output of a trainable module for a batch, on its device.

    Attributes:
        pooled: (batch, dim) one vector per value, as `encode` returns it.
        dense: (batch, positions, width) vectors of tokens or patches in reading order; None where a model has none.
        mask: (batch, positions) bool, True where a position holds content; None where all do.
    """

    pooled: Tensor
    dense: Tensor | None = None
    mask: Tensor | None = None


class TrainableEncoder(Encoder, Protocol):
    """An encoder whose weights a `Tuner` can change."""

    def module(self) -> Module:
        """A `torch.nn.Module` with a copy of the encoder's weights, which maps a batch of `collate` to `Features`."""

    def collate(self, values: Sequence[Any]) -> Mapping[str, Tensor]:
        """The tensors of one batch, as `module` takes them; all values must be readable."""

    def saved(self, module: Module, folder: str | Path) -> Self:
        """The same encoder with the weights of `module`, saved to `folder` atomically."""


@checked
def encoder_spec(encoder: Encoder) -> dict[str, Any]:
    """Plain JSON from which `encoder_from_spec` builds the same encoder: the class under "class", and its settings.

    Raises:
        InputError: a setting that is not kept as an attribute or is not plain JSON, or a class that cannot be found by
            its name.
    """
    kind = type(encoder)
    spec = getattr(encoder, "spec", None)
    if callable(spec):
        settings = {name: value for name, value in spec().items() if name != "class"}
    else:
        names = list(settings_of(kind))
        if lost := [name for name in names if not hasattr(encoder, name)]:
            raise InputError(f"{kind.__name__} does not keep its setting {lost[0]!r}, so it cannot be saved; store it "
                             "as an attribute of that name, or define spec()")  # fmt: skip

        settings = {name: getattr(encoder, name) for name in names}

    plain = {name: _as_json(value, f"{kind.__name__}: {name}") for name, value in settings.items()}

    return {"class": encoders.name_to_save(kind), **plain}


def _as_json(value: object, what: str) -> Any:
    """The value as plain JSON; paths become text, tuples lists."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _as_json(one, what) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_as_json(one, what) for one in value]

    raise InputError(
        f"{what} has the type {type(value).__name__}, which cannot be saved as JSON; use plain values, or define spec()"
    )


def content_bytes(value: Any) -> bytes:
    """Bytes that identify a value's content, for hashing; a path stands for the content of its file.

    Raises:
        OSError: the file cannot be read.
        InputError: no encoder can read values of this type.
    """
    if isinstance(value, str):
        return b"s" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b"b" + bytes(value)
    if isinstance(value, os.PathLike):
        return b"b" + Path(value).read_bytes()
    if isinstance(value, np.ndarray):
        return f"a{value.dtype.str}{value.shape}".encode() + value.tobytes()
    if isinstance(value, Mapping):
        return b"m" + json.dumps(value, sort_keys=True, default=str).encode()
    if hasattr(value, "tobytes") and hasattr(value, "mode"):  # a PIL picture, without importing PIL
        return f"i{value.mode}{value.size}".encode() + bytes(value.tobytes())

    raise InputError(f"content of type {type(value).__name__} cannot be encoded; give text, bytes, a path or an array")


def columns_of(items: Items, columns: Sequence[str]) -> pd.DataFrame:
    """The named columns as a frame; raises `InputError` if the items lack one."""
    if lost := [c for c in columns if c not in items.columns]:
        raise InputError(f"the items have no column {', '.join(map(repr, lost))}; they have {list(items.columns)}")

    return items.columns[list(columns)]


def is_missing(value: Any) -> bool:
    """True for None, NaN, NaT and blank text."""
    if isinstance(value, str):
        return not value.strip()

    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def text_values(items: Items, columns: Sequence[str], joint: str = ". ") -> list[str | None]:
    """The text columns of each item joined by `joint`; None where all are missing."""
    table = [columns_of(items, columns)[c].tolist() for c in columns]
    rows = ([str(v).strip() for v in row if not is_missing(v)] for row in zip(*table, strict=True))
    # Half a surrogate pair, which occurs where an export truncated its texts, would make a tokenizer fail.
    return [joint.join(row).encode("utf-8", "replace").decode() if row else None for row in rows]


def one_or_many(column: str | Sequence[str]) -> tuple[str, ...]:
    """`column` as a tuple of names; an empty one raises `InputError`."""
    names = (column,) if isinstance(column, str) else tuple(column)
    if not names:
        raise InputError("column is empty; name at least one column of the items")

    return names

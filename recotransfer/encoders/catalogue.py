"""Encode a catalogue once: `encode_items` works in batches, caches by content, and reports unreadable values."""

from __future__ import annotations

import hashlib
import io
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked, checked_class
from recotransfer.data import Embeddings, Items
from recotransfer.encoders.base import Encoder, content_bytes
from recotransfer.errors import InputError
from recotransfer.io.artifacts import atomic_file
from recotransfer.progress import progress_bar
from recotransfer.registry import encoders
from recotransfer.settings import check_settings

_KEY_BYTES = 16


@checked_class
@dataclass(frozen=True)
class EncodeReport:
    """What `encode_items` did.

    Attributes:
        encoder: the encoder's name.
        items: number of items asked for.
        encoded: distinct values encoded in this call.
        cached: distinct values whose vectors came from the cache.
        repeated: items whose value equals that of an earlier item.
        empty: items without content in the encoder's columns.
        unreadable: (item id, reason) of every item whose content could not be read; treated as missing.
        seconds: wall time.
    """

    encoder: str
    items: int
    encoded: int
    cached: int
    repeated: int
    empty: int
    unreadable: tuple[tuple[Any, str], ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        line = (
            f"{self.encoder}: {self.items:,} items, {self.encoded:,} encoded, {self.cached:,} from the cache, "
            f"{self.repeated:,} repeats, {self.empty:,} without content, {len(self.unreadable):,} unreadable, "
            f"{self.seconds:.1f} s"
        )
        shown = [f"  item {item!r}: {reason}" for item, reason in self.unreadable[:5]]
        if len(self.unreadable) > len(shown):
            shown.append(f"  and {len(self.unreadable) - len(shown)} more")

        return "\n".join([line, *shown])


@checked_class
@dataclass(frozen=True)
class Encoded:
    """The vectors of a catalogue, and a report of how they were made."""

    embeddings: Embeddings
    report: EncodeReport


@dataclass
class _Values:
    """The distinct contents of a catalogue.

    Attributes:
        slot: (items,) position of each item's content in `distinct`, -1 for items without readable content.
        keys: hash of a content -> its position in `distinct`.
        distinct: the contents.
        lost: row of an item whose file cannot be opened -> the reason.
    """

    slot: NDArray[np.int64]
    keys: dict[bytes, int] = field(default_factory=dict)
    distinct: list[Any] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)


@checked
def encode_items(
    items: Items, encoder: Encoder, *, cache: str | Path | None = None, chunk: int = 2048, progress: bool = True
) -> Encoded:
    """Encode all items, taking vectors from the cache where it has them.

    Equal contents are encoded once. Contents are encoded in chunks, and each chunk is written to the cache before the
    next one starts, so an interrupted job loses at most one chunk and a rerun gives identical vectors. Items without
    content, or with unreadable content, get zeros and `has_content` False; the report lists the unreadable ones.
    Several processes may share a cache.

    Args:
        items: the catalogue.
        encoder: the encoder for one modality.
        cache: folder for vectors, keyed by content hash and encoder name; None does not cache.
        chunk: number of distinct contents per step and per cache file.
        progress: show a progress bar on a terminal.

    Raises:
        InputError: `chunk` below 1, invalid settings of the encoder, or vectors of a wrong shape.
    """
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be at least 1")

    if encoders.name_of(type(encoder)) in encoders.names:  # encoders of other packages may not keep their arguments
        check_settings(encoder)

    start = time.perf_counter()
    values = _distinct(encoder.values(items))
    vectors = np.full((len(values.distinct), encoder.dim), np.nan, np.float32)
    store = None if cache is None else _Cache(Path(cache), encoder)
    done = np.zeros(len(values.distinct), bool) if store is None else store.read(values.keys, vectors)
    todo = np.flatnonzero(~done)
    keys = list(values.keys)

    for positions in _chunks(todo, chunk, encoder.name, progress):
        rows = _encode_chunk(encoder, [values.distinct[i] for i in positions])
        vectors[positions] = rows
        if store is not None:
            store.write([keys[i] for i in positions], rows)

    embeddings, lost = _spread(items, encoder, values, vectors)
    with_content = int((values.slot >= 0).sum())
    report = EncodeReport(
        encoder=encoder.name,
        items=len(items),
        encoded=len(todo),
        cached=len(done) - len(todo),
        repeated=with_content - len(values.distinct),
        empty=len(items) - with_content - len(values.lost),
        unreadable=lost,
        seconds=time.perf_counter() - start,
    )

    return Encoded(embeddings, report)


def _distinct(values: list[Any]) -> _Values:
    out = _Values(np.full(len(values), -1, np.int64))
    for row, value in enumerate(values):
        if value is None:
            continue

        try:
            key = hashlib.blake2b(content_bytes(value), digest_size=_KEY_BYTES).digest()
        except OSError as cause:
            out.lost[row] = f"{value} cannot be opened ({cause.strerror or cause})"
            continue

        slot = out.keys.setdefault(key, len(out.distinct))
        if slot == len(out.distinct):
            out.distinct.append(value)

        out.slot[row] = slot

    return out


def _chunks(todo: NDArray[np.int64], size: int, name: str, progress: bool) -> Iterator[NDArray[np.int64]]:
    """The positions `todo`, `size` at a time, with a progress bar."""
    with progress_bar(len(todo), desc=name, unit="item", shown=progress and len(todo) > 0) as bar:
        for start in range(0, len(todo), size):
            positions = todo[start : start + size]
            yield positions
            bar.update(len(positions))


def _encode_chunk(encoder: Encoder, values: list[Any]) -> NDArray[np.float32]:
    """(len(values), dim) vectors; the whole row is NaN where any of its values is not finite."""
    rows = np.asarray(encoder.encode(values), np.float32)
    if rows.shape != (len(values), encoder.dim):
        raise InputError(f"{encoder.name} returned shape {rows.shape}, wanted ({len(values)}, {encoder.dim})")

    return np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, np.float32(np.nan))


def _spread(
    items: Items, encoder: Encoder, values: _Values, vectors: NDArray[np.float32]
) -> tuple[Embeddings, tuple[tuple[Any, str], ...]]:
    """One vector per item from those of the distinct contents, and (id, reason) of what could not be read."""
    readable = ~np.isnan(vectors[:, 0])
    has = values.slot >= 0
    present = has.copy()
    present[has] = readable[values.slot[has]]
    out = np.zeros((len(items), encoder.dim), np.float32)
    out[present] = vectors[values.slot[present]]
    reasons = dict(values.lost)
    explained: dict[int, str] = {}

    for row in np.flatnonzero(has & ~present).tolist():
        slot = int(values.slot[row])
        if slot not in explained:
            explained[slot] = encoder.explain_failure(values.distinct[slot])

        reasons[row] = explained[slot]

    ids = items.ids.ids
    embeddings = Embeddings(items.ids, out, encoder.name, present, ((encoder.modality, encoder.dim),))

    return embeddings, tuple((ids[row], reasons[row]) for row in sorted(reasons))


class _Cache:
    """Chunk files in a folder per encoder; each is named by the hash of its own bytes and never changed.

    A name that does not match the bytes reveals a damaged file. Files appear complete and their names depend on their
    content alone, so processes that share the folder cannot damage each other's files.
    """

    def __init__(self, root: Path, encoder: Encoder) -> None:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", encoder.name)[:80]
        self.folder = root / f"{readable}-{hashlib.blake2b(encoder.name.encode(), digest_size=6).hexdigest()}"
        self.row = np.dtype([("key", np.uint8, (_KEY_BYTES,)), ("vector", "<f4", (encoder.dim,))])

    def read(self, keys: Mapping[bytes, int], vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Fill in the rows of `vectors` that are in the cache; returns (len(vectors),) bool, which rows those are."""
        done = np.zeros(len(vectors), bool)
        for path in sorted(self.folder.glob("*.npy")):
            table = self._load(path)
            if table is None:
                continue

            slots = np.array([keys.get(key.tobytes(), -1) for key in table["key"]], np.int64)
            wanted = slots >= 0
            vectors[slots[wanted]] = table["vector"][wanted]
            done[slots[wanted]] = True

        return done

    def _load(self, path: Path) -> NDArray[Any] | None:
        """The keys and vectors of a chunk file; None if it is unreadable, damaged or of another width."""
        try:
            content = path.read_bytes()
        except OSError as cause:
            warnings.warn(f"cache file {path} cannot be read ({cause}); its items are encoded again", stacklevel=4)
            return None

        if hashlib.blake2b(content, digest_size=_KEY_BYTES).hexdigest() != path.stem:
            warnings.warn(f"cache file {path} is damaged; it is deleted and its items are encoded again", stacklevel=4)
            path.unlink(missing_ok=True)
            return None

        table: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)

        return table if table.dtype == self.row else None

    def write(self, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Write one chunk to disk, completely or not at all."""
        table = np.zeros(len(keys), self.row)
        table["key"] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES)
        table["vector"] = rows
        buffer = io.BytesIO()
        np.save(buffer, table, allow_pickle=False)
        content = buffer.getvalue()
        name = hashlib.blake2b(content, digest_size=_KEY_BYTES).hexdigest()

        with atomic_file(self.folder / f"{name}.npy") as file:
            file.write(content)

"""What an encoder is, and how a catalogue goes through one: missing content, repeats, the cache and resuming.

Loading models is the business of the encoder classes; joining several encoders' vectors is that of `fusion.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.artifacts import atomic_file, atomic_folder, sha256
from recotransfer.data import Embeddings, Items
from recotransfer.errors import InputError

_KEY_BYTES = 16
_REVISION_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
_TUNED = "tuned.json"  # tells a model that was trained here, and belongs to what uses it, from one that was given


class Encoder(Protocol):
    """Turns one modality of an item into a vector; already trained, never fitted here.

    `encode` gets present values only. A row with NaN says that the value cannot be read; `why` then says what is wrong.
    """

    @property
    def name(self) -> str:
        """Stable id with the revision of weights and settings; part of the cache's key."""

    @property
    def column(self) -> str | Sequence[str]:
        """The column or columns of `Items` it reads."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    @property
    def block(self) -> str:
        """Name of the modality: "text", "image" or "attributes"."""

    def values(self, items: Items) -> list[Any]:
        """One value per item, None where the item has no content."""

    def encode(self, values: Sequence[Any]) -> NDArray[np.float32]:
        """(len(values), dim) float32 in the order of `values`, of any length norm."""

    def why(self, value: Any) -> str:
        """A sentence on what is wrong with a value that could not be read."""

    def spec(self) -> dict[str, Any]:
        """Plain JSON from which `encoder_from_spec` builds the same encoder."""


class Features(NamedTuple):
    """What a module gives for a batch, on its device.

    Attributes:
        pooled: (batch, dim) one vector per value, as `encode` returns it.
        dense: (batch, positions, width) vectors of tokens or patches in reading order; None where a model has none.
        mask: (batch, positions) bool, True where a position holds content; None where all do.
    """

    pooled: Any
    dense: Any = None
    mask: Any = None


class TrainableEncoder(Encoder, Protocol):
    """An encoder whose weights a `Tuner` can change."""

    def module(self) -> Any:
        """A `torch.nn.Module` of its own with the encoder's weights; called with what `collate` gives it, it returns
        `Features`.
        """

    def collate(self, values: Sequence[Any]) -> Mapping[str, Any]:
        """Tensors of one batch, as `module` takes them; values must be readable."""

    def saved(self, module: Any, folder: str | Path) -> Self:
        """The same encoder with the weights of `module`, which are written to `folder`, whole or not at all."""


@dataclass(frozen=True)
class EncodeReport:
    """What `encode_items` did.

    Attributes:
        encoder: the encoder's name.
        items: number of items asked for.
        encoded: distinct values that went through the encoder now.
        cached: distinct values whose vectors came from the cache.
        repeated: items that share another item's value.
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


@dataclass(frozen=True)
class Encoded:
    """Vectors of a catalogue and the report on how they came about."""

    embeddings: Embeddings
    report: EncodeReport


@dataclass
class _Values:
    """The distinct contents of a catalogue: `slot[i]` is item i's place in `distinct`, -1 where it has none."""

    slot: NDArray[np.int64]
    keys: dict[bytes, int] = field(default_factory=dict)
    distinct: list[Any] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)


def encode_items(
    items: Items, encoder: Encoder, *, cache: str | Path | None = None, chunk: int = 2048, progress: bool = True
) -> Encoded:
    """Vectors of all items, with everything the cache already holds taken from there.

    Equal contents are encoded once. Contents are encoded `chunk` at a time and each chunk is on disk before the next
    begins, so a job killed at any moment loses at most one chunk and, run again, ends with the same bytes as an
    undisturbed run. Items without content, or with content that cannot be read, get zeros and `present` False; the
    report names the unreadable ones. Several processes may share a cache.

    Args:
        items: the catalogue.
        encoder: what reads it.
        cache: a folder for vectors, keyed by content hash and encoder name; None keeps nothing.
        chunk: distinct contents per step, and per file of the cache.
        progress: show a progress bar on a terminal.
    """
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be at least 1")
    start = time.perf_counter()
    values = _distinct(encoder.values(items))
    vectors = np.full((len(values.distinct), encoder.dim), np.nan, np.float32)
    store = None if cache is None else _Cache(Path(cache), encoder)
    done = np.zeros(len(values.distinct), bool) if store is None else store.read(values.keys, vectors)
    todo = np.flatnonzero(~done)
    keys = list(values.keys)
    for part in _chunks(todo, chunk, encoder.name, progress):
        rows = _encode_part(encoder, [values.distinct[i] for i in part])
        vectors[part] = rows
        if store is not None:
            store.write([keys[i] for i in part], rows)
    embeddings, lost = _spread(items, encoder, values, vectors)
    held = int((values.slot >= 0).sum())
    report = EncodeReport(
        encoder=encoder.name,
        items=len(items),
        encoded=len(todo),
        cached=len(done) - len(todo),
        repeated=held - len(values.distinct),
        empty=len(items) - held - len(values.lost),
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
    from tqdm import tqdm

    with tqdm(total=len(todo), desc=name, unit="item", disable=None if progress and len(todo) else True) as bar:
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            yield part
            bar.update(len(part))


def _encode_part(encoder: Encoder, values: list[Any]) -> NDArray[np.float32]:
    rows = np.asarray(encoder.encode(values), np.float32)
    if rows.shape != (len(values), encoder.dim):
        raise InputError(f"{encoder.name} returned shape {rows.shape} for {len(values)} values of dim {encoder.dim}")
    return np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, np.float32(np.nan))


def _spread(
    items: Items, encoder: Encoder, values: _Values, vectors: NDArray[np.float32]
) -> tuple[Embeddings, tuple[tuple[Any, str], ...]]:
    """Vectors of the distinct contents laid out per item, and (id, reason) of what could not be read."""
    readable = ~np.isnan(vectors[:, 0])
    has = values.slot >= 0
    present = has.copy()
    present[has] = readable[values.slot[has]]
    out = np.zeros((len(items), encoder.dim), np.float32)
    out[present] = vectors[values.slot[present]]
    reasons = dict(values.lost)
    said: dict[int, str] = {}
    for row in np.flatnonzero(has & ~present).tolist():
        slot = int(values.slot[row])
        if slot not in said:
            said[slot] = encoder.why(values.distinct[slot])
        reasons[row] = said[slot]
    ids = items.ids.ids
    embeddings = Embeddings(items.ids, out, encoder.name, present, ((encoder.block, encoder.dim),))
    return embeddings, tuple((ids[row], reasons[row]) for row in sorted(reasons))


class _Cache:
    """A folder per encoder of append-only chunk files, each named by the digest of its own bytes.

    A name that does not fit the bytes shows a damaged file. Since files appear whole and the name follows from the
    content, processes that share the folder cannot spoil each other's files.
    """

    def __init__(self, root: Path, encoder: Encoder) -> None:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", encoder.name)[:80]
        self.folder = root / f"{readable}-{hashlib.blake2b(encoder.name.encode(), digest_size=6).hexdigest()}"
        self.row = np.dtype([("key", np.uint8, (_KEY_BYTES,)), ("vector", "<f4", (encoder.dim,))])

    def read(self, keys: Mapping[bytes, int], vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Fill in `vectors` at the slots whose key is on file; returns which slots those were."""
        done = np.zeros(len(vectors), bool)
        for path in sorted(self.folder.glob("*.npy")):
            table = self._load(path)
            if table is None:
                continue
            found = [keys.get(key.tobytes(), -1) for key in table["key"]]
            slots = np.array(found, np.int64)
            held = slots >= 0
            vectors[slots[held]] = table["vector"][held]
            done[slots[held]] = True
        return done

    def _load(self, path: Path) -> NDArray[Any] | None:
        try:
            content = path.read_bytes()
        except OSError as cause:
            warnings.warn(f"cache file {path} cannot be read ({cause}); its items are encoded again", stacklevel=4)
            return None
        if hashlib.blake2b(content, digest_size=_KEY_BYTES).hexdigest() != path.stem:
            warnings.warn(f"cache file {path} is damaged; it is dropped and its items are encoded again", stacklevel=4)
            path.unlink(missing_ok=True)
            return None
        table: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
        return table if table.dtype == self.row else None

    def write(self, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Put one chunk on disk, whole or not at all."""
        table = np.zeros(len(keys), self.row)
        table["key"] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES)
        table["vector"] = rows
        buffer = io.BytesIO()
        np.save(buffer, table, allow_pickle=False)
        content = buffer.getvalue()
        name = hashlib.blake2b(content, digest_size=_KEY_BYTES).hexdigest()
        with atomic_file(self.folder / f"{name}.npy") as file:
            file.write(content)


def content_bytes(value: Any) -> bytes:
    """The bytes that tell one content from another; a path stands for the file's bytes.

    Raises OSError when a file cannot be read and `InputError` for a type that no encoder knows.
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
    """The named columns; an `InputError` lists those the items lack."""
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
    # Half a surrogate pair, as cut-off exports have them, would stop a tokenizer.
    return [joint.join(row).encode("utf-8", "replace").decode() if row else None for row in rows]


def folder_revision(folder: Path) -> str:
    """12 hex digits that change with any weight, tokenizer or configuration file in a model's folder."""
    digest = hashlib.sha256()
    files = {p for pattern in _REVISION_FILES for p in folder.rglob(pattern) if p.is_file()}
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    if not files:
        raise InputError(f"{folder} holds no model files; give a folder with config.json and weights")
    return digest.hexdigest()[:12]


def model_folder(model: str | Path) -> Path:
    """The folder of a model: `model` itself if it is one, else the hub's snapshot of that name, over the network."""
    if (folder := Path(model)).is_dir():
        return folder
    if isinstance(model, Path) or model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise InputError(f"{model} is no folder; give a folder with a saved model, or the model's name on the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, ignore_patterns=["onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot"]))
    except Exception as cause:  # the hub client raises a dozen unrelated types; the cause is kept
        raise InputError(f"model {model!r} is no folder and could not be fetched from the hub: {cause}") from cause


@contextlib.contextmanager
def saved_model(folder: str | Path) -> Iterator[Path]:
    """An empty folder for the files of a trained model, which takes the place of `folder` when all are written.

    Raises:
        InputError: `folder` holds something else than an earlier trained model.
    """
    folder = Path(folder)
    if folder.exists() and not is_tuned(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds other files, which would be lost; give a new folder")
    with atomic_folder(folder) as new:
        yield new
        (new / _TUNED).write_text('{"format": 1}\n', encoding="utf-8")


def is_tuned(model: Any) -> bool:
    """True for the folder of a model that was trained here."""
    return isinstance(model, (str, os.PathLike)) and (Path(model) / _TUNED).is_file()


def one_or_many(column: str | Sequence[str]) -> tuple[str, ...]:
    """`column` as a tuple of names; an empty one raises `InputError`."""
    names = (column,) if isinstance(column, str) else tuple(column)
    if not names:
        raise InputError("column is empty; name at least one column of the items")
    return names


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and load reports from transformers within; errors still come through."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

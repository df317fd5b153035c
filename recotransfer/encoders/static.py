"""Static text encoder: a table of word vectors and one small layer, hundreds of times as fast as a transformer.

`transfer.DistilStatic` distils it from a transformer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.encoders.base import Features, one_or_many, text_values
from recotransfer.encoders.models import folder_revision, model_folder, model_label, saved_model
from recotransfer.errors import InputError, require

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Float = NDArray[np.float32]
_FORMAT = 1
_CONFIG, _WORDS, _WEIGHTS = "config.json", "vocabulary.json", "model.safetensors"
_CHUNK = 4096  # texts per batch, whose sums fit into a CPU's caches
_WORD = re.compile(r"[^\W_]+")
_NO_WORD = re.compile(r"[\W_]+")
_MARKS = re.compile("[\u0300-\u036f]")  # combining accents, which NFKD splits from their letters
_HAN = re.compile("([\u3400-\u4dbf\u4e00-\u9fff])")
_LETTER = np.array([b > 127 or chr(b).isalnum() for b in range(256)])  # UTF-8 bytes of words


def fold(text: str) -> str:
    """Lower-case text without accents, each Chinese character as a word; non-ASCII text loses its punctuation."""
    if text.isascii():
        return text.lower()

    text = _MARKS.sub("", unicodedata.normalize("NFKD", text).lower())
    return _NO_WORD.sub(" ", _HAN.sub(r" \1 ", text))


def words(text: str) -> list[str]:
    """The words of a text in reading order, in the form of a vocabulary's entries."""
    return _WORD.findall(fold(text))


class Rows(NamedTuple):
    """The words of texts as table rows `found` (m,) int32 in reading order; text i has found[start[i]:start[i + 1]]."""

    found: NDArray[np.int32]
    start: NDArray[np.int64]


class Vocabulary:
    """Maps words to rows of a table.

    Args:
        entries: words in the form that `words` returns, and pieces that continue an unknown word, written "##piece".
    """

    def __init__(self, entries: Sequence[str]) -> None:
        from recotransfer.encoders._word_loops import open_table

        self.entries = entries
        self._table = open_table(*_flat(entries))

    def rows(self, texts: Sequence[str]) -> Rows:
        """The rows of all words; an unknown word is split from the left into its longest known pieces."""
        from recotransfer.encoders._word_loops import lookup

        return Rows(*lookup(*_flat([fold(text) for text in texts]), *self._table, _LETTER))


def _flat(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of all texts in one array, and (len(texts),) where each text ends."""
    raw = [text.encode("utf-8", "replace") for text in texts]
    return np.frombuffer(b"".join(raw), np.uint8), np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)))


@checked_class
class StaticText:
    """Encodes text as a sum of word vectors and word-pair features, without a transformer. Vectors have unit length.

    Each word contributes its row of the table, and each pair of neighbouring words relu(A row + B previous row). One
    hidden layer corrects the sum. With the rows alone this would be a Model2Vec (Tulkens and van Dongen, "Model2Vec:
    fast state-of-the-art static embeddings", 2024). Case, accents and punctuation are ignored. Words outside the
    vocabulary are split into known pieces; a text without any known piece counts as unreadable.

    Args:
        model: a folder written by `DistilStatic`.
        column: the text column, or several, which are joined by ". ".
    """

    modality = "text"

    def __init__(self, *, model: str | Path, column: str | Sequence[str] = "title") -> None:
        self.model = model
        self.column = column

    @cached_property
    def _folder(self) -> Path:
        return model_folder(self.model)

    @cached_property
    def name(self) -> str:
        """Model and revision of its files."""
        return f"StaticText/{model_label(self.model)}@{folder_revision(self._folder)}"

    @cached_property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._network.weights["table"].shape[1])

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the model's table."""
        return Vocabulary(_read(self._folder / _WORDS, list))

    @cached_property
    def _network(self) -> StaticNetwork:
        config = _read(self._folder / _CONFIG, dict)
        if config.get("class") != "StaticText" or config.get("format") != _FORMAT:
            raise InputError(f"{self._folder} holds no static text model of this version; distil the model again")

        load_file = require("safetensors.numpy").load_file

        network = StaticNetwork(load_file(self._folder / _WEIGHTS))
        if len(network.weights["table"]) != len(self.vocabulary.entries):
            raise InputError(
                f"{self._folder} has {len(self.vocabulary.entries)} words but {len(network.weights['table'])} vectors; "
                "distil the model again"
            )

        return network

    def values(self, items: Items) -> list[str | None]:
        """The text of each item, None where all its text columns are empty."""
        return text_values(items, one_or_many(self.column))

    def encode(self, values: Sequence[str]) -> Float:
        """(len(values), dim) float32 of unit length, in order; NaN where no part of a text is known."""
        out = np.empty((len(values), self.dim), np.float32)
        for at in range(0, len(values), _CHUNK):
            rows = self.vocabulary.rows(values[at : at + _CHUNK])
            out[at : at + _CHUNK] = self._network.vectors(rows)

        return out

    def explain_failure(self, value: object) -> str:
        """Why a text could not be encoded, in a sentence."""
        return f"the text {str(value)[:40]!r} has no word or part of a word that the model knows"

    def module(self) -> Module:
        """A trainable copy of the network, which maps a batch of `collate` to `Features`."""
        return _training_form(self._network.weights)

    def collate(self, values: Sequence[str]) -> dict[str, Tensor]:
        """The table rows of all words of a batch, concatenated, and where each text begins."""
        torch = require("torch")

        rows = self.vocabulary.rows(values)
        return {"found": torch.from_numpy(rows.found), "start": torch.from_numpy(rows.start)}

    def saved(self, module: Module, folder: str | Path) -> StaticText:
        """The same encoder with the weights of `module`, saved to `folder` atomically."""
        weights = {ours: module.get_parameter(theirs).detach().cpu().numpy() for ours, theirs in _PARAMETERS.items()}
        weights = {name: w if w.ndim == 1 or name == "table" else w.T for name, w in weights.items()}
        write_static(folder, self.vocabulary.entries, weights)
        return StaticText(model=folder, column=self.column)


class StaticNetwork:
    """Sums word vectors and word-pair features, and corrects the sums by a hidden layer.

    Args:
        weights: "table" (words, dim), "own" and "before" (dim, width), "bias" (width,), "in" (dim + width, hidden),
            "in_bias", "out" (hidden, dim), "out_bias"; of any float type.
    """

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self.weights = {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}

        # relu(A row + B previous row): both products are computed once per word rather than once per occurrence.
        w = self.weights
        self._own = w["table"] @ w["own"] + w["bias"]
        self._before = w["table"] @ w["before"]

    def vectors(self, rows: Rows) -> Float:
        """(texts, dim) of unit length; NaN where a text has no word."""
        from recotransfer.encoders._word_loops import read

        w = self.weights
        dim, width = w["table"].shape[1], w["bias"].shape[0]
        sums = np.empty((len(rows.start) - 1, dim + width), np.float32)
        read(rows.found, rows.start, w["table"], self._own, self._before, sums)
        hidden = sums @ w["in"]
        hidden += w["in_bias"]
        out: Float = np.maximum(hidden, 0, out=hidden) @ w["out"]
        out += w["out_bias"]
        out += sums[:, :dim]
        out /= np.sqrt(np.einsum("nd,nd->n", out, out))[:, None]

        return out


_PARAMETERS = {  # names in `StaticNetwork` -> names in its training form, where torch stores matrices transposed
    "table": "table.weight",
    "own": "own.weight",
    "bias": "own.bias",
    "before": "before.weight",
    "in": "inner.weight",
    "in_bias": "inner.bias",
    "out": "outer.weight",
    "out_bias": "outer.bias",
}


def _training_form(weights: Mapping[str, Float]) -> Module:
    """`StaticNetwork` as a torch module that takes a batch and returns `Features`."""
    torch = require("torch")
    base: Any = torch.nn.Module
    (size, dim), (_, width), (_, hidden) = weights["table"].shape, weights["own"].shape, weights["in"].shape

    class TrainableStatic(base):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(size, dim)
            self.own = torch.nn.Linear(dim, width)
            self.before = torch.nn.Linear(dim, width, bias=False)
            self.inner = torch.nn.Linear(dim + width, hidden)
            self.outer = torch.nn.Linear(hidden, dim)

            with torch.no_grad():
                for ours, theirs in _PARAMETERS.items():
                    value = torch.from_numpy(weights[ours])
                    self.get_parameter(theirs).copy_(value if value.ndim == 1 or ours == "table" else value.T)

        def forward(self, batch: Mapping[str, Tensor]) -> Features:
            start = batch["start"]
            count = start.diff()
            text = torch.repeat_interleave(torch.arange(len(count), device=start.device), count)
            rows = self.table(batch["found"])

            # Shift by one word, so that each word meets the one before it; the first of a text has none.
            before = torch.nn.functional.pad(self.before(rows), (0, 0, 1, 0))[:-1]
            first = torch.nn.functional.pad(text[1:] != text[:-1], (1, 0), value=True)[:, None]
            pairs = torch.relu(self.own(rows) + before.masked_fill(first, 0))

            features = torch.cat([rows, pairs], dim=1)
            sums = features.new_zeros(len(count), features.shape[1]).index_add(0, text, features)
            sums = sums / count.clamp(min=1).sqrt()[:, None]
            out = sums[:, :dim] + self.outer(torch.relu(self.inner(sums)))

            return Features(torch.nn.functional.normalize(out, dim=1))

    return TrainableStatic()


def write_static(folder: str | Path, entries: Sequence[str], weights: Mapping[str, NDArray[Any]]) -> None:
    """Write a model for `StaticText` to `folder`, atomically, with weights in float16.

    Args:
        folder: a new folder, or that of an earlier model, which is replaced.
        entries: as in `Vocabulary`.
        weights: as in `StaticNetwork`.
    """
    save = require("safetensors.numpy").save

    with saved_model(folder) as new:
        config = {"class": "StaticText", "format": _FORMAT}
        (new / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
        (new / _WORDS).write_text(json.dumps(list(entries), ensure_ascii=False, indent=0), encoding="utf-8")
        half = {name: np.ascontiguousarray(value, np.float16) for name, value in weights.items()}
        (new / _WEIGHTS).write_bytes(save(half))


def _read(path: Path, kind: type) -> Any:
    """A JSON file whose value must be of type `kind`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as cause:
        raise InputError(f"{path} cannot be read ({cause}); give a folder that DistilStatic wrote") from None

    if not isinstance(value, kind):
        raise InputError(f"{path} does not contain JSON of type {kind.__name__}; give a folder that DistilStatic wrote")

    return value

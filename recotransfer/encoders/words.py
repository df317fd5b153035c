"""Texts as the words they hold: TF-IDF over a vocabulary that was learned from other texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.encoders.base import one_or_many, text_values
from recotransfer.errors import InputError
from recotransfer.io.artifacts import digest
from recotransfer.settings import Positive, PositiveInt, check_settings

_WORD = re.compile(r"\w+|[!?]")
_FEW = 1000  # texts; in more of them, words that only one text holds are left out
_MOST_NUMBERS = 1 << 27  # in all vectors of the texts that a vocabulary is learned from: half a GiB


@checked_class
class TfidfText:
    """TF-IDF of single words (Salton and Buckley, 1988): the control arm of every pretrained encoder of text.

    A word that a text holds n times has (1 + log n) times its inverse document frequency, and rows have unit length.
    Words outside the vocabulary share the last column, so that a text of unknown words is still a text. `learned`
    makes the encoder from texts; labels are not used. In `Probe`, leave `standardise` off.

    Args:
        column: the text column, or several, which are joined by ". ".
        words: the vocabulary, in lower case.
        idf: weight of each word, and of all others as the last number.
    """

    modality = "words"

    def __init__(
        self, *, column: str | Sequence[str] = "text", words: Sequence[str] = (), idf: Sequence[Positive] = (1.0,)
    ) -> None:
        self.column = column
        self.words = words
        self.idf = idf

    @classmethod
    def learned(
        cls, texts: Sequence[str | None], *, column: str | Sequence[str] = "text", most: PositiveInt = 4096
    ) -> Self:
        """The encoder whose vocabulary is the most frequent words of these texts; give those of training alone.

        Args:
            texts: the texts; None is a missing one.
            column: as in the constructor.
            most: maximum number of words. Fewer are taken where the vectors of so many texts would not fit into half
                a GiB, and beyond 1,000 texts only words that two of them hold.

        Raises:
            InputError: no text holds a word.
        """
        documents = [set(_words(text)) for text in texts if text is not None]
        counts = Counter(word for document in documents for word in document)
        if not counts:
            raise InputError("no text holds a word, so there is no vocabulary to learn; check the column of texts")

        least = 2 if len(documents) > _FEW else 1
        most = max(1, min(most, _MOST_NUMBERS // len(documents)))
        words = sorted((word for word, n in counts.items() if n >= least), key=lambda word: (-counts[word], word))[
            :most
        ]
        known = set(words)
        others = sum(not document <= known for document in documents)
        found = np.array([*(counts[word] for word in words), others], np.float64)
        idf = np.log((1 + len(documents)) / (1 + found)) + 1

        return cls(column=column, words=words, idf=idf.tolist())

    @property
    def name(self) -> str:
        """The vocabulary with its weights, as a hash, and the version."""
        return f"TfidfText/{len(self.words)}/{digest([*self.words, *map(repr, self.idf)])[:12]}/1"

    @property
    def dim(self) -> int:
        """Width of a vector: one column per word, and one for all others."""
        return len(self.words) + 1

    @cached_property
    def _columns(self) -> dict[str, int]:
        check_settings(self)
        if len(self.idf) != self.dim:
            raise InputError(f"TfidfText: idf has {len(self.idf)} weights for {len(self.words)} words; it needs one "
                             "per word and one for all other words")  # fmt: skip

        return {word: at for at, word in enumerate(self.words)}

    def values(self, items: Items) -> list[str | None]:
        """The text of each item, None where all its text columns are empty."""
        return text_values(items, one_or_many(self.column))

    def encode(self, values: Sequence[str]) -> NDArray[np.float32]:
        """(len(values), dim) float32 of unit length, in order; NaN where a text has no word."""
        columns, idf = self._columns, np.asarray(self.idf, np.float32)
        out = np.zeros((len(values), self.dim), np.float32)

        for row, text in zip(out, values, strict=True):
            counts = Counter(columns.get(word, len(columns)) for word in _words(text))
            at = np.fromiter(counts, np.int64, len(counts))
            row[at] = (1 + np.log(np.fromiter(counts.values(), np.float32, len(counts)))) * idf[at]

        lengths = np.linalg.norm(out, axis=1, keepdims=True)
        out /= np.where(lengths > 0, lengths, np.nan)

        return out

    def explain_failure(self, value: object) -> str:
        """Why a text could not be encoded, in a sentence."""
        return f"the text {str(value)[:40]!r} has no word"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())

"""Data augmentation: noise on texts and pictures, and catalogues with augmented copies of items."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked, checked_class
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders.base import is_missing
from recotransfer.encoders.image import decode
from recotransfer.errors import InputError, require

Augmenter: TypeAlias = Callable[[Any, np.random.Generator], Any]  # (value, random generator) -> augmented value
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@checked_class
@dataclass(frozen=True)
class TextNoise:
    """Augments a text: crops it to a span, drops and swaps words, and adds typos. The result is never empty.

    Dropping and swapping words are two of the four operations of EDA (Wei and Zou, "Easy data augmentation", 2019);
    spans of one text are the positive pairs of DeCLUTR (Giorgi et al., 2021).

    Args:
        drop: share of the words to drop.
        keep: minimum length of the span, as a share of the text's; 1 keeps the whole text.
        swap: number of swaps of two words, as a share of the words.
        typo: share of the words in which two neighbouring letters are transposed or one is lost, doubled or replaced.
    """

    drop: float = 0.1
    keep: float = 0.7
    swap: float = 0.05
    typo: float = 0.05

    def __post_init__(self) -> None:
        _check_shares(self, "drop", "keep", "swap", "typo")

    def __call__(self, value: str, rng: np.random.Generator) -> str:
        """The augmented text; a text of one word only gets typos."""
        words = str(value).split()
        if len(words) > 1:
            length = max(1, round(len(words) * rng.uniform(self.keep, 1)))
            first = int(rng.integers(len(words) - length + 1))
            words = words[first : first + length]
            kept = rng.random(len(words)) >= self.drop
            kept[rng.integers(len(words))] = True  # at least one word stays
            words = [word for word, stays in zip(words, kept, strict=True) if stays]

        for _ in range(rng.binomial(len(words), self.swap) if len(words) > 1 else 0):
            i, j = rng.choice(len(words), 2, replace=False)
            words[i], words[j] = words[j], words[i]

        wrong = rng.random(len(words)) < self.typo

        return " ".join(_mistyped(word, rng) if bad else word for word, bad in zip(words, wrong, strict=True))


def _mistyped(word: str, rng: np.random.Generator) -> str:
    """The word with one random typo; a single letter stays as it is."""
    if len(word) < 2:
        return word

    at, letter = int(rng.integers(len(word) - 1)), _LETTERS[rng.integers(len(_LETTERS))]
    swapped, lost, doubled, wrong = (
        word[at + 1] + word[at],
        word[at + 1],
        word[at] + word[at : at + 2],
        letter + word[at + 1],
    )

    return word[:at] + (swapped, lost, doubled, wrong)[rng.integers(4)] + word[at + 2 :]


@checked_class
@dataclass(frozen=True)
class ImageNoise:
    """Augments a picture: random crop, flip, rotation, colour jitter and erasing. The size stays the same.

    Random resized crops are those of Szegedy et al., "Going deeper with convolutions" (2015); erasing is that of Zhong
    et al., "Random erasing data augmentation" (2020).

    Args:
        crop: minimum area of the crop, as a share of the picture; 1 does not crop.
        flip: probability of a horizontal flip; use 0 where left and right differ, as in X-rays or writing.
        turn: maximum rotation in degrees, either way.
        light: maximum relative change of brightness and contrast.
        colour: maximum relative change of saturation.
        erase: probability of replacing a patch of 2 % to 20 % of the area by noise.
    """

    crop: float = 0.6
    flip: float = 0.5
    turn: float = 10.0
    light: float = 0.3
    colour: float = 0.3
    erase: float = 0.25

    def __post_init__(self) -> None:
        _check_shares(self, "crop", "flip", "light", "colour", "erase")
        if not 0 <= self.turn <= 180:
            raise InputError(f"ImageNoise: turn must lie between 0 and 180 degrees, got {self.turn}")

    def __call__(self, value: Any, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(height, width, 3) pixels of the augmented picture, upright; `value` is a picture as `PretrainedImage` takes.

        Raises:
            InputError: the value is not a picture, or cannot be decoded.
        """
        enhance = require("PIL.ImageEnhance")
        image = decode((value.get("bytes") or value.get("path")) if isinstance(value, Mapping) else value)
        size, modes = image.size, require("PIL.Image")
        area = rng.uniform(self.crop, 1)
        widest = min(0.25, -0.5 * np.log(max(area, 1e-9)))  # a larger aspect ratio would not fit into the picture
        aspect = np.exp(rng.uniform(-1, 1) * widest)
        width, height = (
            min(side, max(1, math.ceil(side * np.sqrt(area) * way)))
            for side, way in zip(size, (aspect, 1 / aspect), strict=True)
        )
        left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
        mirrored, angle = rng.random() < self.flip, rng.uniform(-self.turn, self.turn)
        if angle:  # rotating about the centre of the crop leaves the smallest empty corners
            middle = (left + width / 2, top + height / 2)
            fill = tuple(int(c) for c in np.asarray(image).reshape(-1, 3).mean(axis=0))
            image = image.rotate(angle, modes.Resampling.BILINEAR, center=middle, fillcolor=fill)

        image = image.resize(size, modes.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        if mirrored:
            image = image.transpose(modes.Transpose.FLIP_LEFT_RIGHT)

        for enhancer, change in (
            (enhance.Brightness, self.light),
            (enhance.Contrast, self.light),
            (enhance.Color, self.colour),
        ):
            image = enhancer(image).enhance(rng.uniform(1 - change, 1 + change))

        pixels = np.array(image, np.uint8)
        if rng.random() < self.erase:
            edge = np.sqrt(rng.uniform(0.02, 0.2))  # of the patch, as a share of each edge of the picture
            rows, columns = (max(1, round(n * edge)) for n in pixels.shape[:2])
            y, x = (int(rng.integers(n - m + 1)) for n, m in zip(pixels.shape[:2], (rows, columns), strict=True))
            pixels[y : y + rows, x : x + columns] = rng.integers(0, 256, (rows, columns, 3))

        return pixels


def _check_shares(noise: TextNoise | ImageNoise, *names: str) -> None:
    """Raise `InputError` unless these settings lie between 0 and 1."""
    for name in names:
        value = getattr(noise, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InputError(f"{type(noise).__name__}: {name} must lie between 0 and 1, got {value!r}")


class Augmented(NamedTuple):
    """Items with their augmented copies, and the relations of both: each copy has those of its original."""

    items: Items
    relations: Interactions


@checked
def augmented(
    items: Items, relations: Interactions, augmenters: Mapping[str, Augmenter], *, copies: int = 1, seed: int = 0
) -> Augmented:
    """The items followed by `copies` augmented copies of each, with the same users; copies of "a" are "a copy 1", ...

    A `Transfer`, a probe or a `Tuner` trained on the result learns to ignore the noise. Methods that hold out random
    items for early stopping would train on copies of the held-out items, which makes early stopping meaningless: fix
    the number of epochs instead, or use `FineTune(augment=...)`. Do not recommend from a catalogue with copies.

    Args:
        items: the catalogue.
        relations: users and their items; items that are not in the catalogue get no copies.
        augmenters: column -> function of a value and a numpy generator that returns the augmented value. Missing values
            stay missing; other columns are copied.
        copies: number of copies of each item; copy numbers already in use are skipped.
        seed: random seed; a copy depends only on it, the item's position and the copy's number.

    Raises:
        InputError: a column that the items lack, fewer than one copy, or content that cannot be augmented.
    """
    if unknown := [name for name in augmenters if name not in items.columns]:
        raise InputError(f"augmenters name {unknown[0]!r}; the items have {list(items.columns.columns)}")
    if copies < 1:
        raise InputError(f"copies must be at least 1, got {copies}")

    tables, ids, originals = [items.columns], list(items.ids.ids), items.ids.ids.tolist()
    taken = set(originals)
    free = (n for n in itertools.count(1) if taken.isdisjoint(f"{id_} copy {n}" for id_ in originals))

    for number in itertools.islice(free, copies):
        table = items.columns.copy()
        for name, alter in augmenters.items():
            out = np.empty(len(items), object)
            for at, value in enumerate(items.columns[name]):
                try:
                    out[at] = None if is_missing(value) else alter(value, np.random.default_rng([seed, number, at]))
                except InputError as cause:
                    raise InputError(f"item {originals[at]!r}, {name}: {cause}; mend it, or leave it out") from cause

            table[name] = pd.Series(out, dtype=object)

        tables.append(table)
        ids += [f"{id_} copy {number}" for id_ in originals]

    frame = pd.concat([t.astype(dict.fromkeys(augmenters, object)) for t in tables], ignore_index=True)
    both = Items(IdMap(ids), frame, items.kinds)

    return Augmented(both, _copied(relations, items.ids, both.ids, copies))


def _copied(relations: Interactions, old: IdMap, new: IdMap, copies: int) -> Interactions:
    """The relations, then those of each copy; copies of the i-th of n items are at n + i, 2 n + i, ..."""
    place = old.positions(relations.items.ids, missing="negative")[relations.item]
    rows = np.flatnonzero(place >= 0)
    out = relations
    r = relations.select(rows)

    for number in range(1, copies + 1):
        at = place[rows] + number * len(old)
        out = out.concat(Interactions(r.users, new, r.user, at, r.weight, r.time, r.kind, r.kinds))

    return out

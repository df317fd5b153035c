"""Adapting the data instead of the model: altered copies of items, confident predictions as labels, labels renamed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked, checked_class
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders.base import is_missing
from recotransfer.encoders.image import decode
from recotransfer.errors import InputError, require

Augmenter = Callable[[Any, np.random.Generator], Any]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@checked_class
@dataclass(frozen=True)
class TextNoise:
    """A text with some words gone, cut to a span, in another order or mistyped; never empty.

    Words dropped and swapped are half of EDA (Wei and Zou, "Easy data augmentation", 2019); a span is what DeCLUTR
    (Giorgi et al., 2021) calls two views of one text.

    Args:
        drop: share of the words left out.
        keep: least share of the text's length that the span keeps; 1 keeps all.
        swap: exchanges of two words, as a share of the words.
        typo: share of the words in which two neighbouring letters change places or one is lost, doubled or wrong.
    """

    drop: float = 0.1
    keep: float = 0.7
    swap: float = 0.05
    typo: float = 0.05

    def __post_init__(self) -> None:
        _check_shares(self, "drop", "keep", "swap", "typo")

    def __call__(self, value: str, rng: np.random.Generator) -> str:
        """The altered text; a text of one word is only mistyped."""
        words = str(value).split()
        if len(words) > 1:
            length = max(1, round(len(words) * rng.uniform(self.keep, 1)))
            first = int(rng.integers(len(words) - length + 1))
            words = words[first : first + length]
            kept = rng.random(len(words)) >= self.drop
            kept[rng.integers(len(words))] = True
            words = [word for word, stays in zip(words, kept, strict=True) if stays]

        for _ in range(rng.binomial(len(words), self.swap) if len(words) > 1 else 0):
            i, j = rng.choice(len(words), 2, replace=False)
            words[i], words[j] = words[j], words[i]

        wrong = rng.random(len(words)) < self.typo

        return " ".join(_mistyped(word, rng) if bad else word for word, bad in zip(words, wrong, strict=True))


def _mistyped(word: str, rng: np.random.Generator) -> str:
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
    """A picture cropped, mirrored, turned, brighter or darker, other in colour, with a patch gone; of the same size.

    Random resized crops are those of Szegedy et al., "Going deeper with convolutions" (2015); erasing is Zhong et al.,
    "Random erasing data augmentation" (2020).

    Args:
        crop: least share of the area that the crop keeps; 1 crops nothing.
        flip: probability of mirroring left and right; 0 for pictures that have a side, such as X-rays or writing.
        turn: greatest angle in degrees, either way.
        light: greatest change of brightness and contrast, as a share.
        colour: greatest change of saturation, as a share.
        erase: probability that a patch of a fiftieth to a fifth of the area is filled with noise.
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
        """(height, width, 3) pixels of a picture as `PretrainedImage` takes it, upright.

        Raises:
            InputError: what is no picture.
        """
        enhance = require("PIL.ImageEnhance")
        image = decode((value.get("bytes") or value.get("path")) if isinstance(value, Mapping) else value)
        size, modes = image.size, require("PIL.Image")
        area = rng.uniform(self.crop, 1)
        widest = min(0.25, -0.5 * np.log(max(area, 1e-9)))  # beyond it a side would not fit
        aspect = np.exp(rng.uniform(-1, 1) * widest)
        width, height = (
            min(side, max(1, math.ceil(side * np.sqrt(area) * way)))
            for side, way in zip(size, (aspect, 1 / aspect), strict=True)
        )
        left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
        mirrored, angle = rng.random() < self.flip, rng.uniform(-self.turn, self.turn)
        if angle:  # about the middle of the crop, so that as little as can be of the corners is empty
            middle = (left + width / 2, top + height / 2)
            fill = tuple(int(c) for c in np.asarray(image).reshape(-1, 3).mean(axis=0))
            image = image.rotate(angle, modes.Resampling.BILINEAR, center=middle, fillcolor=fill)

        image = image.resize(size, modes.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        if mirrored:
            image = image.transpose(modes.Transpose.FLIP_LEFT_RIGHT)

        for kind, most in (
            (enhance.Brightness, self.light),
            (enhance.Contrast, self.light),
            (enhance.Color, self.colour),
        ):
            image = kind(image).enhance(rng.uniform(1 - most, 1 + most))

        pixels = np.array(image, np.uint8)
        if rng.random() < self.erase:
            part = np.sqrt(rng.uniform(0.02, 0.2))
            rows, columns = (max(1, round(n * part)) for n in pixels.shape[:2])
            y, x = (int(rng.integers(n - m + 1)) for n, m in zip(pixels.shape[:2], (rows, columns), strict=True))
            pixels[y : y + rows, x : x + columns] = rng.integers(0, 256, (rows, columns, 3))

        return pixels


def _check_shares(noise: Any, *names: str) -> None:
    for name in names:
        value = getattr(noise, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InputError(f"{type(noise).__name__}: {name} must lie between 0 and 1, got {value!r}")


class Augmented(NamedTuple):
    """Items with their altered copies, whose relations are the originals' own."""

    items: Items
    relations: Interactions


@checked
def augmented(
    items: Items, relations: Interactions, augmenters: Mapping[str, Augmenter], *, copies: int = 1, seed: int = 0
) -> Augmented:
    """The items, then `copies` altered ones of each, held by the same users; of "a" the ids are "a copy 1", ...

    With frozen encoders a `Transfer` or a probe learns from it what should not matter; a `Tuner` does so too. But where
    these hold items out by lot to stop early, copies of those are among what they learn from, so that stopping early
    means nothing: set the epochs, or take `FineTune(augment=...)`. Leave the copies out of a catalogue that is
    recommended from.

    Args:
        items: the catalogue.
        relations: who holds which items; its items without content have no copies.
        augmenters: column -> what alters a value, (value, numpy generator) -> value; missing values stay missing, other
            columns are the original's.
        copies: altered items for each; numbers under which an item has a copy already are passed over.
        seed: random seed; a copy depends on it, the item's place and the copy's number only.

    Raises:
        InputError: a column that the items lack, fewer than one copy, or content that cannot be altered.
    """
    if unknown := [name for name in augmenters if name not in items.columns]:
        raise InputError(f"augmenters name {unknown[0]!r}; the items have {list(items.columns.columns)}")
    if copies < 1:
        raise InputError(f"copies must be at least 1, got {copies}")

    tables, ids, own = [items.columns], list(items.ids.ids), items.ids.ids.tolist()
    taken = set(own)
    free = (n for n in itertools.count(1) if taken.isdisjoint(f"{id_} copy {n}" for id_ in own))

    for number in itertools.islice(free, copies):
        table = items.columns.copy()
        for name, alter in augmenters.items():
            out = np.empty(len(items), object)
            for at, value in enumerate(items.columns[name]):
                try:
                    out[at] = None if is_missing(value) else alter(value, np.random.default_rng([seed, number, at]))
                except InputError as cause:
                    raise InputError(f"item {own[at]!r}, {name}: {cause}; mend it, or leave it out") from cause

            table[name] = pd.Series(out, dtype=object)

        tables.append(table)
        ids += [f"{id_} copy {number}" for id_ in own]

    frame = pd.concat([t.astype(dict.fromkeys(augmenters, object)) for t in tables], ignore_index=True)
    both = Items(IdMap(ids), frame, items.kinds)

    return Augmented(both, _copied(relations, items.ids, both.ids, copies))


def _copied(relations: Interactions, old: IdMap, new: IdMap, copies: int) -> Interactions:
    """The relations, then those of each copy: the item at i of n has its copies at n + i, 2 n + i, ..."""
    place = old.positions(relations.items.ids, missing="negative")[relations.item]
    rows = np.flatnonzero(place >= 0)
    out = relations

    for number in range(1, copies + 1):
        some = relations.select(rows)
        at = place[rows] + number * len(old)
        out = out.joined(Interactions(some.users, new, some.user, at, some.weight, some.time, some.kind, some.kinds))

    return out

"""The 600 products of the sample shop: what each is, and the English that describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TypeVar

import numpy as np
from shop_words import BRANDS, COLOURS, FAMILIES, PATTERN_PHRASES, PATTERN_WORDS, SPECKLED, STYLES, Brand, Family, Style

T = TypeVar("T")

LAST_DAY = date(2025, 8, 31)
FIRST_DAY = date(2025, 3, 1)
N_COLD = 40
N_JOINING = 60  # products that join while the log runs
N_NO_PRICE = 9
N_NO_IMAGE = 8
# Patterns that a category would look silly in.
WITHOUT_PATTERN = {"Water bottles": {"checks"}, "Candles": {"checks", "flowers"}}


@dataclass(frozen=True)
class Product:
    """One product; `level` is its price against its category's middle, on a log scale."""

    item_id: str
    title: str
    description: str
    family: Family
    brand: Brand
    style: Style
    colour: str
    pattern: str
    noun: str
    shape: str
    material: str
    price: float
    level: float
    has_price: bool
    has_image: bool
    in_stock: bool
    flip: bool
    added: date

    @property
    def cold(self) -> bool:
        """True for the brand-new products, which have no event yet."""
        return self.added > LAST_DAY - timedelta(days=7)


@dataclass(frozen=True)
class Look:
    """What is settled about a product before it is put into words."""

    family: Family
    brand: Brand
    style: Style
    colour: str
    pattern: str
    noun: str
    shape: str
    material: str


class Chooser:
    """Seeded choices, with or without weights."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def one(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options, in proportion to the weights."""
        if weights is None:
            return options[int(self.rng.integers(len(options)))]
        edges = np.cumsum(weights)
        return options[int(np.searchsorted(edges, self.rng.random() * edges[-1], side="right"))]

    def chance(self, share: float) -> bool:
        """True in this share of the calls."""
        return bool(self.rng.random() < share)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _look(family: Family, pick: Chooser) -> Look:
    style = pick.one(STYLES, [s.groups[family.group] for s in STYLES])
    fits = [(5.0 if style.name in b.styles else 0.15) if family.group in b.groups else 0.0 for b in BRANDS]
    banned = WITHOUT_PATTERN.get(family.name, set())
    patterns = {p: w for p, w in style.patterns.items() if p not in banned}
    noun, shape = pick.one(family.nouns)
    return Look(
        family,
        pick.one(BRANDS, fits),
        style,
        pick.one(list(COLOURS), [8.0 if c in style.colours else 1.0 for c in COLOURS]),
        pick.one(list(patterns), list(patterns.values())),
        noun,
        shape,
        pick.one(family.materials),
    )


def _title(look: Look, colour: str, detail: str, styled: bool, pick: Chooser) -> str:
    """A readable title such as "Stoneware mug with speckled blue glaze"."""
    family, noun, material = look.family, look.noun, look.material
    phrases = PATTERN_PHRASES[look.pattern]
    if look.pattern == "dots" and family.surface == "glaze":
        phrases = (*phrases, SPECKLED, SPECKLED)
    phrase = pick.one(phrases).format(colour=colour, surface=family.surface)
    adjective = "" if look.pattern == "plain" else pick.one(PATTERN_WORDS[look.pattern]) + " "
    style = pick.one(look.style.words)
    if styled:
        options = [
            f"{style} {adjective}{noun} in {colour} {material}",
            f"{style} {material} {noun} with {phrase}",
            f"{style} {adjective}{noun} with {detail}, {colour}",
            f"{material} {noun} in {colour} with {detail}, {style} {adjective}".rstrip() + " design",
        ]
        return _capital(pick.one(options, [4, 4, 3, 1]))
    options = [
        f"{material} {noun} with {phrase}",
        f"{colour} {adjective}{material} {noun}",
        f"{adjective}{noun} in {colour} {material}",
        f"{adjective}{material} {noun} with {detail}, {colour}",
        f"{colour} {adjective}{noun} with {detail}",
    ]
    return _capital(pick.one(options))


def _description(look: Look, colour: str, detail: str, styled: bool, pick: Chooser) -> str:
    """One or two sentences; the style is named here when the title is silent about it."""
    family, noun, material = look.family, look.noun, look.material
    # Two details, and never two scents.
    other = pick.one([d for d in family.details if d != detail and d[:7] != detail[:7]])
    use = pick.one(family.uses)
    these, have, article = ("these", "have", "") if family.plural else ("this", "has", "a ")
    if article and noun[0] in "aeiou":
        article = "an "
    colour_phrase = pick.one(PATTERN_PHRASES[look.pattern]).format(colour=colour, surface=family.surface)
    first = pick.one(
        [
            f"{article}{noun} in {colour} {material}, made with {use} in mind.",
            f"made from {material} with {colour_phrase}, {these} {noun} {have} {detail} and {other}.",
            f"{detail} and {other} make {these} {noun} a good choice for {use}.",
            f"{colour_phrase} on {material}, finished with {other}.",
            f"just right for {use}: {material}, {colour_phrase} and {other}.",
            f"we love {these} {noun} for {use}, not least because of {other}.",
        ]
    )
    if not pick.chance(0.4 if styled else 0.92):
        return _capital(first)
    return f"{_capital(first)} {pick.one(look.style.lines)}"


def _price(look: Look, pick: Chooser) -> tuple[float, float]:
    """The price in pounds, and its level within the category."""
    level = float(np.log(look.brand.level)) + 0.22 * float(pick.rng.standard_normal())
    pounds = look.family.price * float(np.exp(level))
    ending = pick.one((0.0, 0.5, 0.95, 0.99))
    return max(float(int(pounds)), 3.0) + ending, level


def _days(pick: Chooser) -> list[date]:
    """When each product joined, in order: most before the log, some during it, the cold ones in its last week."""
    old = [FIRST_DAY - timedelta(days=int(d)) for d in pick.rng.integers(5, 700, 600 - N_COLD - N_JOINING)]
    joining = [FIRST_DAY + timedelta(days=int(d)) for d in pick.rng.integers(3, 110, N_JOINING)]
    new = [LAST_DAY - timedelta(days=int(d)) for d in pick.rng.integers(0, 7, N_COLD)]
    return sorted(old + joining) + sorted(new)


def _arranged(pick: Chooser) -> list[Family]:
    """Families in the order in which their products joined; the last 40, the cold ones, hold 2 or 3 of each."""
    by_size = sorted(FAMILIES, key=lambda f: -f.count)
    cold = [f for i, f in enumerate(by_size) for _ in range(3 if i < N_COLD - 2 * len(by_size) else 2)]
    warm = [f for f in FAMILIES for _ in range(f.count - cold.count(f))]
    order = [int(i) for i in pick.rng.permutation(len(warm))]
    late = [int(i) for i in pick.rng.permutation(len(cold))]
    return [warm[i] for i in order] + [cold[i] for i in late]


def make_products(seed: int) -> list[Product]:
    """All products; no two share a title."""
    pick = Chooser(seed)
    families, days = _arranged(pick), _days(pick)
    warm = len(families) - N_COLD
    no_price = set(pick.rng.permutation(warm)[:N_NO_PRICE].tolist())
    no_image = set(pick.rng.permutation(warm)[:N_NO_IMAGE].tolist())
    seen: set[str] = set()
    products = []
    for n, (family, day) in enumerate(zip(families, days, strict=True)):
        while True:
            look = _look(family, pick)
            colour, detail = pick.one(COLOURS[look.colour][1]), pick.one(family.details)
            styled = pick.chance(0.55)
            title = _title(look, colour, detail, styled, pick)
            if title not in seen:
                break
        seen.add(title)
        price, level = _price(look, pick)
        products.append(
            Product(
                item_id=f"P{n + 1:04d}",
                title=title,
                description=_description(look, colour, detail, styled, pick),
                price=price,
                level=level,
                has_price=n not in no_price,
                has_image=n not in no_image,
                in_stock=pick.chance(0.93),
                flip=pick.chance(0.5),
                added=day,
                **vars(look),
            )
        )
    return products

"""Half a year of shoppers in the sample shop, drawn from planted tastes.

A shopper has tastes over category, style, colour, brand and price. A visit has a leading category and drifts: each
product is drawn by taste, popularity and likeness to the one before; liking a product leads on to its complement.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from shop_catalogue import FIRST_DAY, LAST_DAY, Chooser, Product
from shop_words import BRANDS, COLOURS, FAMILIES, PATTERN_WORDS, STYLES

N_USERS = 1500
N_SPARSE = 100  # shoppers with one to three events
FIRST = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC)
N_DAYS = (LAST_DAY - FIRST_DAY).days + 1
HOURS = [1, 0.5, 0.3, 0.2, 0.2, 0.5, 1, 2, 3, 3, 3, 3, 4, 4, 3, 3, 3, 4, 5, 7, 8, 7, 5, 3]  # by hour, evenings busiest

P_SEARCH = 0.12  # a visited product was found by a search
P_CART = 0.16  # a viewed product is put in the cart
P_CART_COMPLEMENT = 0.22
P_PURCHASE = 0.45  # a cart line is bought at the end of the visit
P_COMPLEMENT = 0.3  # the next product is a complement, after a view
P_COMPLEMENT_CART = 0.75  # the same, after a cart
P_STAY = 0.62  # the visit stays in its category otherwise


@dataclass(frozen=True)
class Event:
    """One line of the log."""

    at: datetime
    user_id: str
    item_id: str
    event: str
    query: str = ""


@dataclass(frozen=True)
class Traits:
    """Products as numbers: positions of each trait, log price level, log popularity, and the first day on sale."""

    category: NDArray[np.int64]
    style: NDArray[np.int64]
    colour: NDArray[np.int64]
    brand: NDArray[np.int64]
    level: NDArray[np.float64]
    popularity: NDArray[np.float64]
    day: NDArray[np.int64]
    leads_to: list[int]


def _traits(products: list[Product], pick: Chooser) -> Traits:
    categories = [f.name for f in FAMILIES]
    colours = list(COLOURS)
    rank = pick.rng.permutation(len(products)) + 1
    popularity = -0.8 * np.log(rank + 12.0)
    popularity[[p.added > FIRST_DAY for p in products]] += 1.0  # shops show off what has just come in
    popularity[[p.cold for p in products]] = -np.inf
    return Traits(
        np.array([categories.index(p.family.name) for p in products]),
        np.array([STYLES.index(p.style) for p in products]),
        np.array([colours.index(p.colour) for p in products]),
        np.array([BRANDS.index(p.brand) for p in products]),
        np.array([p.level for p in products]),
        popularity,
        np.array([(p.added - FIRST_DAY).days for p in products]),
        [categories.index(f.leads_to) if f.leads_to else -1 for f in FAMILIES],
    )


@dataclass
class Shopper:
    """A shopper's tastes: logits by category, and a utility for every product beyond its category."""

    category: NDArray[np.float64]
    utility: NDArray[np.float64]


def _shopper(traits: Traits, pick: Chooser) -> Shopper:
    """Tastes drawn at random; two styles and two or three categories stand out."""
    rng = pick.rng
    category = rng.standard_normal(len(FAMILIES)) * 0.6
    category[rng.permutation(len(FAMILIES))[: 2 + int(rng.integers(2))]] += 2.6
    style = rng.standard_normal(len(STYLES)) * 0.5
    style[rng.permutation(len(STYLES))[:2]] += (2.2, 1.2)
    colour = rng.standard_normal(len(COLOURS)) * 0.8
    brand = rng.standard_normal(len(BRANDS)) * 0.4
    wanted_level = 0.35 * rng.standard_normal()
    fit = -1.5 * (traits.level - wanted_level) ** 2
    utility = style[traits.style] + colour[traits.colour] + brand[traits.brand] + fit + traits.popularity
    return Shopper(category, utility)


def _drawn(logits: NDArray[np.float64], pick: Chooser) -> int:
    """A position drawn by softmax."""
    edges = np.cumsum(np.exp(logits - logits.max()))
    return int(np.searchsorted(edges, pick.rng.random() * edges[-1], side="right"))


def _query(product: Product, pick: Chooser) -> str:
    """What someone might type to find this product; words need not be those of its title."""
    colour = pick.one(COLOURS[product.colour][1])
    options = [
        f"{colour} {product.noun}",
        f"{product.material} {product.noun}",
        f"{pick.one(product.style.words)} {product.noun}",
        f"{product.noun} for {pick.one(product.family.uses)}",
        f"{product.brand.name} {product.family.name}",
        product.noun,
        f"{product.noun} under {int(product.price / 10 + 1) * 10} pounds",
    ]
    if product.pattern != "plain":
        options.append(f"{pick.one(PATTERN_WORDS[product.pattern])} {product.noun}")
    return pick.one(options).lower()


class Visit:
    """One visit of one shopper: walks from product to product and writes events."""

    def __init__(self, user_id: str, shopper: Shopper, traits: Traits, products: list[Product], pick: Chooser) -> None:
        self.user_id, self.shopper, self.traits, self.products, self.pick = user_id, shopper, traits, products, pick
        self.events: list[Event] = []

    def _next(self, focus: int, before: int | None, day: int, seen: set[int]) -> int:
        """The next product in the leading category, on sale that day and, if possible, not seen in this visit."""
        t = self.traits
        logits = np.where((t.category == focus) & (t.day < day), self.shopper.utility, -np.inf)
        if before is not None:
            logits = logits + 0.9 * (t.style == t.style[before]) + 0.5 * (t.colour == t.colour[before])
        fresh = logits.copy()
        fresh[list(seen)] = -np.inf
        return _drawn(fresh if np.isfinite(fresh).any() else logits, self.pick)

    def _log(self, at: datetime, item: int, event: str, query: str = "") -> None:
        self.events.append(Event(at, self.user_id, self.products[item].item_id, event, query))

    def walk(self, start: datetime, steps: int) -> list[Event]:
        """The events of a visit that looks at this many products."""
        pick, t = self.pick, self.traits
        at, day = start, (start - FIRST).days
        focus, before, complement = _drawn(self.shopper.category, pick), None, False
        seen: set[int] = set()
        cart: list[int] = []
        for _ in range(steps):
            item = self._next(focus, before, day, seen)
            seen.add(item)
            if pick.chance(P_SEARCH):
                self._log(at, item, "search", _query(self.products[item], pick))
                at += timedelta(seconds=int(pick.rng.integers(2, 9)))
            self._log(at, item, "view")
            carted = pick.chance(P_CART_COMPLEMENT if complement else P_CART)
            if carted:
                self._log(at + timedelta(seconds=int(pick.rng.integers(10, 40))), item, "cart")
                cart.append(item)
            at += timedelta(seconds=int(pick.rng.integers(45, 260)))
            target = t.leads_to[focus]
            complement = target >= 0 and pick.chance(P_COMPLEMENT_CART if carted else P_COMPLEMENT)
            if complement:
                focus = target
            elif not pick.chance(P_STAY):
                focus = _drawn(self.shopper.category, pick)
            before = item
        for item in cart:
            if pick.chance(P_PURCHASE):
                self._log(at, item, "purchase")
                at += timedelta(seconds=1)
        return self.events


def _start(pick: Chooser) -> datetime:
    day = int(pick.rng.integers(N_DAYS))
    hour = pick.one(range(24), HOURS)
    # Nobody starts so late that the visit runs out of the half-year.
    minute = int(pick.rng.integers(20 if (day, hour) == (N_DAYS - 1, 23) else 60))
    return FIRST + timedelta(days=day, hours=hour, minutes=minute, seconds=int(pick.rng.integers(60)))


def _history(user_id: str, views: int, traits: Traits, products: list[Product], pick: Chooser) -> list[Event]:
    """Visits in order of time that come to this many views; tastes drift a little from one to the next."""
    shopper = _shopper(traits, pick)
    lengths: list[int] = []
    while (left := views - sum(lengths)) > 0:
        lengths.append(min(1 + int(pick.rng.geometric(0.22)), 15, left))
    events: list[Event] = []
    for start, length in zip(sorted(_start(pick) for _ in lengths), lengths, strict=True):
        events += Visit(user_id, shopper, traits, products, pick).walk(start, length)
        shopper.category = shopper.category + 0.12 * pick.rng.standard_normal(len(FAMILIES))
    return events


def make_events(products: list[Product], seed: int) -> list[Event]:
    """The whole log in order of time.

    Raises `ValueError` when a seed leaves a product that is not new without an event; only the new ones may have none.
    """
    pick = Chooser(seed + 1)
    traits = _traits(products, pick)
    sparse = set(pick.rng.permutation(N_USERS)[:N_SPARSE].tolist())
    log: list[Event] = []
    for n in range(N_USERS):
        many = int(np.clip(np.exp(2.5 + 0.7 * pick.rng.standard_normal()), 4, 120))
        few = int(pick.rng.integers(1, 4))
        history = _history(f"U{n + 1:04d}", few if n in sparse else many, traits, products, pick)
        log += history[:few] if n in sparse else history
    seen = {e.item_id for e in log}
    if missed := [p.item_id for p in products if not p.cold and p.item_id not in seen]:
        raise ValueError(f"seed {seed} leaves {', '.join(missed)} without an event; take another seed")
    return sorted(log, key=lambda e: (e.at, e.user_id))

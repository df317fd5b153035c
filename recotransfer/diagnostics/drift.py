"""Has the log changed since the model was fitted? Shift of users, items and behaviour between two periods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import hits, ndcg
from recotransfer.evaluation.uncertainty import holm, interval
from recotransfer.numerics.vectors import gaussian_kernel, reciprocal, unit_rows
from recotransfer.recommenders import Recommender

Action = Literal["nothing", "partial_fit", "refit"]
Float = NDArray[np.float64]
Int = NDArray[np.int64]
Sides = NDArray[np.bool_]
_MOST_USERS = 1500  # who are compared: the kernel grows with their square
_TOP = 100  # items whose share is compared one by one, the rest together
_BLOCK = 256  # permutations at a time
CHUNK = 8  # events of one user that are replayed together, so that relations between items stay


class Shift(NamedTuple):
    """One way in which two periods may differ.

    Attributes:
        name: "content", "popularity" or "behaviour".
        value: squared MMD; Jensen-Shannon divergence in bits; NDCG@k after minus before.
        usual: mean of the value where only chance tells the periods apart.
        p: probability of a value as great by chance, corrected for the number of shifts looked for.
        words: the same in a sentence.
    """

    name: str
    value: float
    usual: float
    p: float
    words: str


@dataclass(frozen=True)
class Drift:
    """What differs between two periods.

    Attributes:
        shifts: what was looked for.
        action: "refit" (on recent events, settings chosen anew) where the model's quality fell; "partial_fit" where
            something else differs; else "nothing".
        words: the finding in plain sentences.
    """

    shifts: tuple[Shift, ...]
    action: Action
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"shifts": [s._asdict() for s in self.shifts], "action": self.action, "words": self.words}


def drift(
    before: Interactions,
    after: Interactions,
    *,
    items: Embeddings | None = None,
    model: Recommender | None = None,
    k: int = 10,
    alpha: float = 0.05,
    draws: int = 999,
    seed: int = 0,
) -> Drift:
    """Whether users do something else in one period than in another, beyond chance, and what to do about it.

    Up to three things are compared: which items are popular (Jensen-Shannon divergence of their shares), what the items
    consumed are like (maximum mean discrepancy of users' mean vectors; Gretton et al., "A kernel two-sample test",
    2012), and how well a model foretells them. All are permutation tests whose unit is a user in a period, for events
    of one user are not independent: a user of both periods changes sides with himself, the others among each other.
    Distinct items of a user count, no more of them than the typical user of the shorter period has. Still compare
    periods of like length: whoever is active for a day is another crowd than whoever is active within a year.

    Args:
        before: events of the earlier period.
        after: events of the later one.
        items: vectors of the items, to compare content.
        model: fitted on events earlier than both periods, to compare NDCG@k of users it knows; pairs it was fitted on
            are left out, items it does not know are missed.
        k: length of the lists.
        alpha: share of false alarms over all that is compared.
        draws: permutations.
        seed: random seed of the draws; at most 1,500 users are drawn.

    Raises:
        InputError: a period without two users to compare.
    """
    if not 0 < alpha < 1 or draws < 1:
        raise InputError(f"alpha must lie between 0 and 1 and draws be at least 1, got {alpha} and {draws}")

    ids = before.items.union(after.items)
    log = _Periods.of(before, after, np.random.default_rng(seed))
    found = [_popularity(log, _new_share(before, after), draws, seed)]
    if items is not None:
        found.append(_content(log, items.align(ids), draws, seed))

    if model is not None:
        found.append(_behaviour(model, before, after, k, draws, seed))

    shifts = tuple(s._replace(p=float(p)) for s, p in zip(found, holm([s.p for s in found]), strict=True))
    moved = [s for s in shifts if s.p < alpha]
    fell = any(s.name == "behaviour" and s.value < 0 for s in moved)
    action: Action = "refit" if fell else "partial_fit" if moved else "nothing"

    return Drift(shifts, action, _told(shifts, moved, action))


def _told(shifts: tuple[Shift, ...], moved: list[Shift], action: Action) -> str:
    advice = {
        "nothing": "Keep the model.",
        "partial_fit": "Give the new events to partial_fit.",
        "refit": "Fit again on recent events, with settings chosen anew.",
    }
    names = " and ".join(s.name for s in moved) or "Nothing"
    verb = "differ" if len(moved) > 1 else "differs"
    told = "; ".join(f"{s.words} (p {s.p:.3g})" for s in shifts)

    return f"{names[0].upper()}{names[1:]} {verb} beyond chance: {told}. {advice[action]}"


class _Periods(NamedTuple):
    """One row per user and period: whose it is, whether it is of the later period, and shares of the items (u, n)."""

    user: Int
    later: Sides
    share: sparse.csr_array

    @classmethod
    def of(cls, before: Interactions, after: Interactions, rng: np.random.Generator) -> _Periods:
        log = replace(before, time=None, kind=None, kinds=()).joined(replace(after, time=None, kind=None, kinds=()))
        later = np.repeat([False, True], [len(before), len(after)])
        width = len(log.items)
        pairs = np.unique((2 * log.user + later) * width + log.item)
        users = rng.permutation(np.unique(pairs // width // 2))[:_MOST_USERS]
        pairs = rng.permutation(pairs[np.isin(pairs // width // 2, users)])
        pairs = pairs[np.argsort(pairs // width, kind="stable")]
        units, first, size = np.unique(pairs // width, return_index=True, return_counts=True)
        sides = units % 2 == 1
        _check_sides(sides, "have events")
        most = int(max(1, min(np.median(size[side]) for side in (sides, ~sides))))
        row = np.repeat(np.arange(len(units)), size)
        kept = np.arange(len(pairs)) - first[row] < most
        value = 1 / np.minimum(size, most)[row[kept]]
        share = sparse.coo_array((value, (row[kept], pairs[kept] % width)), shape=(len(units), width))

        return cls(units // 2, sides, share.tocsr())

    def among(self, rows: Int) -> _Periods:
        return _Periods(self.user[rows], self.later[rows], sparse.csr_array(self.share[rows]))


def _check_sides(later: Sides, what: str) -> None:
    for name, side in (("earlier", ~later), ("later", later)):
        if side.sum() < 2:
            raise InputError(f"{int(side.sum())} users of the {name} period {what}; drift needs two at least")


def _chance(
    statistic: Callable[[Sides], Float], user: Int, later: Sides, draws: int, seed: int
) -> tuple[float, float, float]:
    """The statistic of the true sides, its mean over permuted ones, and how often those are as great in size."""
    generator = np.random.default_rng(seed)
    _, where, times = np.unique(user, return_inverse=True, return_counts=True)
    single = times[where] == 1
    values = [statistic(later[None])]

    for start in range(0, draws, _BLOCK):
        count = min(_BLOCK, draws - start)
        sides = np.repeat(later[None], count, axis=0)
        sides[:, single] = generator.permuted(sides[:, single], axis=1)
        turned = generator.random((count, len(times))) < 0.5
        sides[:, ~single] ^= turned[:, where[~single]]
        values.append(statistic(sides))

    seen, drawn = float(values[0][0]), np.concatenate(values[1:])
    as_great = np.abs(drawn) >= abs(seen) - 1e-12 * abs(seen)

    return seen, float(drawn.mean()), float((1 + as_great.sum()) / (1 + draws))


def _popularity(log: _Periods, new: float, draws: int, seed: int) -> Shift:
    total = np.asarray(log.share.sum(axis=0))
    best = np.argsort(-total, kind="stable")[:_TOP]
    shares = log.share[:, best].toarray()
    shares = np.hstack([shares, np.maximum(1 - shares.sum(axis=1, keepdims=True), 0)])

    def divergence(later: Sides) -> Float:
        sides = [side.astype(np.float64) @ shares / side.sum(axis=1, keepdims=True) for side in (~later, later)]
        middle = (sides[0] + sides[1]) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [np.where(p > 0, p * np.log2(p / middle), 0).sum(axis=1) for p in sides]

        return np.asarray(np.maximum((parts[0] + parts[1]) / 2, 0))

    value, usual, p = _chance(divergence, log.user, log.later, draws, seed)
    words = (
        f"shares of items diverge by {value:.4f} bits, {usual:.4f} by chance, {new:.0%} of later events on new items"
    )

    return Shift("popularity", value, usual, p, words)


def _new_share(before: Interactions, after: Interactions) -> float:
    """Share of the later events whose item has no event earlier."""
    used = before.items.take(np.unique(before.item))
    known = np.zeros(len(after.items), bool)
    at = after.items.positions(used, missing="negative")
    known[at[at >= 0]] = True
    return float(1 - known[after.item].mean()) if len(after) else 0.0


def _content(log: _Periods, items: Embeddings, draws: int, seed: int) -> Shift:
    held = log.share[:, items.has_content].sum(axis=1)
    log = log.among(np.flatnonzero(held))
    _check_sides(log.later, "hold an item with content")
    means = (log.share @ unit_rows(items.vectors)) * reciprocal(held[held > 0])[:, None]
    kernel = gaussian_kernel(means)
    n, m, whole = int(log.later.sum()), int((~log.later).sum()), float(kernel.sum())

    def discrepancy(later: Sides) -> Float:
        side = later.astype(np.float64)
        near = side @ kernel
        within = (near * side).sum(axis=1)
        across = near.sum(axis=1) - within
        return np.asarray(within / (n * (n - 1)) + (whole - within - 2 * across) / (m * (m - 1)) - 2 * across / (n * m))

    value, usual, p = _chance(discrepancy, log.user, log.later, draws, seed)

    return Shift("content", value, usual, p, f"content moved by a squared MMD of {value:.4f}, {usual:.4f} by chance")


def _behaviour(model: Recommender, before: Interactions, after: Interactions, k: int, draws: int, seed: int) -> Shift:
    model._check_fitted()
    users, values, later = [], [], []
    for side, events in enumerate((before, after)):
        truth = _unknown(model, events, seed)
        asked = np.unique(truth.user)
        found = model.recommend(truth.users.take(asked), k)
        users.append(model.events_.users.positions(truth.users.take(asked)))
        values.append(ndcg(hits(found, truth), k))
        later.append(np.full(len(asked), side == 1))

    quality, sides = np.concatenate(values), np.concatenate(later)
    _check_sides(sides, "are known to the model and have events that it does not know")

    def change(later: Sides) -> Float:
        return np.asarray((later @ quality) / later.sum(axis=1) - (~later @ quality) / (~later).sum(axis=1))

    value, usual, p = _chance(change, np.concatenate(users), sides, draws, seed)
    past, now = (interval(part) for part in values)
    words = (
        f"NDCG@{k} was {past.value:.4f} [{past.low:.4f}, {past.high:.4f}], is {now.value:.4f} "
        f"[{now.low:.4f}, {now.high:.4f}]"
    )

    return Shift("behaviour", value, usual, p, words)


def _unknown(model: Recommender, events: Interactions, seed: int) -> Interactions:
    """Events of some users whose history the model knows, without the pairs it was fitted on."""
    known = model.events_
    active = np.flatnonzero(np.diff(known.offsets) > 0)
    user = known.users.positions(events.users.ids, missing="negative")
    item = known.items.positions(events.items.ids, missing="negative")
    asked = np.random.default_rng(seed).permutation(np.flatnonzero(np.isin(user, active)))
    pair = user[events.user] * len(known.items) + item[events.item]
    seen = (item[events.item] >= 0) & np.isin(pair, known.user * len(known.items) + known.item)
    fresh = np.isin(events.user, asked) & ~seen
    drawn = asked[np.isin(asked, events.user[fresh])][:_MOST_USERS]

    return events.select(fresh & np.isin(events.user, drawn))

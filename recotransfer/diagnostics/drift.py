"""Drift: whether item popularity, content and the quality of a model differ between two periods of the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.arguments import checked, checked_class
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
_MOST_USERS = 1500  # sampled users; the kernel matrix grows with their square
_TOP = 100  # most popular items whose shares are compared one by one; all others count as one item
_BLOCK = 256  # permutations computed at a time, which bounds memory
CHUNK = 8  # consecutive events of a user that `Replay` samples together, so that their items remain related


class Shift(NamedTuple):
    """One comparison of two periods.

    Attributes:
        name: "content", "popularity" or "behaviour".
        value: squared MMD; Jensen-Shannon divergence in bits; NDCG@k after minus before.
        usual: mean of the value under the null hypothesis, over the permutations.
        p: probability of a value as large under the null hypothesis, corrected for the number of comparisons.
        words: the same in a sentence.
    """

    name: str
    value: float
    usual: float
    p: float
    words: str


@checked_class
@dataclass(frozen=True)
class Drift:
    """How two periods differ.

    Attributes:
        shifts: one entry per comparison.
        action: "refit" (on recent events, with new settings tuned) if the model's quality fell; "partial_fit" if
            anything else differs significantly; otherwise "nothing".
        words: the result in sentences.
    """

    shifts: tuple[Shift, ...]
    action: Action
    words: str

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-compatible values."""
        return {"shifts": [s._asdict() for s in self.shifts], "action": self.action, "words": self.words}


@checked
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
    """Whether behaviour differs significantly between two periods, and what to do about it.

    Up to three comparisons are made: which items are popular (Jensen-Shannon divergence of their shares), what the
    consumed items are like (maximum mean discrepancy of users' mean vectors; Gretton et al., "A kernel two-sample
    test", 2012), and how well a model predicts them. All are permutation tests over users, because the events of one
    user are not independent: users with events in both periods have theirs swapped, users of a single period are
    shuffled between the periods. A user contributes distinct items, at most as many as the median user of the period
    with the smaller median. Periods should still be of similar length: the users active on one day differ from those
    active within a year.

    Args:
        before: events of the earlier period.
        after: events of the later period.
        items: vectors of the items, to compare content.
        model: fitted on events before both periods, to compare its NDCG@k. Only users with a history are scored; pairs
            it was fitted on are excluded, and items outside its catalogue count as misses.
        k: length of the lists.
        alpha: family-wise significance level of all comparisons (Holm).
        draws: number of permutations.
        seed: random seed of the permutations and of the sample of at most 1,500 users.

    Raises:
        InputError: a period has fewer than two users to compare, or a setting is out of range.
    """
    if not 0 < alpha < 1 or draws < 1:
        raise InputError(f"alpha must lie between 0 and 1 and draws must be at least 1, got {alpha} and {draws}")

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

    return Drift(shifts, action, _summary(shifts, moved, action))


def _summary(shifts: tuple[Shift, ...], moved: list[Shift], action: Action) -> str:
    """All comparisons in a sentence, which of them `moved` significantly, and what to do."""
    advice = {
        "nothing": "Keep the model.",
        "partial_fit": "Pass the new events to partial_fit.",
        "refit": "Refit on recent events and tune again.",
    }
    names = " and ".join(s.name for s in moved) or "Nothing"
    verb = "differ" if len(moved) > 1 else "differs"
    details = "; ".join(f"{s.words} (p {s.p:.3g})" for s in shifts)

    return f"{names[0].upper()}{names[1:]} {verb} beyond chance: {details}. {advice[action]}"


class _Periods(NamedTuple):
    """Both periods, one row per user and period with events.

    Attributes:
        user: (rows,) the user.
        later: (rows,) bool, whether the period is the later one.
        share: (rows, items) share of each item in the user's items, rows summing to 1.
    """

    user: Int
    later: Sides
    share: sparse.csr_array

    @classmethod
    def of(cls, before: Interactions, after: Interactions, rng: np.random.Generator) -> _Periods:
        """The rows of a random sample of users, each with a random sample of their items."""
        # Distinct (user, period, item) triples of the sampled users, in random order within each user and period.
        log = replace(before, time=None, kind=None, kinds=()).concat(replace(after, time=None, kind=None, kinds=()))
        later = np.repeat([False, True], [len(before), len(after)])
        width = len(log.items)
        pairs = np.unique((2 * log.user + later) * width + log.item)
        users = rng.permutation(np.unique(pairs // width // 2))[:_MOST_USERS]
        pairs = rng.permutation(pairs[np.isin(pairs // width // 2, users)])
        pairs = pairs[np.argsort(pairs // width, kind="stable")]

        # At most `most` items per row, so that active users do not dominate.
        groups, first, size = np.unique(pairs // width, return_index=True, return_counts=True)
        sides = groups % 2 == 1
        _check_sides(sides, "who have events")
        most = int(max(1, min(np.median(size[side]) for side in (sides, ~sides))))
        row = np.repeat(np.arange(len(groups)), size)
        kept = np.arange(len(pairs)) - first[row] < most
        value = 1 / np.minimum(size, most)[row[kept]]
        share = sparse.coo_array((value, (row[kept], pairs[kept] % width)), shape=(len(groups), width))

        return cls(groups // 2, sides, share.tocsr())

    def take(self, rows: Int) -> _Periods:
        """Only these rows."""
        return _Periods(self.user[rows], self.later[rows], sparse.csr_array(self.share[rows]))


def _check_sides(later: Sides, what: str) -> None:
    """Raise `InputError` unless both periods have two users or more; `what` says which users count."""
    for name, side in (("earlier", ~later), ("later", later)):
        if side.sum() < 2:
            raise InputError(
                f"number of users of the {name} period {what}: {int(side.sum())}; drift needs at least two"
            )


def _permutation_test(
    statistic: Callable[[Sides], Float], user: Int, later: Sides, draws: int, seed: int
) -> tuple[float, float, float]:
    """The observed statistic, its mean over permutations, and the two-sided permutation p value.

    Args:
        statistic: maps (permutations, rows) bool, True for the later period, to (permutations,) values.
        user: (rows,) the user of each row.
        later: (rows,) bool, the observed periods.
        draws: number of permutations.
        seed: random seed of the permutations.
    """
    generator = np.random.default_rng(seed)
    _, where, times = np.unique(user, return_inverse=True, return_counts=True)
    single = times[where] == 1
    values = [statistic(later[None])]

    for start in range(0, draws, _BLOCK):
        count = min(_BLOCK, draws - start)
        sides = np.repeat(later[None], count, axis=0)
        # Rows of users with one period are shuffled; the two rows of all other users are swapped with probability 1/2.
        sides[:, single] = generator.permuted(sides[:, single], axis=1)
        swapped = generator.random((count, len(times))) < 0.5
        sides[:, ~single] ^= swapped[:, where[~single]]
        values.append(statistic(sides))

    observed, permuted = float(values[0][0]), np.concatenate(values[1:])
    as_large = np.abs(permuted) >= abs(observed) - 1e-12 * abs(observed)  # a tolerance for rounding errors

    return observed, float(permuted.mean()), float((1 + as_large.sum()) / (1 + draws))


def _popularity(log: _Periods, new: float, draws: int, seed: int) -> Shift:
    """Jensen-Shannon divergence of the periods' item shares; `new` is the share of later events on new items."""
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

    value, usual, p = _permutation_test(divergence, log.user, log.later, draws, seed)
    words = (
        f"shares of items diverge by {value:.4f} bits, {usual:.4f} expected by chance, "
        f"{new:.0%} of later events on new items"
    )

    return Shift("popularity", value, usual, p, words)


def _new_share(before: Interactions, after: Interactions) -> float:
    """Share of the later events on items without an event in the earlier period."""
    used = before.items.take(np.unique(before.item))
    known = np.zeros(len(after.items), bool)
    at = after.items.positions(used, missing="negative")
    known[at[at >= 0]] = True
    return float(1 - known[after.item].mean()) if len(after) else 0.0


def _content(log: _Periods, items: Embeddings, draws: int, seed: int) -> Shift:
    """Squared MMD between the users' mean vectors in the two periods; the unbiased estimate."""
    weight = log.share[:, items.has_content].sum(axis=1)
    log = log.take(np.flatnonzero(weight))
    _check_sides(log.later, "who have an item with content")
    means = (log.share @ unit_rows(items.vectors)) * reciprocal(weight[weight > 0])[:, None]
    kernel = gaussian_kernel(means)
    n, m, whole = int(log.later.sum()), int((~log.later).sum()), float(kernel.sum())

    def discrepancy(later: Sides) -> Float:
        side = later.astype(np.float64)
        near = side @ kernel
        within = (near * side).sum(axis=1)
        across = near.sum(axis=1) - within
        return np.asarray(within / (n * (n - 1)) + (whole - within - 2 * across) / (m * (m - 1)) - 2 * across / (n * m))

    value, usual, p = _permutation_test(discrepancy, log.user, log.later, draws, seed)

    return Shift(
        "content", value, usual, p, f"content differs by a squared MMD of {value:.4f}, {usual:.4f} expected by chance"
    )


def _behaviour(model: Recommender, before: Interactions, after: Interactions, k: int, draws: int, seed: int) -> Shift:
    """Change of the model's mean NDCG@k over users."""
    model._check_fitted()
    users, values, later = [], [], []
    for side, events in enumerate((before, after)):
        truth = _unseen_events(model, events, seed)
        ids = truth.users.take(np.unique(truth.user))
        found = model.recommend(ids, k)
        users.append(model.known_events().users.positions(ids))
        values.append(ndcg(hits(found, truth), k))
        later.append(np.full(len(ids), side == 1))

    quality, sides = np.concatenate(values), np.concatenate(later)
    _check_sides(sides, "who have a history in the model and events that it was not fitted on")

    def change(later: Sides) -> Float:
        return np.asarray((later @ quality) / later.sum(axis=1) - (~later @ quality) / (~later).sum(axis=1))

    value, usual, p = _permutation_test(change, np.concatenate(users), sides, draws, seed)
    past, now = (interval(part) for part in values)
    words = (
        f"NDCG@{k} was {past.value:.4f} [{past.low:.4f}, {past.high:.4f}], is {now.value:.4f} "
        f"[{now.low:.4f}, {now.high:.4f}]"
    )

    return Shift("behaviour", value, usual, p, words)


def _unseen_events(model: Recommender, events: Interactions, seed: int) -> Interactions:
    """The events of a sample of the users with a history in the model, without the pairs it was fitted on."""
    known = model.known_events()
    active = np.flatnonzero(np.diff(known.offsets) > 0)
    user = known.users.positions(events.users.ids, missing="negative")
    item = known.items.positions(events.items.ids, missing="negative")
    with_history = np.random.default_rng(seed).permutation(np.flatnonzero(np.isin(user, active)))
    pair = user[events.user] * len(known.items) + item[events.item]
    seen = (item[events.item] >= 0) & np.isin(pair, known.user * len(known.items) + known.item)
    fresh = np.isin(events.user, with_history) & ~seen
    drawn = with_history[np.isin(with_history, events.user[fresh])][:_MOST_USERS]

    return events.select(fresh & np.isin(events.user, drawn))

"""The guard against negative transfer: measures what content did on held-out events, takes it out where it hurt.

Before training, `transferability` guesses; here, after training, the transfer variant is weighed against its ablation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Filter, IdMap, Interactions, Recommendations
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import POPULARITY_BUCKET_NAMES, hits, ndcg, popularity_bucket
from recotransfer.evaluation.uncertainty import Difference, paired
from recotransfer.numerics.rounding import exceeds, first_best
from recotransfer.recommenders import HybridItems, Recommender

Trust = tuple[float, ...]
Float = NDArray[np.float64]
_NONE: Trust = (0.0,) * len(POPULARITY_BUCKET_NAMES)
_FOLDS = 5
_MOST_USERS = 50_000  # of the held-out part that are asked; a gain that these cannot show is too small to matter
_LEAST_PAIRS = 20  # true pairs below which a bucket says nothing for itself


class Bucket(NamedTuple):
    """NDCG@k of the two variants over the true items of one popularity bucket, in the mean of the users who have one.

    Attributes:
        name: number of training users of the items, such as "1-5".
        pairs: true (user, item) pairs in the bucket.
        ablation, transfer: the two means.
        change: transfer minus ablation, paired over users.
    """

    name: str
    pairs: int
    ablation: float
    transfer: float
    change: Difference


@dataclass(frozen=True)
class Verdict:
    """What content did on held-out events.

    Attributes:
        overall: NDCG@k of the whole transfer variant minus that of the ablation, paired over users.
        buckets: the same by popularity of the true item; buckets without a true pair are left out.
        trust: share of content kept for items of each popularity bucket, all 0 where the ablation was taken; None
            where the recommender is no `HybridItems`, whose content stays whole or goes.
        gained: what the best use of content found gained over the stronger of the ablation and the transfer variant's
            own behaviour, measured on users who had no part in finding it.
        helped: "helps" where the interval of `gained` lies above 0, so that the transfer variant was taken; else
            "hurts" where that of `overall` lies below 0.
        words: the verdict in plain sentences.
    """

    overall: Difference
    buckets: tuple[Bucket, ...]
    trust: Trust | None
    gained: Difference
    helped: Literal["helps", "no difference", "hurts"]
    words: str

    @property
    def kept(self) -> bool:
        """Whether the transfer variant was taken, with all of its content or part of it."""
        return self.helped == "helps"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; the change of a bucket stands beside its name."""
        return {
            "overall": self.overall._asdict(),
            "buckets": [
                {"name": b.name, "pairs": b.pairs, "ablation": b.ablation, "transfer": b.transfer, **b.change._asdict()}
                for b in self.buckets
            ],
            "trust": None if self.trust is None else list(self.trust),
            "gained": self.gained._asdict(),
            "helped": self.helped,
            "words": self.words,
        }


class Guarded(NamedTuple):
    """The recommender to use, and why."""

    recommender: Recommender
    verdict: Verdict

    def refitted(self, transfer: Recommender, ablation: Recommender) -> Recommender:
        """The same choice between the two variants fitted again, on the held-out events too."""
        return _taken(transfer, ablation, self.verdict.trust, self.verdict.kept)


def guard(
    transfer: Recommender,
    ablation: Recommender,
    valid: Interactions,
    *,
    histories: Interactions | None = None,
    allow: IdMap | None = None,
    k: int = 10,
    draws: int = 2000,
    seed: int = 0,
) -> Guarded:
    """The transfer variant as far as its content shows a gain on held-out events, else the ablation; with the verdict.

    Content must gain in NDCG@k with a 95% interval above 0, or the ablation itself is returned: ties go to the
    simpler variant. For `HybridItems` content is switched on or off by popularity of the recommended item (its
    `trust`):

    - Each choice of buckets is ranked once, 15 at most. Half trust measured as lying between none and all.
    - Of the choices that do not lie behind the best by more than chance would have it, again at 95%, the one with most
      buckets on is taken: once content has shown its gain, a bucket is switched off only where that is clearly better.
    - A bucket whose own true items gain, with an interval above 0, stays on while all users together gain with it:
      what cold items win is not given up for a little more on popular ones.
    - A bucket with fewer than 20 true pairs says nothing for itself. It is on where any bucket is, since rare items
      have little but content.
    - The gain is cross-fitted: chosen on four fifths of the users, measured on the others, five times. It is the gain
      over the ablation or over the transfer variant with all content off, whichever is better, so that better settings
      are not taken for better content.

    Other recommenders go whole or not at all, by their gain over the ablation.

    Args:
        transfer: fitted with content.
        ablation: the same kind of model fitted without, on the same events, its settings chosen with as many trials.
        valid: events that neither variant was fitted on. Users without a known history are left out; of more than
            50,000 users so many are drawn.
        histories: what is known of each user when `valid` is to be predicted; by default what the variants were fitted
            on.
        allow: rank only these items (the cold items of a cold-start protocol, say).
        k: length of the lists.
        draws: bootstrap samples of each interval.
        seed: random seed of draws and folds.

    Raises:
        InputError: fewer than two users of `valid` can be asked.
    """
    known = transfer.events_ if histories is None else histories
    truth = _answerable(valid, known, seed)
    ask = _Question(truth, _buckets_of(transfer, truth), histories, allow, k)
    lists = [ask.lists(variant) for variant in (ablation, transfer)]
    (without, without_by), (whole, whole_by) = ((ask.gains(found), ask.gains_by_bucket(found)) for found in lists)
    overall = paired(whole, without, draws=draws, seed=seed)
    pairs = np.bincount(ask.bucket, minlength=len(_NONE))
    buckets = tuple(
        Bucket(name, int(n), *_means(before, after), paired(after, before, draws=draws, seed=seed))
        for name, n, before, after in zip(POPULARITY_BUCKET_NAMES, pairs, without_by, whole_by, strict=True)
        if n
    )
    trust, gained = None, overall
    if isinstance(transfer, HybridItems) and transfer.items_ is not None:
        off = ask.gains(ask.lists(transfer.with_trust(_NONE)))
        bar = off if exceeds(off.mean(), without.mean()) else without
        tried = _choices((pairs >= _LEAST_PAIRS).tolist())
        scores = np.stack([ask.gains(ask.lists(transfer.with_trust(choice))) for choice in tried])
        trust, chosen = _choose(tried, scores, bar, whole_by - without_by, seed)
        gained = paired(chosen, bar, draws=draws, seed=seed)

    kept = gained.low > 0 and trust != _NONE
    helped: Literal["helps", "no difference", "hurts"]
    helped = "helps" if kept else "hurts" if overall.high < 0 else "no difference"
    if trust is not None and not kept:
        trust = _NONE

    words = _words(helped, _means(without, whole), overall, gained, trust, buckets, k)
    verdict = Verdict(overall, buckets, trust, gained, helped, words)

    return Guarded(_taken(transfer, ablation, trust, kept), verdict)


def _taken(transfer: Recommender, ablation: Recommender, trust: Trust | None, kept: bool) -> Recommender:
    if not kept:
        return ablation

    return transfer.with_trust(trust) if isinstance(transfer, HybridItems) and trust is not None else transfer


def _means(ablation: Float, transfer: Float) -> tuple[float, float]:
    return float(np.nanmean(ablation)), float(np.nanmean(transfer))


class _Question(NamedTuple):
    """What both variants predict: `k` items for each user of `truth`, whose events lie in these popularity buckets."""

    truth: Interactions
    bucket: NDArray[np.int64]
    histories: Interactions | None
    allow: IdMap | None
    k: int

    def lists(self, model: Recommender) -> Recommendations:
        users = self.truth.users.take(np.unique(self.truth.user))
        filter = None
        if self.allow is not None:
            at = model.catalogue_.positions(self.allow.ids, missing="negative")
            filter = Filter(allow=self.allow.ids[at >= 0])

        return model.recommend(users, self.k, histories=self.histories, filter=filter)

    def gains(self, found: Recommendations) -> Float:
        """(users,) NDCG@k."""
        return ndcg(hits(found, self.truth), self.k)

    def gains_by_bucket(self, found: Recommendations) -> Float:
        """(buckets, users) NDCG@k of the true pairs of each bucket alone; NaN for users who have none."""
        users = np.unique(self.truth.user)
        out = np.full((len(_NONE), len(users)), np.nan)
        for at in np.unique(self.bucket):
            truth = self.truth.select(self.bucket == at)
            out[at, np.isin(users, truth.user)] = ndcg(hits(found, truth), self.k)

        return out


def _answerable(valid: Interactions, known: Interactions, seed: int) -> Interactions:
    """The held-out events of users with a history, of `_MOST_USERS` of them at most."""
    has = np.bincount(known.user, minlength=len(known.users)) > 0
    at = known.users.positions(valid.users.ids, missing="negative")
    users = np.intersect1d(np.flatnonzero((at >= 0) & has[at]), valid.user)
    if len(users) < 2:
        raise InputError(
            f"{len(users)} users have both a history and held-out events, and two are the least to compare; give "
            "validation events of users in the log, or their histories"
        )

    asked = np.zeros(len(valid.users), bool)
    asked[np.random.default_rng(seed).permutation(users)[:_MOST_USERS]] = True

    return valid.select(asked[valid.user])


def _buckets_of(model: Recommender, truth: Interactions) -> NDArray[np.int64]:
    """(events,) popularity bucket of each true item, by the users that `model` was fitted on."""
    at = model.catalogue_.positions(truth.items.ids, missing="negative")[truth.item]
    return popularity_bucket(np.where(at >= 0, model.popularity_[at], 0))


def _choices(telling: Sequence[bool]) -> list[Trust]:
    """Every way to switch content on and off in the telling buckets, but for all off; the others are on."""
    switched = itertools.product((1.0, 0.0), repeat=sum(telling))
    out = []
    for switches in switched:
        if any(switches) or not switches:
            following = iter(switches)
            out.append(tuple(next(following) if tells else 1.0 for tells in telling))

    return out


def _choose(tried: Sequence[Trust], scores: Float, bar: Float, own: Float, seed: int) -> tuple[Trust, Float]:
    """The choice made on all users, and each user's score under the choice that the other folds' users made.

    `scores` (choices, users); `bar` (users,) is scored where no choice is better than it; `own` as in `_best`.
    """
    users = len(bar)
    folds = np.random.default_rng(seed).permutation(users) % min(_FOLDS, users)
    out = bar.copy()

    for fold in range(_FOLDS):
        rest = folds != fold
        if (best := _best(tried, scores[:, rest], bar[rest], own[:, rest])) is not None:
            out[~rest] = scores[best, ~rest]

    best = _best(tried, scores, bar, own)

    return (_NONE if best is None else tried[best]), out


def _best(tried: Sequence[Trust], scores: Float, bar: Float, own: Float) -> int | None:
    """The choice to take, None where the bar is better; see `guard` for the rule.

    `own` (buckets, users) is what the whole transfer variant changes for true items of each bucket, NaN without any.
    """
    on, means = np.array(tried) > 0, scores.mean(axis=1)
    gaining = [_clear(change[~np.isnan(change)]) for change in own]
    keeping = on[:, gaining].all(axis=1)

    for pool in (keeping, np.ones(len(tried), bool)):
        top = first_best(np.where(pool, means, -np.inf))
        if _clear(scores[top] - bar):
            break

    better = np.array([exceeds(mean, bar.mean()) for mean in means])
    if not better[top]:
        return None

    level = [at for at in np.flatnonzero(pool & better) if not _clear(scores[top] - scores[at])]
    most = max(on[at].sum() for at in level)
    widest = [at for at in level if on[at].sum() == most]

    return int(widest[first_best(means[widest])])


def _clear(change: Float) -> bool:
    """Whether the mean over users lies above 0 with its 95% interval, by its standard error."""
    return len(change) > 1 and bool(change.mean() > 1.96 * change.std() / np.sqrt(len(change)))


def _words(
    helped: str,
    means: tuple[float, float],
    overall: Difference,
    gained: Difference,
    trust: Trust | None,
    buckets: Sequence[Bucket],
    k: int,
) -> str:
    """The verdict in plain sentences with its figures."""
    whole = f"NDCG@{k} {means[1]:.4f} with content against {means[0]:.4f} without, {_figure(overall)}"
    off = [] if trust is None else [name for name, t in zip(POPULARITY_BUCKET_NAMES, trust, strict=True) if not t]
    if helped != "helps" and overall.low > 0:
        return (
            f"The transfer variant is better, but not by its content: {whole}, to which content adds "
            f"{_figure(gained)}; "
            f"so the model without content is taken. {_by_bucket(buckets)}"
        )

    if helped != "helps":
        what = "Content hurts" if helped == "hurts" else "Content makes no difference that can be relied on"
        return f"{what}: {whole}; so the model without content is taken. {_by_bucket(buckets)}"

    if not off:
        return f"Content helps: {whole}. {_by_bucket(buckets)}"

    return (
        f"Content helps in part: switched off for items of {_and(off)} users it gains {_figure(gained)} of NDCG@{k}. "
        f"Everywhere: {whole}. {_by_bucket(buckets)}"
    )


def _figure(change: Difference) -> str:
    return f"{change.value:+.4f} (95% interval {change.low:+.4f} to {change.high:+.4f})"


def _by_bucket(buckets: Sequence[Bucket]) -> str:
    """One sentence on the whole transfer variant by popularity of the true item."""
    groups: dict[str, list[str]] = {"it helps for": [], "it hurts for": [], "nothing can be told for": []}
    for bucket in buckets:
        low, high = bucket.change.low, bucket.change.high
        group = "it helps for" if low > 0 else "it hurts for" if high < 0 else "nothing can be told for"
        groups[group].append(f"{bucket.name} ({bucket.change.value:+.4f}, {bucket.pairs} pairs)")

    told = "; ".join(f"{group} {_and(parts)}" for group, parts in groups.items() if parts)
    return f"By training users of the true item, {told}."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

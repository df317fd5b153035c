"""The guard against negative transfer: measures what content adds on held-out events and removes it where it hurts.

`transferability` predicts this before training; the guard compares the trained variant with its ablation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked, checked_class
from recotransfer.data import Filter, IdMap, Interactions, Recommendations
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import POPULARITY_BUCKET_NAMES, hits, ndcg, popularity_bucket
from recotransfer.evaluation.uncertainty import Difference, paired
from recotransfer.numerics.rounding import exceeds, first_best
from recotransfer.recommenders import HybridItems, LearnedHybrid, Recommender

Trust = tuple[float, ...]
Float = NDArray[np.float64]
_NONE: Trust = (0.0,) * len(POPULARITY_BUCKET_NAMES)
_FOLDS = 5
_MOST_USERS = 50_000  # held-out users that are scored; a gain that these cannot show is too small to matter
_LEAST_PAIRS = 20  # a bucket with fewer held-out pairs is too small to be decided on its own


class Bucket(NamedTuple):
    """NDCG@k of both variants on the held-out items of one popularity bucket, averaged over users who have such items.

    Attributes:
        name: how many training users the items have, such as "1-5".
        pairs: held-out (user, item) pairs in the bucket.
        ablation, transfer: mean NDCG@k of each variant.
        change: transfer minus ablation, paired over users.
    """

    name: str
    pairs: int
    ablation: float
    transfer: float
    change: Difference


@checked_class
@dataclass(frozen=True)
class Verdict:
    """What content added on held-out events.

    Attributes:
        overall: NDCG@k of the transfer variant with all its content minus that of the ablation, paired over users.
        buckets: the same by popularity of the held-out item; empty buckets are omitted.
        trust: share of content kept for items of each popularity bucket, all 0 if the ablation was chosen; None for
            recommenders other than `HybridItems`, whose content is kept or dropped as a whole.
        gained: gain of the best use of content over the stronger of two baselines, the ablation and the transfer
            variant with its content off, measured on users who were not used to choose it.
        helped: "helps" if the interval of `gained` lies above 0; otherwise "hurts" if the interval of `overall` lies
            below 0.
        kept: whether the transfer variant was chosen, with all or part of its content: if it helps, and for
            `LearnedHybrid` also without a difference.
        words: the verdict in plain sentences.
    """

    overall: Difference
    buckets: tuple[Bucket, ...]
    trust: Trust | None
    gained: Difference
    helped: Literal["helps", "no difference", "hurts"]
    kept: bool
    words: str

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain JSON; the fields of a bucket's `change` are inlined."""
        return {
            "overall": self.overall._asdict(),
            "buckets": [
                {"name": b.name, "pairs": b.pairs, "ablation": b.ablation, "transfer": b.transfer, **b.change._asdict()}
                for b in self.buckets
            ],
            "trust": None if self.trust is None else list(self.trust),
            "gained": self.gained._asdict(),
            "helped": self.helped,
            "kept": self.kept,
            "words": self.words,
        }


class Guarded(NamedTuple):
    """The recommender to use and the verdict that chose it."""

    recommender: Recommender
    verdict: Verdict

    def refitted(self, transfer: Recommender, ablation: Recommender) -> Recommender:
        """The same choice applied to both variants refitted, with the held-out events included."""
        return _selected(transfer, ablation, self.verdict.trust, self.verdict.kept)


@checked
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
    """The transfer variant with the content that improves held-out NDCG@k, or the ablation; and the verdict.

    Content must improve NDCG@k with a 95% interval above 0. Otherwise the ablation is returned: ties go to the simpler
    variant. For `HybridItems` content is switched on or off by popularity of the recommended item (its `trust`):

    - Each combination of buckets is evaluated once, at most 15 of them. Values of `trust` between 0 and 1 measured
      between the two and are not tried.
    - Among the combinations that are not significantly worse than the best (again at 95%), the one with most buckets
      on is chosen: once content has shown a gain, a bucket is switched off only if that is clearly better.
    - A bucket whose own held-out items gain significantly stays on as long as all users together gain: gains on cold
      items are not given up for a little more on popular ones.
    - A bucket with fewer than 20 held-out pairs is not decided on its own. It is on if any bucket is, because rare
      items have little but content.
    - The gain is cross-fitted: chosen on four fifths of the users, measured on the rest, five times. It is measured
      against the better of the ablation and the transfer variant with its content off, so that better settings are
      not mistaken for better content.

    Other recommenders are kept or dropped as a whole, by their gain over the ablation. `LearnedHybrid` has judged its
    content by its own held-out events before, so there ties keep it.

    Args:
        transfer: a recommender fitted with content.
        ablation: the same model fitted without content on the same events, tuned with as many trials.
        valid: events that neither variant was fitted on. Users without a history are left out, and at most 50,000
            users are sampled.
        histories: what is known of each user before `valid`; by default the events the variants were fitted on.
        allow: rank only these items, such as the cold items of a cold-start protocol.
        k: length of the lists.
        draws: number of bootstrap resamples.
        seed: random seed of the sample, the resamples and the folds.

    Raises:
        InputError: fewer than two users of `valid` have a history.
    """
    known = transfer.known_events() if histories is None else histories
    truth = _with_history(valid, known, seed)
    held_out = _HeldOut(truth, _buckets_of(transfer, truth), histories, allow, k)
    without, whole = held_out.evaluate(ablation), held_out.evaluate(transfer)
    overall = paired(whole.by_user, without.by_user, draws=draws, seed=seed)
    buckets = tuple(
        Bucket(name, int(pairs), *_means(before, after), paired(after, before, draws=draws, seed=seed))
        for name, pairs, before, after in zip(
            POPULARITY_BUCKET_NAMES, held_out.pairs, without.by_bucket, whole.by_bucket, strict=True
        )
        if pairs
    )

    # HybridItems can use content for some buckets only.
    trust, gained = None, overall
    if isinstance(transfer, HybridItems) and transfer.items_ is not None:
        trust, gained = _choose_trust(held_out, transfer, without, whole, draws, seed)

    helped: Literal["helps", "no difference", "hurts"] = "no difference"
    if gained.low > 0 and trust != _NONE:
        helped = "helps"
    elif overall.high < 0:
        helped = "hurts"

    # LearnedHybrid has weighed its content already, and new items have nothing else: a tie keeps it.
    weighed = isinstance(transfer, LearnedHybrid) and transfer.guard
    kept = helped == "helps" or (weighed and helped == "no difference")
    if trust is not None and not kept:
        trust = _NONE

    words = _words(helped, kept, _means(without.by_user, whole.by_user), overall, gained, trust, buckets, k)
    verdict = Verdict(overall, buckets, trust, gained, helped, kept, words)

    return Guarded(_selected(transfer, ablation, trust, kept), verdict)


def _selected(transfer: Recommender, ablation: Recommender, trust: Trust | None, kept: bool) -> Recommender:
    """The ablation, or the transfer variant with the content that was kept."""
    if not kept:
        return ablation

    return transfer.with_trust(trust) if isinstance(transfer, HybridItems) and trust is not None else transfer


def _means(ablation: Float, transfer: Float) -> tuple[float, float]:
    """The mean over users of each variant's scores, without the users that have none."""
    return float(np.nanmean(ablation)), float(np.nanmean(transfer))


class _Scores(NamedTuple):
    """NDCG@k of one model.

    Attributes:
        by_user: (users,) over all held-out events of each user.
        by_bucket: (buckets, users) over those in one bucket alone; NaN for users without any.
    """

    by_user: Float
    by_bucket: Float


class _HeldOut(NamedTuple):
    """The held-out events on which models are compared, by ranking `k` items for each user of `truth`.

    Attributes:
        truth: the events to predict.
        bucket: (events,) popularity bucket of each event's item.
        histories, allow, k: as in `guard`.
    """

    truth: Interactions
    bucket: NDArray[np.int64]
    histories: Interactions | None
    allow: IdMap | None
    k: int

    @property
    def pairs(self) -> NDArray[np.int64]:
        """(buckets,) number of held-out (user, item) pairs."""
        return np.bincount(self.bucket, minlength=len(_NONE))

    def evaluate(self, model: Recommender) -> _Scores:
        lists = self._lists(model)
        return _Scores(ndcg(hits(lists, self.truth), self.k), self._by_bucket(lists))

    def by_user(self, model: Recommender) -> Float:
        """(users,) NDCG@k, where that by bucket is not needed."""
        return ndcg(hits(self._lists(model), self.truth), self.k)

    def _lists(self, model: Recommender) -> Recommendations:
        users = self.truth.users.take(np.unique(self.truth.user))
        filter = None
        if self.allow is not None:
            at = model.catalogue_.positions(self.allow.ids, missing="negative")
            filter = Filter(allow=self.allow.ids[at >= 0])

        return model.recommend(users, self.k, histories=self.histories, filter=filter)

    def _by_bucket(self, lists: Recommendations) -> Float:
        users = np.unique(self.truth.user)
        out = np.full((len(_NONE), len(users)), np.nan)
        for at in np.unique(self.bucket):
            truth = self.truth.select(self.bucket == at)
            out[at, np.isin(users, truth.user)] = ndcg(hits(lists, truth), self.k)

        return out


def _with_history(valid: Interactions, known: Interactions, seed: int) -> Interactions:
    """The held-out events of users who have a history, at most `_MOST_USERS` of them, chosen at random."""
    has = np.bincount(known.user, minlength=len(known.users)) > 0
    at = known.users.positions(valid.users.ids, missing="negative")
    users = np.intersect1d(np.flatnonzero((at >= 0) & has[at]), valid.user)
    if len(users) < 2:
        raise InputError(
            f"users with both a history and held-out events: {len(users)}, but a comparison needs two; give validation "
            "events of users in the log, or their histories"
        )

    chosen = np.zeros(len(valid.users), bool)
    chosen[np.random.default_rng(seed).permutation(users)[:_MOST_USERS]] = True

    return valid.select(chosen[valid.user])


def _buckets_of(model: Recommender, truth: Interactions) -> NDArray[np.int64]:
    """(events,) popularity bucket of each held-out item, counted over the users that `model` was fitted on."""
    at = model.catalogue_.positions(truth.items.ids, missing="negative")[truth.item]
    return popularity_bucket(np.where(at >= 0, model.popularity_[at], 0))


def _choose_trust(
    held_out: _HeldOut, transfer: HybridItems, without: _Scores, whole: _Scores, draws: int, seed: int
) -> tuple[Trust, Difference]:
    """The buckets whose content is kept, and the cross-fitted gain over the stronger baseline; see `guard`."""
    off = held_out.by_user(transfer.with_trust(_NONE))
    baseline = off if exceeds(off.mean(), without.by_user.mean()) else without.by_user
    choices = _choices((held_out.pairs >= _LEAST_PAIRS).tolist())
    scores = np.stack([held_out.by_user(transfer.with_trust(choice)) for choice in choices])
    trust, cross_fitted = _cross_fit(choices, scores, baseline, whole.by_bucket - without.by_bucket, seed)

    return trust, paired(cross_fitted, baseline, draws=draws, seed=seed)


def _choices(decided: Sequence[bool]) -> list[Trust]:
    """Every combination of content on or off in the decided buckets, except all off; the other buckets are on."""
    out = []
    for switches in itertools.product((1.0, 0.0), repeat=sum(decided)):
        if any(switches) or not switches:
            following = iter(switches)
            out.append(tuple(next(following) if is_decided else 1.0 for is_decided in decided))

    return out


def _cross_fit(
    choices: Sequence[Trust], scores: Float, baseline: Float, changes: Float, seed: int
) -> tuple[Trust, Float]:
    """The choice made on all users, and each user's score under the choice made on the users of the other folds.

    `scores` (choices, users); `baseline` (users,) is used where no choice beats it; `changes` as in `_best`.
    """
    users = len(baseline)
    folds = np.random.default_rng(seed).permutation(users) % min(_FOLDS, users)
    out = baseline.copy()

    for fold in range(_FOLDS):
        rest = folds != fold
        if (best := _best(choices, scores[:, rest], baseline[rest], changes[:, rest])) is not None:
            out[~rest] = scores[best, ~rest]

    best = _best(choices, scores, baseline, changes)

    return (_NONE if best is None else choices[best]), out


def _best(choices: Sequence[Trust], scores: Float, baseline: Float, changes: Float) -> int | None:
    """The position of the best choice, None if the baseline is better; see `guard` for the rule.

    `changes` (buckets, users) is what all content changes for the held-out items of each bucket, NaN without any.
    """
    on = np.array(choices) > 0
    means = scores.mean(axis=1)
    gaining = [_is_gain(change[~np.isnan(change)]) for change in changes]
    keeping = on[:, gaining].all(axis=1)

    # Choices that keep the gaining buckets come first; all others only if none of those beats the baseline.
    for pool in (keeping, np.ones(len(choices), bool)):
        top = first_best(np.where(pool, means, -np.inf))
        if _is_gain(scores[top] - baseline):
            break

    better = np.array([exceeds(mean, baseline.mean()) for mean in means])
    if not better[top]:
        return None

    # Among those not significantly worse than the best, take the ones with most buckets on.
    level = [at for at in np.flatnonzero(pool & better) if not _is_gain(scores[top] - scores[at])]
    most = max(on[at].sum() for at in level)
    widest = [at for at in level if on[at].sum() == most]

    return int(widest[first_best(means[widest])])


def _is_gain(change: Float) -> bool:
    """True if the 95% interval of the mean over users, from its standard error, lies above 0."""
    return len(change) > 1 and bool(change.mean() > 1.96 * change.std() / np.sqrt(len(change)))


def _words(
    helped: str,
    kept: bool,
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
            f"The transfer variant is better, but not by its content: {whole}, of which content adds "
            f"{_figure(gained)}; so the model without content is used. {_by_bucket(buckets)}"
        )

    if helped != "helps":
        what = "Content hurts" if helped == "hurts" else "Content makes no significant difference"
        used = "it is kept, because new items have nothing else" if kept else "so the model without content is used"
        return f"{what}: {whole}; {used}. {_by_bucket(buckets)}"

    if not off:
        return f"Content helps: {whole}. {_by_bucket(buckets)}"

    return (
        f"Content helps in part: switched off for items of {_and(off)} users, it adds {_figure(gained)} to NDCG@{k}. "
        f"With content for all items: {whole}. {_by_bucket(buckets)}"
    )


def _figure(change: Difference) -> str:
    return f"{change.value:+.4f} (95% interval {change.low:+.4f} to {change.high:+.4f})"


def _by_bucket(buckets: Sequence[Bucket]) -> str:
    """One sentence on the transfer variant with all its content, by popularity of the held-out item."""
    groups: dict[str, list[str]] = {"it helps for": [], "it hurts for": [], "no conclusion for": []}
    for bucket in buckets:
        low, high = bucket.change.low, bucket.change.high
        group = "it helps for" if low > 0 else "it hurts for" if high < 0 else "no conclusion for"
        groups[group].append(f"{bucket.name} ({bucket.change.value:+.4f}, {bucket.pairs} pairs)")

    sentence = "; ".join(f"{group} {_and(names)}" for group, names in groups.items() if names)

    return f"By training users of the held-out item, {sentence}."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

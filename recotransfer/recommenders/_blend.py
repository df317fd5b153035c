"""How much each part of an item-item model counts, by age of the history item and popularity of the candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.numerics.ages import AGE_EDGES
from recotransfer.numerics.vectors import Float

Doubles = NDArray[np.float64]
BUCKETS = 4  # of popularity: 0, 1-5, 6-20 and more users
_MOST_ANSWERS = 20  # held-out items of one user that are learned from
_PULL = 1.0  # precision of the prior of each log weight
_SMOOTH = 2.0  # precision of the difference of neighbouring log age weights from their prior difference
_SCALE = 0.1  # precision of the prior of the log scale of all weights together: a log sets it freely
_STEPS = 150  # of L-BFGS
_POPULARITY, _POWER = 5.0, 2.0  # prior means of the weight of popularity and of the power of the score
_OLDEST = -2.5  # least log weight of an age bucket under the prior


@dataclass(frozen=True)
class BlendWeights:
    """Weights of a score that is a sum over parts p and age buckets b: age[p][b] * popularity[p][bucket] * feature.

    Attributes:
        age: curve -> (8,) weight of history items by age bucket; parts that share a curve share these.
        popularity: part -> (4,) weight by the candidate's popularity bucket.
        appeal: weight of the candidate's popularity itself.
        lists: number of users that they were learned from; 0 for the prior.
    """

    age: Mapping[str, Doubles]
    popularity: Mapping[str, Doubles]
    appeal: float
    lists: int


@dataclass(frozen=True)
class Lists:
    """Candidates of some users, what they chose, and what each part says of each candidate.

    Attributes:
        features: part -> (8, users x candidates) score of the part for history items of each age bucket.
        chosen: (users, candidates) True for the user's held-out items.
        present: (users, candidates) False where the list is padded.
        log_weight: (users, candidates) log of how many items a candidate stands for: 0 for one listed for itself, and
            more for one sampled from the rest of the catalogue.
        bucket: (users, candidates) popularity bucket.
        appeal: (users, candidates) popularity, from 0 to 1.
    """

    features: Mapping[str, Float]
    chosen: NDArray[np.bool_]
    present: NDArray[np.bool_]
    log_weight: Float
    bucket: NDArray[np.int64]
    appeal: Float


def prior(curve_of: Mapping[str, str]) -> tuple[dict[str, Doubles], dict[str, Doubles]]:
    """Mean log weights by curve and by part: what to believe of a log before seeing it."""
    middle = np.array([(low + high - 1) / 2 for low, high in zip(AGE_EDGES, (*AGE_EDGES[1:], 128), strict=True)])
    age, popularity = {}, {}
    for part, curve in curve_of.items():
        decay = 0.6 if part == "order" else 0.9
        age[curve] = np.maximum(np.log(decay) * middle, _OLDEST)
        if part.startswith("borrowed"):
            by_bucket = np.log([100.0, 10, 2, 0.5])
        elif part in ("co-occurrence", "order", "wide order"):
            by_bucket = np.log([10.0, 30, 60, 60])
        else:
            by_bucket = np.log([20.0, 5, 2, 1])

        popularity[part] = by_bucket

    return age, popularity


def learn(lists: Sequence[Lists], curve_of: Mapping[str, str]) -> BlendWeights:
    """The weights under which the users' held-out items are most probable, with a prior for what a log leaves open.

    The probability of an item is proportional to (1 + score) ** power, with the power learned too: a linear utility
    would let the few greatest scores decide everything. The sum over the catalogue is estimated from the candidates and
    a weighted sample of the other items; without these weights, items that are rarely drawn would seem likely. Weights
    are positive: their logarithms have a normal prior, whose pull fades as lists are added.
    """
    from scipy.optimize import minimize

    parts, curves = list(curve_of), list(dict.fromkeys(curve_of.values()))
    place = [curves.index(curve_of[part]) for part in parts]
    age, popularity = prior(curve_of)
    ages = np.stack([age[curve] for curve in curves])
    buckets = np.stack([popularity[part] for part in parts])
    split = np.cumsum([ages.size, buckets.size, 1, 1])

    def unpacked(x: Doubles) -> tuple[Doubles, Doubles, float, float, float]:
        a, c, appeal, power, scale = np.split(x, split)
        return a.reshape(ages.shape), c.reshape(buckets.shape), float(appeal[0]), float(power[0]), float(scale[0])

    def loss(x: Doubles) -> tuple[float, Doubles]:
        a, c, appeal, power, scale = unpacked(x)
        by_age = np.exp(a)[place].astype(np.float32)
        by_bucket = np.exp(c + scale).astype(np.float32)
        attraction, gamma = _POPULARITY * np.exp(appeal + scale), _POWER * np.exp(power)
        total, to_age, to_bucket, to_appeal, to_power = 0.0, np.zeros_like(a), np.zeros_like(c), 0.0, 0.0
        for some in lists:
            bucket = some.bucket.ravel()
            bare = np.stack([by_age[i] @ some.features[part] for i, part in enumerate(parts)])
            factor = by_bucket[:, bucket]
            score = ((bare * factor).sum(axis=0) + attraction * some.appeal.ravel()).astype(np.float64)
            level = np.sign(score) * np.log1p(np.abs(score))
            utility = (gamma * level).reshape(some.chosen.shape) + some.log_weight
            utility[~some.present] = -np.inf
            top = utility.max(axis=1, keepdims=True)
            odds = np.exp(utility - top)
            whole = odds.sum(axis=1, keepdims=True)
            target = some.chosen / some.chosen.sum(axis=1, keepdims=True)
            total += float((top + np.log(whole)).sum() - (target * np.where(some.present, utility, 0)).sum())

            slope = (odds / whole - target).ravel()
            to_power += float(slope @ level) * gamma
            slope = (slope * gamma / (1 + np.abs(score))).astype(np.float32)
            for i, part in enumerate(parts):
                to_age[place[i]] += (some.features[part] @ (slope * factor[i])) * by_age[i]
                to_bucket[i] += np.bincount(bucket, weights=slope * bare[i], minlength=BUCKETS) * by_bucket[i]

            to_appeal += float(slope @ some.appeal.ravel()) * attraction

        to_scale = to_bucket.sum() + to_appeal
        off, steep = a - ages, np.diff(a - ages, axis=1)
        apart = c - buckets
        total += _PULL / 2 * float((off**2).sum() + (apart**2).sum() + appeal**2 + power**2)
        total += _SMOOTH / 2 * float((steep**2).sum())
        to_age += _PULL * off - _SMOOTH * np.diff(steep, axis=1, prepend=0, append=0)
        to_bucket += _PULL * apart
        total += _SCALE / 2 * scale**2
        tail = [to_appeal + _PULL * appeal, to_power + _PULL * power, to_scale + _SCALE * scale]

        return total, np.concatenate([to_age.ravel(), to_bucket.ravel(), tail])

    begin = np.concatenate([ages.ravel(), buckets.ravel(), np.zeros(3)])
    count = sum(len(some.chosen) for some in lists)
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x if count else begin
    a, c, appeal, _, scale = unpacked(found)

    return BlendWeights(
        {curve: np.exp(a[i]) for i, curve in enumerate(curves)},
        {part: np.exp(c[i] + scale) for i, part in enumerate(parts)},
        float(_POPULARITY * np.exp(appeal + scale)),
        count,
    )


def candidates(
    answers: sparse.csr_array,
    seen: sparse.csr_array,
    shortlist: NDArray[np.int64],
    pool: NDArray[np.int64],
    width: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], Float]:
    """(users, width) items of each list, padded with -1; which were chosen; and the log weight of each.

    A list holds the user's answers, the items of `shortlist` (users, any) that are not -1, and a uniform sample of the
    rest of `pool` in the places left, each of which stands for its share of that rest.
    """
    users = answers.shape[0]
    items = np.full((users, width), -1, np.int64)
    chosen = np.zeros((users, width), bool)
    log_weight = np.zeros((users, width), np.float32)
    inside = np.zeros(answers.shape[1], bool)
    inside[pool] = True

    for row in range(users):
        had = seen.indices[seen.indptr[row] : seen.indptr[row + 1]]
        right = answers.indices[answers.indptr[row] : answers.indptr[row + 1]]
        right = np.setdiff1d(right[inside[right]], had)
        if len(right) > _MOST_ANSWERS:
            right = np.sort(rng.choice(right, _MOST_ANSWERS, replace=False))

        used = np.concatenate([had, right])
        listed = np.setdiff1d(shortlist[row][shortlist[row] >= 0], used)
        listed = rng.permutation(listed)[: (width - len(right)) * 3 // 4]
        open_to = inside.copy()
        open_to[used] = False
        open_to[listed] = False
        rest = np.flatnonzero(open_to)
        drawn = rng.choice(rest, min(len(rest), width - len(right) - len(listed)), replace=False)

        line = np.concatenate([right, listed, drawn])
        items[row, : len(line)] = line
        chosen[row, : len(right)] = True
        if len(drawn):
            log_weight[row, len(line) - len(drawn) : len(line)] = np.log(len(rest) / len(drawn))

    return items, chosen, log_weight

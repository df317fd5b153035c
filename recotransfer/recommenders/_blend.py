"""How much each part of an item-item model counts, by age of the history item and popularity of the candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.numerics.ages import AGE_EDGES
from recotransfer.numerics.threads import one_blas_thread
from recotransfer.numerics.vectors import Float

Doubles = NDArray[np.float64]
BUCKETS = 4  # of popularity: 0, 1-5, 6-20 and more users
_AGES = len(AGE_EDGES)
_MOST_ANSWERS = 20  # held-out items of one user that are learned from
_PULL = 4.0  # precision of the prior of each log weight; 1 fits the few lists of small logs too closely
_SMOOTH = 8.0  # precision of the difference of neighbouring log age weights from their prior difference
_SCALE = 0.1  # precision of the prior of the log scale of all weights together: a log sets it freely
FARTHEST = 6.0  # most that a log weight may move from its prior: keeps every exponential finite
STEPS = 150  # of L-BFGS, in each of the two stages
_APPEAL = (1.2, 0.3)  # prior means of the weights of popularity in the whole log and lately
POWER = 2.0  # prior mean of the power of the score
_GAIN = 2.0  # weight of a list's NDCG against the prior
SHARPER = 12.0  # times the learned power: how sharply one item outranks another in the smooth NDCG


@dataclass(frozen=True)
class BlendWeights:
    """Weights of a score that is a sum over parts p and age buckets b: age[p][b] * popularity[p][bucket] * feature.

    Attributes:
        age: curve -> (2, 8) weight of history items by age bucket, for candidates without users and for all others;
            parts that share a curve share these.
        popularity: part -> (4,) weight by the candidate's popularity bucket.
        appeal: weights of the candidate's popularity itself, in the whole log and lately.
        lists: number of users that they were learned from; 0 for the prior.
        shares: part -> (4, 8) what it adds to the scores of the chosen items, by popularity bucket and age.
    """

    age: Mapping[str, Doubles]
    popularity: Mapping[str, Doubles]
    appeal: tuple[float, float]
    lists: int
    shares: Mapping[str, Doubles] = field(default_factory=dict)


class Choices(Protocol):
    """Candidates of some users and what they chose; see `Lists`."""

    @property
    def chosen(self) -> NDArray[np.bool_]: ...

    @property
    def present(self) -> NDArray[np.bool_]: ...

    @property
    def log_weight(self) -> Float: ...


@dataclass(frozen=True)
class Lists:
    """Candidates of some users, what they chose, and what each part says of each candidate.

    Attributes:
        features: (users x candidates, parts x 8) score of each part for history items of each age bucket.
        chosen: (users, candidates) True for the user's held-out items.
        present: (users, candidates) False where the list is padded.
        log_weight: (users, candidates) log of how many items a candidate stands for: 0 for one listed for itself, and
            more for one sampled from the rest of the catalogue.
        bucket: (users, candidates) popularity bucket.
        appeal: (users, candidates, 2) popularity in the whole log and lately, from 0 to 1.
    """

    features: sparse.csr_array
    chosen: NDArray[np.bool_]
    present: NDArray[np.bool_]
    log_weight: Float
    bucket: NDArray[np.int64]
    appeal: Float

    @classmethod
    def joined(cls, some: Sequence[Lists]) -> Lists:
        """The lists of all, one after the other."""
        features = sparse.csr_array(sparse.vstack([each.features for each in some], format="csr"))
        names = ("chosen", "present", "log_weight", "bucket", "appeal")
        return cls(features, *(np.concatenate([getattr(each, name) for each in some]) for name in names))

    def taken(self, at: NDArray[np.bool_]) -> Lists:
        """The lists where `at` (users,) is True."""
        width = self.chosen.shape[1]
        return Lists(
            self.features[np.repeat(at, width)],
            self.chosen[at],
            self.present[at],
            self.log_weight[at],
            self.bucket[at],
            self.appeal[at],
        )


# Means, in logs, of the weights learned from nine logs: groceries, films, books, gifts, courses and four of reviews.
# By kind of part: ages for candidates without users, ages for the others, and popularity with co-occurrence at 60.
_USUAL: Mapping[str, tuple[list[float], list[float], list[float]]] = {
    "co-occurrence": (
        [1, 0.9, 0.6, 0.45, 0.3, 0.1, 0.1, 0.09], [1, 0.66, 0.46, 0.35, 0.2, 0.06, 0.05, 0.04], [5, 30, 60, 60]
    ),
    "order": (
        [1, 0.6, 0.3, 0.08, 0.08, 0.08, 0.08, 0.08], [1, 0.4, 0.2, 0.06, 0.05, 0.05, 0.04, 0.04], [4, 35, 60, 75]
    ),
    "wide": ([1, 0.9, 0.8, 0.6, 0.3, 0.08, 0.08, 0.08], [1, 1.2, 1.4, 1.5, 0.9, 0.3, 0.25, 0.2], [4, 2.5, 4.5, 6.5]),
    "borrowed": ([], [], [120, 17, 10, 1.5]),
    "near": ([1, 0.8, 0.6, 0.55, 0.35, 0.13, 0.12, 0.11], [1, 0.5, 0.45, 0.3, 0.15, 0.04, 0.04, 0.04], [6, 4, 9, 3]),
    "far": ([1, 1, 0.8, 0.8, 0.55, 0.2, 0.2, 0.2], [1, 0.87, 0.8, 0.67, 0.4, 0.14, 0.14, 0.13], [0.2, 0.2, 0.5, 0.25]),
}  # fmt: skip


def prior(curve_of: Mapping[str, str]) -> BlendWeights:
    """What to believe of a log before seeing it."""
    age, popularity = {}, {}
    for part, curve in curve_of.items():
        new, used, by_bucket = _USUAL[part.partition(" ")[0]]
        popularity[part] = np.array(by_bucket)
        if new:
            age[curve] = np.array([new, used], float)

    return BlendWeights(age, popularity, _APPEAL, 0)


def learn(lists: Sequence[Lists], curve_of: Mapping[str, str], steps: int = STEPS) -> BlendWeights:
    """The weights that rank the users' held-out items best, with a prior for what a log leaves open.

    Two stages, both by L-BFGS on the logarithms of the weights, which are therefore positive:

    1. The held-out items are made most probable, where the probability of an item is proportional to (1 + score) **
       power, with the power learned too: under a linear utility the few greatest scores would decide everything. This
       loss is smooth and finds the region, but it spends most of its effort on items that no list will show.
    2. From there, the mean NDCG of the lists is maximised, with each rank a sum of sigmoids (ApproxNDCG; Qin, Liu and
       Li, 2010). The weights of the first stage are its prior.

    Both estimate the whole catalogue from the candidates and a weighted sample of the other items: without these
    weights, items that are rarely drawn would seem likely. The result is scaled so that chosen items score 1 on
    average.

    Args:
        lists: what to learn from; empty for the prior.
        curve_of: part -> its curve, in the order of the features' columns.
        steps: most steps of L-BFGS in each stage.
    """
    known = prior(curve_of)
    lists = [some for some in lists if len(some.chosen)]
    if not lists:
        return known

    problem = _Problem(lists, curve_of)
    start = problem.packed(known)
    likely = problem.minimised(unlikelihood, start, steps)
    found = problem.minimised(lost_ndcg, np.where(problem.is_power, likely + np.log(SHARPER), likely), steps)

    shares = problem.shares(found)
    found[problem.is_scale] -= np.log(problem.mean_of_chosen(found))
    return replace(problem.unpacked(found, sum(len(some.chosen) for some in lists)), shares=shares)


def ndcg(lists: Lists, weights: BlendWeights, curve_of: Mapping[str, str], k: int = 20) -> Doubles:
    """(users,) NDCG@k of each list under the weights, with the ranks that the whole catalogue would give."""
    problem = _Problem([lists], curve_of)
    score = problem.scores(problem.packed(weights), 0).reshape(lists.chosen.shape)
    row, column, ideal, stands_for = _targets(lists, k)
    ahead = score[row] > score[row, column][:, None]
    rank = 1 + (ahead * stands_for).sum(axis=1)
    gain = np.where(rank <= k, 1 / np.log2(1 + rank), 0) / ideal
    return np.asarray(np.bincount(row, weights=gain, minlength=len(lists.chosen)), np.float64)


Loss: TypeAlias = Callable[[Doubles, Choices], tuple[float, Doubles]]


class _Problem:
    """A loss of some lists as a function of the logs of all weights, in one vector.

    The vector holds the weights by age (2, curves, 8), by popularity (parts, 4), of appeal, the scale of all of them,
    and the power of the score. For candidates of one popularity bucket the score is linear in their products.
    """

    def __init__(self, lists: Sequence[Lists], curve_of: Mapping[str, str]) -> None:
        self.lists, self.parts = lists, list(curve_of)
        self.curves = list(dict.fromkeys(curve_of.values()))
        self.place = [self.curves.index(curve_of[part]) for part in self.parts]
        self.shapes = [(2, len(self.curves), _AGES), (len(self.parts), BUCKETS), (4,)]
        self.split = np.cumsum([np.prod(shape) for shape in self.shapes])
        self.is_power = np.arange(self.split[-1]) == self.split[-1] - 1
        self.is_scale = np.arange(self.split[-1]) == self.split[-1] - 2
        self.rows = [[np.flatnonzero(some.bucket.ravel() == b) for b in range(BUCKETS)] for some in lists]
        self.features = [[some.features[at] for at in rows] for some, rows in zip(lists, self.rows, strict=True)]

    def packed(self, weights: BlendWeights) -> Doubles:
        age = np.stack([weights.age[curve] for curve in self.curves], axis=1)
        popularity = np.stack([weights.popularity[part] for part in self.parts])
        rest = np.array([*weights.appeal, 1, POWER])
        return np.asarray(np.log(np.concatenate([age.ravel(), popularity.ravel(), rest])), np.float64)

    def unpacked(self, x: Doubles, lists: int) -> BlendWeights:
        age, popularity, (overall, lately, scale, _) = self._shaped(np.exp(x))
        return BlendWeights(
            {curve: age[:, i] for i, curve in enumerate(self.curves)},
            {part: popularity[i] * scale for i, part in enumerate(self.parts)},
            (float(overall * scale), float(lately * scale)),
            lists,
        )

    def _shaped(self, x: Doubles) -> list[Doubles]:
        pieces = np.split(x, self.split[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def minimised(self, loss: Loss, centre: Doubles, steps: int) -> Doubles:
        """The vector of least loss and distance from `centre`; `loss` gives the value and its slope by utility."""
        from scipy.optimize import minimize

        def whole(x: Doubles) -> tuple[float, Doubles]:
            total, slope = self._penalty(x - centre)
            for at in range(len(self.lists)):
                value, by_weight = self._of_lists(x, at, loss)
                total += value
                slope += by_weight

            return total, slope

        bounds = np.stack([centre - FARTHEST, centre + FARTHEST], axis=1)
        if loss is lost_ndcg:  # the greater the power, the nearer the smooth ranks to ranks: it is not to be learned
            bounds[self.is_power] = centre[self.is_power]

        # Its vectors are short: a second BLAS thread would only wait for work, at three times the processor time.
        with one_blas_thread():
            found = minimize(whole, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps})

        return np.asarray(found.x, np.float64)

    def scores(self, x: Doubles, at: int) -> Doubles:
        """(users x candidates,) scores of the lists number `at`."""
        *appeal, scale, _ = self._shaped(np.exp(x))[2]
        out: Doubles = self.lists[at].appeal.reshape(-1, 2) @ np.array(appeal) * scale
        for b, rows in enumerate(self.rows[at]):
            out[rows] += self.features[at][b] @ self._weights(x)[b].ravel()

        return out

    def mean_of_chosen(self, x: Doubles) -> float:
        """The mean score of the chosen items, 1 if it is not positive."""
        of_chosen = [self.scores(x, at)[some.chosen.ravel()] for at, some in enumerate(self.lists)]
        mean = float(np.concatenate(of_chosen).mean())
        return mean if mean > 0 else 1.0

    def shares(self, x: Doubles) -> dict[str, Doubles]:
        """Part -> (4, 8) what it adds to the scores of all chosen items, by popularity bucket and age."""
        out = np.zeros((BUCKETS, len(self.parts), _AGES))
        for some, rows, features in zip(self.lists, self.rows, self.features, strict=True):
            for b, weights in enumerate(self._weights(x)):
                of_chosen = features[b].T @ some.chosen.ravel()[rows[b]].astype(np.float32)
                out[b] += of_chosen.reshape(weights.shape) * weights

        return {part: np.maximum(out[:, i], 0) for i, part in enumerate(self.parts)}

    def _weights(self, x: Doubles) -> list[Doubles]:
        """(parts, 8) weights of the features of each popularity bucket's candidates."""
        age, popularity, (*_, scale, _) = self._shaped(np.exp(x))
        return [age[int(b > 0), self.place] * popularity[:, b, None] * scale for b in range(BUCKETS)]

    def _of_lists(self, x: Doubles, at: int, loss: Loss) -> tuple[float, Doubles]:
        some, weights, score = self.lists[at], self._weights(x), self.scores(x, at)
        *appeal, scale, power = self._shaped(np.exp(x))[2]
        value, by_score, to_power = loss_of_scores(score, power, some, loss)

        # A derivative by the log of a weight is the derivative by the weight, times the weight.
        to_age, to_popularity, _ = self._shaped(np.zeros_like(x))
        for b, rows in enumerate(self.rows[at]):
            product = (self.features[at][b].T @ by_score[rows]).reshape(weights[b].shape) * weights[b]
            np.add.at(to_age[int(b > 0)], self.place, product)
            to_popularity[:, b] = product.sum(axis=1)

        to_appeal = by_score @ some.appeal.reshape(-1, 2) * appeal * scale
        to_scale = to_popularity.sum() + to_appeal.sum()
        tail = [*to_appeal, to_scale, to_power]

        return value, np.concatenate([to_age.ravel(), to_popularity.ravel(), tail])

    def _penalty(self, off: Doubles) -> tuple[float, Doubles]:
        """Of being `off` the centre: each weight for itself, and neighbouring ages for changing differently."""
        precision = np.full(len(off), _PULL)
        precision[-2] = _SCALE
        slope = precision * off
        steep = np.diff(self._shaped(off)[0], axis=2)
        slope[: self.split[0]] -= _SMOOTH * np.diff(steep, axis=2, prepend=0, append=0).ravel()

        return float(precision @ off**2 + _SMOOTH * (steep**2).sum()) / 2, slope


def loss_of_scores(score: Doubles, power: float, some: Choices, loss: Loss) -> tuple[float, Doubles, float]:
    """The loss where candidates have these (users x candidates,) scores; its slopes by them and by the log power."""
    level = np.sign(score) * np.log1p(np.abs(score))
    value, slope = loss((power * level).reshape(some.chosen.shape), some)
    return value, slope.ravel() * power / (1 + np.abs(score)), float(slope.ravel() @ level * power)


def _targets(some: Choices, k: int | None = None) -> tuple[NDArray[np.intp], NDArray[np.intp], Doubles, Doubles]:
    """List and place of each chosen item, its list's greatest DCG, and how many items each rival stands for."""
    row, column = np.nonzero(some.chosen)
    count = some.chosen.sum(axis=1)
    most = count if k is None else np.minimum(count, k)
    ideal = np.cumsum(1 / np.log2(np.arange(2, max(count.max(initial=1), 1) + 2)))[most - 1]
    stands_for = np.exp(some.log_weight.astype(np.float64)) * (some.present & ~some.chosen)
    return row, column, ideal[row], stands_for[row]


def unlikelihood(utility: Doubles, some: Choices) -> tuple[float, Doubles]:
    """Minus the log probability of the chosen items, a mean per list, and its slope."""
    utility = np.where(some.present, utility + some.log_weight, -np.inf)
    top = utility.max(axis=1, keepdims=True)
    odds = np.exp(utility - top)
    whole = odds.sum(axis=1, keepdims=True)
    target = some.chosen / some.chosen.sum(axis=1, keepdims=True)
    value = float((top + np.log(whole)).sum() - (target * np.where(some.present, utility, 0)).sum())

    return value, odds / whole - target


def lost_ndcg(utility: Doubles, some: Choices) -> tuple[float, Doubles]:
    """Minus the NDCG of each list with smooth ranks, and its slope."""
    row, column, ideal, stands_for = _targets(some)
    gap = np.clip(utility[row] - utility[row, column][:, None], -40, 40)
    ahead = 1 / (1 + np.exp(-gap))
    rank = 1 + (ahead * stands_for).sum(axis=1)
    gain = _GAIN * np.log(2) / np.log1p(rank) / ideal

    by_rank = gain / np.log1p(rank) / (1 + rank)
    by_gap = by_rank[:, None] * ahead * (1 - ahead) * stands_for
    slope = np.zeros(utility.shape)
    np.add.at(slope, row, by_gap)
    np.subtract.at(slope, (row, column), by_gap.sum(axis=1))

    return -float(gain.sum()), slope


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

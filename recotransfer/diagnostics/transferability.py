"""Transferability scores, which need no training: how well vectors suit a target, and how far apart two domains are.

`logme`, `h_score` and `neighbour_agreement` rate an encoder on a target: higher is better, and only scores of the same
function on the same target are comparable. `mmd`, `coral_distance` and `proxy_a_distance` measure how far the target's
vectors are from those an encoder or a map was trained on. None of them needs test data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recotransfer.arguments import checked
from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError, require
from recotransfer.numerics.vectors import gaussian_kernel, reciprocal, unit_rows
from recotransfer.retrieval import nearest

Vectors = NDArray[np.floating[Any]]
_MOST_ITEMS = 5_000  # sampled items in `neighbour_agreement`
_MOST_COMPARED = 2_000  # sampled vectors of each domain in `mmd`, whose cost grows with their square
_MOST_LEARNED = 10_000  # sampled vectors of each domain in `proxy_a_distance`
_ITERATIONS = 100  # upper bound on the fixed-point iterations in `logme`
_CONVERGED = 1e-4  # relative change of the ratio below which they stop


@checked
def logme(features: Vectors, labels: ArrayLike) -> float:
    """Log evidence per item of the labels under a Bayesian linear model on the features, averaged over targets.

    For each target y, the maximum over alpha, beta of log p(y | F) / n with w ~ N(0, I / alpha) and
    y ~ N(F w, I / beta), found by fixed point on the singular values of F. You et al., "LogME: practical assessment of
    pre-trained models for transfer learning" (2021). O(n d min(n, d)) and n x targets per sweep.

    Args:
        features: (n, d).
        labels: (n,) class of each item, scored one against the rest; or (n, targets) numbers, such as item factors.
    """
    left, singular, _ = np.linalg.svd(_checked(features), full_matrices=False)
    targets = _targets(labels, len(features))
    n, power = len(features), singular[:, None] ** 2
    along = (left.T @ targets) ** 2  # (rank, targets)
    beyond = np.maximum((targets**2).sum(axis=0) - along.sum(axis=0), 0)  # the part that no weights explain
    tiny = 1e-12 * max(float((targets**2).sum(axis=0).max()), 1e-300)
    ratio = np.ones(targets.shape[1])  # alpha / beta

    for _ in range(_ITERATIONS):
        gamma, size, error = _posterior(power, along, beyond, ratio)
        alpha, beta = gamma / np.maximum(size, tiny), (n - gamma) / np.maximum(error, tiny)
        new = alpha / np.maximum(beta, 1e-300)
        moved = np.abs(new / ratio - 1).max()
        ratio = np.clip(new, 1e-12, 1e12)
        if moved < _CONVERGED:
            break

    gamma, size, error = _posterior(power, along, beyond, ratio)
    beta = n / np.maximum(error + ratio * size, tiny)  # the best one for this ratio
    spread = np.log1p(power / ratio).sum(axis=0)  # log |A| - d log alpha
    evidence = (n * np.log(beta / (2 * np.pi)) - spread - beta * (error + ratio * size)) / 2

    return float(evidence.mean() / n)


def _posterior(power: Vectors, along: Vectors, beyond: Vectors, ratio: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """Effective dimensions, squared length of the mean weights and squared error, each (targets,)."""
    shrunk = 1 / (power + ratio)
    gamma = (power * shrunk).sum(axis=0)
    return gamma, (power * along * shrunk**2).sum(axis=0), beyond + ((ratio * shrunk) ** 2 * along).sum(axis=0)


@checked
def h_score(features: Vectors, labels: ArrayLike) -> float:
    """Separation of the class means relative to the spread of the features: (1 - a) trace(C^-1 B).

    C is the covariance of the features shrunk towards a multiple of the identity by the share a of Ledoit and Wolf
    (2004), B the covariance of each item's class mean. Bao et al., "An information-theoretic approach to
    transferability in task transfer learning" (2019); the shrinkage, without which few items and many dimensions make
    every encoder look perfect, is that of Ibrahim et al., "Newer is not always better" (2021). O(n d^2 + d^3).

    Args:
        features: (n, d).
        labels: (n,) class of each item.
    """
    ledoit_wolf = require("sklearn.covariance").ledoit_wolf

    centred = _checked(features) - np.mean(features, axis=0, dtype=np.float64)
    codes = _codes(labels, len(centred))
    covariance, share = ledoit_wolf(centred, assume_centered=True)
    counts = np.bincount(codes)
    members = sparse.coo_array((np.ones(len(codes)), (codes, np.arange(len(codes))))).tocsr()
    roots = (members @ centred) / np.sqrt(counts)[:, None]  # class means times the root of the class size
    if not np.trace(covariance) > 0:
        return 0.0

    between = roots.T @ roots / len(codes)

    return float((1 - share) * np.trace(np.linalg.solve(covariance, between)))


@checked
def neighbour_agreement(items: Embeddings, interactions: Interactions, *, neighbours: int = 10, seed: int = 0) -> float:
    """How many times as often nearest neighbours in content are consumed together as random items of equal popularity.

    Co-consumption of two items is the cosine of their users, n_ij / sqrt(n_i n_j). It is summed over the nearest
    content neighbours of each item with events, and divided by its expectation for random items of the same popularity
    as the neighbours. 1 is chance. Encoders whose neighbours are merely popular gain nothing, so encoders can be
    compared. This is the k-nearest-neighbour form of task affinity for logs, where items have no labels.

    At most 5,000 items are sampled: O(5,000 n d) and the users of those items times their histories.

    Args:
        items: vectors; items without content are left out.
        interactions: training events.
        neighbours: number of content neighbours per item.
        seed: random seed of the sample.
    """
    if neighbours < 1:
        raise InputError(f"neighbours must be at least 1, got {neighbours}")

    matrix = interactions.with_items(items.ids.union(interactions.items)).binary_matrix()[:, : len(items.ids)]
    count = matrix.sum(axis=0)
    pool = np.flatnonzero((count > 0) & items.has_content)
    if len(pool) < neighbours + 2:
        raise InputError(
            f"items with both content and events: {len(pool)}; neighbours={neighbours} needs at least {neighbours + 2}"
        )

    drawn = np.sort(np.random.default_rng(seed).permutation(len(pool))[:_MOST_ITEMS])
    users = sparse.csc_array(matrix)[:, pool] @ sparse.diags_array(count[pool] ** -0.5)
    together = sparse.csr_array(sparse.csc_array(users)[:, drawn].T @ users)
    itself = sparse.coo_array((np.ones(len(drawn)), (np.arange(len(drawn)), drawn)), shape=together.shape)
    together = sparse.csr_array(together - together.multiply(itself))

    vectors = unit_rows(items.vectors[pool])
    near = _others(nearest(vectors, vectors[drawn], neighbours + 1).positions, drawn)
    rows = np.repeat(np.arange(len(drawn)), neighbours)
    seen = np.asarray(together[rows, near.ravel()]).sum()

    # The same sum in expectation, with items of the neighbour's popularity group in its place.
    # A group spans a factor of 2 ** (1/4) in the number of users, so small counts have groups of their own.
    group = np.floor(4 * np.log2(count[pool]) + 1e-9).astype(np.int64)
    inside = sparse.coo_array((np.ones(len(pool)), (np.arange(len(pool)), group))).tocsr()
    total = np.asarray((together @ inside).todense())  # (drawn, groups)
    others = np.bincount(group)[None, :] - (group[drawn][:, None] == np.arange(total.shape[1]))
    expected = (total * reciprocal(others))[rows, group[near.ravel()]].sum()

    return float(seen * reciprocal(expected))


def _others(positions: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, k) of (n, k + 1) positions: each row without its own item, or without its last if its own is not in it."""
    out = positions != own[:, None]
    out[out.all(axis=1), -1] = False
    return np.asarray(positions[out]).reshape(len(positions), -1)


@checked
def mmd(source: Vectors, target: Vectors, seed: int = 0) -> float:
    """Squared maximum mean discrepancy of two sets of vectors; about 0, or slightly below, for equal distributions.

    The unbiased estimate of Gretton et al., "A kernel two-sample test" (2012), with a Gaussian kernel as wide as the
    median distance of the pooled vectors. At most 2,000 vectors of each are sampled: O(2,000^2 d).

    Args:
        source: (n, d) vectors of one domain, at least two.
        target: (m, d) vectors of the other, at least two.
        seed: random seed of the sample.
    """
    draw = np.random.default_rng(seed)
    source, target = _pair(source, target)
    pooled = np.concatenate([_some_rows(source, _MOST_COMPARED, draw), _some_rows(target, _MOST_COMPARED, draw)])
    n = min(len(source), _MOST_COMPARED)
    kernel = gaussian_kernel(pooled)
    within = [part.sum() / (len(part) * (len(part) - 1)) for part in (kernel[:n, :n], kernel[n:, n:])]

    return float(sum(within) - 2 * kernel[:n, n:].mean())


@checked
def coral_distance(source: Vectors, target: Vectors) -> float:
    """Squared Frobenius distance of the two covariance matrices, divided by 4 d^2. O((n + m) d^2).

    Sun and Saenko, "Deep CORAL: correlation alignment for deep domain adaptation" (2016).

    Args:
        source: (n, d) vectors of one domain, at least two.
        target: (m, d) vectors of the other, at least two.
    """
    source, target = _pair(source, target)
    apart = np.cov(source, rowvar=False) - np.cov(target, rowvar=False)

    return float((apart**2).sum() / (4 * source.shape[1] ** 2))


@checked
def proxy_a_distance(source: Vectors, target: Vectors, seed: int = 0) -> float:
    """2 (1 - 2 error) of a linear classifier of the domain: 0 if the domains are the same, 2 if they are separable.

    Ben-David et al., "Analysis of representations for domain adaptation" (2007). The error is that of logistic
    regression on standardised vectors, balanced over the domains, in 5-fold cross-validation (fewer folds if there are
    fewer vectors). At most 10,000 vectors of each are sampled: O(10,000 d) per step of the solver.

    Args:
        source: (n, d) vectors of one domain, at least two.
        target: (m, d) vectors of the other, at least two.
        seed: random seed of the sample and the folds.
    """
    LogisticRegression = require("sklearn.linear_model").LogisticRegression
    StratifiedKFold = require("sklearn.model_selection").StratifiedKFold
    cross_val_score = require("sklearn.model_selection").cross_val_score
    make_pipeline = require("sklearn.pipeline").make_pipeline
    StandardScaler = require("sklearn.preprocessing").StandardScaler

    draw = np.random.default_rng(seed)
    source, target = (_some_rows(part, _MOST_LEARNED, draw) for part in _pair(source, target))
    domain = np.repeat([0, 1], [len(source), len(target)])
    folds = StratifiedKFold(min(5, len(source), len(target)), shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=300))
    both = np.concatenate([source, target])
    right = cross_val_score(classifier, both, domain, cv=folds, scoring="balanced_accuracy").mean()

    return float(max(0.0, 2 * (2 * right - 1)))


def _checked(vectors: Vectors) -> NDArray[np.float64]:
    """The vectors in double precision.

    Raises:
        InputError: not two-dimensional, not finite, or fewer than two.
    """
    out = np.asarray(vectors, np.float64)
    if out.ndim != 2 or len(out) < 2 or not out.shape[1]:
        raise InputError(f"vectors must have shape (n, d) with n at least 2, got {out.shape}")
    if not np.isfinite(out).all():
        raise InputError("vectors must be finite; leave out items whose vectors are not")

    return out


def _pair(source: Vectors, target: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sets of vectors, checked to be of one dimension, in double precision."""
    source, target = _checked(source), _checked(target)
    if source.shape[1] != target.shape[1]:
        raise InputError(f"source has {source.shape[1]} dimensions and target {target.shape[1]}; they must agree")

    return source, target


def _some_rows(vectors: NDArray[np.float64], count: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """A sample of at most `count` rows, in their order."""
    return vectors if len(vectors) <= count else vectors[np.sort(draw.permutation(len(vectors))[:count])]


def _codes(labels: ArrayLike, n: int) -> NDArray[np.int64]:
    """(n,) number of each item's class, from 0."""
    values = np.asarray(labels)
    if values.shape != (n,):
        raise InputError(f"labels have shape {values.shape}, expected ({n},): one class per row of the features")

    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _targets(labels: ArrayLike, n: int) -> NDArray[np.float64]:
    """(n, targets): the numbers given, or one indicator column per class."""
    values = np.asarray(labels)
    if values.ndim == 2:
        if len(values) != n or not values.shape[1]:
            raise InputError(
                f"targets have shape {values.shape}, expected ({n}, targets): one row per row of the features"
            )

        return _checked(values)

    codes = _codes(values, n)
    return np.asarray(codes[:, None] == np.arange(codes.max() + 1), np.float64)

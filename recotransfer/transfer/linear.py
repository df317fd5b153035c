"""Linear maps on vectors, learned in closed form."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from recotransfer.data import Interactions
from recotransfer.errors import InputError
from recotransfer.numerics.ridge import ridge
from recotransfer.numerics.sparse import scaled
from recotransfer.numerics.threads import one_blas_thread
from recotransfer.numerics.vectors import reciprocal
from recotransfer.settings import NonNegative, PositiveInt, Share
from recotransfer.transfer.base import Array, Transfer
from recotransfer.transfer.networks import check_apart

Double = NDArray[np.float64]
_NOISE = 1e-9  # share of the strongest direction, or of two sums that are subtracted, below which rounding decides
_SINGULAR = 1e-12  # share of the greatest variance below which a direction has none


class _Linear(Transfer):
    """x -> (x - mean) @ weights."""

    is_linear: ClassVar[bool] = True

    def _apply(self, vectors: Array) -> Array:
        return np.asarray((vectors - self.state_["mean"]) @ self.state_["weights"], np.float32)


class Whitening(_Linear):
    """Centres vectors and gives them equal variance in every direction. Needs no relations, so no events either.

    Sentence vectors share a few dominant directions (language, length, style) that mask what distinguishes items. Su et
    al., "Whitening sentence representations for better semantics and faster retrieval" (2021). The covariance is
    shrunk towards a multiple of the identity, so that directions of pure noise are not amplified.

    To align the vectors of two domains, fit a separate `Whitening` on each.

    Args:
        dim: number of leading principal directions to keep; None keeps all.
        shrink: share of the mean variance added to each direction.
        power: 1 whitens fully; 0 only centres and rotates to the principal directions; values between interpolate.
    """

    def __init__(self, *, dim: PositiveInt | None = None, shrink: NonNegative = 0.1, power: NonNegative = 1.0) -> None:
        self.dim = dim
        self.shrink = shrink
        self.power = power

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        mean = vectors.mean(axis=0, dtype=np.float64)
        centred = (vectors - mean).astype(np.float64)
        variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
        variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
        scale = reciprocal((variances + self.shrink * variances.mean()) ** (self.power / 2))
        weights = (axes * scale)[:, : self.dim]
        return {"mean": mean.astype(np.float32), "weights": weights.astype(np.float32)}


class RidgeMap(_Linear):
    """Predicts collaborative item factors from content by ridge regression, and blends them with the original vectors.

    Factors are the leading singular vectors of the user-item matrix, each cell divided by the roots of its user's and
    its item's counts. If the users are labels, the factors are the centred classes and the map is a discriminant
    analysis. Mapping content to factors follows Gantner et al., "Learning attribute-to-feature mappings for cold-start
    recommendations" (2010).

    Args:
        dim: maximum number of factors.
        reg: ridge penalty, as a share of the vectors' mean variance.
        keep: share of the original (centred) vectors in the resulting cosines; 0 uses the factors alone, with which
            items unlike any item with relations collapse onto each other.
    """

    def __init__(self, *, dim: PositiveInt = 128, reg: NonNegative = 0.1, keep: Share = 0.5) -> None:
        self.dim = dim
        self.reg = reg
        self.keep = keep

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        taken = relations.binary_matrix()
        check_apart(*taken.nonzero())
        of_user, of_item = (np.asarray(taken.sum(axis=axis)).ravel() for axis in (1, 0))
        users, items = np.flatnonzero(of_user), np.flatnonzero(of_item)
        roots = np.sqrt(of_user[users].astype(np.float64)), np.sqrt(of_item[items].astype(np.float64))
        normalised = scaled(taken[users][:, items], 1 / roots[0], 1 / roots[1]).astype(np.float64)
        factors = _right_factors(sparse.csr_array(normalised), roots, self.dim)
        mean = vectors[items].mean(axis=0, dtype=np.float64)
        x = vectors[items] - mean
        gram = x.T @ x
        penalty = self.reg * np.trace(gram) / len(gram)
        if not penalty > 0 or _is_rounding(np.trace(gram) / len(items), vectors[items]):
            raise _no_spread(self.reg)

        weights = ridge(gram, x.T @ (factors - factors.mean(axis=0)), penalty)

        return {"mean": mean.astype(np.float32), "weights": _blended(np.asarray(weights), gram, self.keep)}


class LearnedMetric(_Linear):
    """Vectors whose dot products are the least-squares prediction of which items co-occur in users' histories.

    The metric M minimises the squared error of x_i' M x_j over all pairs of items, against how often the two co-occur
    (each user counts by the number of their items). It has a closed form: the generalised eigenvectors of the
    covariance of co-occurring items against that of all items. If the users are labels, these are the directions of
    linear discriminant analysis (Fisher, 1936; Rao, 1948).

    Args:
        dim: rank of the metric; None keeps every direction in which co-occurring items are positively correlated.
        reg: ridge on the covariance, as a share of the vectors' mean variance.
        power: 1 gives the least-squares metric; 0 weights all kept directions equally.
        keep: share of the original (centred) vectors in the resulting cosines, which pulls M towards the identity.
    """

    def __init__(
        self, *, dim: PositiveInt | None = None, reg: NonNegative = 0.1, power: NonNegative = 0.5, keep: Share = 0.0
    ) -> None:
        self.dim = dim
        self.reg = reg
        self.power = power
        self.keep = keep

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        mean, together, gram = _moments(vectors, relations, self.reg)
        strength, axes = _leading(together, gram, self.reg)
        weights = (axes * strength ** (self.power / 2))[:, : self.dim]
        return {"mean": mean.astype(np.float32), "weights": _blended(weights, gram, self.keep)}


class SoftThreshold(_Linear):
    """Adapts a linear map fitted on a source domain with a sparse correction, as far as the target's relations require.

    The source's metric M0 = s W W' (s fits its scale) becomes M0 + D, where D minimises the loss of `LearnedMetric` on
    the target plus threshold * |D|_1. Penalising the difference by its L1 norm is Trans-Lasso's idea: Li, Cai and Li,
    "Transfer learning for high-dimensional linear regression" (2020). D is expressed in the principal directions of the
    target's vectors, each scaled to unit variance: the loss is then isotropic, and one proximal step reaches the
    minimum. Vectors are centred on the target's mean, whatever the threshold.

    Args:
        source: a fitted linear map: `LearnedMetric`, `RidgeMap`, `Whitening`. Only `fit` needs it; it is not saved.
        threshold: 0 fits the target alone; large values keep the source's map. In units of the correlation of
            co-occurring items, so useful values lie between 0 and 1.
        reg: ridge on the covariance, as a share of the vectors' mean variance.
    """

    def __init__(
        self, *, source: Transfer | None = None, threshold: NonNegative = 0.01, reg: NonNegative = 0.1
    ) -> None:
        self.source = source
        self.threshold = threshold
        self.reg = reg

    def params(self) -> dict[str, Any]:
        """The settings to save: all but the source, whose effect is in the weights."""
        return {"threshold": self.threshold, "reg": self.reg}

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        if not isinstance(self.source, _Linear) or not hasattr(self.source, "state_"):
            raise InputError(f"SoftThreshold needs a fitted linear map as source, got {self.source!r}; fit one first")

        old = np.asarray(self.source.state_["weights"], np.float64)
        if len(old) != vectors.shape[1]:
            raise InputError(f"the source map takes {len(old)} dimensions, the vectors have {vectors.shape[1]}")

        mean, together, gram = _moments(vectors, relations, self.reg)
        variances, axes = np.linalg.eigh(gram)
        if not variances[0] > _SINGULAR * variances[-1]:
            raise _no_spread(self.reg)

        # To and from coordinates in which the covariance is the identity.
        whiten, unwhiten = axes / np.sqrt(variances), axes * np.sqrt(variances)
        target = whiten.T @ together @ whiten  # the least-squares metric of the target alone
        prior = unwhiten.T @ old @ old.T @ unwhiten
        prior *= np.sum(prior * target) / max(float(np.sum(prior * prior)), 1e-300)
        change = _soft(target - prior, self.threshold)
        if not change.any():
            return {"mean": mean.astype(np.float32), "weights": old.astype(np.float32)}

        strength, axes = _leading(prior + change, np.eye(len(prior)), self.reg)

        return {"mean": mean.astype(np.float32), "weights": (whiten @ (axes * np.sqrt(strength))).astype(np.float32)}


def _leading(together: Double, gram: Double, reg: float) -> tuple[Double, Double]:
    """Positive generalised eigenvalues, greatest first, and their directions (dim, values).

    Eigenvalues that are zero up to rounding are left out, whichever sign they came out with on this processor.
    """
    try:
        pivots = np.diag(np.linalg.cholesky(gram)) ** 2
        strength, turn = linalg.eigh(together, gram)
    except np.linalg.LinAlgError:
        raise _no_spread(reg) from None

    if not pivots.min() > _SINGULAR * np.diag(gram).max():
        raise _no_spread(reg)

    kept = strength[::-1] > _NOISE * np.abs(strength).max()
    if not kept.any():
        raise InputError("items taken together are no more alike in any direction than others; use no learned map here")

    return strength[::-1][kept], turn[:, ::-1][:, kept]


def _is_rounding(power: float, vectors: Array) -> bool:
    """Whether the mean squared length of the centred vectors is no more than rounding."""
    return bool(power <= 1e-20 * np.square(vectors, dtype=np.float64).sum(axis=1).mean())


def _no_spread(reg: float) -> InputError:
    return InputError(
        f"at reg {reg} the covariance of the items' vectors is not positive definite; take a larger reg, or more items "
        "whose vectors differ"
    )


def _soft(values: Double, threshold: float) -> Double:
    """The proximal map of threshold * |.|_1: every value moved towards 0 by the threshold, and not past it."""
    return np.asarray(np.sign(values) * np.maximum(np.abs(values) - threshold, 0))


def _moments(vectors: Array, relations: Interactions, reg: float) -> tuple[Double, Double, Double]:
    """Mean of the items, covariance of co-occurring pairs, and covariance of all items plus ridge.

    Items count as often as users take them. A user with n items has n (n - 1) ordered pairs, each of weight
    1 / (n - 1).
    """
    taken = relations.binary_matrix()
    size = np.asarray(taken.sum(axis=1)).ravel()
    taken = sparse.csr_array(taken[np.flatnonzero(size >= 2)]).astype(np.float64)
    if not taken.nnz:
        raise InputError("no user has two items with content, so there is nothing to learn; give more relations")

    check_apart(*taken.nonzero())
    size = np.asarray(taken.sum(axis=1)).ravel()
    often = np.asarray(taken.sum(axis=0)).ravel()  # the pairs of an item weigh 1 in total per user who took it
    # Sums over all pairs of a user include each item with itself, which is subtracted below.
    itself = np.asarray((sparse.diags_array(1 / (size - 1)) @ taken).sum(axis=0)).ravel()
    mean = often @ vectors / often.sum()
    x = vectors - mean
    sums = (taken @ x) / np.sqrt(size - 1)[:, None]
    pairs = sums.T @ sums
    together = (pairs - (x.T * itself) @ x) / often.sum()
    if np.abs(together).max() * often.sum() <= _NOISE * np.abs(pairs).max():
        together = np.zeros_like(together)  # what is left of two equal sums is rounding

    gram = (x.T * often) @ x / often.sum()
    if _is_rounding(np.trace(gram), vectors):
        raise _no_spread(reg)

    gram[np.diag_indices_from(gram)] += reg * np.trace(gram) / len(gram)

    return mean, (together + together.T) / 2, gram


def _right_factors(matrix: sparse.csr_array, trivial: tuple[Double, Double], dim: int) -> Double:
    """(items, at most dim) right singular vectors times the roots of their singular values, without the trivial pair.

    The trivial pair has singular value 1 and consists of the roots of the counts. It is subtracted from the matrix
    rather than skipped by order, because with labels as users all singular values are 1.
    """
    from scipy.sparse.linalg import LinearOperator, svds

    left, right = (side / np.linalg.norm(side) for side in trivial)
    least = min(matrix.shape)
    if dim < least:
        rest = LinearOperator(
            matrix.shape,
            matvec=lambda x: matrix @ x.ravel() - left * (right @ x.ravel()),
            rmatvec=lambda y: matrix.T @ y.ravel() - right * (left @ y.ravel()),
            dtype=np.float64,
        )
        start = np.random.default_rng(0).normal(size=least)
        with one_blas_thread():  # thousands of products of small matrices
            _, values, axes = svds(rest, k=dim, v0=start, return_singular_vectors="vh")
    else:
        _, values, axes = np.linalg.svd(matrix.toarray() - np.outer(left, right), full_matrices=False)

    order = np.argsort(-values)

    return np.asarray(axes[order].T * np.sqrt(np.maximum(values[order], 0)))


def _blended(weights: Double, gram: Double, keep: float) -> Array:
    """Weights of a map whose dot products are `keep` times the original's plus 1 - `keep` times those of `weights`.

    Both are first scaled so that vectors have mean squared length 1.
    """
    power = max(float(np.trace(weights.T @ gram @ weights)), 1e-300)
    if keep == 0:
        return np.asarray(weights / np.sqrt(power), np.float32)

    metric = keep / np.trace(gram) * np.eye(len(gram)) + (1 - keep) / power * weights @ weights.T
    strength, axes = np.linalg.eigh(metric)
    return np.asarray((axes * np.sqrt(np.maximum(strength, 0))) @ axes.T, np.float32)

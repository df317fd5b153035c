"""Discrete choice models: the probability that each alternative is chosen, given the scores of several sources."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Doubles = NDArray[np.float64]
_FLOOR = 1e-12  # lower bound of probabilities: one confident error must not outweigh everything else
_SWEEPS = 500


def conditional_logit(
    features: Doubles,
    start: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    weight: Doubles,
    *,
    reg: float,
    least: float | None = None,
) -> Doubles:
    """(p,) maximum-likelihood coefficients of a conditional logit, whose utility is linear in the features.

    McFadden, "Conditional logit analysis of qualitative choice behavior" (1973), with a ridge penalty; convex.

    Args:
        features: (n, p) of every alternative; those of one choice are adjacent rows.
        start: (choices,) first row of each choice.
        chosen: (n,) True for chosen alternatives; several in one choice share its weight equally.
        weight: (choices,) weight of each choice.
        reg: ridge penalty, relative to the summed log loss.
        least: lower bound of every coefficient; None for no bound.
    """
    from scipy.optimize import minimize

    group = np.repeat(np.arange(len(start)), np.diff(start, append=len(features)))
    target = weight[group] * chosen / np.add.reduceat(chosen, start, dtype=np.float64)[group]
    observed = target @ features

    def loss(coefficients: Doubles) -> tuple[float, Doubles]:
        score = features @ coefficients
        top = np.maximum.reduceat(score, start)  # subtracted below, so that exp cannot overflow
        power = np.exp(score - top[group])
        total = np.add.reduceat(power, start)
        value = weight @ (top + np.log(total)) - target @ score + reg / 2 * coefficients @ coefficients
        slope = (power * (weight / total)[group]) @ features - observed + reg * coefficients
        return float(value), slope

    bounds = None if least is None else [(least, None)] * features.shape[1]
    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-6}
    begin = np.zeros(features.shape[1])
    result = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    return np.asarray(result.x)


def mixture_weights(probability: Doubles, weight: Doubles) -> Doubles:
    """(sources,) maximum-likelihood mixture weights, non-negative and summing to 1.

    The linear opinion pool (Genest and Zidek, "Combining probability distributions", 1986), fitted by expectation
    maximisation from equal weights, with one pseudo-observation per source.

    Args:
        probability: (n, sources) probability that each source gave to the true outcome.
        weight: (n,) weight of each observation.
    """
    floored = np.maximum(probability, _FLOOR)
    out = np.full(floored.shape[1], 1 / floored.shape[1])

    for _ in range(_SWEEPS):
        mixed = floored * out
        new = 1 + weight @ (mixed / mixed.sum(axis=1, keepdims=True))
        new /= new.sum()
        moved = np.abs(new - out).max()
        out = new
        if moved < 1e-9:
            break

    return np.asarray(out)


def softmax_scale(scores: Doubles, true: NDArray[np.bool_]) -> float:
    """The scale (inverse temperature) by which to multiply scores, so that softmax makes the true columns most likely.

    It is never negative, because greater scores are better, and 0 if all scores in every row are equal.

    Args:
        scores: (n, columns) on any scale.
        true: (n, columns) with at least one true column per row; several share the row's weight equally.
    """
    from scipy.optimize import minimize_scalar

    spread = float(scores.std(axis=1).mean()) if scores.size else 0.0
    if not spread > 0:
        return 0.0

    target = true / true.sum(axis=1, keepdims=True)

    def loss(log_scale: float) -> float:
        probability = softmax(scores * (np.exp(log_scale) / spread), axis=1)
        return -float((target * np.log(np.maximum(probability, _FLOOR))).sum())

    result = minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-4})

    return float(np.exp(result.x) / spread)

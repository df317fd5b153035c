"""Models of a choice among alternatives: which one is taken, given what several sources say of each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Doubles = NDArray[np.float64]
_FLOOR = 1e-12  # probability below which a source cannot go: one that is certain and wrong would outweigh all others
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
    """(p,) coefficients under which the chosen alternatives are likeliest; utility is linear in the features.

    McFadden, "Conditional logit analysis of qualitative choice behavior" (1973), with a ridge. The problem is convex.

    Args:
        features: (n, p) of every alternative, those of one choice next to each other.
        start: (choices,) row at which each choice begins.
        chosen: (n,) which alternatives were taken; of several in one choice each counts alike.
        weight: (choices,) how much each choice counts.
        reg: ridge on the coefficients, against the summed log loss.
        least: lower bound of every coefficient.
    """
    from scipy.optimize import minimize

    group = np.repeat(np.arange(len(start)), np.diff(start, append=len(features)))
    target = weight[group] * chosen / np.add.reduceat(chosen, start, dtype=np.float64)[group]
    wanted = target @ features

    def loss(coefficients: Doubles) -> tuple[float, Doubles]:
        score = features @ coefficients
        top = np.maximum.reduceat(score, start)
        power = np.exp(score - top[group])
        total = np.add.reduceat(power, start)
        value = weight @ (top + np.log(total)) - target @ score + reg / 2 * coefficients @ coefficients
        slope = (power * (weight / total)[group]) @ features - wanted + reg * coefficients
        return float(value), slope

    bounds = None if least is None else [(least, None)] * features.shape[1]
    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-6}
    begin = np.zeros(features.shape[1])
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    return np.asarray(found.x)


def mixture_weights(probability: Doubles, weight: Doubles) -> Doubles:
    """(sources,) weights, at least 0 and together 1, under which the weighted mean of probabilities is likeliest.

    The linear opinion pool (Genest and Zidek, "Combining probability distributions", 1986), by expectation
    maximisation from equal weights, with one pseudo-observation for each source.

    Args:
        probability: (n, sources) that each source gave to what turned out true.
        weight: (n,) how much each observation counts.
    """
    known = np.maximum(probability, _FLOOR)
    out = np.full(known.shape[1], 1 / known.shape[1])

    for _ in range(_SWEEPS):
        mixed = known * out
        new = 1 + weight @ (mixed / mixed.sum(axis=1, keepdims=True))
        new /= new.sum()
        moved = np.abs(new - out).max()
        out = new
        if moved < 1e-9:
            break

    return np.asarray(out)


def softmax_scale(scores: Doubles, true: NDArray[np.bool_]) -> float:
    """The factor on the scores under which softmax over each row gives the true columns the highest likelihood.

    0 where all scores of every row are equal. A factor below 0 is never taken: scores are greater for better.

    Args:
        scores: (n, columns) on any scale.
        true: (n, columns) with a true column in every row; of several each counts alike.
    """
    from scipy.optimize import minimize_scalar

    spread = float(scores.std(axis=1).mean()) if scores.size else 0.0
    if not spread > 0:
        return 0.0

    target = true / true.sum(axis=1, keepdims=True)

    def loss(log_scale: float) -> float:
        probability = softmax(scores * (np.exp(log_scale) / spread), axis=1)
        return -float((target * np.log(np.maximum(probability, _FLOOR))).sum())

    found = minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-4})

    return float(np.exp(found.x) / spread)

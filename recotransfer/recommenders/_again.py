"""The part of `LearnedHybrid` for items that users come back to: a diagonal, with a history of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions
from recotransfer.io.parsing import SMALLEST_EPOCH
from recotransfer.numerics.ages import AGE_EDGES
from recotransfer.numerics.repeats import Repeats, repeats_of
from recotransfer.numerics.threads import one_blas_thread
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders._blend import (
    FARTHEST,
    POWER,
    SHARPER,
    STEPS,
    Choices,
    Doubles,
    Loss,
    loss_of_scores,
    lost_ndcg,
    unlikelihood,
)

_PHASE_EDGES = (0, 0.25, 0.5, 0.75, 1.25, 2, 4)  # usual gaps since the last event of a pair: least in each bucket
_SHRINK_RATE, _SHRINK_GAP = 100, 10  # chances and gaps of an average item, added to those of each item
_AGES, _PHASES = len(AGE_EDGES), len(_PHASE_EDGES)
# Weights in order: level, rate, count, by age, by phase. The first three are means of those of two shops.
_USUAL = np.concatenate([[6.0, 1.2, 1.6], np.zeros(_AGES + _PHASES)])
_BY_AGE, _BY_PHASE = slice(3, 3 + _AGES), slice(3 + _AGES, 3 + _AGES + _PHASES)
_PULL = {"level": 0.1, "slopes": 0.5, "age": 1.0, "phase": 5.0, "power": 1.0}  # precisions of the prior of the weights
_SMOOTH = {"age": 2.0, "phase": 10.0}  # precisions of the difference of neighbouring weights
_GREATEST = 40.0  # log of the greatest weight in a history, which keeps scores finite
_CYCLIC = 1.3  # how much more often than at once an item must be repeated after its usual gap, to say so
_DAY = 86400.0


class Sampled(NamedTuple):
    """Candidates of some users and what they chose: the `Choices` of `_blend`, without features."""

    chosen: NDArray[np.bool_]
    present: NDArray[np.bool_]
    log_weight: Float


@dataclass(frozen=True)
class Again:
    """What a user's earlier events with an item say of the next one.

    The score of an item that the user has had is exp(`weights` @ x), where x holds 1, the log rate of the item, the log
    of how often the user had it, and indicators of its age in moments and of its phase: the time since the user had it
    last, in usual gaps of the item.

    Attributes:
        rate: (items,) share of a user's moments after the first with the item that repeat it, shrunk to the log's.
        gap: (items,) median time between two moments of a user with the item, shrunk to the log's; without times inf.
        weights: (18,) see above.
        usual: rate and gap of an item without events.
        share: share of the held-out events that repeat an earlier one of the user.
        moments, seconds: medians over the log's repeats; None where there are no times, or none in seconds.
    """

    rate: Doubles
    gap: Doubles
    weights: Doubles
    usual: tuple[float, float]
    share: float = 0.0
    moments: float | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, events: Interactions, repeats: Repeats) -> Again:
        """The rates and gaps of a log that has repeats, with the usual weights."""
        n = len(events.items)
        chances, again = repeats.chances.sum(), (repeats.count - 1).sum()
        usual_rate = (again + 1) / (chances + _SHRINK_RATE)  # above 0 in a log whose only repeats were held out
        of_item = np.bincount(repeats.item, repeats.count - 1, minlength=n)
        rate = of_item + _SHRINK_RATE * usual_rate
        rate /= np.bincount(repeats.item, repeats.chances, minlength=n) + _SHRINK_RATE
        if not len(repeats.gap):
            return cls(rate, np.full(n, np.inf), _USUAL, (float(usual_rate), np.inf))

        logs = np.log(repeats.gap)
        usual_gap, count = np.median(logs), np.bincount(repeats.gap_item, minlength=n)
        shrunk = (count * _medians(logs, repeats.gap_item, count) + _SHRINK_GAP * usual_gap) / (count + _SHRINK_GAP)
        usual = float(usual_rate), float(np.exp(usual_gap))
        dated = events.time is not None and np.median(events.time) >= SMALLEST_EPOCH
        seconds = float(np.median(repeats.gap)) if dated else None
        return cls(rate, np.exp(shrunk), _USUAL, usual, moments=float(np.median(repeats.gap_moments)), seconds=seconds)

    @property
    def diagonal(self) -> Float:
        """(items,) what the item adds for itself, per unit of `history`."""
        return np.asarray(np.exp(self.weights[0] + self.weights[1] * np.log(self.rate)), np.float32)

    def history(self, events: Interactions) -> sparse.csr_array:
        """(users, items) weight of each pair by count, age and phase."""
        repeats = repeats_of(events)
        power = self._features(repeats, np.arange(len(repeats.item)))[:, 2:] @ self.weights[2:]
        values = np.exp(np.minimum(power, _GREATEST)).astype(np.float32)
        shape = (len(events.users), len(events.items))
        return sparse.csr_array(sparse.coo_array((values, (repeats.user, repeats.item)), shape=shape).tocsr())

    def extended(self, more: int) -> Again:
        """The same for a catalogue with `more` items at its end."""
        rate, gap = (
            np.pad(old, (0, more), constant_values=new)
            for old, new in zip((self.rate, self.gap), self.usual, strict=True)
        )
        return replace(self, rate=rate, gap=gap)

    def learned(self, repeats: Repeats, base: Float, pair: NDArray[np.int64], some: Choices) -> Again:
        """The same with the weights that rank the choices best, by the two stages of `_blend.learn`.

        Args:
            repeats: of the histories before the choices.
            base: (users, candidates) score of each candidate without this part.
            pair: (users, candidates) row of each candidate in `repeats`; -1 for those that the user never had.
            some: the candidates and what was chosen.
        """
        from scipy.optimize import minimize

        known = pair.ravel() >= 0
        x = self._features(repeats, pair.ravel()[known])
        precision = _precision()

        def whole(theta: Doubles, loss: Loss, centre: Doubles) -> tuple[float, Doubles]:
            added, score, off = np.exp(x @ theta[:-1]), base.ravel().astype(np.float64), theta - centre
            score[known] += added
            value, by_score, by_power = loss_of_scores(score, float(np.exp(theta[-1])), some, loss)
            slope = np.append(x.T @ (by_score[known] * added), by_power)
            pull = precision @ off
            return value + float(off @ pull) / 2, slope + pull

        found = np.append(self.weights, np.log(POWER))
        for loss, sharper in ((unlikelihood, 1.0), (lost_ndcg, SHARPER)):
            centre = found.copy()
            centre[-1] += np.log(sharper)
            bounds = np.stack([centre - FARTHEST, centre + FARTHEST], axis=1)
            if loss is lost_ndcg:  # as in `_blend`, the power is not to be learned from smooth ranks
                bounds[-1] = centre[-1]

            with one_blas_thread():
                options = {"maxiter": STEPS}
                found = minimize(
                    whole, centre, (loss, centre), jac=True, method="L-BFGS-B", bounds=bounds, options=options
                ).x

        share = float((some.chosen & (pair >= 0)).sum() / some.chosen.sum())
        return replace(self, weights=np.asarray(found[:-1], np.float64), share=share)

    def refitted(self, events: Interactions) -> Again:
        """These weights with the rates and gaps of another log of the same items."""
        return replace(Again.of(events, repeats_of(events)), weights=self.weights, share=self.share)

    def in_words(self) -> list[str]:
        """Sentences on how often and when items are repeated."""
        share = f"{self.share:.0%}" if self.share >= 0.01 else "Less than 1%"
        out = f"{share} of the held-out events repeat an earlier one of the user"
        if self.moments is not None:
            after = f"{self.moments:.0f} {'visit' if self.moments == 1 else 'visits'}"
            after += f" and about {_duration(self.seconds)}" if self.seconds is not None else ""
            out += f"; half of all repeats come within {after}"

        by_phase = self.weights[_BY_PHASE]
        at = int(by_phase.argmax())
        if self.moments is None or not 0 < at < _PHASES - 1 or by_phase[at] - by_phase[0] < np.log(_CYCLIC):
            return [f"{out}."]

        low, high = _PHASE_EDGES[at : at + 2]
        return [f"{out}.", f"Repeats are most likely after {low:g} to {high:g} times the usual gap of the item."]

    def facts(self) -> dict[str, Any]:
        """All but the arrays `rate` and `gap`, for a JSON file."""
        return {
            "weights": self.weights.tolist(),
            "usual": [self.usual[0], self.usual[1] if np.isfinite(self.usual[1]) else None],
            "share": self.share,
            "moments": self.moments,
            "seconds": self.seconds,
        }

    @classmethod
    def from_facts(cls, rate: Doubles, gap: Doubles, facts: dict[str, Any]) -> Again:
        """What `facts` and the arrays were taken from."""
        usual_rate, usual_gap = facts["usual"]
        usual = usual_rate, np.inf if usual_gap is None else usual_gap
        return cls(rate, gap, np.array(facts["weights"]), usual, facts["share"], facts["moments"], facts["seconds"])

    def _features(self, repeats: Repeats, at: NDArray[np.int64]) -> Doubles:
        """(len(at), 18) what the weights multiply, for the pairs at these rows of `repeats`."""
        out, rows, item = np.zeros((len(at), len(_USUAL))), np.arange(len(at)), repeats.item[at]
        out[:, 0], out[:, 1], out[:, 2] = 1, np.log(self.rate[item]), np.log(repeats.count[at])
        out[rows, _BY_AGE.start + np.searchsorted(AGE_EDGES, repeats.age[at], side="right") - 1] = 1
        phase = repeats.since[at] / self.gap[item]
        out[rows, _BY_PHASE.start + np.searchsorted(_PHASE_EDGES, phase, side="right") - 1] = 1

        return out


def _medians(values: Doubles, group: NDArray[np.int64], count: NDArray[np.int64]) -> Doubles:
    """(groups,) median of the values of each group; 0 for groups of `count` 0."""
    ordered = values[np.lexsort((values, group))]
    start, some = np.cumsum(count) - count, np.maximum(count, 1)
    low, high = (np.minimum(start + at, len(values) - 1) for at in ((some - 1) // 2, some // 2))
    return np.where(count > 0, (ordered[low] + ordered[high]) / 2, 0.0)


def _precision() -> Doubles:
    """(19, 19) precision of the prior of the weights, and of the log power of the score."""
    out = np.diag(np.append(np.full(len(_USUAL), _PULL["slopes"]), _PULL["power"]))
    out[0, 0] = _PULL["level"]
    for name, at in (("age", _BY_AGE), ("phase", _BY_PHASE)):
        steps = np.diff(np.eye(at.stop - at.start), axis=0)
        out[at, at] = _PULL[name] * np.eye(at.stop - at.start) + _SMOOTH[name] * steps.T @ steps

    return out


def _duration(seconds: float) -> str:
    """The number of days, or of hours or minutes where it is below two."""
    for unit, size in (("days", _DAY), ("hours", _DAY / 24), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"

    return f"{seconds:.0f} seconds"

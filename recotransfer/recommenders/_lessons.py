"""What `LearnedHybrid` learns its weights from: events held out of its own log, and what they say of the content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions
from recotransfer.evaluation.metrics import POPULARITY_BUCKET_NAMES, popularity_bucket
from recotransfer.evaluation.uncertainty import paired
from recotransfer.numerics.ages import AGE_EDGES, aged_histories, steps_of
from recotransfer.numerics.candidates import sums_by_age
from recotransfer.numerics.histories import seen_items
from recotransfer.numerics.repeats import repeats_of
from recotransfer.numerics.sparse import by_line, product_top_k, scaled
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders._again import Again, Sampled
from recotransfer.recommenders._blend import BlendWeights, Lists, candidates, learn, ndcg, prior
from recotransfer.recommenders._item_parts import Content, ItemParts, behaviour_parts, joined, made_new
from recotransfer.recommenders._stacked import RARE, Stacked, appeal

_MOST_HELD_OUT = 5  # events held out per user: a fifth of them, but at least one and at most this many
_LEAST_HISTORY = 3  # users with fewer events have none held out
_COLD_SHARE, _TURNS = 0.1, 5  # share of the items that count as new in a turn, and number of turns
_ROUGH = 0.8  # weight of an age bucket against the one before, where each part lists candidates
_COLD_LEAST = 5  # users that an item needs to count as new in a turn: fewer would say little of who likes it
_USERS, _COLD_USERS, _WIDTH = 3000, 1000, 200  # lists learned from, and candidates in each
_OWN, _BEST = 80, 60  # of the candidates where repeats are learned: items of the history, and best others
_LEAST_JUDGED = 50  # lists below which content is not judged
_95_PERCENT = 1.96  # standard errors on each side of a 95% interval
_JUDGED_STEPS = 25  # of L-BFGS, where weights are only compared
_MATTERS = 0.9  # share of the weight that "the last items" hold


@dataclass(frozen=True)
class Verdict:
    """Whether content counts for items that have users, and why.

    Attributes:
        kept: whether it does.
        users: number of held-out users that judged it; 0 where it was not judged.
        with_content, without: mean NDCG@20 of their lists.
        low, high: 95% interval of the difference.
    """

    kept: bool = True
    users: int = 0
    with_content: float = 0.0
    without: float = 0.0
    low: float = 0.0
    high: float = 0.0


class Lessons:
    """A log split into events to fit parts on and events that the parts' weights are learned from.

    Left out are each user's last events (at most five, or a fifth). So that weights for new items are learned as well,
    users are asked in turns, and in each turn another tenth of the items counts as new: without parts of behaviour and
    in nobody's history. One tenth alone would say more of these few items than of new items.

    Args:
        events: the log.
        content: of its items; None for behaviour only.
        neighbours: how many items each item is scored from, in each part.
        by_moment: whether events of one time share a step; see `steps_of`.
        seed: random seed of the items that are left out and of the candidates.

    Attributes:
        answers: each user's last events.
        cold: (any,) items that count as new in the first turn.
        first: the other events, without those of items in `cold`.
        cold_answers: all events of items in `cold`.
        parts: those of the first turn; after `learned`, those that its weights are for.
    """

    def __init__(
        self, events: Interactions, content: Content | None, neighbours: int, *, by_moment: bool, seed: int
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._first, self.answers = _left_out(events, self._rng)
        steps, n = steps_of(self._first, by_moment=by_moment), len(events.items)
        self._aged = aged_histories(steps, (len(events.users), n))
        self._behaviour = behaviour_parts(self._first, neighbours, by_moment=by_moment)
        self._by_moment = by_moment
        self._content, self._neighbours = content, neighbours
        self._whole = self._joined(agree=True)

        last, every, seen = self.answers.binary_matrix(), events.binary_matrix(), seen_items(self._first)
        turns = self._turns(events)
        known = np.array_split(self._drawn(last, _USERS), len(turns))
        self._samples: list[list[_Sample]] = []
        for new, users in zip(turns, known, strict=True):
            view = self._as_if(self._whole, new)
            asked = [self._sample(view, new, last[users], seen[users], users, np.ones(n, bool))]
            if new.any():
                of_new = scaled(every, None, new)
                users = self._drawn(of_new, _COLD_USERS // len(turns))
                asked.append(self._sample(view, new, of_new[users], scaled(seen[users], None, ~new), users, new))

            self._samples.append(asked)

        self.cold, self.parts = np.flatnonzero(turns[0]), self._as_if(self._whole, turns[0])
        self.first = self._first.select(~turns[0][self._first.item])
        self.cold_answers = events.select(turns[0][events.item])

    def learned(self, *, guarded: bool) -> tuple[BlendWeights, Verdict]:
        """The weights that rank the left-out events best, and whether content counts for items that have users.

        With `guarded` it counts unless the lists of held-out users are worse with it, by more than a standard error,
        than with content for items without users only. Each half of the users judges weights learned from the other.
        """
        curve_of = self._whole.curve_of
        whole = self._lists(self._whole)
        if not guarded or self._content is None or len(whole[0].chosen) < _LEAST_JUDGED:
            return learn(whole, curve_of), Verdict()

        plain = self._joined(agree=False)
        bare = self._lists(plain, only_new=True)
        scores = [self._judged(lists) for lists in (whole, bare)]
        difference = paired(scores[0], scores[1])
        with_content, without = (float(score.mean()) for score in scores)
        deviation = (difference.high - difference.low) / (2 * _95_PERCENT)
        kept = with_content - without >= -deviation
        verdict = Verdict(kept, len(scores[0]), with_content, without, difference.low, difference.high)
        if verdict.kept:
            return learn(whole, curve_of), verdict

        self._whole, self.parts = plain, self._as_if(plain, self._samples[0][0].new)
        blend = learn(bare, curve_of)
        only_new = np.array([1.0, 0, 0, 0])
        silent = {part: blend.popularity[part] * only_new for part in plain.of_content}
        return replace(blend, popularity={**blend.popularity, **silent}), verdict

    def again(self, blend: BlendWeights) -> Again | None:
        """The part for items that users come back to, on the scale of `blend`; None if no left-out event is a repeat.

        Histories end before the moment of the user's first left-out event: the rest of a basket is neither known nor
        wrong. Candidates are items of the history, the best others under `blend`, and a sample of the rest.
        """
        history, hidden = _before(self._first, self.answers)
        right, seen, n = self.answers.binary_matrix(), seen_items(history), len(history.items)
        if not right.multiply(seen).nnz:
            return None

        users = np.flatnonzero((np.diff(right.indptr) > 0) & (np.diff(seen.indptr) > 0))
        users = np.sort(self._rng.permutation(users)[:_USERS])
        steps = steps_of(history, by_moment=self._by_moment)
        stacked = Stacked(self._whole, blend)
        weights = stacked.history([matrix[users] for matrix in aged_histories(steps, (len(history.users), n))])

        others = stacked.top_k(weights, _BEST, seen[users], None).positions
        shortlist = np.concatenate([_some_of_each(seen[users], _OWN, self._rng), others], axis=1)
        unknown = seen_items(hidden)[users]
        items, chosen, log_weight = candidates(right[users], unknown, shortlist, np.arange(n), _WIDTH, self._rng)
        fit = chosen.any(axis=1) & ((items >= 0) & ~chosen).any(axis=1)
        users, items, base = users[fit], items[fit], stacked.scores_at(weights, items)[fit]

        repeats = repeats_of(history)
        key, wanted = repeats.user * n + repeats.item, np.where(items >= 0, users[:, None] * n + items, -1)
        at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        pair = np.where(key[at] == wanted, at, -1)
        if not (chosen[fit] & (pair >= 0)).any():
            return None

        some = Sampled(chosen[fit], items >= 0, log_weight[fit])
        return Again.of(history, repeats).learned(repeats, base, pair, some)

    def _judged(self, lists: Sequence[Lists]) -> NDArray[np.float64]:
        """(users,) NDCG@20 of each of the first lists, under weights learned from the half that it is not in.

        The lists of new items are halved by themselves, so their half may hold the same user's other answers.
        """
        out = np.zeros(len(lists[0].chosen))
        for half in (0, 1):
            taught = [some.taken(np.arange(len(some.chosen)) % 2 != half) for some in lists]
            weights = learn(taught, self._whole.curve_of, steps=_JUDGED_STEPS)
            judged = np.arange(len(out)) % 2 == half
            out[judged] = ndcg(lists[0].taken(judged), weights, self._whole.curve_of)

        return out

    def _joined(self, *, agree: bool) -> ItemParts:
        """The parts of the first fit, with content if there is any; `agree` as in `joined`."""
        if self._content is None:
            return self._behaviour

        return joined(self._behaviour, self._content, self._neighbours, agree=agree)

    def _turns(self, events: Interactions) -> NDArray[np.bool_]:
        """(turns, items) which items count as new in each turn; one turn without any where there is no content."""
        n = len(events.items)
        users = np.bincount(events.item, minlength=n)
        warm = self._rng.permutation(np.flatnonzero(users >= min(_COLD_LEAST, users.max(initial=1))))
        size = int(_COLD_SHARE * len(warm))
        if self._content is None or not size:
            return np.zeros((1, n), bool)

        out = np.zeros((_TURNS, n), bool)
        for turn in range(_TURNS):
            out[turn, warm[turn * size : (turn + 1) * size]] = True

        return out

    def _as_if(self, parts: ItemParts, new: NDArray[np.bool_]) -> ItemParts:
        """The parts as if the items where `new` (items,) is True had no users."""
        return parts if self._content is None else made_new(parts, self._content, new, self._neighbours)

    def _drawn(self, answers: sparse.csr_array, most: int) -> NDArray[np.int64]:
        """A sample of users with both a history and answers, in random order."""
        users = np.flatnonzero((answers.sum(axis=1) > 0) & (np.diff(self._first.offsets) > 0))
        return self._rng.permutation(users)[:most]

    def _lists(self, parts: ItemParts, *, only_new: bool = False) -> list[Lists]:
        """The lists of all items, and those of new items if there are any."""
        found = []
        for asked in self._samples:
            view = self._as_if(parts, asked[0].new)
            found.append([sample.lists(view, only_new=only_new) for sample in asked])

        return [Lists.joined(some) for some in zip(*found, strict=True)]

    def _sample(
        self,
        parts: ItemParts,
        new: NDArray[np.bool_],
        answers: sparse.csr_array,
        seen: sparse.csr_array,
        users: NDArray[np.int64],
        pool: NDArray[np.bool_],
    ) -> _Sample:
        """Candidates for the users at positions `users`, from the items where `pool` (items,) is True.

        Three quarters of a list are what the prior and each part for itself would recommend; the rest is sampled.

        Args:
            parts: as if the items where `new` (items,) is True had no users.
            new: see `parts`; histories are without these items.
            answers: (len(users), items) held-out items.
            seen: (len(users), items) items that may not be listed.
            users: positions of the users.
            pool: items that may be listed.
        """
        aged = [scaled(matrix[users], None, ~new) for matrix in self._aged]
        believed = Stacked(replace(parts, vectors={}), prior(parts.curve_of))
        history = sparse.csr_array(sum(matrix * np.float32(_ROUGH**age) for age, matrix in enumerate(aged)))
        best = [believed.top_k(believed.history(aged), _WIDTH // 3, seen, pool).positions]
        each = max(5, _WIDTH // 3 // len(parts.matrices))
        best += [product_top_k(history, part, each, seen, pool)[0] for part in parts.matrices.values()]
        shortlist = np.concatenate(best, axis=1)
        items, chosen, log_weight = candidates(answers, seen, shortlist, np.flatnonzero(pool), _WIDTH, self._rng)

        fit = chosen.any(axis=1) & ((items >= 0) & ~chosen).any(axis=1)
        return _Sample([matrix[fit] for matrix in aged], items[fit], chosen[fit], log_weight[fit], new)


@dataclass(frozen=True)
class _Sample:
    """Some users' histories by age, their candidates (padded with -1), those that they chose, and the new items."""

    aged: list[sparse.csr_array]
    items: NDArray[np.int64]
    chosen: NDArray[np.bool_]
    log_weight: Float
    new: NDArray[np.bool_]

    def lists(self, parts: ItemParts, *, only_new: bool = False) -> Lists:
        """The candidates with what `parts` say of them; with `only_new`, content speaks of items without users only."""
        present, at = self.items >= 0, np.maximum(self.items, 0)
        bucket = popularity_bucket(parts.users[at])
        by_content = present & (bucket == 0) if only_new else present
        blocks = [
            _columns(
                sums_by_age(self.aged, by_line(part), self.items), by_content if name in parts.of_content else present
            )
            for name, part in parts.matrices.items()
        ]
        blocks += [
            _products(self.aged, vectors, at, by_content & (bucket <= RARE)) for vectors in parts.vectors.values()
        ]
        features = sparse.csr_array(sparse.hstack(blocks, format="csr"))

        return Lists(features, self.chosen, present, self.log_weight, bucket, appeal(parts)[at])


def in_words(blend: BlendWeights, verdict: Verdict, again: Again | None) -> list[str]:
    """Sentences on what the weights say of the log."""
    if not blend.lists:
        return ["The log is too small to learn from: the weights are those of an average log."]

    shares = blend.shares
    behaviour = {part: share for part, share in shares.items() if part in ("co-occurrence", "order", "wide order")}
    known = {part: float(share[1:].sum()) for part, share in shares.items()}
    out = [f"Weights were learned from the held-out events of {blend.lists:,} users."]

    if "order" in known:
        of_all = sum(known[part] for part in behaviour)
        order = (known["order"] + known["wide order"]) / max(of_all, 1e-12)
        amount = "little" if order < 0.25 else "much" if order > 0.6 else "as much as what is bought together"
        out.append(f"Order matters {amount} here: {order:.0%} of what behaviour says of the chosen items.")

        out.append(_of_ages(sum(share[1:].sum(axis=0) for share in behaviour.values())))
    else:
        out.append("The log has no times: all items of a history count alike.")

    if max(blend.appeal) > 0 and "order" in known:
        late = blend.appeal[1] / sum(blend.appeal)
        out.append(f"Of the weight of popularity itself, {late:.0%} is on the last tenth of the log.")

    out += again.in_words() if again is not None else []
    content = [part for part in shares if part not in behaviour]
    if content:
        out += _of_content(blend, verdict, content)

    return out


def _of_ages(weight: NDArray[np.float64]) -> str:
    """A sentence on how far back a history counts, by the weight of each age bucket."""
    reach = int(np.searchsorted(np.cumsum(weight), _MATTERS * weight.sum()))
    if reach + 1 >= len(AGE_EDGES):
        return "Histories count to their far end."

    last = "item of a history holds" if reach == 0 else f"{AGE_EDGES[reach + 1]} items of a history hold"
    return f"The last {last} {_MATTERS:.0%} of its weight."


def _of_content(blend: BlendWeights, verdict: Verdict, content: Sequence[str]) -> list[str]:
    """Sentences on how much content counts, by modality and by popularity of the item."""
    totals = {part: share.sum(axis=1) for part, share in blend.shares.items()}
    of_bucket = np.sum(list(totals.values()), axis=0)
    by_content = np.sum([totals[part] for part in content], axis=0)
    seen = [at for at in range(len(of_bucket)) if of_bucket[at] > 0]
    told = ", ".join(f"{by_content[at] / of_bucket[at]:.0%} ({POPULARITY_BUCKET_NAMES[at]})" for at in seen)
    out = [f"Share of content in the score of chosen items, by number of their users: {told}."]

    modalities: dict[str, float] = {}
    for part in content:
        modality = part.partition(" ")[2]
        if part.startswith(("near ", "far ")):
            modalities[modality] = modalities.get(modality, 0.0) + float(totals[part].sum())

    if len(modalities) > 1:
        whole = max(sum(modalities.values()), 1e-12)
        ordered = sorted(modalities.items(), key=lambda pair: -pair[1])
        out.append("Of what content says: " + ", ".join(f"{name} {value / whole:.0%}" for name, value in ordered) + ".")

    if verdict.users:
        change = f"NDCG@20 {verdict.with_content:.4f} with it, {verdict.without:.4f} without"
        interval = f"[{verdict.low:+.4f}, {verdict.high:+.4f}], {verdict.users:,} held-out users"
        decision = "counts for items with users, too" if verdict.kept else "is used for items without users only"
        out.append(f"Guard: content {decision} ({change}; difference {interval}).")
    else:
        out.append("Guard: content was not judged and counts for all items.")

    return out


def _left_out(events: Interactions, rng: np.random.Generator) -> tuple[Interactions, Interactions]:
    """Events for the first fit, and each user's last events."""
    order = events.order
    if events.time is None:  # the order means nothing: any events may be held out
        order = rng.permutation(order)
        order = order[np.argsort(events.user[order], kind="stable")]

    count = np.bincount(events.user, minlength=len(events.users))
    place = np.arange(len(order)) - (np.cumsum(count) - count)[events.user[order]]
    out = np.minimum(_MOST_HELD_OUT, np.maximum(count // 5, count >= _LEAST_HISTORY))
    held = place >= (count - out)[events.user[order]]
    return events.select(order[~held]), events.select(order[held])


def _before(first: Interactions, answers: Interactions) -> tuple[Interactions, Interactions]:
    """The events of `first` before the user's first answer, and those of its moment or later; none without times."""
    if first.time is None or answers.time is None:
        return first, first.select(np.zeros(len(first), bool))

    begin = np.full(len(first.users), np.inf)
    np.minimum.at(begin, answers.user, answers.time)
    before = first.time < begin[first.user]
    return first.select(before), first.select(~before)


def _some_of_each(seen: sparse.csr_array, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(users, most) positions of stored columns of each row, padded with -1; drawn at random where there are more."""
    out = np.full((seen.shape[0], most), -1, np.int64)
    for row in range(len(out)):
        some = rng.permutation(seen.indices[seen.indptr[row] : seen.indptr[row + 1]])[:most]
        out[row, : len(some)] = some

    return out


def _products(
    aged: list[sparse.csr_array], vectors: Float, items: NDArray[np.int64], present: NDArray[np.bool_]
) -> sparse.csr_array:
    """(users x candidates, 8) the same as `sums_by_age` for a part given by vectors."""
    out = np.zeros((*items.shape, len(AGE_EDGES)), np.float32)
    for at, matrix in enumerate(aged):
        for row in np.flatnonzero(np.diff(matrix.indptr)):
            entries = slice(matrix.indptr[row], matrix.indptr[row + 1])
            profile = matrix.data[entries] @ vectors[matrix.indices[entries]]
            out[row, :, at] = vectors[items[row]] @ profile

    return _columns(out, present)


def _columns(values: Float, present: NDArray[np.bool_]) -> sparse.csr_array:
    """(users x candidates, 8) values (users, candidates, 8) where `present` (users, candidates) is True."""
    return sparse.csr_array((values * present[..., None]).reshape(-1, values.shape[2]))

"""The contract of adapters as a suite of tests: records into a `Problem`, predictions back into what a domain reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from recotransfer.experiments import Outcome, Problem, run
from recotransfer.recommenders import Probe
from recotransfer.task import TransferTask


class AdapterContract:
    """Derive from it, and define `problem()`; an adapter that reads predictions back defines `read_back()` too.

    Attributes:
        least: what the first metric must reach; a little above what chance gives for `problem()`.
    """

    least = 0.0

    def problem(self) -> Problem:
        """The adapter's problem of a few records that can be told apart."""
        raise NotImplementedError

    def task(self) -> TransferTask:
        """The task that is fitted, by default one that learns labels."""
        return TransferTask(Probe(), progress=False)

    def read_back(self, outcome: Outcome) -> Any:
        """What the domain reads: a table, masks, boxes. One record in it for each query."""
        return outcome.predictions.best

    def test_records_become_items_and_relations(self) -> None:
        """Items, relations in three parts over the same items, and a metric."""
        problem = self.problem()
        split = problem.split
        assert len(problem.items)
        assert problem.metrics
        assert len(split.train)
        assert len(split.test)
        assert split.train.items == split.valid.items == split.test.items
        known = problem.items.ids.positions(split.train.items.ids, missing="negative")
        for part in (split.train, split.valid, split.test):
            assert (known[part.item] >= 0).all()

    def test_no_relation_is_learned_and_asked(self) -> None:
        """A pair of the test stands in neither other part."""
        split = self.problem().split
        pairs = []
        for part in (split.train, split.valid, split.test):
            users, items = part.users.take(part.user).tolist(), part.items.take(part.item).tolist()
            pairs.append(set(zip(users, items, strict=True)))

        assert not pairs[2] & (pairs[0] | pairs[1])

    def test_the_same_records_make_the_same_problem(self) -> None:
        """Nothing depends on the run."""
        one, other = self.problem(), self.problem()
        assert one.items.ids == other.items.ids
        for name in ("train", "valid", "test"):
            mine, theirs = getattr(one.split, name), getattr(other.split, name)
            np.testing.assert_array_equal(mine.user, theirs.user)
            np.testing.assert_array_equal(mine.item, theirs.item)

    def test_a_task_solves_it_and_the_domain_reads_the_answer(self) -> None:
        """Fitted and evaluated by the core, it reaches `least`, and each query has an answer."""
        problem = self.problem()
        outcome = run(problem, self.task())
        figure = outcome.metrics[next(iter(problem.metrics))].value
        assert np.isfinite(figure)
        assert figure >= self.least
        assert len(self.read_back(outcome)) == len(outcome.predictions.queries)

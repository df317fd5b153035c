"""Courses for learners: groups by habit, courses nobody took, learners nobody knows."""

import numpy as np
import pandas as pd
import pytest

from recotransfer import EASE, HybridItems, TransferTask, experiments
from recotransfer.adapters import learning
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import TabularAttributes
from recotransfer.encoders.features import clusters
from recotransfer.errors import InputError

KINDS = 3


def platform(learners=120, courses=24, seed=0):
    """Learners of three habits take courses of their habit's kind alone, which the columns name."""
    draw = np.random.default_rng(seed)
    habit, kind = np.arange(learners) % KINDS, np.arange(courses) % KINDS
    rows = [
        (f"u{u}", c) for u in range(learners) for c in draw.choice(np.flatnonzero(kind == habit[u]), 5, replace=False)
    ]
    frame = pd.DataFrame(rows, columns=["user", "item"])
    frame["time"] = np.arange(len(frame), dtype=float)
    table = pd.DataFrame({"kind": [f"k{k}" for k in kind], "weeks": draw.integers(2, 40, courses)})
    items = Items(IdMap(np.arange(courses)), table, {"kind": "category", "weeks": "number"})
    log = Interactions.from_frame(frame, time="time", items=items.ids)
    centres = np.array([[0, 0], [6, 0], [0, 6]])[habit]
    profiles = pd.DataFrame(centres + draw.normal(size=(learners, 2)), columns=["minutes", "posts"])
    profiles.index = [f"u{u}" for u in range(learners)]
    return log, items, profiles


def run(problem, model, encoders=()):
    return experiments.run(
        problem, TransferTask(model, encoders=list(encoders), progress=False), settings=[{}], draws=20
    )


def test_rows_that_stand_together_are_clusters_the_largest_first():
    _, _, profiles = platform()
    found = clusters(profiles.iloc[: 120 - 1], KINDS)
    table = pd.crosstab(found, np.arange(119) % KINDS)
    assert ((table > 0).sum(axis=1) == 1).all()
    assert (np.diff(np.bincount(found)) <= 0).all()
    np.testing.assert_array_equal(found, clusters(profiles.iloc[:119] * [1000, 1], KINDS))  # queries do not matter
    with pytest.raises(InputError, match="clusters"):
        clusters(profiles, 500)
    with pytest.raises(InputError, match="number column"):
        clusters(pd.DataFrame({"name": ["a", "b"]}), 2)


def test_groups_are_known_before_anything_else_and_never_recommended():
    log, items, profiles = platform()
    problem = learning.courses(log, items, profiles=profiles, groups=KINDS)
    plain = learning.courses(log, items)
    assert len(problem.split.train) == len(plain.split.train) + 120
    assert len(problem.split.test) == len(plain.split.test)
    outcome = run(problem, EASE())
    assert outcome.predictions.candidates == items.ids
    assert not any(isinstance(option, tuple) for option in outcome.predictions.best)
    assert problem.split.train.time.min() < plain.split.train.time.min()


def test_a_learner_without_a_course_is_recommended_what_the_group_takes():
    log, items, profiles = platform()
    grouped = learning.courses(log, items, profiles=profiles, groups=KINDS, protocol="new learners")
    plain = learning.courses(log, items, protocol="new learners")
    found, blind = (run(problem, EASE()).metrics["found at 10"].value for problem in (grouped, plain))
    assert found > 0.9  # eight courses are of the learner's kind
    assert blind < 0.7


def test_courses_that_nobody_took_are_recommended_by_what_they_are_about():
    log, items, profiles = platform()
    problem = learning.courses(log, items, profiles=profiles, groups=KINDS, protocol="cold courses", seed=3)
    kinds = items.columns["kind"].iloc[problem.split.test_items.ids.astype(int)]
    outcome = run(problem, HybridItems(), [TabularAttributes()])
    assert set(outcome.predictions.candidates.ids.tolist()) == set(problem.split.test_items.ids.tolist())
    if kinds.nunique() > 1:
        assert outcome.metrics["MRR"].value > 0.9


def test_found_at_counts_shares_of_what_was_held_out():
    truth = np.array([[True, True, False], [False, False, True], [False, False, False]])
    scores = np.array([[3, 1, 2], [3, 2, 1], [1, 2, 3]], np.float32)
    a = experiments.Predictions(np.arange(3), IdMap(["x", "y", "z"]), truth, scores, np.arange(3))
    assert learning.found_at(1)(a) == 0.25
    assert learning.found_at(3)(a) == 1.0
    with pytest.raises(InputError):
        learning.found_at(0)


def test_profiles_of_nobody_are_refused_and_those_of_some_are_taken():
    log, items, profiles = platform()
    with pytest.raises(InputError, match=r"learners look like \['u0', 'u1', 'u2'\], .* like \[0, 1, 2\]; index"):
        learning.courses(log, items, profiles=profiles.reset_index(drop=True), groups=KINDS)
    some = learning.courses(log, items, profiles=profiles.iloc[:90], groups=KINDS)
    assert len(some.split.train) == len(learning.courses(log, items).split.train) + 90


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_new_learners_are_refused(count):
    log, items, _ = platform(count)
    with pytest.raises(InputError, match=f"at least three learners.*got {count}"):
        learning.courses(log, items, protocol="new learners")
    assert len(learning.courses(*platform(3)[:2], protocol="new learners").split.test) == 5


def test_an_unknown_question_is_refused():
    log, items, _ = platform(12, 15)
    with pytest.raises(InputError, match="next"):
        learning.courses(log, items, protocol="best")

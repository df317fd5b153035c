import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recotransfer.errors import InputError
from recotransfer.evaluation import uncertainty
from recotransfer.evaluation.uncertainty import Difference, Estimate, holm, interval, paired

NAN = math.nan


def draw(n, distinct, seed=0):
    """Values of users; with few distinct ones the bootstrap takes its other road."""
    return np.random.default_rng(seed).integers(distinct, size=n) / distinct


@pytest.mark.parametrize("distinct", [5, 10**9], ids=["few values", "many values"])
def test_the_interval_agrees_with_scipys_bootstrap_and_the_normal_one(distinct):
    values = draw(1000, distinct)
    found = interval(values, draws=5000)
    scipys = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=1).confidence_interval
    error = values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], scipys, atol=0.15 * error)
    np.testing.assert_allclose(
        [found.low, found.high], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.15 * error
    )


@pytest.mark.parametrize("few", [0, 10**9], ids=["counting values", "drawing users"])
def test_both_roads_of_the_bootstrap_give_the_same_interval(few, monkeypatch):
    monkeypatch.setattr(uncertainty, "_FEW", few)
    values = np.repeat([0.0, 0.2, 1.0], [700, 200, 100])
    error = values.std() / np.sqrt(len(values))
    found = interval(values, draws=10_000)
    np.testing.assert_allclose(
        [found.low, found.high], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.1 * error
    )


def test_about_nineteen_of_twenty_intervals_hold_the_true_mean():
    rng = np.random.default_rng(5)
    found = [interval(rng.random(80), draws=500, seed=seed) for seed in range(1000)]
    held = np.mean([some.low <= 0.5 <= some.high for some in found])
    assert 0.92 <= held <= 0.97  # the percentile bootstrap of 80 users is a little narrow: .94


@pytest.mark.parametrize("distinct", [3, 10**9])
def test_the_same_seed_gives_the_same_interval_whatever_the_order_and_the_block(distinct, monkeypatch):
    values = draw(300, distinct)
    found = interval(values, seed=3)
    assert interval(values, seed=3) == found
    assert interval(values, seed=4)[1:] != found[1:]
    assert interval(values[::-1], seed=3)[1:] == found[1:]
    monkeypatch.setattr(uncertainty, "_BLOCK", 700)
    assert interval(values, seed=3) == found


def test_many_users_take_little_memory():
    values = draw(200_000, 10**9)
    tracemalloc.start()
    interval(values, draws=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_undefined_users_are_left_out_and_too_few_have_no_interval():
    assert interval([1, NAN, 0, 1]) == interval([1, 0, 1])
    assert interval([NAN, 3]) == pytest.approx(Estimate(3, NAN, NAN), nan_ok=True)
    assert interval([]) == pytest.approx(Estimate(NAN, NAN, NAN), nan_ok=True)
    assert interval([0.1] * 7) == pytest.approx(Estimate(0.1, 0.1, 0.1))


def test_what_is_no_flat_list_of_finite_values_is_refused():
    with pytest.raises(InputError, match=r"flat list, one per user, got shape \(1, 2\)"):
        interval([[1, 2]])
    with pytest.raises(InputError, match="value 1 is infinite"):
        interval([1, math.inf])
    with pytest.raises(InputError, match="draws must be at least 1, got 0"):
        interval([1, 2], draws=0)
    with pytest.raises(InputError, match="3 values against 2"):
        paired([1, 2, 3], [1, 2])


def test_a_paired_comparison_is_the_t_test_and_the_interval_of_the_differences():
    rng = np.random.default_rng(1)
    against = rng.random(200)
    values = against + rng.normal(0.02, 0.1, 200)
    found = paired(values, against, seed=7)
    assert found.p == pytest.approx(stats.ttest_rel(values, against).pvalue)
    assert found[:3] == pytest.approx(interval(values - against, seed=7))
    back = paired(against, values, seed=7)
    assert (back.value, back.p) == pytest.approx((-found.value, found.p))
    apart = interval(values).high - interval(values).low
    assert found.high - found.low < apart / 2  # what the users share cancels


def test_a_paired_comparison_leaves_out_users_undefined_on_either_side():
    found = paired([1, NAN, 3, 4, 2], [0, 1, NAN, 1, 2])
    assert found == paired([1, 4, 2], [0, 1, 2])


def test_equal_differences_have_a_stated_p():
    assert paired([0.5, 0.25], [0.5, 0.25]) == Difference(0, 0, 0, 1)
    assert paired([0.3, 0.4, 0.5], [0.1, 0.2, 0.3]) == pytest.approx(Difference(0.2, 0.2, 0.2, 0))
    assert paired([0.1 + 0.2, 0.3], [0.3, 0.3]).p == 1  # differs by rounding only
    assert paired([0.1 + 0.2, 0.3], [0.3, 0.3])[1:3] == (0, 0)
    assert paired([1], [2]) == pytest.approx(Difference(-1, NAN, NAN, NAN), nan_ok=True)
    assert paired([], []) == pytest.approx(Difference(NAN, NAN, NAN, NAN), nan_ok=True)


def test_false_alarms_come_as_often_as_the_level_says():
    rng = np.random.default_rng(2)
    alarms = [paired(rng.random(40), rng.random(40), draws=1).p <= 0.05 for _ in range(600)]
    assert 0.02 <= np.mean(alarms) <= 0.09


def test_holm_on_a_worked_example():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1, 1])
    assert holm([]).tolist() == []
    np.testing.assert_array_equal(holm([NAN, 0.02, NAN, 0.5]), [NAN, 0.04, NAN, 0.5])
    with pytest.raises(InputError, match=r"between 0 and 1, got 1\.5"):
        holm([0.2, 1.5])


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=12), st.integers(1, 300))
def test_holm_rejects_what_the_step_down_procedure_rejects(thousandths, level):
    p, level = np.array(thousandths) / 1000, (level + math.pi / 100) / 1000
    rejected = np.zeros(len(p), bool)
    for step, at in enumerate(np.argsort(p, kind="stable")):
        if p[at] > level / (len(p) - step):
            break
        rejected[at] = True
    corrected = holm(p)
    assert ((corrected <= level) == rejected).all()
    assert ((corrected >= p) & (corrected <= 1)).all()

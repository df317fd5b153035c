"""What the models of a choice learn, against planted answers and the formulas."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from recotransfer.numerics.choice_models import conditional_logit, mixture_weights, softmax_scale


def drawn(utility, rng):
    """One alternative of each row, by its probability under softmax."""
    p = softmax(utility, axis=1)
    return (rng.random(len(p))[:, None] < p.cumsum(axis=1)).argmax(axis=1)


def test_the_coefficients_of_planted_choices_are_found():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 5, 2))
    true = np.array([1.5, -0.5])
    chosen = np.arange(5) == drawn(features @ true, rng)[:, None]
    start = np.arange(4000) * 5
    found = conditional_logit(features.reshape(-1, 2), start, chosen.ravel(), np.ones(4000), reg=0.0)
    np.testing.assert_allclose(found, true, atol=0.1)
    bounded = conditional_logit(features.reshape(-1, 2), start, chosen.ravel(), np.ones(4000), reg=0.0, least=0.0)
    assert bounded[1] == 0
    shrunk = conditional_logit(features.reshape(-1, 2), start, chosen.ravel(), np.ones(4000), reg=1e6)
    assert np.abs(shrunk).max() < 0.01


def test_two_alternatives_of_which_one_is_nothing_are_a_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    y = rng.random(500) < expit(x @ [1.0, -1.0, 0.5])
    both = np.stack([x, np.zeros_like(x)], axis=1).reshape(-1, 3)
    bears = np.stack([y, ~y], axis=1).ravel()
    found = conditional_logit(both, np.arange(500) * 2, bears, np.ones(500), reg=2.0)
    other = linear_model.LogisticRegression(C=0.5, fit_intercept=False, tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(found, other.coef_[0], atol=1e-3)


def test_the_weights_of_a_planted_mixture_are_found_whatever_the_order_of_sources():
    rng = np.random.default_rng(0)
    sources = rng.dirichlet(np.ones(4), size=(5000, 3))  # (n, sources, alternatives)
    true = np.array([0.6, 0.4, 0.0])
    mixed = np.einsum("nsa,s->na", sources, true)
    taken = (rng.random(5000)[:, None] < mixed.cumsum(axis=1)).argmax(axis=1)
    said = sources[np.arange(5000), :, taken]
    found = mixture_weights(said, np.ones(5000))
    np.testing.assert_allclose(found, true, atol=0.06)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(mixture_weights(said[:, ::-1], np.ones(5000)), found[::-1], atol=1e-6)
    np.testing.assert_allclose(mixture_weights(np.zeros((0, 2)), np.empty(0)), [0.5, 0.5])


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
def test_scores_are_scaled_to_the_probabilities_they_were_drawn_from_whatever_their_unit(unit):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5000, 6))
    true = np.arange(6) == drawn(2.0 * scores, rng)[:, None]
    assert softmax_scale(scores * unit, true) * unit == pytest.approx(2.0, rel=0.1)
    assert softmax_scale(np.ones((3, 2)), np.array([[1, 0], [0, 1], [1, 0]], bool)) == 0
    assert softmax_scale(-scores, true) * scores.std() < 0.01, "scores that mislead are not listened to"

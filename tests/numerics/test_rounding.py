"""Choices between computed numbers do not hang on the last bits."""

import numpy as np
import pytest

from recotransfer.numerics.rounding import SINGLE, exceeds, first_best


@pytest.mark.parametrize(
    ("value", "other", "answer"),
    [
        (0.3, 0.2, True),
        (0.1 + 0.2, 0.3, False),
        (0.3, 0.1 + 0.2, False),
        (-1.0, -2.0, True),
        (1e-30, 0.0, True),
        (0.0, -np.inf, True),
        (np.inf, 0.0, True),
        (-np.inf, -np.inf, False),
        (np.nan, 0.0, False),
        (0.0, np.nan, False),
    ],
)
def test_a_number_exceeds_another_by_more_than_rounding_or_not_at_all(value, other, answer):
    assert exceeds(value, other) is answer


@pytest.mark.parametrize("noise", [0.0, 1e-12, -1e-12])
def test_of_numbers_that_rounding_alone_tells_apart_the_first_is_the_best(noise):
    assert first_best([0.1, 0.7 + noise, 0.7, 0.2]) == 1
    assert first_best([np.nan, -np.inf, 0.7 - noise, 0.7]) == 2
    assert first_best([np.nan, np.nan]) == 0
    assert first_best(np.array([1.0, 1 + 1e-7], np.float32), SINGLE) == 0

import numpy as np
import pytest
from scipy import sparse

from recotransfer.numerics.candidates import sums_by_age
from recotransfer.numerics.sparse import by_line, cell_products

USERS, ITEMS, AGES = 7, 30, 3


def matrix(rng, shape, density):
    values = np.where(rng.random(shape) < density, rng.normal(size=shape), 0)
    return sparse.csr_array(values.astype(np.float32))


@pytest.mark.parametrize("density", [0.0, 0.3])
def test_sums_by_age_are_the_products_of_the_histories_at_the_candidates(density):
    rng = np.random.default_rng(0)
    aged = [matrix(rng, (USERS, ITEMS), density) for _ in range(AGES)]
    weights = matrix(rng, (ITEMS, ITEMS), 0.5)
    candidates = np.stack([rng.permutation(ITEMS)[:8] for _ in range(USERS)])
    candidates[:, 6:] = -1
    found = sums_by_age(aged, by_line(weights), candidates)

    for age, history in enumerate(aged):
        wanted = np.take_along_axis((history @ weights).toarray(), np.maximum(candidates, 0), axis=1)
        np.testing.assert_allclose(found[..., age], np.where(candidates >= 0, wanted, 0), rtol=1e-4, atol=1e-5)


def test_cell_products_are_the_inner_products_of_row_and_column():
    rng = np.random.default_rng(0)
    cells = matrix(rng, (ITEMS, ITEMS), 0.2)
    vectors = rng.normal(size=(ITEMS, 5)).astype(np.float32)
    row, column = cells.nonzero()
    wanted = (vectors @ vectors.T)[row, column]
    np.testing.assert_allclose(cell_products(cells, vectors), wanted, rtol=1e-4, atol=1e-5)
    assert not len(cell_products(sparse.csr_array((ITEMS, ITEMS), dtype=np.float32), vectors))

import numpy as np
import pytest
from conftest import blas_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from threadpoolctl import threadpool_limits

from recotransfer.data import IdMap, Interactions
from recotransfer.errors import InputError
from recotransfer.numerics import threads
from recotransfer.numerics.ages import steps_of, transitions
from recotransfer.numerics.histories import histories
from recotransfer.numerics.ridge import ease, half_step, local_ridge, ridge, unobserved_metric
from recotransfer.numerics.sparse import columns_to_csr, keep_largest, product_top_k, scaled, smoothed
from recotransfer.numerics.vectors import reciprocal, unit_rows

EMPTY = sparse.csr_array((0, 0), dtype=np.float32)


def log(rows, users=None, items=None, timed=True):
    """Events from (user, item, weight) rows, each a second after the one before."""
    user, item, weight = (np.array(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    count = [1 + int(max(column, default=-1)) for column in (user, item)]
    return Interactions(
        IdMap(range(users or count[0])),
        IdMap(range(items or count[1])),
        np.asarray(user, np.int64),
        np.asarray(item, np.int64),
        np.asarray(weight, np.float32),
        np.arange(len(rows), dtype=np.float64) if timed else None,
    )


def random_sparse(seed, shape, density=0.3, negative=False):
    rng = np.random.default_rng(seed)
    out = sparse.random_array(shape, density=density, rng=rng, format="csr", dtype=np.float32)
    out.data += 0.1
    if negative:
        out.data *= rng.choice([-1, 1], out.nnz)
    return out


def random_gram(seed, items=20, users=60):
    matrix = random_sparse(seed, (users, items))
    return sparse.csr_array(matrix.T @ matrix)


def frozen(matrix):
    """The matrix over read-only arrays, as one that was memory-mapped."""
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.flags.writeable = False
    return matrix


# -- histories ---------------------------------------------------------------------------------------------------------


def test_history_fades_by_age_counted_in_distinct_items():
    events = log([(0, 0, 1), (0, 1, 1), (0, 2, 1), (1, 1, 1)], users=3, items=4)
    assert histories(events, 0.5).toarray().tolist() == [[0.25, 0.5, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_repeats_count_once_by_age_and_add_up_in_strength():
    events = log([(0, 0, 1), (0, 1, 1), (0, 0, 2)])
    assert histories(events, 0.5).toarray().tolist() == [[2, 0.5]]


def test_strength_is_the_logarithm_of_the_summed_weight():
    events = log([(0, 0, 1), (0, 1, 3), (0, 2, 0.5)])
    np.testing.assert_allclose(histories(events).toarray(), [[1, 2, np.log2(1.5)]], rtol=1e-6)


def test_untimed_events_are_in_the_order_of_the_log():
    rows = [(0, 2, 1), (1, 0, 1), (0, 1, 1)]
    np.testing.assert_array_equal(histories(log(rows, timed=False), 0.5).toarray(), histories(log(rows), 0.5).toarray())


def test_what_counts_for_nothing_is_not_stored():
    assert histories(log([(0, 0, -5), (0, 1, 0), (0, 2, 1)])).indices.tolist() == [2]
    old = histories(log([(0, item, 1) for item in range(300)]), 0.3)
    assert (old.data > 0).all()
    factors = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    assert np.isfinite(half_step(old, factors, unobserved_metric(factors, 1.0, 0.01)).data).all()


def naive_histories(events, decay):
    out = np.zeros((len(events.users), len(events.items)))
    for user in range(len(events.users)):
        own = [r for r in events.order.tolist() if events.user[r] == user]
        newest_first = list(dict.fromkeys(events.item[r] for r in reversed(own)))
        for age, item in enumerate(newest_first):
            total = sum(events.weight[r] for r in own if events.item[r] == item)
            out[user, item] = np.log2(1 + total) * decay**age
    return out


some_rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from([0.5, 1, 2])), max_size=25)


@settings(deadline=None)
@given(some_rows, st.sampled_from([0.3, 0.9, 1.0]), st.booleans())
def test_histories_equal_a_plain_loop(rows, decay, timed):
    events = log(rows, users=4, items=6, timed=timed)
    np.testing.assert_allclose(histories(events, decay).toarray(), naive_histories(events, decay), rtol=1e-5)


# -- transitions -------------------------------------------------------------------------------------------------------


def by_item(events, past, future, horizon=50):
    return transitions(steps_of(events, by_moment=False), len(events.items), past, future, horizon)


def naive_transitions(events, decay, horizon):
    pasts, futures = [], []
    for user in range(len(events.users)):
        own = [events.item[r] for r in events.order.tolist() if events.user[r] == user]
        line = list(dict.fromkeys(reversed(own)))[::-1]  # each item at its last event
        for cut in range(1, len(line)):
            past, future = np.zeros((2, len(events.items)))
            for age, item in enumerate(line[:cut][::-1][:horizon]):
                past[item] = decay**age
            for gap, item in enumerate(line[cut:][:horizon]):
                future[item] = decay**gap
            pasts.append(past)
            futures.append(future)
    shape = (-1, len(events.items))
    return np.array(pasts).reshape(shape), np.array(futures).reshape(shape)


@settings(deadline=None)
@given(some_rows, st.sampled_from([0.3, 1.0]), st.integers(1, 7))
def test_transitions_equal_a_plain_loop(rows, decay, horizon):
    events = log(rows, users=4, items=6)
    for found, wanted in zip(
        by_item(events, decay, decay, horizon), naive_transitions(events, decay, horizon), strict=True
    ):
        np.testing.assert_allclose(found.toarray(), wanted, rtol=1e-5)


# -- dense systems -----------------------------------------------------------------------------------------------------


def test_ease_is_the_textbook_formula():
    gram = random_gram(0).toarray()
    inverse = np.linalg.inv(gram.astype(float) + 3 * np.eye(20))
    weights = ease(gram, 3.0)
    np.testing.assert_allclose(weights, np.eye(20) - inverse / np.diag(inverse), atol=1e-5)
    assert (np.diag(weights) == 0).all()


def test_ease_solves_each_item_on_all_the_others():
    gram = random_gram(1).toarray().astype(float)
    others = np.arange(20) != 7
    alone = np.linalg.solve(gram[np.ix_(others, others)] + 2 * np.eye(19), gram[others, 7])
    np.testing.assert_allclose(ease(gram, 2.0)[others, 7], alone, atol=1e-5)


def test_ridge_solves_its_system():
    gram, target = random_gram(2).toarray(), random_sparse(3, (20, 5)).toarray()
    np.testing.assert_allclose(ridge(gram, target, 0.5), np.linalg.solve(gram + 0.5 * np.eye(20), target), atol=1e-4)


@pytest.mark.parametrize("reg", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_is_refused(reg):
    gram = random_gram(0)
    for solve in (
        lambda: ease(gram.toarray(), reg),
        lambda: ridge(gram.toarray(), gram.toarray(), reg),
        lambda: local_ridge(gram, gram, reg, 5),
        lambda: unobserved_metric(gram.toarray(), reg, 0.1),
    ):
        with pytest.raises(InputError, match="reg must be positive, got"):
            solve()


def test_a_matrix_that_is_no_gram_matrix_is_refused():
    for solve in (ease, lambda gram, reg: ridge(gram, gram, reg)):
        with pytest.raises(InputError, match=r"not positive definite at reg 1\.0; use a larger reg"):
            solve(-9 * np.eye(3, dtype=np.float32), 1.0)


# -- local ridge -------------------------------------------------------------------------------------------------------


def test_local_ridge_is_ease_where_every_item_meets_every_other():
    gram = sparse.csr_array(random_gram(4, users=300))
    assert gram.nnz == 400
    np.testing.assert_allclose(local_ridge(gram, gram, 2.0, 19).toarray(), ease(gram.toarray(), 2.0), atol=1e-5)


@pytest.mark.parametrize("exclude_self", [True, False])
def test_local_ridge_solves_each_column_on_its_most_telling_rows(exclude_self):
    past, future = random_sparse(5, (80, 15)), random_sparse(6, (80, 15))
    gram, target = sparse.csr_array(past.T @ past), sparse.csr_array(past.T @ future)
    wanted, dense, right = np.zeros((15, 15)), gram.toarray().astype(float), target.toarray().astype(float)
    for j in range(15):
        gain = right[:, j] ** 2 / (np.diag(dense) + 0.7)
        if exclude_self:
            gain[j] = 0
        rows = np.argsort(-gain, kind="stable")[: min(4, np.count_nonzero(gain))]
        wanted[rows, j] = np.linalg.solve(dense[np.ix_(rows, rows)] + 0.7 * np.eye(len(rows)), right[rows, j])
    np.testing.assert_allclose(local_ridge(gram, target, 0.7, 4, exclude_self).toarray(), wanted, atol=1e-4)


# -- half-step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unobserved", [0.0, 0.01, 1.0])
def test_half_step_solves_every_users_dense_system(unobserved):
    history = random_sparse(7, (30, 25), density=0.2)
    factors = np.random.default_rng(8).normal(size=(25, 6)).astype(np.float32)
    metric = unobserved_metric(factors, 0.8, unobserved)
    found = half_step(history, factors, metric) @ factors @ metric
    wide = factors.astype(float)
    for user, strength in enumerate(history.toarray().astype(float)):
        system = unobserved * wide.T @ wide + (wide.T * strength) @ wide + 0.8 * np.eye(6)
        np.testing.assert_allclose(found[user], np.linalg.solve(system, wide.T @ strength), atol=2e-4)


def test_half_step_leaves_its_history_alone_and_keeps_its_places():
    history = random_sparse(9, (10, 8))
    before = history.copy()
    factors = np.ones((8, 2), np.float32)
    out = half_step(frozen(history), factors, unobserved_metric(factors, 1.0, 0.1))
    np.testing.assert_array_equal(history.toarray(), before.toarray())
    assert ((out.toarray() != 0) == (history.toarray() != 0)).all()
    assert half_step(EMPTY, np.zeros((0, 2), np.float32), np.eye(2, dtype=np.float32)).shape == (0, 0)


def test_half_step_solves_small_systems_with_one_blas_thread(monkeypatch):
    history, factors = random_sparse(9, (10, 8)), np.ones((8, 2), np.float32)
    metric, seen, solve = unobserved_metric(factors, 1.0, 0.1), [], np.linalg.solve
    monkeypatch.setattr(np.linalg, "solve", lambda *a: seen.extend(blas_threads()) or solve(*a))
    with threadpool_limits(2, "blas"):
        half_step(history, factors, metric)
        assert {*blas_threads()} == {2}
    assert {*seen} == {1}


# -- keep_largest ------------------------------------------------------------------------------------------------------


def naive_keep_largest(dense, count):
    out = np.zeros_like(dense)
    for j in range(dense.shape[1]):
        best = sorted(np.flatnonzero(dense[:, j]), key=lambda i: (-abs(dense[i, j]), i))[:count]
        out[best, j] = dense[best, j]
    return out


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0, 0, 1, -1, 2, -2, 3]), min_size=7, max_size=7), min_size=1), st.integers(1, 9)
)
def test_keep_largest_equals_sorting_and_ties_go_to_the_lower_row(rows, count):
    dense = np.array(rows, np.float32)
    found = keep_largest(frozen(sparse.csr_array(dense)), count)
    np.testing.assert_array_equal(found.toarray(), naive_keep_largest(dense, count))


# -- products ----------------------------------------------------------------------------------------------------------


def naive_top_k(scores, k):
    positions, values = np.full((len(scores), k), -1), np.full((len(scores), k), -np.inf)
    for row, own in enumerate(scores):
        best = sorted(np.flatnonzero(own > 0), key=lambda i: (-own[i], i))[:k]
        positions[row, : len(best)], values[row, : len(best)] = best, own[best]
    return positions, values


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans(), st.booleans())
def test_product_top_k_equals_the_sorted_dense_product(seed, k, barring, masking):
    rng = np.random.default_rng(seed)
    history = sparse.csr_array(rng.integers(0, 2, (6, 9)).astype(np.float32))
    weights = sparse.csr_array((rng.integers(-1, 3, (9, 9)) / 4).astype(np.float32))  # exact sums, and many ties
    exclude = history if barring else None
    mask = rng.random(9) < 0.6 if masking else None
    scores = history.toarray() @ weights.toarray()
    if barring:
        scores[history.toarray() > 0] = -1
    if masking:
        scores[:, ~mask] = -1
    for form in (frozen(weights), weights.toarray()):
        positions, values = product_top_k(frozen(history), form, k, exclude, mask)
        np.testing.assert_array_equal(positions, naive_top_k(scores, k)[0])
        np.testing.assert_array_equal(values, naive_top_k(scores, k)[1])


@pytest.mark.parametrize("k", [1, 10, 3000])
def test_a_wide_dense_product_is_ranked_as_a_narrow_one(k):
    """Columns are summed and compared in several runs, the last of them short, with ties across runs."""
    rng = np.random.default_rng(12)
    weights = (rng.integers(-8, 9, (5, 10_007)) / 4).astype(np.float32)
    history = sparse.csr_array(np.array([[1, 0, 2, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], np.float32))
    wanted = naive_top_k(history.toarray() @ weights, k)
    for form in (weights, np.asfortranarray(weights)):
        for found, right in zip(product_top_k(history, form, k, None, None), wanted, strict=True):
            np.testing.assert_array_equal(found, right)


def parts_of_a_hybrid(seed=0, n=14):
    """Arguments of `smoothed`, dense: behaviour without diagonal, columns of W that sum to 1, shares, content."""
    rng = np.random.default_rng(seed)
    behaviour = random_sparse(seed, (n, n), negative=True).toarray()
    lookalikes = random_sparse(seed + 1, (n, n)).toarray()
    content = random_sparse(seed + 2, (n, n)).toarray()
    for matrix in (behaviour, lookalikes, content):
        np.fill_diagonal(matrix, 0)
    lookalikes *= reciprocal(lookalikes.sum(axis=0)).astype(np.float32)
    own = rng.random(n).astype(np.float32)
    own[:2], own[2:4] = 0, 1
    return behaviour, lookalikes, content, own


def as_sparse(*matrices):
    return [frozen(sparse.csr_array(m)) for m in matrices]


@pytest.mark.parametrize("seed", range(5))
def test_smoothed_is_the_dense_formula_where_everything_is_kept(seed):
    behaviour, lookalikes, content, own = parts_of_a_hybrid(seed)
    side = np.diag(own) + lookalikes @ np.diag(1 - own)  # columns: what stands for each item
    wanted = side.T @ behaviour @ side + content
    b, w, c = as_sparse(behaviour, lookalikes, content)
    found = smoothed(b, w, own, w, own, c, keep=14).toarray()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_smoothed_columns_of_new_items_are_wholly_their_neighbours():
    behaviour, lookalikes, content, own = parts_of_a_hybrid()
    stand_in, content = lookalikes[:, :3], content[:, :3]
    left = np.diag(own) + lookalikes @ np.diag(1 - own)
    wanted = left.T @ behaviour @ stand_in + content
    found = smoothed(*as_sparse(behaviour, stand_in), np.zeros(3, np.float32), *as_sparse(lookalikes), own,
                     *as_sparse(content), keep=14)  # fmt: skip
    np.testing.assert_allclose(found.toarray(), wanted, atol=1e-5)


def test_smoothed_keeps_no_more_than_it_is_told():
    behaviour, lookalikes, content, own = parts_of_a_hybrid()
    b, w, c = as_sparse(behaviour, lookalikes, content)
    found = smoothed(b, w, own, w, own, c, keep=3)
    assert np.diff(sparse.csc_array(found).indptr).max() == 3


def test_sums_that_pass_through_zero_are_counted_once():
    behaviour = np.zeros((9, 9), np.float32)
    behaviour[5, :4] = [1, -1, 1, 0.5]  # row 5 gathers 1 - 1 + 1 + 0.5 of the four stand-ins, all of weight 1
    stand_in = np.zeros((9, 1), np.float32)
    stand_in[:4] = 1
    nothing = sparse.csr_array((9, 9), dtype=np.float32)
    found = smoothed(*as_sparse(behaviour, stand_in), np.zeros(1, np.float32), nothing, np.ones(9, np.float32),
                     sparse.csr_array((9, 1), dtype=np.float32), keep=9)  # fmt: skip
    assert found.toarray()[5].tolist() == [1.5]
    assert found.nnz == 1


# -- all of them -------------------------------------------------------------------------------------------------------


def test_the_number_of_threads_changes_nothing(monkeypatch):
    monkeypatch.setattr(threads, "WORTH_THREADS", 0)
    gram = random_gram(10, items=40)
    behaviour, lookalikes, content, own = parts_of_a_hybrid(n=40)
    b, w, c = as_sparse(behaviour, lookalikes, content)
    history = random_sparse(11, (50, 40))
    factors = np.random.default_rng(13).normal(size=(40, 6)).astype(np.float32)
    metric = unobserved_metric(factors, 1.0, 0.1)
    results = []
    for count in (1, 2, 3, 16):
        monkeypatch.setattr(threads, "thread_count", lambda count=count: count)
        solved = local_ridge(gram, gram, 1.0, 10)
        results.append(
            [
                solved.toarray(),
                keep_largest(gram, 5).toarray(),
                smoothed(b, w, own, w, own, c, keep=8).toarray(),
                *product_top_k(history, solved, 7, history, None),
                *product_top_k(history, solved.toarray(), 7, history, None),
                half_step(history, factors, metric).data,
            ]
        )
    for parts in zip(*results, strict=True):
        for part in parts[1:]:
            np.testing.assert_array_equal(parts[0], part)


def test_nothing_in_gives_nothing_out():
    nobody = log([], users=0, items=0)
    vacant = log([], users=2, items=3)
    none = np.zeros(0, np.float32)
    assert histories(nobody).shape == (0, 0)
    assert histories(vacant).toarray().tolist() == [[0, 0, 0], [0, 0, 0]]
    assert [side.shape for side in by_item(nobody, 0.5, 0.5)] == [(0, 0), (0, 0)]
    assert [side.shape for side in by_item(vacant, 0.5, 0.5)] == [(0, 3), (0, 3)]
    assert ridge(EMPTY.toarray(), EMPTY.toarray(), 1.0).shape == (0, 0)
    assert local_ridge(EMPTY, EMPTY, 1.0, 3).shape == (0, 0)
    assert keep_largest(EMPTY, 3).shape == (0, 0)
    assert smoothed(EMPTY, EMPTY, none, EMPTY, none, EMPTY, keep=3).shape == (0, 0)
    assert product_top_k(EMPTY, EMPTY, 3, None, None)[0].shape == (0, 3)
    assert product_top_k(EMPTY, EMPTY.toarray(), 3, None, None)[0].shape == (0, 3)
    empty_rows = sparse.csr_array((2, 4), dtype=np.float32)
    weights = sparse.csr_array((4, 4), dtype=np.float32)
    assert product_top_k(empty_rows, weights, 2, empty_rows, np.zeros(4, bool))[0].tolist() == [[-1, -1], [-1, -1]]
    assert local_ridge(weights, weights, 1.0, 3).nnz == 0
    assert keep_largest(weights, 3).nnz == 0


def test_small_helpers_do_not_divide_by_zero():
    assert reciprocal(np.array([2, 0, -1])).tolist() == [0.5, 0, 0]
    assert unit_rows(np.array([[3, 4], [0, 0]], np.float32)).tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
    ones = sparse.csr_array(np.ones((2, 2), np.float32))
    assert scaled(ones, np.array([1, 2]), np.array([3, 0])).toarray().tolist() == [[3, 0], [6, 0]]
    rows, values = np.array([[1, -1], [0, 1]], np.int32), np.array([[5, 9], [1, 0]], np.float32)
    assert columns_to_csr(rows, values, height=2).toarray().tolist() == [[0, 1], [5, 0]]

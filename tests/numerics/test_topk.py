import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from recotransfer.errors import InputError
from recotransfer.numerics import topk as scoring
from recotransfer.numerics.topk import pack_items, rescore, top_k, top_k_of_scores, top_k_of_sparse


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def compiled(monkeypatch):
    """Small inputs take the compiled path too."""
    monkeypatch.setattr(scoring, "_SMALL", -1)


def vectors(rng, n, dim):
    return rng.standard_normal((n, dim)).astype(np.float32)


def some_entries(rng, b, n, each):
    rows = np.repeat(np.arange(b), each)
    return sparse.csr_array((np.ones(rows.size), (rows, rng.integers(0, n, rows.size))), shape=(b, n))


def full_sort(scores, k, exclude=None, mask=None):
    """The definition: sort everything, leave out what is not allowed, pad."""
    scores = scores.astype(np.float32)
    allowed = np.ones(scores.shape, bool) if mask is None else np.tile(mask, (len(scores), 1))
    if exclude is not None:
        allowed[exclude.nonzero()] = False
    positions = np.full((len(scores), k), -1)
    values = np.full((len(scores), k), -np.inf, np.float32)
    for row, (some, use) in enumerate(zip(scores, allowed, strict=True)):
        best = sorted(np.flatnonzero(use), key=lambda p: (-some[p], p))[:k]
        positions[row, : len(best)], values[row, : len(best)] = best, some[best]
    return positions, values


def assert_same(found, wanted):
    np.testing.assert_array_equal(found.positions, wanted[0])
    np.testing.assert_array_equal(found.scores, wanted[1])
    assert found.positions.dtype == np.int64
    assert found.scores.dtype == np.float32


@pytest.mark.parametrize(("b", "n", "dim"), [(1, 1, 1), (40, 300, 7), (70, 3000, 33), (500, 2000, 64)])
@pytest.mark.parametrize("share", [None, 0.6, 0.02])
@pytest.mark.parametrize("each", [0, 15])
def test_top_k_equals_a_full_sort_in_float64(rng, compiled, b, n, dim, share, each):
    queries, items = vectors(rng, b, dim), vectors(rng, n, dim)
    exclude = some_entries(rng, b, n, each)
    mask = None if share is None else rng.random(n) < share
    wanted = full_sort(queries.astype(float) @ items.T.astype(float), 10, exclude, mask)
    assert_same(top_k(queries, items, 10, exclude=exclude, mask=mask), wanted)
    assert_same(top_k(queries, pack_items(items), 10, exclude=exclude, mask=mask), wanted)


@pytest.mark.parametrize("shift", [-50, 0, 50])
def test_top_k_is_exact_where_bfloat16_sees_no_difference(rng, compiled, shift):
    base = vectors(rng, 1, 48) + np.float32(shift)
    items = base + np.float32(1e-4) * vectors(rng, 4000, 48)
    queries = base + np.float32(0.1) * vectors(rng, 30, 48)
    wanted = full_sort(queries.astype(float) @ items.T.astype(float), 20)
    found = top_k(queries, items, 20)
    np.testing.assert_array_equal(found.scores, wanted[1])
    assert (found.positions == wanted[0]).mean() > 0.999  # float64 itself rounds: a tie may fall either way


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_top_k_with_ties_zeros_duplicates_and_filters(data):
    b, n = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 90))
    dim, k = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 100))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    queries = rng.integers(-2, 3, (b, dim)).astype(np.float32)
    items = rng.integers(-2, 3, (n, dim)).astype(np.float32) * np.float32(
        data.draw(st.sampled_from([1, 2.0**-60, 2.0**60]))
    )
    exclude = some_entries(rng, b, n, data.draw(st.integers(0, 20)))
    mask = rng.random(n) < data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    wanted = full_sort(queries @ items.T, k, exclude, mask)
    small = scoring._SMALL
    try:
        for scoring._SMALL in (small, -1):
            assert_same(top_k(queries, items, k, exclude=exclude, mask=mask), wanted)
            assert_same(top_k(queries, pack_items(items), k, exclude=exclude, mask=mask), wanted)
            assert_same(top_k_of_scores(queries @ items.T, k, exclude=exclude, mask=mask), wanted)
    finally:
        scoring._SMALL = small


def test_a_row_does_not_depend_on_batch_block_or_packing(rng):
    queries, items = vectors(rng, 300, 50), vectors(rng, 5000, 50)
    exclude = some_entries(rng, 300, 5000, 8)
    whole = top_k(queries, items, 25, exclude=exclude)
    for block in (1, 7, 1000):
        assert_same(top_k(queries, items, 25, exclude=exclude, block=block), whole)
    packed = pack_items(items, k=3)
    for row in (0, 17, 299):
        one = slice(row, row + 1)
        for some in (items, packed):
            assert_same(top_k(queries[one], some, 25, exclude=exclude[one]), (whole[0][one], whole[1][one]))


def test_memory_depends_on_the_block_not_on_users_times_items(rng):
    queries, items = vectors(rng, 3000, 8), vectors(rng, 20_000, 8)
    top_k(queries[:10], items, 10)
    tracemalloc.start()
    top_k(queries, items, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 3,000 x 20,000 scores would take 240 MB


def test_concurrent_calls_agree(rng):
    queries, items = vectors(rng, 100, 32), vectors(rng, 4000, 32)
    whole = top_k(queries, items, 10)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: top_k(queries, items, 10), range(12)):
            assert_same(found, whole)


def test_inputs_are_untouched_and_may_be_read_only_unsorted_or_views(rng, compiled):
    queries, items = vectors(rng, 30, 10)[::2], vectors(rng, 900, 20)[:, ::2]
    exclude = sparse.csr_array((np.ones(4), np.array([7, 3, 5, 3]), np.array([0, 4, *[4] * 14])), shape=(15, 900))
    before = exclude.indices.copy()
    wanted = full_sort(queries.astype(float) @ items.T.astype(float), 5, exclude)
    queries.flags.writeable = items.flags.writeable = False
    assert_same(top_k(queries, items, 5, exclude=exclude), wanted)
    np.testing.assert_array_equal(exclude.indices, before)


def test_lengths_far_apart_do_not_hide_small_scores(rng, compiled):
    items = vectors(rng, 2000, 16)
    items[:1900] *= np.float32(1e18)
    items[1900:] *= np.float32(1e-18)
    queries = np.abs(vectors(rng, 20, 16))
    items[:1900] = -np.abs(items[:1900])  # the huge ones score worst, the tiny ones best
    wanted = full_sort(queries.astype(float) @ items.T.astype(float), 10)
    assert_same(top_k(queries, items, 10), wanted)


def test_dense_and_sparse_scores(rng, compiled):
    scores = rng.integers(-5, 6, (60, 700)).astype(np.float32)
    exclude, mask = some_entries(rng, 60, 700, 20), rng.random(700) < 0.3
    before = scores.copy()
    assert_same(top_k_of_scores(scores, 30, exclude=exclude, mask=mask), full_sort(scores, 30, exclude, mask))
    assert_same(top_k_of_scores(scores, 30), full_sort(scores, 30))
    np.testing.assert_array_equal(scores, before)

    stored = sparse.random_array((60, 700), density=0.03, rng=rng, format="csr")
    stored.data[::7] = 0  # a stored zero is a candidate
    left_out = sparse.csr_array(np.ones((60, 700)))
    rows, columns = stored.tocoo().coords
    left_out[rows, columns] = 0
    left_out.eliminate_zeros()
    dense = np.zeros((60, 700))
    dense[rows, columns] = stored.data
    wanted = full_sort(dense, 30, left_out + exclude, mask)
    assert_same(top_k_of_sparse(stored, 30, exclude=exclude, mask=mask), wanted)


def test_rescore_ranks_given_candidates(rng):
    queries, items = vectors(rng, 12, 6), vectors(rng, 80, 6)
    exclude, mask = some_entries(rng, 12, 80, 5), rng.random(80) < 0.8
    everything = np.tile(np.append(rng.permutation(80), [-1, -1]), (12, 1))
    wanted = top_k(queries, items, 9, exclude=exclude, mask=mask)
    assert_same(rescore(queries, items, everything, 9, exclude=exclude, mask=mask), wanted)
    few = rescore(queries, items, everything[:, :2], 3)
    assert (few.positions[:, 2] == -1).all()
    assert (few.scores[:, 2] == -np.inf).all()


@pytest.mark.parametrize("size", [2, 3000])
def test_what_cannot_be_answered_is_named(rng, size):
    queries, items = vectors(rng, 10, 64), vectors(rng, size, 64)
    with pytest.raises(InputError, match="k is 0"):
        top_k(queries, items, 0)
    with pytest.raises(InputError, match=r"same d"):
        top_k(queries[:, :5], items, 1)
    with pytest.raises(InputError, match="exclude has shape"):
        top_k(queries, items, 1, exclude=some_entries(rng, 10, size + 1, 1))
    with pytest.raises(InputError, match="mask has shape"):
        top_k(queries, items, 1, mask=np.ones(size + 1, bool))
    for bad in (np.nan, np.inf):
        broken = items.copy()
        broken[1, 3] = bad
        with pytest.raises(InputError, match="items contain NaN"):
            top_k(queries, broken, 1)
        with pytest.raises(InputError, match="queries contain NaN"):
            top_k(broken[:2], items, 1)
        with pytest.raises(InputError, match="scores contain NaN"):
            top_k_of_scores(np.tile(broken, (1, 300 if size > 2 else 1)), 1)
    with pytest.raises(InputError, match="overflow float32"):
        top_k(queries * np.float32(1e30), items * np.float32(1e30), 1)


def test_nothing_to_search(rng):
    items = vectors(rng, 3000, 64)
    for found in (
        top_k(items[:2], items[:0], 3),
        top_k(items[:2], items, 3, mask=np.zeros(3000, bool)),
        top_k_of_scores(np.zeros((2, 0)), 3),
        top_k_of_sparse(sparse.csr_array((2, 5)), 3),
    ):
        assert found.positions.tolist() == [[-1] * 3] * 2
        assert (found.scores == -np.inf).all()
    assert top_k(items[:0], items, 3).positions.shape == (0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["haswell", "skylake-avx512"])
def test_processors_without_bfloat16_give_the_same_answer(tmp_path, processor):
    code = (
        "import sys, numpy as np\n"
        "from recotransfer.numerics import _topk_loops as loops\n"
        "from recotransfer.numerics.topk import top_k\n"
        "rng = np.random.default_rng(0)\n"
        "queries, items = (rng.standard_normal((n, 33)).astype(np.float32) for n in (100, 3000))\n"
        "print(loops.PAIRS); np.save(sys.argv[1], top_k(queries, items, 10).positions)"
    )
    answers = []
    for some in ({}, {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": FEATURES[processor]}):
        path = tmp_path / f"{len(some)}.npy"
        environment = {**os.environ, **some, "NUMBA_CACHE_DIR": str(tmp_path)}
        printed = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment
        ).stdout
        assert not some or printed == "False\n"
        answers.append(np.load(path))
    np.testing.assert_array_equal(*answers)


FEATURES = {
    "haswell": "+avx,+avx2,+fma,+sse4.2,+popcnt,+bmi,+bmi2",
    "skylake-avx512": "+avx,+avx2,+fma,+sse4.2,+popcnt,+bmi,+bmi2,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd",
}

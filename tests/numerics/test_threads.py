"""Threads, forks, and machines where compiled code cannot be kept."""

import ast
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import REPO, blas_threads
from threadpoolctl import threadpool_limits

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.numerics import threads
from recotransfer.numerics.threads import in_threads, one_blas_thread, over_rows, slices, thread_count
from recotransfer.recommenders import (
    ALS,
    EASE,
    ContentProfiles,
    HybridItems,
    HybridRanker,
    ItemKNN,
    Popularity,
    RidgeProfiles,
)
from recotransfer.retrieval import ExactIndex

SHOP = textwrap.dedent(
    """
    import numpy as np, os, signal, sys
    from recotransfer.data import Embeddings, IdMap, Interactions
    from recotransfer.recommenders import *
    rng = np.random.default_rng(0)
    log = Interactions(IdMap(range(60)), IdMap(range(300)), rng.integers(0, 60, 2000), rng.integers(0, 300, 2000),
                       np.ones(2000, np.float32), np.arange(2000.0))
    content = Embeddings(log.items, rng.standard_normal((300, 32)).astype(np.float32))
    """
)


def printed_by(code, **environment):
    """What a fresh interpreter prints; it is killed after two minutes."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHOP + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        cwd=REPO,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_pool_of_forked_workers_and_a_forked_worker_answer_like_their_parent():
    code = """
        import multiprocessing
        hybrid = HybridItems().fit(log, content)
        warm = hybrid.recommend(k=5).items.tolist()
        def ask(user):
            return hybrid.recommend([user], 5).items[0].tolist()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map_async(ask, range(60)).get(timeout=60) == warm)
        models = [hybrid, ALS(epochs=2).fit(log), SASRec(epochs=1, dim=8).fit(log)]
        warm = [model.recommend(k=5).items.tolist() for model in models]
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if [model.recommend(k=5).items.tolist() for model in models] == warm else 1)
        print(os.waitpid(child, 0)[1])
    """
    assert printed_by(code, OMP_NUM_THREADS="4").split() == ["True", "0"]


def test_eight_threads_get_their_answers_under_numbas_layer_that_bears_one_caller_only():
    code = """
        from concurrent.futures import ThreadPoolExecutor
        from recotransfer.numerics import threads
        threads.WORTH_THREADS = 0
        model = HybridRanker(epochs=1).fit(log, content)
        one = model.recommend(k=5).items.tolist()
        with ThreadPoolExecutor(8) as pool:
            print(list(pool.map(lambda at: model.recommend([at % 60], 5).items[0].tolist(), range(120))) == 2 * one)
    """
    assert printed_by(code, NUMBA_THREADING_LAYER="workqueue") == "True"


def test_where_machine_code_cannot_be_kept_loops_compile_all_the_same():
    code = """
        import recotransfer.numerics._topk_loops as loops
        import recotransfer.numerics._item_loops, recotransfer.encoders._word_loops
        lengths = np.zeros(3)
        loops.measure(np.eye(3, dtype=np.float32), np.arange(3), lengths)
        print(lengths.tolist(), type(loops.measure._cache).__name__)
    """
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "HOME": "/proc/nohome"}
    assert printed_by(code, **nowhere) == "[1.0, 1.0, 1.0] NullCache"


def test_compiled_loops_start_no_threads_and_are_compiled_in_one_place():
    for path in sorted((REPO / "recotransfer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            assert name != "prange", path
            if name in ("njit", "jit"):
                assert path.name == "compiled.py", path


def test_blas_gets_its_threads_back_when_the_last_of_overlapping_blocks_ends():
    first, second = one_blas_thread(), one_blas_thread()
    with threadpool_limits(2, "blas"):
        first.__enter__()
        second.__enter__()
        assert {*blas_threads()} == {1}
        first.__exit__(None, None, None)
        assert {*blas_threads()} == {1}
        second.__exit__(None, None, None)
        assert {*blas_threads()} == {2}
        with pytest.raises(ZeroDivisionError), one_blas_thread():
            _ = 1 / 0
        assert {*blas_threads()} == {2}


@pytest.fixture
def pools(monkeypatch):
    """The number of pools that were started, on a machine of eight processors."""
    started = []

    class Counted(threads.ThreadPoolExecutor):
        def __init__(self, *args):
            started.append(args)
            super().__init__(*args)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Counted)
    monkeypatch.setattr(threads, "thread_count", lambda: 8)
    return started


ITEMS = 3000


@pytest.fixture(scope="module")
def shop():
    """A log over some thousand items, and their vectors."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 400, 8_000), rng.integers(0, ITEMS, 8_000)
    log = Interactions(
        IdMap(range(400)), IdMap(range(ITEMS)), user, item, np.ones(8_000, np.float32), np.arange(8_000.0)
    )
    return log, Embeddings(log.items, rng.standard_normal((ITEMS, 64)).astype(np.float32))


@pytest.mark.parametrize(
    "model",
    [
        HybridItems(),
        HybridRanker(epochs=1),
        EASE(),
        ItemKNN(),
        ALS(epochs=1),
        RidgeProfiles(),
        ContentProfiles(),
        Popularity(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_small_request_stays_on_the_callers_thread(shop, pools, model):
    model.fit(*shop)
    pools.clear()
    assert model.recommend([7], 20).items.shape == (1, 20)
    assert pools == []


def test_searching_for_one_query_stays_on_the_callers_thread_and_for_many_does_not(shop, pools):
    vectors = shop[1].vectors
    index = ExactIndex().build(vectors)
    pools.clear()
    index.search(vectors[:1], 10)
    assert pools == []
    index.search(np.tile(vectors, (2, 1)), 10)
    assert pools


def test_work_is_spread_only_where_it_is_worth_it(pools):
    seen = []
    assert in_threads(lambda part: part.start, slices(10, 3), work=1) == [0, 3, 6, 9]
    over_rows(lambda first, last: seen.append((first, last)), 100, work=threads.WORTH_THREADS - 1)
    assert (seen, pools) == ([(0, 100)], [])
    seen.clear()
    over_rows(lambda first, last: seen.append((first, last)), 100, work=threads.WORTH_THREADS)
    assert sorted(seen) == [(at, min(at + 4, 100)) for at in range(0, 100, 4)]
    assert len(pools) == 1
    assert in_threads(lambda part: part.start, slices(10, 3), work=threads.WORTH_THREADS) == [0, 3, 6, 9]
    over_rows(lambda first, last: pytest.fail("nothing to do"), 0, work=threads.WORTH_THREADS)


@pytest.mark.parametrize(
    ("environment", "most"),
    [({}, 64), ({"OMP_NUM_THREADS": "1"}, 1), ({"NUMBA_NUM_THREADS": "1"}, 1), ({"OMP_NUM_THREADS": "many"}, 64)],
)
def test_threads_are_limited_as_for_other_libraries(monkeypatch, environment, most):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert thread_count() == most

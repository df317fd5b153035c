import numpy as np
import pytest
from scipy import sparse

from recotransfer.errors import ArtifactError, InputError, NotFittedError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.numerics.topk import top_k
from recotransfer.retrieval import ExactIndex, FaissIndex, choose_index, load_index
from recotransfer.retrieval import choice as module
from recotransfer.testing import IndexContract

faiss = pytest.importorskip("faiss")

INDEXES = {
    "exact": ExactIndex,
    "flat": lambda: FaissIndex("flat"),
    "hnsw": lambda: FaissIndex("hnsw", search_effort=128),
    "ivfpq": lambda: FaissIndex("ivfpq", lists=40, probes=20),
}
RIGHT = {"exact", "flat"}


class TestExactIndex(IndexContract):
    def make(self):
        return ExactIndex()


class TestFlatFaiss(IndexContract):
    def make(self):
        return FaissIndex("flat")


class TestGraph(IndexContract):
    exact = False

    def make(self):
        return FaissIndex("hnsw", search_effort=128)


class TestCompressedLists(IndexContract):
    exact = False

    def make(self):
        return FaissIndex("ivfpq", lists=20, probes=15)


@pytest.fixture(scope="module")
def world():
    """Clustered vectors of unequal length, as trained factors are, and queries; (4000, 24) and (50, 24)."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((40, 24))
    items = centres[rng.integers(0, 40, 4000)] + 0.6 * rng.standard_normal((4000, 24))
    items *= rng.lognormal(0, 0.3, (4000, 1))
    queries = centres[rng.integers(0, 40, 50)] + 0.6 * rng.standard_normal((50, 24))
    return items.astype(np.float32), queries.astype(np.float32)


def excluded(answer, each, n):
    """Each query's own best `each` items: the exclusions that hurt most."""
    rows = np.repeat(np.arange(len(answer)), each)
    return sparse.csr_array((np.ones(rows.size), (rows, answer[:, :each].ravel())), shape=(len(answer), n))


def check(found, wanted, name, recall=0.9):
    if name in RIGHT:
        np.testing.assert_array_equal(found.positions, wanted.positions)
        np.testing.assert_array_equal(found.scores, wanted.scores)
        return
    hits = [np.isin(some, true[true >= 0]).sum() for some, true in zip(found.positions, wanted.positions, strict=True)]
    assert np.sum(hits) >= recall * (wanted.positions >= 0).sum()
    np.testing.assert_array_equal((found.positions >= 0).sum(axis=1), (wanted.positions >= 0).sum(axis=1))
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    for some, values, true, right in zip(*found, *wanted, strict=True):
        both = np.intersect1d(some[some >= 0], true, return_indices=True)
        np.testing.assert_array_equal(values[both[1]], right[both[2]])


@pytest.mark.parametrize("name", INDEXES)
def test_finds_what_top_k_finds(world, name):
    items, queries = world
    index = INDEXES[name]().build(items)
    assert len(index) == 4000
    check(index.search(queries, 10), top_k(queries, items, 10), name)
    check(index.search(queries[:1], 1), top_k(queries[:1], items, 1), name, recall=0)


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("share", [None, 0.5, 0.01, 0.001, 0.0])
@pytest.mark.parametrize("each", [0, 12, 300])
def test_filters_never_shorten_a_list_that_could_be_filled(world, name, share, each):
    items, queries = world
    mask = None if share is None else np.random.default_rng(1).random(4000) < share
    exclude = excluded(top_k(queries, items, 300, mask=mask).positions % 4000, each, 4000) if each else None
    index = INDEXES[name]().build(items)
    found = index.search(queries, 10, exclude=exclude, mask=mask)
    check(found, top_k(queries, items, 10, exclude=exclude, mask=mask), name, recall=0.85)
    for row, some in enumerate(found.positions):
        some = some[some >= 0]
        assert mask is None or mask[some].all()
        assert exclude is None or not np.isin(some, exclude[[row]].indices).any()


@pytest.mark.parametrize("name", INDEXES)
def test_k_beyond_the_catalogue(world, name):
    items, queries = world
    check(INDEXES[name]().build(items).search(queries[:3], 4500), top_k(queries[:3], items, 4500), "exact")
    few = INDEXES[name]().build(items[:5])
    check(few.search(queries, 8), top_k(queries, items[:5], 8), "exact")


@pytest.mark.parametrize("name", INDEXES)
def test_added_vectors_are_found(world, name):
    items, queries = world
    index = INDEXES[name]().build(items[:3000])
    index.search(queries, 1)
    mine = items.copy()
    for start in (3000, 3001, 3100):
        index.add(mine[start : {3000: 3001, 3001: 3100, 3100: 4000}[start]])
        seen = items[: len(index)]
        exclude, mask = excluded(top_k(queries, seen, 5).positions, 5, len(seen)), np.arange(len(seen)) % 3 > 0
        check(index.search(queries, 10), top_k(queries, seen, 10), name)
        wanted = top_k(queries, seen, 10, exclude=exclude, mask=mask)
        check(index.search(queries, 10, exclude=exclude, mask=mask), wanted, name)
    index.add(items[:0])
    np.testing.assert_array_equal(index.vectors, items)
    np.testing.assert_array_equal(mine, items)


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_may_start_empty_and_grow(world, name):
    items, queries = world
    index = INDEXES[name]().build(items[:0])
    assert (index.search(queries, 3).positions == -1).all()
    index.add(items[:700])
    check(index.search(queries, 10), top_k(queries, items[:700], 10), "exact")
    index.add(items[700:])
    check(index.search(queries, 10), top_k(queries, items, 10), name)


@pytest.mark.parametrize("name", INDEXES)
def test_saved_and_loaded_it_answers_the_same_and_still_grows(world, name, tmp_path):
    items, queries = world
    index = INDEXES[name]().build(items[:3500])
    before = index.search(queries, 10)
    write_artifact(tmp_path / "saved", "Test", lambda writer: index.save(writer, "index"))
    artifact = open_artifact(tmp_path / "saved")
    loaded = load_index(artifact, "index")
    assert type(loaded) is type(index)
    for ours, theirs in zip(before, loaded.search(queries, 10), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    loaded.add(items[3500:])
    check(loaded.search(queries, 10), top_k(queries, items, 10), name)
    with pytest.raises(ArtifactError, match="use load_index"):
        (ExactIndex if name != "exact" else FaissIndex).load(artifact, "index")


def test_flat_settles_ties_as_top_k_does():
    rng = np.random.default_rng(0)
    items = rng.integers(-1, 2, (2000, 3)).astype(np.float32)  # 27 different vectors
    queries = rng.integers(-1, 2, (20, 3)).astype(np.float32)
    check(FaissIndex("flat").build(items).search(queries, 10), top_k(queries, items, 10), "flat")


def test_the_threads_of_faiss_stay_as_they_were(world):
    before = faiss.omp_get_max_threads()
    FaissIndex("hnsw").build(world[0]).search(world[1], 5)
    assert faiss.omp_get_max_threads() == before


def test_what_cannot_be_done_is_named(world):
    items, queries = world
    with pytest.raises(NotFittedError, match="call build"):
        ExactIndex().search(queries, 1)
    with pytest.raises(InputError, match="kind must be 'flat', 'hnsw' or 'ivfpq', got"):
        FaissIndex("annoy")
    with pytest.raises(InputError, match="no HNSW on GPUs"):
        FaissIndex("hnsw", gpu=True)
    with pytest.raises(InputError, match="must divide the 24 dimensions"):
        FaissIndex("ivfpq", code_size=5).build(items)
    if not faiss.get_num_gpus():
        with pytest.raises(InputError, match="sees no GPU"):
            FaissIndex("flat", gpu=True).build(items)
    for index in (ExactIndex().build(items), FaissIndex("flat").build(items)):
        with pytest.raises(InputError, match="contain NaN"):
            index.add(np.full((1, 24), np.nan, np.float32))
        with pytest.raises(InputError, match=r"must be \(n, 24\)"):
            index.add(items[:, :3])
        with pytest.raises(InputError, match="contain NaN"):
            index.search(np.full((1, 24), np.nan, np.float32), 1)
        assert len(index) == 4000


def test_choose_index_is_exact_for_small_catalogues_and_says_so(world):
    chosen = choose_index(world[0], sample_queries=world[1])
    assert isinstance(chosen.index, ExactIndex)
    assert chosen.recall == 1
    assert "4,000 items" in chosen.reason
    assert "exact" in choose_index(world[0][:0]).reason


def test_choose_index_measures_before_it_trades_recall_for_speed(world, monkeypatch):
    items, queries = world
    monkeypatch.setattr(module, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(module, "_seconds", lambda index, *_: 1.0 if isinstance(index, ExactIndex) else 0.1)
    chosen = choose_index(items, target_recall=0.9, sample_queries=queries)
    assert isinstance(chosen.index, FaissIndex)
    truth, found = top_k(queries, items, 10), chosen.index.search(queries, 10)
    hits = [np.isin(a, b).mean() for a, b in zip(found.positions, truth.positions, strict=True)]
    assert chosen.recall == pytest.approx(np.mean(hits))
    assert chosen.recall >= 0.9
    assert f"finds {chosen.recall:.1%} of the exact top 10" in chosen.reason

    quick_enough = choose_index(items, sample_queries=queries, max_seconds=2.0)
    assert isinstance(quick_enough.index, ExactIndex)
    assert "within the limit of 2000.00 ms" in quick_enough.reason
    monkeypatch.setattr(module, "_seconds", lambda *_: 1.0)
    assert "nothing faster" in choose_index(items, sample_queries=queries).reason


@pytest.mark.gpu
@pytest.mark.skipif(not faiss.get_num_gpus(), reason="FAISS sees no GPU")
@pytest.mark.parametrize("kind", ["flat", "ivfpq"])
def test_gpu_answers_as_the_processor_does(world, kind, tmp_path):
    items, queries = world
    index = FaissIndex(kind, lists=40, probes=20, code_size=12, gpu=True).build(items)
    exclude = excluded(top_k(queries, items, 12).positions, 12, 4000)
    for mask in (None, np.arange(4000) % 2 > 0):
        wanted = top_k(queries, items, 10, exclude=exclude, mask=mask)
        check(index.search(queries, 10, exclude=exclude, mask=mask), wanted, kind, recall=0.85)
    write_artifact(tmp_path / "saved", "Test", lambda writer: index.save(writer, "index"))
    loaded = FaissIndex.load(open_artifact(tmp_path / "saved"), "index", gpu=False)
    check(loaded.search(queries, 10), top_k(queries, items, 10), kind)

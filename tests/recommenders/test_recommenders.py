import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from recotransfer.data import Embeddings, Filter, IdMap, Interactions
from recotransfer.errors import ArtifactError, InputError
from recotransfer.recommenders import (
    ALS,
    BPR,
    EASE,
    ContentProfiles,
    HybridItems,
    HybridRanker,
    ItemKNN,
    LearnedHybrid,
    Popularity,
    RidgeProfiles,
    SASRec,
    TransitionRings,
)
from recotransfer.registry import recommenders
from recotransfer.testing import ITEMS, RecommenderContract, answer, checkerboard, colours


class TestLearnedHybrid(RecommenderContract):
    def make(self):
        return LearnedHybrid(neighbours=8)


class TestLearnedHybridWithContent(TestLearnedHybrid):
    def embeddings(self):
        return colours()


class TestPopularity(RecommenderContract):
    finds_answer = False

    def make(self):
        return Popularity()


class TestItemKNN(RecommenderContract):
    def make(self):
        return ItemKNN()


class TestEASE(RecommenderContract):
    def make(self):
        return EASE(reg=1.0)


class TestLocalEASE(RecommenderContract):
    def make(self):
        return EASE(reg=1.0, neighbours=8)


class TestALS(RecommenderContract):
    symmetric_similarity = True

    def make(self):
        return ALS(dim=2)


class TestBPR(RecommenderContract):
    symmetric_similarity = True

    def make(self):
        return BPR(dim=8, epochs=300)


class TestContentProfiles(RecommenderContract):
    symmetric_similarity = True

    def make(self):
        return ContentProfiles()


class TestRidgeProfiles(RecommenderContract):
    def make(self):
        return RidgeProfiles()


class TestTransitionRings(RecommenderContract):
    def make(self):
        return TransitionRings()


class TestSASRec(RecommenderContract):
    def make(self):
        return SASRec(dim=16, learning_rate=0.01, epochs=15)


class TestSASRecWithContent(TestSASRec):
    def embeddings(self):
        return colours()


class TestHybridWithoutContent(RecommenderContract):
    def make(self):
        return HybridItems(reg=1.0)

    def test_flags_are_true(self):
        with pytest.raises(InputError, match="fitted without embeddings"):
            self.fitted().extend(colours(IdMap(["i100"])))


class TestHybrid(RecommenderContract):
    form = "sparse"

    def make(self):
        return HybridItems(reg=1.0, form=self.form)

    def embeddings(self):
        return colours()


class TestDenseHybrid(TestHybrid):
    form = "dense"


class TestRankerWithoutContent(TestHybridWithoutContent):
    def make(self):
        return HybridRanker(base={"neighbours": 20})


class TestRanker(RecommenderContract):
    def make(self):
        return HybridRanker(base={"neighbours": 20})

    def embeddings(self):
        return colours()


def shop_log(seed=0, users=400, items=120, cold=10):
    """A log with clusters: items of a cluster are bought together, and their vectors point the same way."""
    rng = np.random.default_rng(seed)
    cluster = np.arange(items) % 8
    rows = []
    for user in range(users):
        taste = rng.integers(8)
        pool = np.flatnonzero((cluster == taste) & (np.arange(items) >= cold))
        for time, item in enumerate(rng.choice(pool, size=rng.integers(2, 8), replace=False)):
            rows.append((f"u{user}", int(item), float(time)))
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    ids = IdMap(np.arange(items))
    vectors = np.eye(8, 16)[cluster] + 0.15 * rng.normal(size=(items, 16))
    return Interactions.from_frame(frame, time="time", items=ids), Embeddings(ids, vectors.astype(np.float32)), cluster


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"neighbours": 0}, "neighbours must be a whole number of at least 1, got 0"),
        ({"neighbours": 2.5}, "neighbours must be a whole number of at least 1, got 2.5"),
        ({"reg": "abc"}, "reg must be a number of at least 0, got 'abc'"),
        ({"reg": -1.0}, "reg must be a number of at least 0, got -1.0"),
        ({"history_decay": 1.5}, "history_decay must be a number above 0 and at most 1, got 1.5"),
        ({"form": "wide"}, 'form must be "sparse" or "dense"'),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, words):
    with pytest.raises(InputError, match=words):
        HybridItems(**settings).fit(checkerboard(), colours())


def test_popularity_forgets_when_told():
    frame = pd.DataFrame({"user": list("abcd"), "item": ["old", "old", "old", "new"], "time": [0.0, 0, 0, 86400 * 30]})
    log = Interactions.from_frame(frame, time="time")
    assert Popularity().fit(log).recommend(["d"], 1, exclude_seen=False).items[0, 0] == "old"
    assert Popularity(half_life=7).fit(log).recommend(["d"], 1, exclude_seen=False).items[0, 0] == "new"


def test_ease_is_the_textbook_formula():
    log, _, _ = shop_log()
    matrix = (log.matrix().toarray() > 0).astype(float)
    inverse = np.linalg.inv(matrix.T @ matrix + 7 * np.eye(matrix.shape[1]))
    weights = np.eye(len(inverse)) - inverse / np.diag(inverse)
    np.testing.assert_allclose(EASE(reg=7.0).fit(log).weights_, weights, atol=1e-4)


def test_ridge_profiles_are_the_dense_normal_equations():
    log, items, _ = shop_log()
    model = RidgeProfiles(reg=0.5, unobserved=0.02).fit(log, items)
    vectors, matrix = model.factors_.astype(float), (log.matrix().toarray() > 0).astype(float)
    user = 3
    weight = np.where(matrix[user] > 0, 1.0, 0.0)
    system = 0.02 * vectors.T @ vectors + (vectors * weight[:, None]).T @ vectors + 0.5 * np.eye(16)
    scores = vectors @ np.linalg.solve(system, vectors.T @ weight)
    found = model.recommend([f"u{user}"], len(scores), exclude_seen=False)
    np.testing.assert_allclose(found.scores[0], np.sort(scores)[::-1], atol=1e-4)


def test_sparse_and_dense_hybrids_agree():
    log, items, _ = shop_log()
    dense = HybridItems(form="dense").fit(log, items)
    sparse_form = HybridItems(form="sparse", neighbours=119).fit(log, items)
    top = [m.recommend(k=10) for m in (dense, sparse_form)]
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*(t.positions.tolist() for t in top), strict=True)])
    assert overlap > 0.9
    both = [m.weights_ if isinstance(m.weights_, np.ndarray) else m.weights_.toarray() for m in (dense, sparse_form)]
    assert np.corrcoef(both[0].ravel(), both[1].ravel())[0, 1] > 0.98


def test_cold_items_stand_in_one_ranking_with_warm_ones():
    log, items, cluster = shop_log()
    model = HybridItems().fit(log, items)
    user = np.arange(len(log.users))
    taste = cluster[[log.item[log.user == u][0] for u in user]]
    found = model.recommend(k=10, filter=Filter(allow=np.arange(10)))
    assert (cluster[found.positions[:, 0]] == taste).mean() > 0.95
    mixed = model.recommend(k=15)
    assert 0.02 < (mixed.positions < 10).mean() < 0.3, "cold items should neither vanish nor flood the lists"


def test_an_item_passes_from_content_to_behaviour_without_a_cliff():
    log, items, _ = shop_log()
    share = HybridItems(prior_events=4.0).fit(log, items)._own_share()
    users = np.bincount(log.item, minlength=120)
    np.testing.assert_allclose(share, users / (users + 4), rtol=1e-5)


def test_items_without_content_keep_their_behaviour():
    log, items, _ = shop_log()
    gone = np.zeros(120, bool)
    gone[50] = True
    bare = Embeddings(items.ids, np.where(gone[:, None], 0, items.vectors), present=~gone)
    with_content, without = HybridItems().fit(log, bare), HybridItems().fit(log)
    column = [m.weights_.toarray()[:, 50] for m in (with_content, without)]
    warm = np.flatnonzero(np.bincount(log.item, minlength=120))
    assert np.corrcoef(column[0][warm], column[1][warm])[0, 1] > 0.8
    assert (with_content.content_.toarray()[:, 50] == 0).all()


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_extension_equals_a_fit_that_knew_the_items(form):
    log, items, _ = shop_log()
    old = IdMap(np.arange(10, 120))
    late = HybridItems(form=form).fit(log.with_items(items.ids), items)
    early = HybridItems(form=form).fit(log.with_items(old), items.align(old))
    grown = early.extend(items)
    cold = Filter(allow=np.arange(10))
    a, b = late.recommend(k=5, filter=cold), grown.recommend(k=5, filter=cold)
    same = np.mean([len(set(x) & set(y)) / 5 for x, y in zip(a.items.tolist(), b.items.tolist(), strict=True)])
    assert same > 0.9
    assert len(early.catalogue_) == 110


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_no_item_speaks_for_itself(form):
    log, items, _ = shop_log()
    old = IdMap(np.arange(10, 120))
    grown = HybridItems(form=form).fit(log.with_items(old), items.align(old)).extend(items)
    for model in (HybridItems(form=form).fit(log, items), grown):
        assert (np.asarray(model.weights_.diagonal()) == 0).all()


def test_extended_models_save_and_extend_again(tmp_path):
    log, items, _ = shop_log()
    old = IdMap(np.arange(10, 120))
    grown = HybridItems().fit(log.with_items(old), items.align(old)).extend(items.align(IdMap(np.arange(5))))
    grown.save(tmp_path / "m")
    again = HybridItems.load(tmp_path / "m").extend(items)
    assert len(again.catalogue_) == 120
    new_click = Interactions.from_frame(pd.DataFrame({"user": ["x"], "item": [2]}), items=again.catalogue_)
    found = again.recommend(k=5, histories=new_click)
    assert (np.array([int(i) % 8 for i in found.items[0]]) == 2).mean() >= 0.8


def test_reasons_tell_behaviour_from_content():
    log, items, _ = shop_log()
    model = HybridItems().fit(log, Embeddings(items.ids, items.vectors, blocks=(("text", 10), ("image", 6))))
    warm = model.recommend(["u1"], 5, reason=True).reason[0, 0]
    cold = model.recommend(["u1"], 1, filter=Filter(allow=np.arange(10)), reason=True).reason[0, 0]
    assert warm.parts["behaviour"] > 0.2
    assert "behaviour" not in cold.parts
    assert cold.parts["behaviour of similar items"] > 0
    assert "text" in cold.parts


def test_untimed_histories_forget_nothing_in_scores_nor_in_reasons():
    log, items, _ = shop_log()
    untimed = Interactions(log.users, log.items, log.user, log.item, log.weight)
    model = HybridItems(history_decay=0.1).fit(untimed, items)
    found = model.recommend(["u1"], 1, reason=True)
    own = log.item[log.user == 1]
    shares = np.maximum(model.weights_.toarray()[own, found.positions[0, 0]], 0)
    told = dict(found.reason[0, 0].because)
    expected = dict(zip(own.tolist(), (shares / shares.sum()).tolist(), strict=True))
    assert told == pytest.approx({item: expected[item] for item in told}, abs=0.02)
    assert len(told) >= min(2, (shares > 0.01 * shares.sum()).sum())


def test_empty_histories_get_what_is_popular_and_allowed():
    log, items, _ = shop_log()
    model = HybridItems().fit(log, items)
    nobody = Interactions(IdMap(["new"]), log.items, *[np.zeros(0, np.int64)] * 2, np.zeros(0, np.float32))
    found = model.recommend(k=5, histories=nobody)
    top = np.sort(model.popularity_)[::-1][:5]
    np.testing.assert_array_equal(model.popularity_[found.positions[0]], top)


def test_product_top_k_equals_the_dense_product():
    from recotransfer.numerics.sparse import product_top_k

    rng = np.random.default_rng(1)
    history = sparse.random_array((30, 50), density=0.1, rng=rng, format="csr", dtype=np.float32)
    weights = sparse.random_array((50, 50), density=0.3, rng=rng, format="csr", dtype=np.float32)
    weights.data -= 0.4
    mask = rng.random(50) < 0.7
    positions, scores = product_top_k(history, weights, 6, history, mask)
    dense = np.where(mask & (history.toarray() == 0), history.toarray() @ weights.toarray(), -np.inf)
    dense[dense <= 0] = -np.inf
    expected = -np.sort(-dense, axis=1)[:, :6]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert ((positions >= 0) == np.isfinite(expected)).all()


def test_loading_with_the_wrong_class_names_both(tmp_path):
    Popularity().fit(checkerboard()).save(tmp_path / "m")
    with pytest.raises(ArtifactError, match="was saved by Popularity, not EASE"):
        EASE.load(tmp_path / "m")
    with pytest.raises(InputError, match="no recommender is called 'Oracle'"):
        recommenders.find("Oracle")


def test_the_answer_is_unseen():
    log = checkerboard()
    held = set(zip(log.user.tolist(), log.item.tolist(), strict=True))
    assert not held & set(enumerate(answer().tolist()))
    assert len(log) == 40 * (ITEMS // 2 - 1)

import copy

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.errors import ArtifactError, InputError
from recotransfer.evaluation.metrics import hits, ndcg
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.experiments import tuning
from recotransfer.numerics.topk import TopK
from recotransfer.recommenders import HybridItems, HybridRanker, LearnedHybrid
from recotransfer.task import TransferTask
from recotransfer.testing import checkerboard, colours

CLUSTERS, ITEMS, COLD = 8, 160, 8


def turns(users=400, seed=0, timed=True):
    """Users of two tastes who take two items of one, two of the other and so on; the first items have no events.

    What comes next depends on whether the newest two are of a kind: no sum over the history says it.
    """
    rng = np.random.default_rng(seed)
    cluster = np.arange(ITEMS) % CLUSTERS
    pools = [np.flatnonzero((cluster == c) & (np.arange(ITEMS) >= COLD)) for c in range(CLUSTERS)]
    rows = []
    for user in range(users):
        tastes = rng.choice(CLUSTERS, 2, replace=False)
        picks = [rng.permutation(pools[t]) for t in tastes]
        start, taken = rng.integers(4), [0, 0]
        for step in range(rng.integers(5, 11)):
            side = (start + step) // 2 % 2
            rows.append((f"u{user}", int(picks[side][taken[side]]), float(step)))
            taken[side] += 1
    ids = IdMap(np.arange(ITEMS))
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    vectors = np.eye(CLUSTERS, 16)[cluster] + 0.1 * rng.normal(size=(ITEMS, 16))
    log = Interactions.from_frame(frame, time="time" if timed else None, items=ids)
    return log, Embeddings(ids, vectors.astype(np.float32)), cluster


def quality(model, valid):
    found = model.recommend(pd.unique(valid.users.take(valid.user)), 10)
    return float(ndcg(hits(found, valid), 10).mean())


@pytest.fixture(scope="module")
def shop():
    log, items, _ = turns()
    train, valid = hold_out_last(log)
    return train, valid, items


@pytest.fixture(scope="module")
def fitted(shop):
    return HybridRanker(epochs=20).fit(shop[0], shop[2])


@pytest.mark.parametrize("content", [True, False])
def test_the_second_stage_learns_what_no_sum_can_say(fitted, shop, content):
    train, valid, items = shop
    first = LearnedHybrid().fit(train, items if content else None)
    both = fitted if content else HybridRanker(epochs=20).fit(train)
    assert quality(both, valid) > quality(first, valid) + 0.01
    assert any("content" in name or "cosine" in name for name in both.features_.columns) == content


def test_untimed_logs_are_learned_from_without_an_order():
    log, items, _ = turns(200, timed=False)
    model = HybridRanker().fit(log, items)
    assert not [name for name in model.features_.columns if "newest" in name or "decayed" in name]
    shuffled = np.random.default_rng(1).permutation(len(log))
    known, other = model.recommend(k=5), model.recommend(k=5, histories=log.select(shuffled))
    np.testing.assert_array_equal(known.positions, other.positions)


def test_items_without_events_are_recommended_where_their_like_is_due(fitted, shop):
    _, _, cluster = turns()
    train = shop[0]
    found = fitted.recommend(k=5, filter=Filter(allow=np.arange(COLD)))
    tastes = [set(cluster[train.item[train.user == user]]) for user in range(len(train.users))]
    right = [cluster[row[0]] in taste for row, taste in zip(found.positions, tastes, strict=True)]
    assert np.mean(right) > 0.9
    mixed = fitted.recommend(k=20)
    assert (mixed.positions < COLD).any(), "cold items should not vanish"


def test_cold_odds_move_new_items_against_the_others_and_keep_either_order(fitted):
    often = copy.copy(fitted)
    often.cold_odds = 6.0
    for side in (np.arange(COLD), np.arange(COLD, ITEMS)):
        only = Filter(allow=side)
        alike = [model.recommend(k=5, filter=only).positions for model in (fitted, often)]
        np.testing.assert_array_equal(*alike)
    plain, moved = (model.recommend(k=120) for model in (fitted, often))
    assert (moved.positions[:, :10] < COLD).sum() > 1.5 * (plain.positions[:, :10] < COLD).sum()
    assert (np.diff(moved.scores, axis=1) <= 0).all()
    assert often.recommend(k=10).positions.tolist() == moved.positions[:, :10].tolist()


def test_new_items_enter_as_in_the_first_stage(fitted):
    rng = np.random.default_rng(3)
    new = Embeddings(IdMap([900, 901]), (np.eye(2, 16) + 0.1 * rng.normal(size=(2, 16))).astype(np.float32))
    wider = fitted.extend(new)
    assert len(wider.catalogue_) == ITEMS + 2
    assert {matrix.shape for matrix in wider.features_.extra.values()} == {(ITEMS + 2, ITEMS + 2)}
    found = wider.recommend(k=3, filter=Filter(allow=[900, 901]))
    assert (found.positions >= ITEMS).any()
    old = Filter(deny=[900, 901])
    assert (wider.recommend(k=10, filter=old).positions == fitted.recommend(k=10).positions).mean() > 0.8
    assert len(fitted.catalogue_) == ITEMS


def test_a_seed_gives_one_model_and_leaves_the_generators_alone():
    import torch

    log, items, _ = turns(100)

    def scores(seed):
        return HybridRanker(epochs=2, seed=seed).fit(log, items).recommend(k=5).scores

    one = scores(0)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = scores(0)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    np.testing.assert_array_equal(again, one)
    assert (scores(1) != one).any()


def test_scores_fall_through_the_list_beyond_the_candidates(shop):
    train, _, items = shop
    model = HybridRanker(depth=10).fit(train, items)
    found = model.recommend(k=40)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert (found.scores[found.positions >= 0] > 0).all()
    first = model.base_.recommend(k=40)
    np.testing.assert_array_equal(np.sort(found.positions[:, :10]), np.sort(first.positions[:, :10]))
    np.testing.assert_array_equal(found.positions[:, 10:], first.positions[:, 10:])
    np.testing.assert_allclose(found.scores[:, :10].sum(axis=1), 1, rtol=1e-4)


def test_what_follows_the_like_of_an_item_is_a_product_of_two_matrices(fitted):
    base = fitted.base_
    product = (base.parts_.lookalikes.T @ base.parts_.matrices["order"]).toarray()
    np.testing.assert_allclose(fitted.features_.extra["bridged"].toarray(), product, atol=1e-5)


def test_longer_lists_begin_with_shorter_ones(fitted):
    np.testing.assert_array_equal(fitted.recommend(k=120).positions[:, :5], fitted.recommend(k=5).positions)


def test_without_a_lesson_the_order_is_that_of_the_first_stage():
    frame = pd.DataFrame({"user": list("abcde"), "item": list("vwxyz"), "time": np.arange(5.0)})
    ids = IdMap(list("vwxyz"))
    items = Embeddings(ids, np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
    log = Interactions.from_frame(frame, time="time", items=ids)
    both, first = HybridRanker().fit(log, items), LearnedHybrid().fit(log, items)
    np.testing.assert_array_equal(both.recommend(k=4).positions, first.recommend(k=4).positions)


def test_what_the_network_never_saw_counts_as_the_nearest_it_saw(fitted):
    low, high = fitted.network_["low"], fitted.network_["high"]
    scores = np.zeros((1, 1), np.float32)
    edge, beyond = (fitted._logits(values[None, None].astype(np.float32), scores) for values in (high, high + 100))
    np.testing.assert_array_equal(edge, beyond)
    assert (low <= high).all()


def test_a_loaded_model_ranks_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    again = HybridRanker.load(tmp_path / "m")
    np.testing.assert_array_equal(again.recommend(k=10).scores, fitted.recommend(k=10).scores)
    new = Embeddings(IdMap([900]), np.eye(1, 16, dtype=np.float32))
    np.testing.assert_array_equal(again.extend(new).recommend(k=5).scores, fitted.extend(new).recommend(k=5).scores)


def test_a_network_of_other_features_is_refused(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path / "m")
    monkeypatch.setattr("recotransfer.recommenders._candidate_features._PLAIN", ("score",))
    with pytest.raises(ArtifactError, match="other features than this version; fit it again"):
        HybridRanker.load(tmp_path / "m")


def test_a_folder_of_the_former_first_stage_is_refused(fitted, shop, tmp_path):
    former = copy.copy(fitted)
    former.base_ = HybridItems().fit(shop[0], shop[2])
    former.save(tmp_path / "m")
    with pytest.raises(ArtifactError, match=r"do not fit this version of LearnedHybrid.*fit and save the model again"):
        HybridRanker.load(tmp_path / "m")


def test_the_network_does_not_move_repeats_among_the_others():
    log, _, _ = turns(2)
    scores = np.ones((2, ITEMS), np.float32)
    head = TopK(np.tile(np.arange(ITEMS), (2, 1)), scores)
    logits = np.random.default_rng(0).normal(size=scores.shape).astype(np.float32)
    out = HybridRanker()._with_repeats(logits, log, head)
    for row, seen in enumerate(log.binary_matrix().toarray() > 0):
        np.testing.assert_array_equal(out[row][~seen], logits[row][~seen])
        np.testing.assert_allclose(out[row][seen], logits[row][~seen].mean(), rtol=1e-4)


def test_reasons_are_those_of_the_first_stage(fitted):
    found = fitted.recommend(["u0"], 3, reason=True)
    own = set(fitted.catalogue_.take(fitted.events_.item[fitted.events_.user == 0]).tolist())
    for reason in found.reason[0]:
        assert reason.because
        assert {item for item, _ in reason.because} <= own
        assert "behaviour" in reason.parts


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": 3}, "base must be the settings of a LearnedHybrid, got 3"),
        ({"base": {"regg": 1}}, "base does not fit LearnedHybrid.*regg"),
        ({"base": {"neighbours": 0}}, "neighbours must be a whole number of at least 1, got 0"),
        ({"cold_odds": -1.0}, "cold_odds must be a number of at least 0, got -1.0"),
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, words):
    with pytest.raises(InputError, match=words):
        HybridRanker(**settings).fit(checkerboard(), colours())


def test_dotted_settings_reach_the_first_stage():
    model = HybridRanker(base={"neighbours": 30}, depth=50)
    other = model.with_settings({"base.guard": False, "epochs": 2})
    inner = {"neighbours": 30, "guard": False}
    assert other.params() == {"base": inner, "depth": 50, "epochs": 2, "cold_odds": 1.0, "seed": 0}
    assert (other.setting("base.guard"), other.setting("base.neighbours"), other.setting("depth")) == (False, 30, 50)
    assert HybridRanker().setting("base.neighbours") == LearnedHybrid().neighbours
    assert model.base == {"neighbours": 30}


def test_tuning_sets_the_first_stage():
    log = checkerboard()
    items = Items(log.items, pd.DataFrame({"title": ["x"] * len(log.items)}))
    model = HybridRanker(base={"neighbours": 60}, epochs=1)
    found = tuning.tune(TransferTask(model, encoders=[], progress=False), items, log, trials=3)
    assert found.trials["base.neighbours"].iloc[0] == 60
    assert found.trials["base.neighbours"].nunique() == 3
    assert set(found.params) == {"base", "depth", "epochs", "cold_odds", "seed"}
    best = found.trials.loc[found.trials["ndcg"].idxmax()]
    assert HybridRanker(**found.params).setting("base.neighbours") == best["base.neighbours"]

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import entropy
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from recotransfer.data import Embeddings, IdMap, Interactions, Recommendations
from recotransfer.errors import InputError, UnknownIdError
from recotransfer.evaluation.metrics import (
    POPULARITY_BUCKET_NAMES,
    POPULARITY_BUCKETS,
    Hits,
    auc,
    average_popularity,
    average_precision,
    calibration,
    calibration_error,
    coverage,
    f1,
    gini,
    hit_rate,
    hits,
    intra_list_diversity,
    mrr,
    ndcg,
    novelty,
    popularity_bucket,
    popularity_counts,
    precision,
    rank_metrics,
    ranks,
    recall,
    roc_auc,
    serendipity,
)
from recotransfer.evaluation.metrics import lists as metric_lists
from recotransfer.evaluation.metrics import ranking as ranking_metrics
from recotransfer.evaluation.splits import hold_out_last

ITEMS = [f"i{n}" for n in range(12)]
CUTS = (1, 3, 5)


def pairs(rows, items=None, users=None):
    """Interactions from (user, item) pairs."""
    frame = pd.DataFrame(rows, columns=["user", "item"], dtype=object)
    return Interactions.from_frame(
        frame, items=None if items is None else IdMap(items), users=None if users is None else IdMap(users)
    )


def lists(rows, k=5, catalogue=ITEMS):
    """Recommendations from user -> item ids, best first; the scores of a list may tie."""
    known = IdMap(catalogue)
    positions = np.full((len(rows), k), -1)
    for row, items in enumerate(rows.values()):
        positions[row, : len(items)] = known.positions(items)
    scores = np.where(positions >= 0, np.float32(1), -np.inf).astype(np.float32)
    return Recommendations(np.array(list(rows), dtype=object), known, positions, scores)


def by_trec_eval(rows, truth, measure):
    """User -> value by trec_eval itself, which sorts by score and must therefore see none tie."""
    wanted = {}
    for user, item in truth:
        wanted.setdefault(user, {})[item] = 1
    run = {user: {item: float(-rank) for rank, item in enumerate(items)} for user, items in rows.items() if items}
    found = pytrec_eval.RelevanceEvaluator(wanted, {measure}).evaluate(run)
    name = measure.replace(".", "_")
    return {user: found.get(user, {}).get(name, 0.0) for user in wanted}


def assert_equal_to_trec_eval(rows, truth):
    events = pairs(truth)
    found = hits(lists(rows), events)
    users = events.users.ids.tolist()
    for k in CUTS:
        cut = {user: items[:k] for user, items in rows.items()}  # recip_rank knows no cut
        for ours, run, theirs in (
            (recall, rows, f"recall.{k}"),
            (precision, rows, f"P.{k}"),
            (hit_rate, rows, f"success.{k}"),
            (mrr, cut, "recip_rank"),
            (average_precision, rows, f"map_cut.{k}"),
            (ndcg, rows, f"ndcg_cut.{k}"),
        ):
            wanted = by_trec_eval(run, truth, theirs)
            values = ours(found, k)
            if ours is average_precision:  # trec_eval divides by all true items
                values = values * np.minimum(found.relevant, k) / found.relevant
            np.testing.assert_allclose(values, [wanted[user] for user in users], atol=1e-6, err_msg=theirs)


@pytest.mark.parametrize(
    ("rows", "truth"),
    [
        ({"u": ["i0", "i1", "i2", "i3", "i4"]}, [("u", "i0")]),
        ({"u": ["i1", "i0"]}, [("u", "i0")]),
        ({"u": []}, [("u", "i0")]),
        ({"u": ["i0"], "v": ["i0"]}, [("v", "i0")]),
        ({"v": ["i0"]}, [("u", "i0"), ("v", "i0")]),
        ({"u": ["i0", "i1"]}, [("u", "i0"), ("u", "i0"), ("u", "i0")]),
        ({"u": ["i0", "i1", "i2", "i3", "i4"]}, [("u", item) for item in ITEMS]),
        ({"u": ["i11", "i0"]}, [("u", "i0"), ("u", "unheard of")]),
        ({"u": ["i11", "i0"], "v": ["i5"]}, [("v", "i0"), ("u", "i0")]),
    ],
    ids=[
        "right at once", "right late", "no list", "a user without truth", "a user without a list", "truth said twice",
        "more truth than list", "truth outside the catalogue", "users in another order",
    ],
)  # fmt: skip
def test_nasty_cases_equal_trec_eval(rows, truth):
    assert_equal_to_trec_eval(rows, truth)


some_items = st.lists(st.sampled_from(ITEMS), max_size=5, unique=True)
some_users = st.sampled_from(["u", "v", "w", "x"])


@settings(deadline=None)
@given(
    st.dictionaries(some_users, some_items, min_size=1),
    st.lists(st.tuples(some_users, st.sampled_from([*ITEMS, "unheard of"])), min_size=1),
)
def test_random_cases_equal_trec_eval(rows, truth):
    assert_equal_to_trec_eval(rows, truth)


@settings(deadline=None)
@given(st.dictionaries(some_users, some_items, min_size=1), st.lists(st.tuples(some_users, st.sampled_from(ITEMS))))
def test_recall_and_hit_rate_only_grow_with_the_list(rows, truth):
    found = hits(lists(rows), pairs(truth))
    for k in range(1, 5):
        assert (recall(found, k + 1) >= recall(found, k)).all()
        assert (hit_rate(found, k + 1) >= hit_rate(found, k)).all()


def test_ties_are_judged_as_listed():
    tied = lists({"u": ["i3", "i1", "i2"]})
    assert (tied.scores[0, :3] == 1).all()
    assert recall(hits(tied, pairs([("u", "i3")])), 1).tolist() == [1]
    assert recall(hits(tied, pairs([("u", "i2")])), 2).tolist() == [0]


def test_users_without_truth_do_not_count():
    truth = pairs([("v", "i0")], users=["u", "v", "w"])
    found = hits(lists({"u": ["i0"], "v": ["i0"]}), truth)
    assert found.relevant.tolist() == [1]
    assert found.found.tolist() == [[True, False, False, False, False]]


def test_padding_is_never_a_hit():
    truth = pairs([("u", "i11"), ("u", "i0")], items=ITEMS)
    assert not hits(lists({"u": []}), truth).found.any()
    assert hits(lists({"u": ["i5"]}), truth).found.sum() == 0


def test_nothing_to_find_gives_no_users():
    found = hits(lists({"u": ["i0"]}), pairs([], users=["u"]))
    assert (recall(found, 3).shape, ndcg(found, 3).shape) == ((0,), (0,))
    nobody = hits(lists({}), pairs([("u", "i0")]))
    assert (recall(nobody, 3).tolist(), ndcg(nobody, 3).tolist()) == ([0], [0])


@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_cut_the_lists_do_not_reach_is_refused(k):
    found = hits(lists({"u": ["i0"]}), pairs([("u", "i0")]))
    for metric in (recall, ndcg):
        with pytest.raises(InputError, match=f"k is {k}, but the lists were made with k = 5"):
            metric(found, k)


def ranking(rng, users=30, items=12, k=8, events=80):
    """Random lists, some short, some empty, some users without one; random truth, some of it said twice."""
    names = [f"u{n}" for n in range(users)]
    rows = {name: rng.permutation(ITEMS[:items])[: rng.integers(k + 1)].tolist() for name in names[: users - 4]}
    truth = [(names[rng.integers(users)], [*ITEMS, "unheard of"][rng.integers(items + 1)]) for _ in range(events)]
    return rows, truth


@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_hits_are_those_of_a_plain_loop(seed):
    rows, truth = ranking(np.random.default_rng(seed))
    events, found = pairs(truth), lists(rows, k=8)
    user, item, rank = ranks(found, events)
    told = list(zip(events.users.take(user).tolist(), events.items.take(item).tolist(), rank.tolist(), strict=True))
    wanted = {(u, i, rows[u].index(i) if i in rows.get(u, []) else -1) for u, i in truth}
    assert len(told) == len(wanted)
    assert set(told) == wanted
    assert (np.lexsort((item, user)) == np.arange(len(user))).all()
    judged = hits(found, events)
    asked = events.users.take(np.unique(events.user)).tolist()
    for name, row, relevant in zip(asked, judged.found, judged.relevant, strict=True):
        assert row.tolist() == [(name, item) in truth for item in (rows.get(name, []) + [None] * 8)[:8]]
        assert relevant == len({i for u, i in truth if u == name})


def test_ranks_do_not_depend_on_the_block(monkeypatch):
    rows, truth = ranking(np.random.default_rng(0))
    whole = ranks(lists(rows, k=8), pairs(truth))
    monkeypatch.setattr(ranking_metrics, "BLOCK", 20)
    np.testing.assert_array_equal(ranks(lists(rows, k=8), pairs(truth)), whole)


def test_a_user_with_two_lists_is_refused():
    twice = Recommendations(np.array(["u", "u"]), IdMap(ITEMS), np.zeros((2, 1), int), np.ones((2, 1), np.float32))
    with pytest.raises(InputError, match="these occur twice: 'u'"):
        hits(twice, pairs([("u", "i0")]))


found_and_more = st.lists(st.tuples(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 9)), min_size=1)


def judged(rows):
    """Hits from (found, number of true items that are not listed)."""
    found = np.array([row for row, _ in rows])
    return Hits(found, np.maximum(found.sum(axis=1) + [more for _, more in rows], 1))


@settings(deadline=None)
@given(found_and_more)
def test_every_ranking_metric_lies_in_range_and_never_falls_when_a_hit_moves_up(rows):
    before = rank_metrics(judged(rows), range(1, 7))
    assert all(((values >= 0) & (values <= 1 + 1e-12)).all() for values in before.values())
    for place in range(1, 6):
        moved = [(row[:], more) for row, more in rows]
        for row, _ in moved:
            if row[place] and not row[place - 1]:
                row[place - 1 : place + 1] = [True, False]
        after = rank_metrics(judged(moved), range(1, 7))
        assert all((after[name] >= before[name] - 1e-12).all() for name in before)


@settings(deadline=None)
@given(found_and_more, st.randoms(use_true_random=False))
def test_ranking_metrics_do_not_depend_on_the_order_of_users(rows, random):
    order = random.sample(range(len(rows)), len(rows))
    one, other = rank_metrics(judged(rows), [3, 6]), rank_metrics(judged([rows[at] for at in order]), [3, 6])
    for name, values in one.items():
        np.testing.assert_array_equal(values[order], other[name])


def test_all_ranking_metrics_come_by_name():
    found = hits(lists({"u": ["i3", "i0", "i5", "i1"]}), pairs([("u", "i0"), ("u", "i1"), ("u", "i9"), ("u", "i8")]))
    values = {name: float(value[0]) for name, value in rank_metrics(found, (2, 4)).items()}
    assert values == pytest.approx(
        {
            "recall@2": 1 / 4, "precision@2": 1 / 2, "hit_rate@2": 1, "mrr@2": 1 / 2, "map@2": 1 / 4,
            "ndcg@2": np.log(2) / np.log(3) / (1 + np.log(2) / np.log(3)),
            "recall@4": 1 / 2, "precision@4": 1 / 2, "hit_rate@4": 1, "mrr@4": 1 / 2, "map@4": (1 / 2 + 2 / 4) / 4,
            "ndcg@4": (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3) + 1 / 2 + 1 / np.log2(5)),
        }
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_auc_is_that_of_scikit_learn_with_unlisted_items_tied(seed):
    rows, truth = ranking(np.random.default_rng(seed))
    events = pairs(truth)
    everything = [*ITEMS, "unheard of"]
    values = auc(lists(rows, k=8), events, len(everything))
    assert 0 < len(values) == len(set(events.user.tolist()))
    for user, value in zip(events.users.take(np.unique(events.user)).tolist(), values, strict=True):
        listed = rows.get(user, [])
        scores = [-listed.index(item) if item in listed else -99 for item in everything]
        assert value == pytest.approx(roc_auc_score([(user, item) in truth for item in everything], scores))


def test_auc_takes_candidates_of_each_user_and_knows_when_they_are_too_few():
    found, truth = lists({"u": ["i0", "i1"], "v": ["i1", "i0"]}), pairs([("u", "i0"), ("v", "i0"), ("w", "i0")])
    np.testing.assert_allclose(auc(found, truth, [12, 2, 9]), [1, 0, 0.5])
    np.testing.assert_array_equal(auc(found, pairs([("w", "i0")]), 1), [np.nan])
    with pytest.raises(InputError, match="1 candidates for user 'u', who has 2 items listed or true"):
        auc(found, truth, 1)
    with pytest.raises(InputError, match="candidates: 2 numbers, expected one, or 3"):
        auc(found, truth, [12, 12])


def test_popularity_is_counted_in_distinct_users_and_falls_into_buckets():
    events = pairs([("u", "i0"), ("u", "i0"), ("v", "i0"), ("v", "i2")], items=["i0", "i1", "i2"])
    assert popularity_counts(events).tolist() == [2, 0, 1]
    counts = np.array([0, 1, 5, 6, 20, 21, 10**6])
    assert popularity_bucket(counts).tolist() == [0, 1, 1, 2, 2, 3, 3]
    for count, bucket in zip(counts, popularity_bucket(counts), strict=True):
        least, most = POPULARITY_BUCKETS[bucket]
        assert least <= count <= (np.inf if most is None else most)
    names = [str(a) if a == b else f">{a - 1}" if b is None else f"{a}-{b}" for a, b in POPULARITY_BUCKETS]
    assert tuple(names) == POPULARITY_BUCKET_NAMES


def test_coverage_and_gini_count_what_is_never_shown():
    found = lists({"u": ["i0", "i1"], "v": ["i0"], "w": []}, k=2, catalogue=ITEMS[:4])
    assert coverage(found, 2) == 2 / 4
    assert coverage(found, 1) == 1 / 4
    assert coverage(found, 2, np.array([True, True, False, False])) == 1
    counts = np.array([2, 1, 0, 0])
    assert gini(found, 2) == pytest.approx(np.abs(counts[:, None] - counts).sum() / (2 * 4**2 * counts.mean()))
    assert gini(found, 2, np.array([True, True, False, False])) == pytest.approx(1 / 6)
    assert gini(lists({"u": ["i0", "i1"], "v": ["i2", "i3"]}, k=2, catalogue=ITEMS[:4]), 2) == 0
    nothing = lists({"u": []}, k=2)
    assert coverage(nothing, 2) == 0
    assert np.isnan(gini(nothing, 2))
    assert np.isnan(coverage(nothing, 2, np.zeros(12, bool)))
    with pytest.raises(InputError, match="item 'i1' is listed but not in the mask"):
        coverage(found, 2, np.array([True, False, True, True]))
    with pytest.raises(InputError, match=r"mask has shape \(3,\), expected \(4,\)"):
        gini(found, 2, np.ones(3, bool))


def test_popularity_and_novelty_are_means_over_the_items_listed():
    found = lists({"u": ["i0", "i1"], "v": ["i2"], "w": []}, k=3, catalogue=ITEMS[:3])
    np.testing.assert_allclose(average_popularity(found, [6, 2, 0], 3), [4, 0, np.nan])
    np.testing.assert_allclose(average_popularity(found, [6, 2, 0], 1), [6, 0, np.nan])
    bits = -np.log2([7 / 8, 3 / 8, 1 / 8])
    np.testing.assert_allclose(novelty(found, [6, 2, 0], 6, 3), [(bits[0] + bits[1]) / 2, 3, np.nan])
    with pytest.raises(InputError, match=r"popularity lies in 0\.\.6, expected 0\.\.5"):
        novelty(found, [6, 2, 0], 5, 3)
    with pytest.raises(InputError, match=r"popularity has shape \(2,\), expected \(3,\)"):
        average_popularity(found, [6, 2], 3)


@pytest.mark.parametrize("block", [1 << 22, 7])
def test_diversity_is_one_minus_the_mean_cosine_of_all_pairs(block, monkeypatch):
    monkeypatch.setattr(metric_lists, "BLOCK", block)
    rng = np.random.default_rng(3)
    rows, _ = ranking(rng)
    vectors = rng.normal(size=(len(ITEMS), 5)).astype(np.float32)
    vectors[7] = 0  # a direction that cannot be known
    content = Embeddings(IdMap(ITEMS[::-1]), vectors, present=np.arange(len(ITEMS)) != 4)
    values = intra_list_diversity(lists(rows, k=8), content, 6)
    for value, row in zip(values, rows.values(), strict=True):
        at = [11 - int(item[1:]) for item in row[:6]]
        at = [one for one in at if one not in (4, 7)]
        cosines = cosine_similarity(vectors[at])[np.triu_indices(len(at), 1)] if len(at) > 1 else []
        assert value == pytest.approx(1 - np.mean(cosines) if len(at) > 1 else np.nan, abs=1e-5, nan_ok=True)
    assert np.isnan(values).any()
    assert np.isfinite(values).any()


@pytest.mark.parametrize("seed", range(4))
def test_serendipity_counts_hits_that_the_expected_list_lacks(seed):
    rng = np.random.default_rng(seed)
    rows, truth = ranking(rng)
    usual = {name: rng.permutation(ITEMS)[:6].tolist() for name in list(rows)[2:]}
    events = pairs(truth)
    values = serendipity(lists(rows, k=8), events, lists(usual, k=8), 5)
    for user, value in zip(events.users.take(np.unique(events.user)).tolist(), values, strict=True):
        surprising = [i for i in rows.get(user, [])[:5] if i not in usual.get(user, [])[:5] and (user, i) in truth]
        assert value == len(surprising) / 5
    assert values.any()
    assert not serendipity(lists(rows, k=8), events, lists(rows, k=8), 5).any()
    with pytest.raises(InputError, match="k is 9, but the lists were made with k = 8"):
        serendipity(lists(rows, k=9), events, lists(usual, k=8), 9)


def mix(items, categories):
    """Mean over items of their shares of categories, by a plain loop; None where no item has one."""
    shares = [
        categories[int(item[1:])] / categories[int(item[1:])].sum() for item in items if categories[int(item[1:])].any()
    ]
    return np.mean(shares, axis=0) if shares else None


@pytest.mark.parametrize("seed", range(4))
def test_calibration_is_the_divergence_of_the_mixes(seed):
    rng = np.random.default_rng(seed)
    rows, history = ranking(rng, events=60)
    history = [(user, item) for user, item in history if item != "unheard of"]
    categories = rng.integers(3, size=(12, 4)) * (rng.random((12, 1)) < 0.7)
    kept = categories.copy()
    values = calibration(lists(rows, k=8), pairs(history), categories, 5)
    for value, (user, row) in zip(values, rows.items(), strict=True):
        p = mix({item for other, item in history if other == user}, categories)
        q = mix(row[:5], categories)
        wanted = np.nan if p is None or q is None else entropy(p, 0.99 * q + 0.01 * p)
        assert value == pytest.approx(wanted, nan_ok=True, abs=1e-12)
    assert np.isfinite(values).any()
    assert np.isnan(values).any()
    given = sparse.csr_matrix(categories.astype(float))
    np.testing.assert_array_equal(calibration(lists(rows, k=8), pairs(history), given, 5), values)
    assert (categories == kept).all()
    assert (given.toarray() == kept).all()


def test_a_list_of_the_histories_mix_is_calibrated_and_a_foreign_one_is_not():
    categories = np.eye(2)[[0, 0, 1, 1]]
    found = lists({"u": ["i1", "i3"], "v": ["i2", "i3"]}, k=2, catalogue=ITEMS[:4])
    history = pairs([("u", "i0"), ("u", "i0"), ("u", "i2"), ("v", "i0"), ("w", "i0")])
    np.testing.assert_allclose(calibration(found, history, categories, 2), [0, np.log(100)], atol=1e-12)
    with pytest.raises(InputError, match=r"categories have shape \(3, 2\); expected 4 rows"):
        calibration(found, history, categories[:3], 2)
    with pytest.raises(InputError, match="no negative or infinite weight"):
        calibration(found, history, -categories, 2)
    with pytest.raises(UnknownIdError, match="i9"):
        calibration(found, pairs([("u", "i9")]), categories, 2)


def test_metrics_of_lists_refuse_a_cut_the_lists_do_not_reach():
    found = lists({"u": ["i0"]})
    for metric in (
        lambda k: coverage(found, k),
        lambda k: gini(found, k),
        lambda k: average_popularity(found, np.ones(12), k),
        lambda k: intra_list_diversity(found, Embeddings(IdMap(ITEMS), np.ones((12, 2))), k),
        lambda k: calibration(found, pairs([("u", "i0")]), np.ones((12, 1)), k),
    ):
        metric(5)
        for k in (0, 6):
            with pytest.raises(InputError, match=f"k is {k}, but the lists were made with k = 5"):
                metric(k)


def test_metrics_of_no_lists_are_empty():
    none, nothing = lists({}), pairs([])
    assert average_popularity(none, np.ones(12), 5).shape == (0,)
    assert intra_list_diversity(none, Embeddings(IdMap(ITEMS), np.ones((12, 2))), 5).shape == (0,)
    assert calibration(none, pairs([("u", "i0")]), np.ones((12, 1)), 5).shape == (0,)
    assert np.isnan(calibration(lists({"u": ["i0"]}), nothing, np.ones((12, 1)), 5)).tolist() == [True]
    assert serendipity(none, nothing, none, 5).shape == auc(none, nothing, 12).shape == (0,)


def test_f1_of_absent_classes_is_not_a_number():
    truth, predicted = [0, 0, 2, 2, 2], [0, 2, 2, 2, 0]
    np.testing.assert_allclose(f1(truth, predicted, 4), [1 / 2, np.nan, 2 / 3, np.nan])
    assert f1([1], [3], 4).tolist()[1::2] == [0, 0]
    assert np.isnan(f1([], [], 2)).all()
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(5, size=(2, 200))
    assert np.nanmean(f1(truth, predicted, 5)) == pytest.approx(f1_score(truth, predicted, average="macro"))


@pytest.mark.filterwarnings("error")
def test_roc_auc_of_absent_classes_is_not_a_number():
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 5, size=(200, 3)).astype(float)  # many ties
    scores /= scores.sum(axis=1, keepdims=True)
    truth = rng.integers(3, size=200)
    assert np.nanmean(roc_auc(truth, scores)) == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr"))
    absent = roc_auc(truth, np.column_stack([scores, np.zeros(200)]))
    np.testing.assert_array_equal(absent, [*roc_auc(truth, scores), np.nan])
    assert np.isnan(roc_auc([1, 1], [[0.1, 0.9], [0.2, 0.8]])).all()


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    sure = np.array([[0.95, 0.05], [0.95, 0.05], [0.1, 0.9], [0.4, 0.6]])
    # Ten bins: .9 closes the ninth (right), .95 twice in the tenth (one right), .6 closes the sixth (wrong).
    wanted = (abs(0.9 - 1) + 2 * abs(0.95 - 0.5) + 0.6) / 4
    assert calibration_error([0, 1, 1, 0], sure, bins=10) == pytest.approx(wanted)
    assert calibration_error([0, 1], [[1, 0], [0, 1]]) == 0
    assert np.isnan(calibration_error([], np.zeros((0, 2))))
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), 50_000)
    truth = (rng.random((50_000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=2)
    assert calibration_error(truth, probabilities) < 0.015
    assert calibration_error(truth, np.eye(3)[probabilities.argmax(axis=1)]) == pytest.approx(
        1 - (truth == probabilities.argmax(axis=1)).mean()
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: f1([0, 2], [0, 1], 2), r"truth lies in 0\.\.2, expected class positions in 0\.\.1"),
        (lambda: f1([0, 1], [0, -1], 2), r"predicted lies in -1\.\.0"),
        (lambda: f1([0.5], [0], 2), "flat list of class positions, got float64"),
        (lambda: f1([0], [0, 1], 2), "1 true classes but 2 rows predicted"),
        (lambda: roc_auc([0, 1], [0.1, 0.2]), r"shape \(n, classes\), got shape \(2,\)"),
        (lambda: roc_auc([0], [[0.1, np.nan]]), "scores must be finite"),
        (lambda: calibration_error([0], [[0.2, 0.2]]), r"row 0 of the probabilities sums to 0\.4"),
        (lambda: calibration_error([0], [[1.2, -0.2]]), "is negative"),
        (lambda: calibration_error([0], [[1, 0]], bins=0), "bins must be at least 1, got 0"),
    ],
)
def test_classes_that_cannot_be_judged_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def log(rows, timed=True):
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    return Interactions.from_frame(frame, time="time" if timed else None)


def told(events):
    """(user, item) of every event."""
    return list(zip(events.users.take(events.user).tolist(), events.items.take(events.item).tolist(), strict=True))


def test_the_last_event_is_held_out_and_its_pair_leaves_training():
    split = hold_out_last(
        log([("u", "c", 9), ("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "a", 1), ("v", "b", 2)])
    )
    assert told(split.valid) == [("u", "c")]
    assert split.valid.time.tolist() == [9]
    assert told(split.train) == [("u", "a"), ("u", "b"), ("v", "a"), ("v", "b")]
    assert split.train.users == split.valid.users


def test_ties_in_time_go_to_the_later_row():
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "c", 1)]
    assert told(hold_out_last(log(rows)).valid) == [("u", "c")]
    assert told(hold_out_last(log(rows[::-1])).valid) == [("u", "a")]
    assert told(hold_out_last(log(rows[::-1], timed=False)).valid) == [("u", "a")]


def test_few_events_are_distinct_items_not_rows():
    rows = [("u", "a", 1), ("u", "a", 2), ("u", "b", 3)]
    assert told(hold_out_last(log(rows)).valid) == []
    assert told(hold_out_last(log(rows), least=2).valid) == [("u", "b")]
    with pytest.raises(InputError, match="least must be at least 1 item, got 0"):
        hold_out_last(log(rows), least=0)


events_of = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(0, 4)), min_size=1, max_size=30
)


@settings(deadline=None)
@given(events_of, st.integers(1, 4))
def test_splits_are_disjoint_and_leak_no_future(rows, least):
    events = log(rows)
    train, valid = hold_out_last(events, least=least)
    assert not set(told(train)) & set(told(valid))
    assert len(set(valid.user.tolist())) == len(valid)
    for user in range(len(events.users)):
        own = events.user == user
        enough = len(set(events.item[own].tolist())) >= least
        assert (user in valid.user) == enough
        if enough:
            assert valid.time[valid.user == user][0] == events.time[own].max()
        else:
            assert (train.user == user).sum() == own.sum()
    dropped = len(events) - len(train) - len(valid)
    again = [pair in set(told(valid)) for pair in told(events)]
    assert dropped == sum(again) - len(valid)


def test_an_empty_log_splits_into_nothing():
    none = log([("u", "a", 1)]).select(np.zeros(0, int))
    assert [len(part) for part in hold_out_last(none)] == [0, 0]

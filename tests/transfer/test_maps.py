"""Maps on vectors: what each is by definition, what it finds where there is something to find, and that it is kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import blas_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from planted import agreement, log, planted
from scipy.sparse import linalg
from threadpoolctl import threadpool_limits

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.encoders import fuse
from recotransfer.errors import InputError, NotFittedError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.numerics.vectors import unit_rows
from recotransfer.recommenders import ContentProfiles, HybridItems
from recotransfer.transfer import ContrastiveHead, LearnedMetric, MultiTask, RidgeMap, SoftThreshold, Whitening
from recotransfer.transfer.networks import RelationLoss

QUICK = {"epochs": 4, "learning_rate": 0.01, "hidden": 16, "batch_size": 64}
MAPS = {
    "whitening": Whitening,
    "ridge": RidgeMap,
    "metric": LearnedMetric,
    "contrastive": lambda: ContrastiveHead(**QUICK),
}
LEARNED = {name: make for name, make in MAPS.items() if name != "whitening"}


def known_and_new(events, items):
    """The log without the last quarter of the items, and those items."""
    new = np.arange(3 * items // 4, items)
    return events.select(events.item < new[0]), new


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_map_finds_the_planted_topic_in_items_without_relations(name):
    items, events, topic = planted()
    known, new = known_and_new(events, len(topic))
    before = agreement(items, topic, new)
    assert before < 0.5
    assert agreement(LEARNED[name]().fit(items, known).transform(items), topic, new) > before + 0.15


@pytest.mark.parametrize("name", LEARNED)
def test_labels_are_learned_as_users_who_hold_their_items(name):
    items, _, topic = planted()
    new = np.arange(180, 240)
    known = [f"topic {t}" if i < 180 else None for i, t in enumerate(topic)]
    mapped = LEARNED[name]().fit(items, Interactions.from_labels(known, items.ids)).transform(items)
    assert agreement(mapped, topic, new) > agreement(items, topic, new) + 0.3


@pytest.mark.parametrize("name", ["ridge", "metric"])  # contrast also spreads vectors out, whatever it is taught
def test_relations_at_random_teach_nothing_about_new_items(name):
    items, _, topic = planted()
    draw = np.random.default_rng(3)
    events = log([(u, i) for u in range(150) for i in draw.choice(180, 5, replace=False)], 150, 240)
    new = np.arange(180, 240)
    mapped = LEARNED[name]().fit(items, events).transform(items)
    assert agreement(mapped, topic, new) < agreement(items, topic, new) + 0.15


@pytest.mark.parametrize("name", MAPS)
def test_a_stored_map_maps_alike_and_a_second_fit_is_the_same(name, tmp_path):
    items, events, _ = planted(items=80, users=40)
    first = MAPS[name]().fit(items, events)
    expected = first.transform(items).vectors
    assert_array_equal(MAPS[name]().fit(items, events).transform(items).vectors, expected)
    json.dumps(first.params())
    write_artifact(tmp_path / "map", type(first).__name__, first.write)
    kept = type(first).read(open_artifact(tmp_path / "map"))
    assert kept.params() == first.params()
    assert_array_equal(kept.transform(items).vectors, expected)


@pytest.mark.parametrize("name", MAPS)
def test_items_without_content_stay_without_and_disturb_nobody(name):
    items, events, _ = planted(items=80, users=40)
    absent = np.arange(80) < 10
    part = Embeddings(items.ids, items.vectors, present=~absent)
    mapped = MAPS[name]().fit(part, events).transform(part)
    assert not mapped.vectors[absent].any()
    assert not mapped.has_content[absent].any()
    fewer = Embeddings(IdMap(items.ids.take(np.flatnonzero(~absent))), items.vectors[~absent])
    assert_allclose(MAPS[name]().fit(fewer, events).transform(fewer).vectors, mapped.vectors[~absent], atol=1e-5)


def test_whitened_vectors_have_mean_0_and_covariance_1():
    items, events, _ = planted()
    vectors = Whitening(shrink=1e-6).fit(items, events).transform(items).vectors
    assert_allclose(vectors.mean(axis=0), 0, atol=1e-4)
    assert_allclose(np.cov(vectors, rowvar=False, bias=True), np.eye(20), atol=1e-3)


def test_whitening_without_power_keeps_all_distances_and_dim_keeps_the_principal_components():
    from sklearn.decomposition import PCA

    items, events, _ = planted()
    turned = Whitening(power=0).fit(items, events).transform(items).vectors
    centred = items.vectors - items.vectors.mean(axis=0)
    assert_allclose(turned @ turned.T, centred @ centred.T, atol=1e-2)
    main = Whitening(power=0, dim=4).fit(items, events).transform(items).vectors
    expected = PCA(4).fit_transform(items.vectors)
    assert_allclose(np.abs(main), np.abs(expected), atol=1e-2)


def test_whitening_of_its_own_lays_two_domains_over_each_other():
    draw = np.random.default_rng(0)
    shape = draw.normal(size=(300, 5)).astype(np.float32)
    there = shape @ draw.normal(size=(5, 5)).astype(np.float32) + 7
    empty = log([], 0, 300)
    near = [
        Whitening(shrink=1e-6).fit(e, empty).transform(e).vectors
        for e in (Embeddings(IdMap(range(300)), v) for v in (shape, there))
    ]
    assert_allclose(near[0] @ near[0].T, near[1] @ near[1].T, atol=0.02)


def test_the_metric_of_labels_is_linear_discriminant_analysis():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    items, _, topic = planted(items=400, topics=3)
    metric = LearnedMetric(reg=1e-9).fit(items, Interactions.from_labels(topic.tolist(), items.ids))
    mine = metric.transform(items).vectors[:, :2]
    theirs = LinearDiscriminantAnalysis(solver="eigen").fit_transform(items.vectors, topic)
    spans = [np.linalg.qr(v - v.mean(axis=0))[0] for v in (mine, theirs)]
    assert np.linalg.svd(spans[0].T @ spans[1])[1].min() > 0.99


def test_the_metric_is_the_least_squares_fit_of_togetherness():
    items, events, _ = planted(items=60, users=30, dim=8)
    metric = LearnedMetric(reg=1e-9, power=1.0).fit(items, events)
    taken = events.matrix().toarray().astype(float)
    pairs = (taken / (taken.sum(axis=1, keepdims=True) - 1)).T @ taken
    np.fill_diagonal(pairs, 0)
    often = taken.sum(axis=0)
    x = (items.vectors - metric.state_["mean"])[often > 0].astype(float)
    pairs, often = pairs[often > 0][:, often > 0], often[often > 0]
    root = np.sqrt(often)
    wanted = pairs / np.outer(root, root)  # least squares of root_i root_j x_i' M x_j against this
    design = root[:, None] * x
    solved = np.linalg.pinv(design) @ wanted @ np.linalg.pinv(design).T
    size, turn = np.linalg.eigh((solved + solved.T) / 2)
    solved = (turn * np.maximum(size, 0)) @ turn.T  # the metric is what has positive strength
    found = metric.state_["weights"] @ metric.state_["weights"].T
    x, y = found.ravel(), solved.ravel()
    assert x @ y / np.linalg.norm(x) / np.linalg.norm(y) > 0.97


@pytest.mark.parametrize("make", [RidgeMap, LearnedMetric], ids=["ridge", "metric"])
def test_keep_moves_between_the_map_and_the_original(make):
    items, events, _ = planted()
    cosines = {k: unit_rows(make(keep=k).fit(items, events).transform(items).vectors) for k in (0.0, 0.5, 1.0)}
    whole = make(keep=1.0).fit(items, events)
    original = unit_rows(items.vectors - whole.state_["mean"])
    assert_allclose(cosines[1.0] @ cosines[1.0].T, original @ original.T, atol=1e-4)
    apart = {k: np.abs(v @ v.T - original @ original.T).mean() for k, v in cosines.items()}
    assert apart[0.0] > apart[0.5] > apart[1.0]
    with pytest.raises(InputError, match="keep must be a number from 0 to 1"):
        make(keep=1.5).fit(items, events)


def test_factors_are_found_with_one_blas_thread(monkeypatch):
    items, events, _ = planted()
    seen, svds = [], linalg.svds
    monkeypatch.setattr(linalg, "svds", lambda *a, **o: seen.extend(blas_threads()) or svds(*a, **o))
    with threadpool_limits(2, "blas"):
        RidgeMap(dim=4).fit(items, events)
        assert {*blas_threads()} == {2}
    assert {*seen} == {1}


def test_factors_of_labels_tell_every_class_from_the_others():
    items, _, topic = planted(topics=4)
    mapped = RidgeMap(keep=0, reg=1e-6).fit(items, Interactions.from_labels(topic.tolist(), items.ids))
    vectors = mapped.transform(items).vectors
    means = np.stack([vectors[topic == t].mean(axis=0) for t in range(4)])
    assert np.linalg.matrix_rank(means - means.mean(axis=0), tol=1e-3 * np.linalg.norm(means)) == 3


def test_the_head_starts_as_the_identity_and_returns_to_it_where_training_does_not_help():
    items, events, _ = planted()
    still = ContrastiveHead(epochs=0).fit(items, events)
    vectors = still.transform(items).vectors
    assert_allclose(vectors, unit_rows(items.vectors - items.vectors.mean(axis=0)), atol=1e-5)
    draw = np.random.default_rng(3)
    noise = log([(u, i) for u in range(150) for i in draw.choice(240, 5, replace=False)], 150, 240)
    head = ContrastiveHead(epochs=12, patience=2, learning_rate=0.03, batch_size=64).fit(items, noise)
    losses = [step["relations"] for step in head.report_["curve"]]
    assert losses[head.report_["best"]] == min(losses)
    assert len(losses) < 13, "training ends early"


def test_relations_without_a_pair_are_refused():
    items, _, _ = planted(items=30)
    alone = log([(u, u % 15) for u in range(30)], 30, 30)
    for make in (LearnedMetric, lambda: ContrastiveHead(**QUICK)):
        with pytest.raises(InputError, match="no user has two items"):
            make().fit(items, alone)


TELL_NOTHING = {
    "no relation": ([], "give"),
    "weights of 0": ([(0, 1), (0, 2), (1, 3), (1, 4)], "give"),
    "one class": ([(0, i) for i in range(30)], "every user has the same"),
    "users alike": ([(u, i) for u in range(3) for i in range(4)], "every user has the same 4 items"),
}


@pytest.mark.parametrize("case", TELL_NOTHING)
@pytest.mark.parametrize("name", [*LEARNED, "multitask", "soft"])
def test_relations_that_tell_no_item_from_another_are_refused(name, case):
    items, events, _ = planted(items=30)
    others = {"multitask": MultiTask, "soft": lambda: SoftThreshold(source=Whitening().fit(items, events))}
    pairs, says = TELL_NOTHING[case]
    relations = log(pairs, 5, 30)
    if case == "weights of 0":
        relations = replace(relations, weight=np.zeros(len(pairs), np.float32))
    with pytest.raises(InputError, match=says):
        (LEARNED | others)[name]().fit(items, relations)


@pytest.mark.parametrize("name", LEARNED)
def test_a_relation_of_weight_0_or_less_is_none(name):
    items, events, _ = planted(items=80, users=40)
    noise = np.random.default_rng(1).integers(0, [40, 80], (100, 2))
    noise = noise[events.matrix()[*noise.T] == 0]
    both = log([*zip(events.user, events.item, strict=True), *map(tuple, noise)], 40, 80)
    weight = np.repeat([1.0, 0.0, -2.0], [len(events), 50, len(noise) - 50]).astype(np.float32)
    mapped = [LEARNED[name]().fit(items, e).transform(items).vectors for e in (events, replace(both, weight=weight))]
    assert_array_equal(*mapped)


def test_a_covariance_that_has_no_inverse_asks_for_a_larger_reg():
    items, events, _ = planted(items=12, topics=2, users=20)
    few = events.select(events.item < 10)
    for make in (LearnedMetric, lambda reg: SoftThreshold(source=Whitening().fit(items, few), reg=reg)):
        with pytest.raises(InputError, match="take a larger reg"):
            make(reg=0.0).fit(items, few)
    alike = Embeddings(items.ids, np.ones((12, 4), np.float32))
    for make in (RidgeMap, LearnedMetric):
        with pytest.raises(InputError, match="more items whose vectors differ"):
            make().fit(alike, events)


@pytest.mark.parametrize("make", [*MAPS.values()], ids=[*MAPS])
def test_reasons_behind_a_linear_map_name_the_modalities_and_behind_a_network_content(make):
    items, events, _ = planted(items=80, users=40)
    blocks = [Embeddings(items.ids, items.vectors[:, part], blocks=((name, 10),)) for name, part in
              (("text", slice(10)), ("image", slice(10, None)))]  # fmt: skip
    fused = fuse(blocks)
    transfer = make().fit(fused, events)
    name = "text+image" if transfer.is_linear else "content"
    mapped = transfer.transform(fused)
    assert mapped.blocks == ((name, mapped.dim),)
    for model in (ContentProfiles(), HybridItems()):
        reason = model.fit(events, mapped).recommend(k=1, reason=True).reason[0, 0]
        assert name in reason.parts
        assert {part for part in reason.parts if not part.startswith("behaviour")} == {name}
    again = make().fit(mapped, events).transform(mapped)
    assert again.blocks[0][0] == name


def test_items_taken_together_that_are_less_alike_than_others_leave_no_direction():
    opposite = Embeddings(IdMap(range(4)), np.array([[1, 0], [-1, 0], [1, 0.1], [-1, 0]], np.float32))
    with pytest.raises(InputError, match="no more alike in any direction"):
        LearnedMetric().fit(opposite, log([(0, 0), (0, 1), (1, 2), (1, 3)], 2, 4))


def test_directions_that_are_alike_by_rounding_alone_are_left_out():
    items, events, _ = planted()
    flat = np.hstack([items.vectors, items.vectors[:, :5] + items.vectors[:, 5:10]])  # five columns that say no more
    known = LearnedMetric().fit(items, events).state_["weights"].shape[1]
    assert LearnedMetric().fit(Embeddings(items.ids, flat), events).state_["weights"].shape[1] == known
    apart = np.repeat(np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32), 6, axis=0)
    everyone = [(u, i) for u in range(2) for i in range(u * 12, u * 12 + 12)] + [(2, 0), (2, 6), (2, 12), (2, 18)]
    with pytest.raises(InputError, match="no more alike in any direction"):
        LearnedMetric().fit(Embeddings(IdMap(range(24)), apart), log(everyone, 3, 24))


@pytest.mark.parametrize(
    ("make", "settings", "says"),
    [
        (Whitening, {"dim": -5}, "dim must be a whole number of at least 1"),
        (Whitening, {"shrink": -0.1}, "shrink must be a number of at least 0"),
        (RidgeMap, {"dim": 2.5}, "dim must be a whole number of at least 1, got 2.5"),
        (LearnedMetric, {"reg": np.nan}, "reg must be a number of at least 0"),
        (ContrastiveHead, {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        (ContrastiveHead, {"learning_rate": -1.0}, "learning_rate must be a number above 0"),
        (ContrastiveHead, {"temperature": 0.0}, "temperature must be a number above 0"),
        (ContrastiveHead, {"patience": True}, "patience must be a whole number"),
        (MultiTask, {"hidden": -1}, "hidden must be a whole number of at least 0"),
        (SoftThreshold, {"threshold": "0.1"}, "threshold must be a number of at least 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(make, settings, says):
    items, events, _ = planted(items=30)
    with pytest.raises(InputError, match=f"{make.__name__}: {says}"):
        make(**settings).fit(items, events)


# -- pairs -------------------------------------------------------------------------------------------------------------


def uneven():
    """A log in which few users take much and many take little, and the items held out of it."""
    draw = np.random.default_rng(0)
    pairs = [(u, i) for u in range(60) for i in draw.choice(40, 15 if u < 6 else 2, replace=False)]
    return log(pairs, 60, 40), np.arange(40) % 8 == 0


def test_pairs_are_drawn_as_often_as_stated_and_never_from_the_items_held_out():
    events, held = uneven()
    task = RelationLoss("relations", None, events, held, 0.1)
    rows = task.batch(np.random.default_rng(0), 200_000).rows
    drawn = np.bincount(rows[200_000:400_000], minlength=40) / 200_000
    assert_allclose(drawn, np.where(held, 0, task.often), atol=3e-3)
    assert not held[rows].any()
    assert set(rows[400_000:]) == set(np.flatnonzero(~held)), "strangers are all others"


def test_the_loss_of_pairs_asks_for_the_second_among_what_the_user_does_not_have():
    torch = pytest.importorskip("torch")
    events, held = uneven()
    task = RelationLoss("relations", None, events, held, 0.1)
    batch = task.batch(np.random.default_rng(1), 50)
    vectors = unit_rows(np.random.default_rng(2).normal(size=(150, 6)))
    has = events.matrix().toarray() > 0
    losses = []
    for row, user in enumerate(batch.user):
        own = np.exp(vectors[row] @ vectors[50:].T / 0.1) / (task.often + 1 / (~held).sum())[batch.rows[50:]]
        rivals = ~has[user, batch.rows[50:]]
        losses.append(-np.log(own[row] / (own[row] + own[rivals].sum())))
    assert float(task.loss(torch.from_numpy(vectors), batch)) == pytest.approx(float(np.mean(losses)), rel=1e-4)


# -- SoftThreshold ----------------------------------------------------------------------------------------------------


def adapted(threshold, source, items, events):
    return SoftThreshold(source=source, threshold=threshold).fit(items, events).transform(items)


def gram(items):
    out = items.vectors @ items.vectors.T
    return out / np.linalg.norm(out)


def test_threshold_0_is_the_target_alone_and_a_large_one_the_source_as_it_is():
    items, events, _ = planted(seed=0)
    shop, few, _ = planted(seed=1, users=20)
    source = LearnedMetric().fit(items, events)
    alone = LearnedMetric(power=1.0).fit(shop, few).transform(shop)
    assert_allclose(gram(adapted(0.0, source, shop, few)), gram(alone), atol=1e-4)
    left = SoftThreshold(source=source, threshold=1e9).fit(shop, few)
    assert_array_equal(left.state_["weights"], source.state_["weights"])


def test_few_events_of_a_like_target_are_best_used_with_the_source_s_map():
    items, events, _ = planted(seed=0)
    shop, few, topic = planted(seed=1, users=8)
    source = LearnedMetric().fit(items, events)
    both, alone = (agreement(adapted(t, source, shop, few), topic) for t in (0.2, 0.0))
    assert both > alone + 0.1


def test_a_source_that_knows_another_world_is_overruled_by_the_target():
    items, _, _ = planted(seed=0)
    loud = (items.vectors[:, 10] > 0).astype(int).tolist()  # a direction that is noise to the target
    source = LearnedMetric().fit(items, Interactions.from_labels(loud, items.ids))
    shop, events, topic = planted(seed=1)
    assert agreement(adapted(0.02, source, shop, events), topic) > agreement(source.transform(shop), topic) + 0.3


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 2), st.floats(0, 2))
def test_the_larger_the_threshold_the_less_the_source_s_metric_changes(one, other):
    items, events, _ = planted(items=60, users=30, dim=8)
    shop, few, _ = planted(items=60, users=10, dim=8, seed=1)
    source = LearnedMetric(keep=0.3).fit(items, events)
    near = gram(adapted(1e9, source, shop, few))
    small, large = sorted([one, other])
    moved = [np.abs(gram(adapted(t, source, shop, few)) - near).sum() for t in (small, large)]
    assert moved[1] <= 1.1 * moved[0] + 1e-2


def test_an_adapted_map_is_stored_without_its_source(tmp_path):
    items, events, _ = planted(items=80, users=40)
    source = LearnedMetric().fit(items, events)
    soft = SoftThreshold(source=source, threshold=0.05).fit(items, events)
    json.dumps(soft.params())
    write_artifact(tmp_path / "map", "SoftThreshold", soft.write)
    kept = SoftThreshold.read(open_artifact(tmp_path / "map"))
    assert_array_equal(kept.transform(items).vectors, soft.transform(items).vectors)
    with pytest.raises(InputError, match="needs a fitted linear map"):
        kept.fit(items, events)


def test_a_source_of_another_kind_or_width_is_refused():
    items, events, _ = planted(items=80, users=40)
    wide, log_of_wide, _ = planted(items=80, users=40, dim=24)
    for source in (None, LearnedMetric(), ContrastiveHead()):
        with pytest.raises(InputError, match="needs a fitted linear map"):
            SoftThreshold(source=source).fit(items, events)
    with pytest.raises(InputError, match="takes 24 dimensions, the vectors have 20"):
        SoftThreshold(source=Whitening().fit(wide, log_of_wide)).fit(items, events)
    with pytest.raises(NotFittedError):
        LearnedMetric().transform(items)

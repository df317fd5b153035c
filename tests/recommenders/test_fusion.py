import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import Embeddings, Filter, IdMap, Interactions
from recotransfer.errors import ArtifactError, InputError, NotFittedError
from recotransfer.evaluation.uncertainty import paired
from recotransfer.numerics.topk import TopK
from recotransfer.recommenders import (
    ALS,
    BPR,
    EASE,
    AdaptiveFusion,
    ContentProfiles,
    HybridItems,
    ItemKNN,
    Popularity,
    Probe,
    RankFusion,
    Recommender,
    StackedFusion,
    WeightedFusion,
)
from recotransfer.registry import recommenders
from recotransfer.testing import RecommenderContract, checkerboard, colours

ALL = [RankFusion, WeightedFusion, StackedFusion, AdaptiveFusion]
LEARNED = ALL[1:]
PAIR = (EASE(reg=1.0), ItemKNN())


class TestRankFusion(RecommenderContract):
    fusion = RankFusion

    def make(self):
        return self.fusion(members=[HybridItems(reg=1.0), {"class": "EASE", "settings": {"reg": 1.0}}])

    def embeddings(self):
        return colours()


class TestWeightedFusion(TestRankFusion):
    fusion = WeightedFusion


class TestStackedFusion(TestRankFusion):
    fusion = StackedFusion


class TestAdaptiveFusion(TestRankFusion):
    fusion = AdaptiveFusion


class TestFusionOfAllKinds(RecommenderContract):
    def make(self):
        return RankFusion(members=[ContentProfiles(), BPR(dim=8, epochs=300), ItemKNN()])

    def test_flags_are_true(self):
        model = self.make()
        assert (model.needs_items, model.scores_new_items, model.scores_new_users) == (True, True, False)
        with pytest.raises(InputError, match="needs embeddings"):
            model.fit(checkerboard())
        found = self.fitted().recommend(["u0", "u1"], 14, items=colours(IdMap(["i100", "i101"])))
        first, second = (row.tolist() for row in found.items)
        assert first.index("i100") < first.index("i101")
        assert second.index("i101") < second.index("i100")

    def test_new_users_are_refused_with_the_member_that_cannot(self):
        with pytest.raises(InputError, match="as its member BPR does; leave histories out"):
            self.fitted().recommend(histories=checkerboard())


class TestFusionOfFusions(RecommenderContract):
    def make(self):
        return WeightedFusion(members=[RankFusion(members=PAIR), EASE(reg=2.0), EASE(reg=3.0)])


class Oracle(Recommender):
    """Ranks a planted answer first for users with a history of the right length, a far item first for the others."""

    def __init__(self, *, least: float = 1.0, alpha: float = 100.0) -> None:
        self.least, self.alpha = least, alpha

    def _fit(self, events, items):
        pass

    def _scores(self, events):
        length = np.bincount(events.user, minlength=len(events.users))
        last = np.full(len(events.users), -1)
        np.maximum.at(last, events.user, events.item)
        right = (length >= self.least) & (length <= self.alpha)
        best = np.where(right, last + 1, (last * 7 + 13)) % len(events.items)
        gap = (np.arange(len(events.items)) - best[:, None]) % len(events.items)
        return (1 / (1.0 + gap)).astype(np.float32)

    def _write(self, writer):
        pass

    def _read(self, artifact):
        pass


class Noise(Oracle):
    """Any order, the same at every call."""

    def _scores(self, events):
        keys = np.bincount(events.user, weights=events.item + 1.0, minlength=len(events.users)).astype(np.int64)
        return np.stack([np.random.default_rng(k).random(len(events.items)) for k in keys]).astype(np.float32)


def walks(users=300, items=150, seed=0):
    """Every user walks up the catalogue item by item, some for 4 steps and some for 30: what comes next is plain."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        first = rng.integers(items - 40)
        rows += [(user, first + step, float(step)) for step in range(4 if user % 2 else 30)]
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    return Interactions.from_frame(frame, time="time", items=IdMap(np.arange(items)))


def next_step(log):
    last = np.full(len(log.users), -1)
    np.maximum.at(last, log.user, log.item)
    users = np.arange(len(log.users))
    return Interactions(log.users, log.items, users, last + 1, np.ones(len(users), np.float32))


def found_first(model, log):
    return (model.recommend(k=1).positions[:, 0] == next_step(log).item).mean()


def spec(kind):
    return {"class": recommenders.name_of(kind), "settings": {}}


SHORT, LONG = Oracle(alpha=10.0), Oracle(least=10.0)


def test_reciprocal_ranks_add_up_as_the_formula_says():
    log = checkerboard()
    a, b = EASE(reg=1.0).fit(log), Popularity().fit(log)
    fused = RankFusion(members=[a, b]).fit(log).recommend(["u0"], 7)
    expected = dict.fromkeys(range(12), 0.0)
    for member in (a, b):
        lists = member._rank(member.events_.select(member.events_.user == 0), 12, _seen(log), None)
        for rank, item in enumerate(lists.positions[0][lists.positions[0] >= 0], start=1):
            expected[item] += 1 / (60 + rank)
    order = sorted((i for i in expected if expected[i]), key=lambda i: (-np.float32(expected[i]), i))
    assert fused.positions[0].tolist() == order[:7]
    np.testing.assert_allclose(fused.scores[0], [expected[i] for i in order[:7]], rtol=1e-6)


def _seen(log):
    return log.select(log.user == 0).matrix()


class Given(Oracle):
    """The scores it is told, for every user."""

    def __init__(self, *, told=()):
        self.told = told

    def _rank(self, events, k, exclude, mask):
        order = np.argsort(-np.array(self.told), kind="stable")[:k]
        b = len(events.users)
        return TopK(np.tile(order, (b, 1)), np.tile(np.array(self.told, np.float32)[order], (b, 1)))


def test_a_hand_made_example_of_ranks_and_shares():
    log = Interactions.from_frame(pd.DataFrame({"user": [0] * 4, "item": [0, 1, 2, 3]}))
    one, two = Given(told=(4.0, 3.0, 2.0, 1.0)), Given(told=(-3.0, -1.0, -2.0, -5.0))
    found = RankFusion(members=[one, two], depth=3).fit(log).recommend(k=4, exclude_seen=False)
    assert found.positions[0].tolist() == [1, 0, 2, 3]
    np.testing.assert_allclose(found.scores[0, :3], [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 63 + 1 / 62], rtol=1e-6)
    shares = RankFusion(members=[one, two], depth=4).fit(log)._candidates(log, None, None).share
    np.testing.assert_allclose(shares, [[1, 0.5], [0.75, 1], [0.5, 0.75], [0.25, 0]])


@pytest.mark.parametrize("kind", LEARNED)
def test_a_good_member_is_trusted_and_a_random_one_is_not(kind):
    log = walks()
    model = kind(members=[Oracle(), Noise()]).fit(log)
    assert found_first(model, log) > 0.95
    assert model.validation_["Oracle"] > 0.9
    assert model.validation_["fused"] >= model.validation_["Oracle"] - 0.02
    assert model.validation_["Noise"] < 0.1
    if kind is WeightedFusion:
        assert model.weights_["Oracle"] > 0.85
        assert sum(model.weights_.values()) == pytest.approx(1)
        assert min(model.weights_.values()) >= 0


def test_weights_that_see_the_history_beat_fixed_ones_where_members_suit_different_users():
    log = walks()
    fixed, adaptive = (kind(members=[SHORT, LONG]).fit(log) for kind in (WeightedFusion, AdaptiveFusion))
    assert found_first(fixed, log) < 0.8
    assert found_first(adaptive, log) > 0.95
    assert adaptive.validation_["fused"] > fixed.validation_["fused"] + 0.05


@pytest.mark.parametrize("kind", LEARNED)
def test_validation_shows_no_gain_where_nothing_can_be_learned(kind):
    log = walks()
    shuffled = np.random.default_rng(1).permutation(len(log.users))
    truth = next_step(log)
    lost = Interactions(log.users, log.items, truth.user, truth.item[shuffled], truth.weight)
    members = [m.fit(log) for m in (Noise(), Noise(least=2.0), Oracle())]
    told = kind(members=members).learn(lost).validation_
    assert told["fused"] < max(told[name] for name in told if name != "fused") + 0.03
    assert told["fused"] < 0.1
    right = kind(members=members).learn(truth).validation_
    assert right["fused"] > 0.9


@pytest.mark.parametrize("kind", LEARNED)
def test_weights_of_fitted_members_equal_those_that_fit_learns(kind):
    from recotransfer.evaluation.splits import hold_out_last

    log = checkerboard()
    whole = kind(members=PAIR).fit(log)
    train, valid = hold_out_last(log)
    alone = kind(members=[EASE(reg=1.0).fit(train), ItemKNN().fit(train)]).learn(valid)
    np.testing.assert_array_equal(alone.coefficients_, whole.coefficients_)
    assert alone.validation_ == whole.validation_
    assert alone.recommend(k=3).positions.shape == (40, 3)
    again = kind(members=PAIR).fit(log)
    np.testing.assert_array_equal(again.coefficients_, whole.coefficients_)
    before = alone.members_[0].weights_.copy()
    alone.learn(valid.select(valid.user < 20), histories=train)
    np.testing.assert_array_equal(alone.members_[0].weights_, before)


def test_learning_refuses_members_that_do_not_fit_together():
    log = checkerboard()
    with pytest.raises(NotFittedError, match="EASE is not fitted"):
        WeightedFusion(members=PAIR).learn(log)
    fewer = Interactions.from_frame(pd.DataFrame({"user": list("aabb"), "item": list("xyxy")}))
    with pytest.raises(InputError, match="different users or items"):
        WeightedFusion(members=[EASE().fit(log), EASE().fit(fewer)]).learn(log)
    with pytest.raises(InputError, match="no user has three items; use RankFusion"):
        WeightedFusion(members=PAIR).fit(fewer)
    nobody = Interactions.from_frame(pd.DataFrame({"user": ["x"], "item": ["i1"]}), items=log.items)
    with pytest.raises(InputError, match="too few held-out items"):
        WeightedFusion(members=[EASE().fit(log), ItemKNN().fit(log)]).learn(nobody)


@pytest.mark.parametrize("kind", ALL)
@given(order=st.permutations(range(3)))
@settings(max_examples=4, deadline=None)
def test_the_order_of_members_does_not_matter(kind, order):
    log = walks(users=60)
    members = [Oracle(), Noise(), ItemKNN(neighbours=5)]
    one = kind(members=members).fit(log).recommend(k=8)
    two = kind(members=[members[i] for i in order]).fit(log).recommend(k=8)
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-3, atol=1e-4)
    tied = np.isclose(one.scores[:, 1:], one.scores[:, :-1], rtol=1e-3, atol=1e-4)
    apart = ~(np.pad(tied, ((0, 0), (0, 1)), constant_values=True) | np.pad(tied, ((0, 0), (1, 0))))
    assert (one.positions == two.positions)[apart].all()


@pytest.mark.parametrize("kind", ALL)
def test_a_longer_list_begins_with_the_shorter_one(kind):
    model = kind(members=PAIR, depth=3).fit(checkerboard())
    np.testing.assert_array_equal(model.recommend(k=7).positions[:, :2], model.recommend(k=2).positions)


def test_prototypes_stay_unfitted_and_settings_survive_json():
    model = RankFusion(members=[EASE(reg=3.0), {"class": "ItemKNN"}]).fit(checkerboard())
    assert not hasattr(model.members[0], "catalogue_")
    told = json.loads(json.dumps(model.params()))
    assert told == {
        "members": [{"class": "EASE", "settings": EASE(reg=3.0).params()}, {"class": "ItemKNN"}],
        "depth": 200,
    }
    same = RankFusion(**told).fit(checkerboard()).recommend(k=5)
    np.testing.assert_array_equal(same.scores, model.recommend(k=5).scores)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (17, "a list of two recommenders or more, got 17"),
        ([EASE()], "two recommenders or more"),
        ([EASE(), EASE], "a member must be a recommender or"),
        ([EASE(), {"class": "EASE", "reg": 3}], "a member must be a recommender or"),
        ([EASE(), {"class": "EASE", "settings": {"rage": 3}}], "member EASE: .*'rage'"),
        ([EASE(), EASE(reg=-1.0)], "EASE: reg must be a number of at least 0, got -1.0"),
    ],
)
def test_impossible_members_are_refused(members, words):
    with pytest.raises(InputError, match=words):
        RankFusion(members=members).fit(checkerboard())


def test_own_classes_join_by_import_path(tmp_path):
    name = recommenders.name_of(Oracle)
    assert name == f"{__name__}:Oracle"
    assert recommenders.find(name) is Oracle
    model = RankFusion(members=[{"class": name, "settings": {}}, ItemKNN()]).fit(walks(users=20))
    model.save(tmp_path / "m")
    again = RankFusion.load(tmp_path / "m").recommend(k=3)
    np.testing.assert_array_equal(again.positions, model.recommend(k=3).positions)
    for wrong in (f"{__name__}:PAIR", f"{__name__}:Nothing"):
        with pytest.raises(InputError, match="is not a class that meets the recommender contract"):
            recommenders.find(wrong)
    with pytest.raises(InputError, match="cannot be imported"):
        recommenders.find("no_such_module:Model")
    with pytest.raises(ArtifactError, match="import antigravity first"):
        recommenders.find_saved("antigravity:Model")


def test_members_that_cannot_rank_new_items_go_on_without_them(tmp_path):
    log, new = checkerboard(), colours(IdMap(["i100", "i101"]))
    grown = AdaptiveFusion(members=[HybridItems(reg=1.0), ALS(dim=2)]).fit(log, colours()).extend(new)
    assert [len(member.catalogue_) for member in grown.members_] == [14, 12]
    clicks = Interactions.from_frame(pd.DataFrame({"user": ["x", "x"], "item": ["i100", "i2"]}), items=grown.catalogue_)
    found = grown.recommend(k=14, histories=clicks, reason=True)
    assert "i100" not in found.items[0].tolist()
    assert {int(i[1:]) % 2 for i in found.items[0, :5]} == {0}
    only = grown.recommend(["u1"], 2, filter=Filter(allow=["i100", "i101"]), reason=True)
    assert only.items[0].tolist() == ["i101", "i100"]
    assert set(only.reason[0, 0].parts) == {"HybridItems"}
    grown.save(tmp_path / "m")
    again = AdaptiveFusion.load(tmp_path / "m").recommend(k=14, histories=clicks)
    np.testing.assert_array_equal(again.positions, found.positions)


def test_reasons_share_the_score_among_members():
    log = checkerboard()
    model = WeightedFusion(members=[EASE(reg=1.0), EASE(reg=50.0), Popularity()]).fit(log)
    model.coefficients_ = np.array([0.6, 0.4, 0.0])
    first = model.recommend(["u0"], 1, reason=True).reason[0, 0]
    assert first.parts == pytest.approx({"EASE 1": 0.6, "EASE 2": 0.4})
    assert sum(share for _, share in first.because) <= 1 + 1e-6
    assert first.because


def test_batches_take_exact_members():
    model = RankFusion(members=[ALS(dim=2), ItemKNN()]).fit(checkerboard())
    model.members_[0].index_report_ = "approximate"
    exact = model.for_batch()
    assert exact.members_[0].index_report_ == "exact"
    assert model.members_[0].index_report_ == "approximate"
    np.testing.assert_array_equal(exact.recommend(k=4).positions, model.recommend(k=4).positions)


# -- labels ------------------------------------------------------------------------------------------------------------


def classes(known, asked, labels=6, noise=0.6, dim=8):
    """Items around the centres of their labels: the labelled ones, those asked about, and the true label of these."""
    draw = np.random.default_rng(0)
    centre = np.eye(labels, dim)
    label = draw.integers(labels, size=known + asked)
    vectors = (centre[label] + noise * draw.normal(size=(known + asked, dim))).astype(np.float32)
    ids = np.array([f"i{n}" for n in range(known + asked)], object)
    seen, new = (Embeddings(IdMap(ids[part]), vectors[part]) for part in (slice(known), slice(known, None)))
    names = np.array([f"label {n}" for n in range(labels)], object)[label]
    return seen, Interactions.from_labels(list(names[:known]), seen.ids), new, names[known:]


def right(model, items, truth):
    """(items,) whether the best label is the true one; an item without an answer is wrong."""
    found = model.label(items)
    return (found.items[:, 0] == truth).astype(float)


@pytest.fixture(scope="module")
def many():
    return classes(5000, 1500)


MIXED, SURE = (Probe(), ContentProfiles()), (Probe(reg=1.0), Probe(reg=3000.0))


@pytest.mark.parametrize("members", [MIXED, SURE], ids=["mixed", "probabilities"])
@pytest.mark.parametrize("kind", ALL)
def test_a_fusion_of_classifiers_is_no_worse_than_its_best_member_at_5000_items(many, kind, members):
    items, labels, new, truth = many
    alone = [right(type(m)(**m.params()).fit(labels, items), new, truth) for m in members]
    best = max(alone, key=lambda each: each.mean())
    model = kind(members=members).fit(labels, items)
    fused = right(model, new, truth)
    change = paired(fused, best)
    assert change.high >= 0, change
    assert fused.mean() > best.mean() - 0.01
    assert (model.label(items, k=6).positions >= 0).all(), "every item is answered with every label"


class Guess(Recommender):
    """Gives the true label, which the vectors hold, a high probability for some items and any label for the others."""

    gives_probabilities = True
    scores_new_items = True

    def __init__(self, *, seed: int = 0, share: float = 0.7) -> None:
        self.seed, self.share = seed, share

    def _fit(self, events, items):
        pass

    def _with_items(self, items):
        return self

    def _extend(self, items):
        pass

    def _item_scores(self, items, users):
        number = np.array([int(i[1:]) for i in items.ids.ids])
        rng = np.random.default_rng(self.seed)
        told, wrong = rng.random(10_000)[number] < self.share, rng.integers(5, size=10_000)[number]
        names = self.events_.users.ids[users]
        own = np.array([int(name[6:]) for name in names])
        true = items.vectors[:, :1].astype(np.int64)
        best = np.where(told, true[:, 0], wrong)
        return np.where(own == best[:, None], 0.8, 0.05).astype(np.float32)

    def _scores(self, events):
        return np.full((len(events.users), len(self.catalogue_)), 0.2, np.float32)

    def _write(self, writer):
        pass

    def _read(self, artifact):
        pass


@pytest.mark.parametrize("kind", ALL)
def test_classifiers_that_err_on_different_items_are_better_together(kind, tmp_path):
    truth = np.random.default_rng(0).integers(5, size=4000)
    items = Embeddings(IdMap([f"i{n}" for n in range(4000)]), truth[:, None].astype(np.float32))
    labels = Interactions.from_labels([f"label {n}" if at < 3000 else None for at, n in enumerate(truth)], items.ids)
    members = [Guess(seed=1, share=0.75), Guess(seed=2, share=0.7), Guess(seed=3, share=0.65)]
    model = kind(members=members).fit(labels, items)
    new = items.align(IdMap(items.ids.ids[3000:]))
    names = np.array([f"label {n}" for n in truth[3000:]], object)
    fused = right(model, new, names)
    assert fused.mean() > 0.82
    probability = model.label(new, k=5)
    assert probability.scores.min() >= 0
    np.testing.assert_allclose(probability.scores.sum(axis=1), 1, rtol=1e-5)
    model.save(tmp_path / "m")
    again = kind.load(tmp_path / "m").label(new, k=5)
    np.testing.assert_array_equal(again.positions, probability.positions)
    np.testing.assert_array_equal(again.scores, probability.scores)
    if kind is not RankFusion:
        told = model.validation_
        assert told["fused"] > max(told[name] for name in told if name != "fused")
        assert told["Guess 1"] == pytest.approx(0.8, abs=0.05)  # right, or right by chance
    if kind is WeightedFusion:
        assert sum(model.weights_.values()) == pytest.approx(1)
        assert list(model.weights_.values()) == sorted(model.weights_.values(), reverse=True)


@pytest.mark.parametrize("kind", ALL)
def test_two_labels_and_labels_of_few_items_can_be_fused(kind):
    items, labels, new, truth = classes(60, 40, labels=2, noise=0.3)
    assert right(kind(members=MIXED).fit(labels, items), new, truth).mean() > 0.9
    items, labels, _, _ = classes(4, 1, labels=2)
    assert (kind(members=MIXED).fit(labels, items).label(items).positions >= 0).all()


@pytest.mark.parametrize("kind", LEARNED)
def test_items_of_several_labels_have_a_probability_for_each(kind):
    items, labels, new, truth = classes(400, 200, labels=3, noise=0.3)
    everything = Interactions.from_frame(
        pd.DataFrame(
            {
                "user": [*labels.users.take(labels.user), *["any"] * len(labels)],
                "item": [*labels.items.take(labels.item)] * 2,
            }
        ),
        items=items.ids,
    )
    found = kind(members=SURE).fit(everything, items).label(new, k=4)
    assert (found.items[:, :2] == "any").any(axis=1).all()
    first = np.where(found.items[:, 0] == "any", found.items[:, 1], found.items[:, 0])
    assert (first == truth).mean() > 0.9
    assert found.scores.max() <= 1
    assert found.scores[:, 0].min() > 0.8, "of each label by itself, not a share of all"


def test_the_labels_asked_for_are_ranked_alone_and_items_without_content_are_not_answered():
    items, labels, new, truth = classes(300, 50, labels=4, noise=0.3)
    blank = Embeddings(new.ids, new.vectors, present=np.arange(50) > 0)
    for kind in ALL:
        model = kind(members=MIXED).fit(labels, items)
        found = model.label(blank, k=4, users=["label 1", "label 3"])
        assert found.positions.shape == (50, 2)
        assert found.items[0].tolist() == [None, None]
        assert set(found.items[1]) == {"label 1", "label 3"}
        rows = np.flatnonzero(np.isin(truth, ["label 1", "label 3"]) & blank.has_content)
        assert (found.items[rows, 0] == truth[rows]).mean() > 0.9


@pytest.mark.parametrize("kind", ALL)
def test_a_shop_s_items_are_scored_for_every_user_wherever_they_rank(kind):
    log = checkerboard()
    shallow = kind(members=PAIR, depth=2).fit(log)
    asked = colours(log.items)
    with pytest.raises(InputError, match="cannot rank items unseen in fit"):
        shallow.label(asked)
    members = [HybridItems(reg=1.0), EASE(reg=1.0)]
    cut, whole = (kind(members=members, depth=depth).fit(log, asked) for depth in (3, 12))
    listed = whole._scores(whole.events_).toarray()
    for model in (whole, cut):
        found = model.label(asked, k=len(log.users))
        assert (found.positions >= 0).all()
        wanted = listed[found.positions, np.arange(12)[:, None]]
        if model is whole:
            np.testing.assert_allclose(found.scores[wanted != 0], wanted[wanted != 0], rtol=1e-4, atol=1e-5)
        else:
            assert np.count_nonzero(found.scores) > cut._scores(cut.events_).nnz, "more than the lists are scored"

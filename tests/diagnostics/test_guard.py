import json
import sys

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import Embeddings, Filter, IdMap, Interactions
from recotransfer.diagnostics import guard
from recotransfer.diagnostics.guard import _best, _choices
from recotransfer.errors import InputError
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.recommenders import EASE, ContentProfiles, HybridItems, LearnedHybrid, Popularity

ITEMS, GROUPS = 480, 30
GROUP = np.arange(ITEMS) % GROUPS
POPULAR, COLD_ITEMS = np.arange(ITEMS) < 90, np.arange(ITEMS) >= 390
COLD = int(COLD_ITEMS.sum())


def shop(users=1200, seed=0):
    """A timed log of users who mostly keep to one group of 3 popular items, 10 others, and 3 only held out."""
    draw = np.random.default_rng(seed)
    appeal = np.where(COLD_ITEMS, 0, np.where(POPULAR, 5.0, 1.0))
    rows = []
    for user in range(users):
        chance = appeal * np.where(draw.integers(GROUPS) == GROUP, 1, 0.02)
        taken = draw.choice(ITEMS, size=5, replace=False, p=chance / chance.sum())
        rows += [(f"u{user}", int(item), float(at)) for at, item in enumerate(taken)]
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    log = Interactions.from_frame(frame, time="time", items=IdMap(range(ITEMS)))
    train, valid = hold_out_last(log)
    known = np.bincount(train.item, minlength=ITEMS) > 0
    valid = valid.select(known[valid.item])
    late = valid.select(np.arange(len(valid)) % 4 == 0)  # some users take a new item of that group as well
    new = [draw.choice(np.flatnonzero((GROUP[item] == GROUP) & COLD_ITEMS)) for item in late.item]
    return train, valid, Interactions(log.users, log.items, late.user, np.array(new), late.weight, late.time)


TRAIN, VALID, COLD_VALID = shop()


def concat_logs(first, second):
    both = [np.concatenate([getattr(e, name) for e in (first, second)]) for name in ("user", "item", "weight", "time")]
    return Interactions(first.users, first.items, *both)


BOTH = concat_logs(VALID, COLD_VALID)


def vectors(kind, seed=1):
    """Content that tells the groups apart: of all items, of none, or of the items that are not popular."""
    draw = np.random.default_rng(seed)
    right = np.eye(GROUPS, 2 * GROUPS)[GROUP] + 0.05 * draw.normal(size=(ITEMS, 2 * GROUPS))
    if kind == "noise":
        right = draw.normal(size=right.shape)
    if kind == "popular scrambled":  # and in a space of their own, so as not to mislead to other items too
        right[POPULAR] = np.roll(right[draw.permutation(np.flatnonzero(POPULAR))], GROUPS, axis=1)
    return Embeddings(IdMap(range(ITEMS)), right.astype(np.float32))


def hybrid(kind=None, **settings):
    return HybridItems(reg=20.0, **settings).fit(TRAIN, None if kind is None else vectors(kind))


@pytest.fixture(scope="module")
def ablation():
    return hybrid()


def dense(model):
    return model.weights_ if isinstance(model.weights_, np.ndarray) else model.weights_.toarray()


# -- trust -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sparse", "dense"])
def form(request):
    return request.param


def test_full_trust_changes_nothing_and_none_is_the_model_fitted_without_content(form):
    whole, ablation = hybrid("right", form=form), hybrid(form=form)
    again = hybrid("right", form=form, trust=(1, 1, 1, 1))
    np.testing.assert_array_equal(dense(again), dense(whole))
    for none in (whole.with_trust((0, 0, 0, 0)), hybrid("right", form=form, trust=[0, 0, 0, 0])):
        np.testing.assert_array_equal(dense(none), dense(ablation))
        found, expected = none.recommend(k=10), ablation.recommend(k=10)
        np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_column_is_mixed_by_the_trust_in_its_item(form):
    whole = hybrid("right", form=form)
    trust = np.array([0.9, 0.25, 0.0, 0.5])
    part = whole.with_trust(trust.tolist())
    count = whole.popularity_
    share = np.where(count == 0, 0.9, np.where(count <= 5, 0.25, np.where(count <= 20, 0.0, 0.5)))
    assert len(set(share)) == 4
    expected = share * dense(whole) + (1 - share) * dense(whole.with_trust([0, 0, 0, 0]))
    np.testing.assert_allclose(dense(part), expected, atol=1e-6)
    assert part.params()["trust"] == trust.tolist()
    np.testing.assert_array_equal(dense(part.with_trust((1, 1, 1, 1))), dense(whole))


def test_a_fit_with_trust_equals_a_fit_that_is_given_it_later(form):
    trust = (1.0, 0.5, 0.0, 1.0)
    early, late = hybrid("right", form=form, trust=trust), hybrid("right", form=form).with_trust(trust)
    np.testing.assert_array_equal(dense(early), dense(late))
    assert early.params() == late.params()


def test_trust_survives_saving_and_can_be_raised_again(form, tmp_path):
    whole = hybrid("right", form=form)
    part = whole.with_trust((1, 0.5, 0, 0))
    part.save(tmp_path / "part")
    loaded = HybridItems.load(tmp_path / "part")
    assert loaded.params() == part.params()
    np.testing.assert_array_equal(dense(loaded), dense(part))
    np.testing.assert_array_equal(dense(loaded.with_trust((1, 1, 1, 1))), dense(whole))


def test_new_items_are_believed_like_items_of_no_user(form):
    old = IdMap(range(ITEMS - COLD))
    model = HybridItems(reg=20.0, form=form).fit(TRAIN.with_items(IdMap(range(ITEMS))).with_items(old), _rows(old))
    grown = model.extend(vectors("right"))
    trust = (0.5, 1.0, 0.0, 0.0)
    for part in (model.with_trust(trust).extend(vectors("right")), grown.with_trust(trust)):
        np.testing.assert_allclose(dense(part)[:, ITEMS - COLD :], 0.5 * dense(grown)[:, ITEMS - COLD :], atol=1e-6)
        rows = dense(part)[ITEMS - COLD :]
        assert not rows[:, : ITEMS - COLD][:, model.popularity_ > 5].any()
        assert rows[:, : ITEMS - COLD][:, model.popularity_ <= 5].any()
    none = model.with_trust((0, 1, 1, 1)).extend(vectors("right"))
    assert not dense(none)[:, ITEMS - COLD :].any()


def _rows(ids):
    return vectors("right").align(ids)


def test_parts_of_a_reason_add_up_to_the_score(form):
    model = hybrid("right", form=form).with_trust((0.75, 0.5, 0.25, 0.0))
    history, items = np.unique(TRAIN.item[:40]), np.arange(ITEMS)
    strength = np.linspace(0.2, 1, len(history)).astype(np.float32)
    parts = model._contributions(history, strength, items)
    np.testing.assert_allclose(sum(parts.values()), strength[:, None] * dense(model)[np.ix_(history, items)], atol=1e-5)
    popular = model.popularity_ > 20
    assert not parts["content"][:, popular].any()
    assert not parts["behaviour of similar items"][:, popular].any()
    assert parts["content"][:, ~popular].any()


@pytest.mark.parametrize("trust", [(1, 1, 1), 0.5, (1, 1, 1, 1.5), (1, 1, -0.1, 1), "1111", (1, 1, float("nan"), 1)])
def test_impossible_trust_is_refused(trust):
    with pytest.raises(InputError, match="trust must be 4 numbers from 0 to 1"):
        HybridItems(trust=trust).fit(TRAIN, vectors("right"))
    with pytest.raises(InputError, match=r"trust must be (4 numbers from 0 to 1|a list, each entry a number)"):
        hybrid("right").with_trust(trust)


def test_a_model_without_content_has_none_to_trust(ablation):
    with pytest.raises(InputError, match="fitted without embeddings, so there is no content to trust"):
        ablation.with_trust((1, 1, 1, 1))


# -- guard -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [VALID, BOTH], ids=["warm", "warm and cold"])
@pytest.mark.parametrize("seed", range(3))
def test_noise_returns_the_ablation_variant_itself(ablation, truth, seed):
    transfer = HybridItems(reg=20.0).fit(TRAIN, vectors("noise", seed))
    found = guard(transfer, ablation, truth, seed=seed)
    assert found.recommender is ablation
    assert not found.verdict.kept
    assert found.verdict.trust == (0, 0, 0, 0)
    assert found.verdict.helped in ("no difference", "hurts")
    assert "the model without content is used" in found.verdict.words


def test_better_settings_are_not_taken_for_better_content():
    poor = HybridItems(reg=20.0, history_decay=0.05, neighbours=2).fit(TRAIN)
    found = guard(hybrid("noise"), poor, VALID)
    assert found.verdict.overall.low > 0, "the transfer variant is the better model, though its content is noise"
    assert found.recommender is poor
    assert found.verdict.gained.low <= 0
    assert "better, but not by its content" in found.verdict.words


def test_content_that_helps_is_kept_and_cold_items_gain_most(ablation):
    transfer = hybrid("right")
    found = guard(transfer, ablation, BOTH)
    verdict = found.verdict
    assert (verdict.helped, verdict.kept) == ("helps", True)
    assert verdict.trust[:2] == (1, 1)
    assert verdict.gained.low > 0
    changes = {bucket.name: bucket.change for bucket in verdict.buckets}
    assert changes["0"].low > 0.05
    assert changes["0"].value == max(change.value for change in changes.values())
    assert found.recommender.params() == {**transfer.params(), "trust": verdict.trust}


def test_content_is_switched_off_where_it_is_wrong_and_on_where_it_is_right(ablation):
    found = guard(hybrid("popular scrambled"), ablation, BOTH)
    verdict = found.verdict
    assert verdict.trust == (1, 1, 1, 0)
    assert verdict.gained.low > max(0, verdict.overall.value), "part of the content beats all of it"
    assert "switched off for items of" in verdict.words
    assert ">20 users" in verdict.words


def test_a_bucket_without_held_out_events_follows_the_others(ablation):
    found = guard(hybrid("right"), ablation, VALID)
    assert "0" not in [bucket.name for bucket in found.verdict.buckets]
    assert found.verdict.kept
    assert found.verdict.trust[0] == 1


def test_the_words_hold_the_figures_and_the_dict_is_json(ablation):
    verdict = guard(hybrid("right"), ablation, BOTH).verdict
    assert f"{verdict.overall.value:+.4f}" in verdict.words
    assert f"{verdict.overall.low:+.4f} to {verdict.overall.high:+.4f}" in verdict.words
    for bucket in verdict.buckets:
        assert f"{bucket.name} ({bucket.change.value:+.4f}, {bucket.pairs} pairs)" in verdict.words
    plain = json.loads(json.dumps(verdict.to_dict()))
    assert plain["overall"]["low"] == verdict.overall.low
    assert plain["buckets"][0] == {**plain["buckets"][0], "name": "0", "value": verdict.buckets[0].change.value}
    assert sum(bucket["pairs"] for bucket in plain["buckets"]) == len(BOTH)


def test_buckets_and_overall_are_the_variants_own_ndcg(ablation):
    from recotransfer.evaluation.metrics import hits, ndcg

    transfer = hybrid("right")
    verdict = guard(transfer, ablation, VALID, k=5).verdict
    users = VALID.users.take(np.unique(VALID.user))
    each = [ndcg(hits(variant.recommend(users, 5), VALID), 5) for variant in (ablation, transfer)]
    assert verdict.overall.value == pytest.approx((each[1] - each[0]).mean())
    whole = sum(bucket.pairs * bucket.transfer for bucket in verdict.buckets) / len(VALID)
    assert whole == pytest.approx(each[1].mean()), "one true item per user: buckets are a partition of the users"


def test_only_the_allowed_items_and_the_given_histories_count(ablation):
    cold = IdMap(np.flatnonzero(COLD_ITEMS))
    found = guard(hybrid("right"), ablation, COLD_VALID, allow=cold)
    assert found.verdict.kept
    assert [bucket.name for bucket in found.verdict.buckets] == ["0"]
    assert found.verdict.trust == (1, 1, 1, 1)
    whom = Interactions.from_frame(
        pd.DataFrame({"user": ["new", "newer"], "item": [0, 1], "t": [0.0, 0.0]}), time="t", items=TRAIN.items
    )
    truth = Interactions.from_frame(
        pd.DataFrame({"user": ["new", "newer", "nobody"], "item": [30, 31, 3]}), items=TRAIN.items
    )
    few = guard(hybrid("right"), ablation, truth, histories=whom).verdict
    assert sum(bucket.pairs for bucket in few.buckets) == 2
    with pytest.raises(InputError, match="users with both a history and held-out events: 0"):
        guard(hybrid("right"), ablation, truth)


def test_other_recommenders_go_whole_or_not_at_all():
    good, bad = ContentProfiles().fit(TRAIN, vectors("right")), ContentProfiles().fit(TRAIN, vectors("noise"))
    simple, strong = Popularity().fit(TRAIN), EASE(reg=20.0).fit(TRAIN)
    taken, left = guard(good, simple, BOTH), guard(bad, strong, BOTH)
    assert taken.recommender is good
    assert left.recommender is strong
    assert (taken.verdict.helped, left.verdict.helped) == ("helps", "hurts")
    assert taken.verdict.trust is left.verdict.trust is None
    assert taken.verdict.gained == taken.verdict.overall


def test_a_tie_is_called_one_where_it_keeps_content():
    few = TRAIN.select(TRAIN.user < 200)
    model = LearnedHybrid(neighbours=10).fit(few)
    verdict = guard(model, model, VALID.select(VALID.user < 200)).verdict
    assert (verdict.helped, verdict.kept) == ("no difference", True)
    assert verdict.words.startswith("Content makes no significant difference")
    assert "it is kept" in verdict.words
    assert verdict.to_dict()["kept"]


def test_the_choice_is_carried_over_to_refitted_variants(ablation):
    everything = concat_logs(TRAIN, VALID)
    again, bare = HybridItems(reg=20.0).fit(everything, vectors("popular scrambled")), HybridItems().fit(everything)
    part = guard(hybrid("popular scrambled"), ablation, BOTH)
    assert part.refitted(again, bare).trust == part.verdict.trust
    assert guard(hybrid("noise"), ablation, VALID).refitted(again, bare) is bare


def test_the_verdict_is_repeated_by_its_seed_and_drawn_users_give_nearly_the_same(ablation, monkeypatch):
    transfer = hybrid("right")
    assert guard(transfer, ablation, BOTH, seed=3).verdict == guard(transfer, ablation, BOTH, seed=3).verdict
    module = sys.modules["recotransfer.diagnostics.guard"]  # the name in the package is that of the function
    monkeypatch.setattr(module, "_MOST_USERS", 400)
    some = guard(transfer, ablation, BOTH, seed=3).verdict
    assert some.kept
    assert sum(bucket.pairs for bucket in some.buckets) < 0.6 * len(BOTH)


def test_an_unknown_item_in_the_allowed_ones_is_nobodys_candidate(ablation):
    more = IdMap([*np.flatnonzero(COLD_ITEMS).tolist(), "unheard of"])
    plain = IdMap(np.flatnonzero(COLD_ITEMS))
    transfer = hybrid("right")
    assert (
        guard(transfer, ablation, COLD_VALID, allow=more).verdict
        == guard(transfer, ablation, COLD_VALID, allow=plain).verdict
    )
    assert Filter(allow=plain.ids).mask(ablation.catalogue_, None).sum() == COLD


def test_a_bucket_is_lost_only_where_that_is_measurably_better():
    assert len(_choices([True] * 4)) == 15
    assert _choices([False] * 4) == [(1.0, 1.0, 1.0, 1.0)]
    assert _choices([False, True, True, False]) == [(1, 1, 1, 1), (1, 1, 0, 1), (1, 0, 1, 1)]
    tried = [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]
    noise = np.random.default_rng(0).normal(size=(3, 400))
    bar, own = np.zeros(400), np.full((2, 400), np.nan)
    scores = np.array([[0.50], [0.55], [0.20]]) + noise
    assert _best(tried, scores, bar, own) == 0, "0.05 is chance"
    better = scores + np.array([[0], [0.5], [0]])
    assert _best(tried, better, bar, own) == 1
    own[1, :50] = 0.1
    assert _best(tried, better, bar, own) == 0, "the second bucket gains, so it stays on"
    better[[0, 2]] -= 2
    assert _best(tried, better, bar, own) == 1, "but not at the price of all users together"
    assert _best(tried, scores - 2, bar, own) is None


@pytest.mark.parametrize("last_bits", [1e-15, -1e-15])
def test_a_choice_that_rounding_alone_tells_from_the_bar_is_not_better(last_bits):
    tried, own = [(1.0, 1.0), (1.0, 0.0)], np.full((2, 200), np.nan)
    bar = np.random.default_rng(0).random(200)
    assert _best(tried, np.stack([bar + last_bits, bar]), bar, own) is None
    better = bar + np.where(np.arange(200) < 100, 0.2, 0.1)
    assert _best(tried[:1] * 2, np.stack([better, better + last_bits]), bar, own) == 0, "the first of two equal ones"

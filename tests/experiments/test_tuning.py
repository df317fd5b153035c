"""The choice of settings: seeded, never worse than what was given, blind to the test, over the allowed items alone."""

import json

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import Filter, IdMap, Interactions, Items
from recotransfer.encoders import HashingText, TabularAttributes
from recotransfer.errors import InputError, UnknownIdError
from recotransfer.evaluation.metrics import hits, ndcg
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.experiments import tune, tuning
from recotransfer.recommenders import EASE, HybridItems, ItemKNN, Popularity
from recotransfer.task import TransferTask
from recotransfer.transfer import RidgeMap, Tuner, Whitening


@pytest.fixture(scope="session")
def shelf():
    """60 items whose titles tell what goes together; their brands tell nothing. The last ten have no event."""
    rng = np.random.default_rng(0)
    words = ["tent", "mug", "lamp", "boot", "scarf"]
    titles = [f"{words[i % 5]} {words[i % 5]} model {i}" for i in range(60)]
    columns = pd.DataFrame({"title": titles, "brand": [f"b{rng.integers(9)}" for _ in range(60)]})
    items = Items(IdMap([f"i{i}" for i in range(60)]), columns, {"title": "text", "brand": "category"})
    rows = [
        (f"u{u}", f"i{item}", float(t))
        for u in range(120)
        for t, item in enumerate(rng.permutation(np.arange(u % 5, 50, 5))[: rng.integers(3, 7)])
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    return items, Interactions.from_frame(frame, time="time", items=items.ids)


def task(recommender=None, **settings):
    encoders = [HashingText(dim=64), TabularAttributes(columns=["brand"], dim=32)]
    return TransferTask(recommender or HybridItems(), **{"encoders": encoders, "progress": False, **settings})


def test_a_seed_gives_the_same_choice(shelf):
    once, again = (tune(task(), *shelf, trials=4, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(once.trials, again.trials)
    assert (once.params, once.weights) == (again.params, again.weights)
    other = tune(task(), *shelf, trials=4, seed=4)
    assert not other.trials.equals(once.trials)


def test_the_first_trial_is_what_was_given_and_the_choice_is_never_worse(shelf):
    given = HybridItems(reg=77.0, neighbours=60)
    tuned = tune(task(given, weights={"text": 3.0}), *shelf, trials=5)
    first = tuned.trials.iloc[0]
    assert (first["reg"], first["neighbours"]) == (77.0, 60)
    assert (first["weight.text"], first["weight.attributes"]) == (3.0, 1.0)
    best = tuned.trials.loc[tuned.trials["ndcg"].idxmax()]
    assert best["ndcg"] >= first["ndcg"]
    assert tuned.params["reg"] == best["reg"]
    assert tuned.params["form"] == given.form
    assert tuned.weights == {"text": best["weight.text"], "attributes": best["weight.attributes"]}
    assert not hasattr(given, "catalogue_"), "the given recommender is not fitted"
    assert given.reg == 77.0


def test_one_trial_is_the_given_settings(shelf):
    tuned = tune(task(ItemKNN(neighbours=33)), *shelf, trials=1)
    assert len(tuned.trials) == 1
    assert tuned.params == ItemKNN(neighbours=33).params()
    assert tuned.weights is None


def test_settings_outside_the_search_space_are_tried_as_given(shelf):
    tuned = tune(task(HybridItems(content_weight=0.0, reg=1e6), weights={"attributes": 0}), *shelf, trials=3)
    assert tuned.trials.loc[0, ["content_weight", "reg", "weight.attributes"]].tolist() == [0, 1e6, 0]
    low, high = HybridItems.search_space["reg"]
    assert tuned.trials.loc[1:, "reg"].between(low, high).all()


def test_scores_are_those_of_a_fit_on_the_rest(shelf):
    items, events = shelf
    tuned = tune(task(), items, events, trials=1, k=5)
    train, valid = hold_out_last(events)
    fitted = task().fit(items, train)
    found = fitted.recommend(pd.unique(valid.users.take(valid.user)), 5)
    assert tuned.trials["ndcg"][0] == pytest.approx(float(ndcg(hits(found, valid), 5).mean()), abs=1e-6)


def test_vectors_are_handed_on_and_give_the_same_fit(shelf):
    tuned = tune(task(), *shelf, trials=2)
    model = HybridItems(**tuned.params)
    passed = task(model, weights=tuned.weights).fit(*shelf, embeddings=tuned.embeddings).recommend(k=5)
    anew = task(HybridItems(**tuned.params), weights=tuned.weights).fit(*shelf).recommend(k=5)
    np.testing.assert_array_equal(passed.positions, anew.positions)


def test_transfers_are_learned_from_what_is_not_held_out(shelf):
    items, events = shelf
    train, valid = hold_out_last(events.with_items(items.ids))
    users = pd.unique(valid.users.take(valid.user))
    given = [RidgeMap(dim=6), Whitening(dim=3)]
    for weights in (None, {"text": 3.0}):
        tuned = tune(task(transfers=given, weights=weights), items, events, trials=2)
        assert not hasattr(given[0], "state_"), "the given maps are not fitted"
        fresh = [RidgeMap(dim=6), Whitening(dim=3)]
        for row in tuned.trials.to_dict("records"):
            shares = {name: row[f"weight.{name}"] for name in ("text", "attributes")}
            model = HybridItems().with_settings({name: row[name] for name in HybridItems.search_space})
            found = task(model, transfers=fresh, weights=shares).fit(items, train).recommend(users, 10)
            assert row["ndcg"] == pytest.approx(float(ndcg(hits(found, valid), 10).mean()), abs=1e-6)
    with pytest.raises(InputError, match="there are none without content"):
        tune(task(encoders=[], transfers=given), items, events, trials=1)


def test_tuners_are_at_work_before_settings_are_chosen(shelf):
    class Teachable(HashingText):
        module = None

    class Narrower(Tuner):
        def tune(self, encoder, items, relations):
            seen.append(len(relations))
            return HashingText(dim=16)

    items, events = shelf
    seen = []
    given = task(encoders=[Teachable()], tuners={"text": Narrower()})
    tuned = tune(given, items, events, trials=2)
    assert seen == [len(events) - 120], "the last event of each user is not learned from"
    assert [part.dim for part in tuned.embeddings] == [16]
    plain = tune(task(encoders=[HashingText(dim=16)]), items, events, trials=2)
    pd.testing.assert_frame_equal(tuned.trials, plain.trials)
    with pytest.raises(InputError, match=r"the task has tuners; leave embeddings out, or give task\.tuned"):
        tune(given, items, events, trials=1, embeddings=tuned.embeddings)


def test_given_vectors_are_weighed_without_encoding(shelf):
    embeddings = task().encode(shelf[0])
    weighed = tune(task(weights={"text": 3.0}), *shelf, trials=2, embeddings=embeddings)
    assert weighed.trials["weight.text"][0] == 3.0
    pd.testing.assert_frame_equal(weighed.trials, tune(task(weights={"text": 3.0}), *shelf, trials=2).trials)
    with pytest.raises(InputError, match="weights name unknown blocks"):
        tune(task(weights={"colour": 1.0}), *shelf, trials=1, embeddings=embeddings)


@pytest.fixture
def measured(monkeypatch):
    """Counts the trials that are fitted."""
    calls = []
    lists_for = tuning.lists_for
    monkeypatch.setattr(tuning, "lists_for", lambda *a, **k: calls.append(1) or lists_for(*a, **k))
    return calls


def test_a_stopped_search_goes_on_to_the_same_trials(shelf, tmp_path, measured):
    whole = tune(task(), *shelf, trials=10, journal=tmp_path / "whole.json")
    kept = json.loads((tmp_path / "whole.json").read_text())
    kept["trials"] = kept["trials"][:6]
    (tmp_path / "part.json").write_text(json.dumps(kept))
    measured.clear()
    again = tune(task(), *shelf, trials=10, journal=tmp_path / "part.json")
    assert len(measured) == 4
    pd.testing.assert_frame_equal(again.trials, whole.trials, check_like=True)


def test_more_trials_go_on_from_the_points_that_were_measured(shelf, tmp_path, measured, monkeypatch):
    import optuna

    short = tune(task(), *shelf, trials=5, journal=tmp_path / "trials.json")
    measured.clear()
    told, ask = [], optuna.Study.ask
    monkeypatch.setattr(optuna.Study, "ask", lambda study, *a: told.append(list(study.trials)) or ask(study, *a))
    long = tune(task(), *shelf, trials=12, journal=tmp_path / "trials.json")
    assert len(measured) == 7
    pd.testing.assert_frame_equal(long.trials[:5], short.trials, check_like=True)
    for trial, row in zip(told[0], short.trials.to_dict("records"), strict=True):
        assert {**trial.params, "ndcg": trial.value} == {name: row[name] for name in (*trial.params, "ndcg")}


@pytest.mark.parametrize("changed", ["allow", "histories", "transfers", "k"])
def test_the_trials_of_another_search_are_refused(shelf, tmp_path, changed):
    items, events = shelf
    train, valid = hold_out_last(events)
    first = {"trials": 1, "valid": valid, "journal": tmp_path / "t.json"}
    tune(task(), items, train, **first)
    other = {"allow": items.ids.ids[:50], "histories": train.select(np.arange(len(train) - 1)), "k": 5}
    settings = {changed: other[changed]} if changed in other else {}
    again = task(transfers=[Whitening(dim=3)]) if changed == "transfers" else task()
    with pytest.raises(InputError, match=rf"t\.json holds the trials of another search: {changed} changed"):
        tune(again, items, train, **first, **settings)


def test_journals_of_earlier_versions_and_other_files_are_refused(shelf, tmp_path):
    path = tmp_path / "t.json"
    tune(task(), *shelf, trials=1, journal=path)
    earlier = json.loads(path.read_text())
    for name in ("allow", "histories", "transfers"):
        del earlier["job"][name]
    path.write_text(json.dumps(earlier))
    with pytest.raises(InputError, match="another search: allow, histories, transfers changed"):
        tune(task(), *shelf, trials=1, journal=path)
    for other in ({}, {"job": 1, "trials": []}, {"job": {}, "trials": 3}):
        path.write_text(json.dumps(other))
        with pytest.raises(InputError, match=r"t\.json holds no trials; give another folder"):
            tune(task(), *shelf, trials=1, journal=path)


def test_modality_weights_are_learnt(shelf):
    """Brands are noise here, so a search gives the text more."""
    items, events = shelf
    cold = items.ids.ids[50:]
    frame = pd.DataFrame({"user": [f"u{u}" for u in range(120)], "item": [f"i{50 + u % 10}" for u in range(120)]})
    frame["item"] = [f"i{50 + u % 5 + 5 * (u % 2)}" for u in range(120)]
    valid = Interactions.from_frame(frame, items=items.ids)
    tuned = tune(task(weights={"text": 0.1, "attributes": 10}), items, events, valid=valid, allow=cold, trials=8, k=2)
    assert tuned.weights["text"] > tuned.weights["attributes"]
    assert tuned.trials["ndcg"].max() > tuned.trials["ndcg"][0]


def test_only_allowed_items_are_ranked(shelf):
    items, events = shelf
    allow = items.ids.ids[40:]
    train, valid = hold_out_last(events)
    tuned = tune(task(), items, train, valid=valid, allow=allow, trials=1)
    found = task().fit(items, train).recommend(pd.unique(valid.users.take(valid.user)), 10, filter=Filter(allow=allow))
    assert tuned.trials["ndcg"][0] == pytest.approx(float(ndcg(hits(found, valid), 10).mean()), abs=1e-6)
    with pytest.raises(UnknownIdError, match="'nothing'"):
        tune(task(), items, events, allow=["nothing"], trials=1)


def test_the_ablation_variant_ranks_new_items_too(shelf):
    items, events = shelf
    tuned = tune(task(encoders=[]), items, events, allow=items.ids.ids[45:], trials=2)
    assert tuned.weights is None
    assert tuned.embeddings == []
    assert not [c for c in tuned.trials if c.startswith("weight.")]


def test_two_encoders_of_one_modality_have_a_weight_each(shelf):
    tuned = tune(task(encoders=[HashingText(dim=64), HashingText(dim=32)]), *shelf, trials=2)
    assert list(tuned.weights) == ["text", "text 2"]
    task(HybridItems(**tuned.params), encoders=[HashingText(dim=64), HashingText(dim=32)], weights=tuned.weights).fit(
        *shelf
    )


def test_users_whom_the_log_lacks_are_left_out(shelf):
    items, events = shelf
    frame = pd.DataFrame({"user": ["u1", "stranger"], "item": ["i1", "i2"]})
    valid = Interactions.from_frame(frame, items=items.ids)
    assert len(tune(task(EASE()), items, events, valid=valid, trials=1).trials) == 1
    with pytest.raises(InputError, match="no events to choose settings on"):
        tune(task(EASE()), items, events, valid=valid.select(np.array([1])), trials=1)


def test_what_cannot_be_tuned_is_refused(shelf):
    items, events = shelf
    with pytest.raises(InputError, match="Popularity has nothing to tune"):
        tune(task(Popularity()), items, events)
    with pytest.raises(InputError, match="trials=0"):
        tune(task(), items, events, trials=0)
    with pytest.raises(InputError, match="k=0"):
        tune(task(), items, events, k=0)
    short = events.select(np.unique(events.user, return_index=True)[1])
    with pytest.raises(InputError, match="at least three items each"):
        tune(task(), items, short, trials=1)
    with pytest.raises(InputError, match="weights name 'colour'"):
        tune(task(weights={"colour": 1}), items, events, trials=1)

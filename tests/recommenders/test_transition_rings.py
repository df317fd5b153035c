"""`TransitionRings` on a log of a few transitions: rings, their places, and counts."""

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.recommenders import TransitionRings

ITEMS = IdMap(["last", "next", "rare", "later", "alike", "other"])
# Cosines to "last": next 0, rare 0.2, later 0, alike 1, other -1.
VECTORS = np.array([[1, 0], [0, 1], [0.2, 0.98], [0, 1], [1, 0], [-1, 0]], np.float32)
SEQUENCES = {"a": ["last", "next"], "b": ["last", "next", "later"], "c": ["last", "rare"], "d": ["alike"],
             "e": ["other"], "asked": ["last"]}  # fmt: skip


def log(sequences):
    rows = [(user, item, at) for user, items in sequences.items() for at, item in enumerate(items)]
    return Interactions.from_frame(pd.DataFrame(rows, columns=["user", "item", "time"]), time="time", items=ITEMS)


def listed(sequences=SEQUENCES, k=5, **settings):
    model = TransitionRings(**settings).fit(log(sequences), Embeddings(ITEMS, VECTORS))
    return model.recommend(["asked"], k).items[0].tolist()


def test_what_followed_comes_before_what_followed_that_and_before_the_most_similar():
    assert listed() == ["next", "rare", "later", "alike", "other"]


def test_without_their_counts_transitions_are_ordered_by_content():
    assert listed(sequence_weight=0.0) == ["rare", "next", "later", "alike", "other"]


def test_the_last_item_but_one_counts_too_but_less():
    both = {**SEQUENCES, "f": ["alike", "other"], "asked": ["alike", "last"]}
    assert listed(both, k=4)[:2] == ["next", "rare"]
    assert listed(both, k=4)[2] == "other", "it followed the last item but one"


@pytest.mark.parametrize("known", [0, 3])
def test_of_ten_places_the_rings_take_seven_two_and_one_and_known_items_none(known):
    first, second, third = (np.char.add(ring, np.arange(12).astype(str)) for ring in ("n", "l", "x"))
    ids = IdMap(["last", *first, *second, *third])
    pairs = [("last", item) for item in first] + list(zip(first, second, strict=True))
    rows = [(f"u{at}", item, step) for at, pair in enumerate(pairs) for step, item in enumerate(pair)]
    history = [*first[:known], "spare", "last"]  # nothing else followed "spare"
    rows += [("asked", item, step) for step, item in enumerate(history)]
    ids = IdMap([*ids.ids, "spare"])
    events = Interactions.from_frame(pd.DataFrame(rows, columns=["user", "item", "t"]), time="t", items=ids)
    vectors = np.random.default_rng(0).normal(size=(len(ids), 4)).astype(np.float32)
    model = TransitionRings().fit(events, Embeddings(ids, vectors))
    found = model.recommend(["asked"], 10).items[0].tolist()
    assert [item[0] for item in found] == ["n"] * 7 + ["l"] * 2 + ["x"]
    assert not set(found) & set(history)


def test_users_without_events_get_the_most_popular():
    model = TransitionRings().fit(log(SEQUENCES), Embeddings(ITEMS, VECTORS))
    nobody = Interactions(IdMap(["new"]), ITEMS, *(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32)))
    assert model.recommend(["new"], 2, histories=nobody).items[0].tolist() == ["last", "next"]

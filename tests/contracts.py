"""The contract of every recommender as one suite; a model's test names its factory and little else.

The checkerboard: even users hold even items, odd users odd ones, and each user lacks exactly one item of their own
colour, which is the one right answer.
"""

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.errors import ArtifactError, InputError, NotFittedError, UnknownIdError

USERS, ITEMS = 40, 12


def checkerboard(timed=True):
    users, items = np.meshgrid(np.arange(USERS), np.arange(ITEMS), indexing="ij")
    own = (users % 2 == items % 2) & (answer()[users] != items)
    user, item = users[own], items[own]
    time = (user * 7 + item * 3) % 11 + 1e9 if timed else None
    weight = np.ones(len(user), np.float32)
    return Interactions(
        IdMap([f"u{i}" for i in range(USERS)]), IdMap([f"i{i}" for i in range(ITEMS)]), user, item, weight, time
    )


def answer():
    users = np.arange(USERS)
    return (users % 2 + 2 * (users // 2 % (ITEMS // 2))).astype(np.int64)


def colours(ids=None, seed=0):
    """Vectors that tell even items from odd ones, with a little noise."""
    ids = IdMap([f"i{i}" for i in range(ITEMS)]) if ids is None else ids
    parity = np.array([int(str(i)[1:]) % 2 for i in ids.ids])
    noise = 0.05 * np.random.default_rng(seed).normal(size=(len(ids), 6))
    vectors = np.concatenate([np.stack([1 - parity, parity], axis=1) - 0.5, noise], axis=1)
    return Embeddings(ids, vectors.astype(np.float32), blocks=(("text", 2), ("image", 6)))


def priced(ids=None):
    """Items whose price is the number in their id."""
    ids = IdMap([f"i{i}" for i in range(ITEMS)]) if ids is None else ids
    return Items(ids, pd.DataFrame({"price": [float(str(i)[1:]) for i in ids.ids]}))


class RecommenderContract:
    """Subclass, and define `make()`; set `finds_answer` to False for a model that is the same for everyone."""

    finds_answer = True

    def make(self):
        raise NotImplementedError

    def embeddings(self):
        return colours() if self.make().needs_items else None

    def fitted(self, events=None, columns=None):
        return self.make().fit(checkerboard() if events is None else events, self.embeddings(), columns=columns)

    def test_checkerboard(self):
        found = self.fitted().recommend(k=1)
        assert found.users.tolist() == [f"u{i}" for i in range(USERS)]
        right = found.items[:, 0] == np.array([f"i{i}" for i in answer()])
        assert right.all() if self.finds_answer else found.positions.shape == (USERS, 1)

    def test_batch_equals_one_by_one(self):
        model = self.fitted()
        together = model.recommend(["u3", "u0", "u7", "u3"], 4)
        for row, user in enumerate(together.users):
            alone = model.recommend([user], 4)
            assert alone.items[0].tolist() == together.items[row].tolist()
            np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5)

    def test_seen_items_are_left_out_unless_asked_for(self):
        events = checkerboard()
        own = set(events.items.take(events.item[events.user == 0]).tolist())
        model = self.fitted()
        assert not own & set(model.recommend(["u0"], ITEMS).items[0].tolist())
        if self.finds_answer:
            assert own & set(model.recommend(["u0"], 6, exclude_seen=False).items[0].tolist())

    def test_lists_are_full_ordered_and_without_repeats(self):
        found = self.fitted().recommend(k=5)
        assert (found.positions >= 0).all()
        assert (np.diff(found.scores, axis=1) <= 0).all()
        assert all(len(set(row)) == 5 for row in found.items.tolist())

    def test_k_beyond_the_catalogue(self):
        found = self.fitted().recommend(["u0"], ITEMS + 5)
        assert found.positions.shape == (1, ITEMS + 5)
        assert (found.positions[0] >= 0).sum() == ITEMS - 5
        assert found.items[0, -1] is None
        assert found.scores[0, -1] == -np.inf
        assert len(found.to_frame()) == ITEMS - 5

    def test_filters_never_shorten_a_list_that_could_be_filled(self):
        model = self.fitted(columns=priced())
        allowed = ["i1", "i3", "i4", "i5"]
        found = model.recommend(["u0", "u1"], 3, filter=Filter(allow=allowed, deny=["i5"]), exclude_seen=False)
        assert set(found.items.ravel().tolist()) == {"i1", "i3", "i4"}
        cheap = model.recommend(["u0"], 2, filter=Filter(where="price < 2"), exclude_seen=False)
        assert set(cheap.items[0].tolist()) == {"i0", "i1"}
        with pytest.raises(InputError, match="'cost'"):
            model.recommend(["u0"], filter=Filter(where="cost < 2"))

    def test_unknown_ids_are_named(self):
        with pytest.raises(UnknownIdError, match="'nobody'"):
            self.fitted().recommend(["nobody"])
        with pytest.raises(UnknownIdError, match="'nothing'"):
            self.fitted().recommend(["u0"], filter=Filter(deny=["nothing"]))

    def test_bad_k_and_unfitted_models_are_refused(self):
        with pytest.raises(InputError, match="k must be at least 1, got 0"):
            self.fitted().recommend(k=0)
        with pytest.raises(NotFittedError, match="fit or load"):
            self.make().recommend()

    def test_empty_log_is_refused(self):
        with pytest.raises(InputError, match="no interactions"):
            self.fitted(checkerboard().select(np.zeros(0, np.int64)))

    def test_new_users_are_their_history(self):
        model = self.fitted()
        history = Interactions.from_frame(
            pd.DataFrame({"user": ["new", "new", "empty"], "item": ["i1", "i3", "i1"], "t": [1.0, 2.0, 3.0]}),
            time="t",
            items=checkerboard().items,
        ).select(np.array([0, 1]))
        if not model.scores_new_users:
            with pytest.raises(InputError, match="leave histories out"):
                model.recommend(histories=history)
            return
        found = model.recommend(k=3, histories=history)
        assert found.users.tolist() == ["new", "empty"]
        assert (found.positions >= 0).all()
        if self.finds_answer:
            assert {int(i[1:]) % 2 for i in found.items[0]} == {1}
        known = checkerboard()
        np.testing.assert_array_equal(model.recommend(k=3, histories=known).positions, model.recommend(k=3).positions)

    def test_refit_equals_fresh_fit_and_inputs_stay_untouched(self):
        events = checkerboard()
        before = [events.user.copy(), events.item.copy(), events.weight.copy()]
        model = self.fitted(events)
        twice = model.fit(events, self.embeddings()).recommend(k=4)
        fresh = self.fitted(events).recommend(k=4)
        np.testing.assert_array_equal(twice.positions, fresh.positions)
        np.testing.assert_array_equal(twice.scores, fresh.scores)
        for old, new in zip(before, [events.user, events.item, events.weight], strict=True):
            np.testing.assert_array_equal(old, new)

    def test_partial_fit_takes_new_events_users_and_items(self):
        events = checkerboard()
        first = np.flatnonzero((events.user < 30) & (events.item < 10))
        known = Interactions.from_frame(
            pd.DataFrame({"u": events.users.ids[events.user[first]], "i": events.items.ids[events.item[first]],
                          "t": events.time[first]}), user="u", item="i", time="t"
        )  # fmt: skip
        vectors = self.embeddings()
        model = self.make().fit(known, None if vectors is None else vectors.align(known.items))
        told = [np.array(list(map(int, model.recommend(k=1).positions[:, 0]))), len(model.catalogue_)]
        rest = events.select(np.setdiff1d(np.arange(len(events)), first))
        assert model.partial_fit(rest, vectors) is model
        assert told[1] == 10
        assert len(model.catalogue_) == ITEMS
        report = {name: model.update_[name] for name in ("events", "users", "items")}
        assert report == {"events": len(rest), "users": 10, "items": 2}
        assert model.update_["how"]
        found = model.recommend(events.users.ids, 1)
        right = found.items[:, 0] == np.array([f"i{i}" for i in answer()])
        assert right.all() if self.finds_answer else (found.positions >= 0).all()

    def test_untimed_logs_are_taken(self):
        assert (self.fitted(checkerboard(timed=False)).recommend(k=2).positions >= 0).all()

    def test_save_and_load_give_the_same(self, tmp_path):
        model = self.fitted(columns=priced())
        model.save(tmp_path / "m")
        again = type(model).load(tmp_path / "m")
        assert again.params() == model.params()
        for filter in (None, Filter(where="price >= 6")):
            old, new = model.recommend(k=4, filter=filter), again.recommend(k=4, filter=filter)
            assert old.items.tolist() == new.items.tolist()
            np.testing.assert_array_equal(old.scores, new.scores)

    def test_edited_models_are_refused(self, tmp_path):
        self.fitted().save(tmp_path / "m")
        part = tmp_path / "m" / "popularity.npy"
        part.write_bytes(part.read_bytes()[:-1] + b"x")
        with pytest.raises(ArtifactError, match=r"popularity\.npy was truncated or edited"):
            type(self.make()).load(tmp_path / "m")

    def test_reasons_name_own_items_or_say_popularity(self):
        model = self.fitted()
        found = model.recommend(["u0"], 3, reason=True)
        own = set(checkerboard().items.take(checkerboard().item[checkerboard().user == 0]).tolist())
        for reason in found.reason[0]:
            assert {item for item, _ in reason.because} <= own
            assert sum(reason.parts.values()) == pytest.approx(1, abs=1e-4)
        assert "[" in found.to_frame()["reason"][0]
        assert ("popularity" in found.reason[0, 0].parts) != self.finds_answer

    def test_similar_items(self):
        model = self.fitted()
        if not model.scores_new_users and not hasattr(model, "factors_"):
            return
        found = model.similar_items(["i0", "i1"], 3)
        assert found.users.tolist() == ["i0", "i1"]
        assert "i0" not in found.items[0].tolist()
        if self.finds_answer:
            assert {int(i[1:]) % 2 for i in found.items[1]} == {1}

    def test_flags_are_true(self):
        model = self.make()
        if model.needs_items:
            with pytest.raises(InputError, match="needs embeddings"):
                model.fit(checkerboard())
        new = colours(IdMap(["i100", "i101"]))
        model.fit(checkerboard(), colours())
        if not model.scores_new_items:
            with pytest.raises(InputError, match="cannot rank items unseen in fit"):
                model.extend(new)
            return
        found = model.recommend(["u0", "u1"], ITEMS, items=new)
        both = [row.tolist() for row in found.items]
        assert both[0].index("i100") < both[0].index("i101")
        assert both[1].index("i101") < both[1].index("i100")
        assert len(model.catalogue_) == ITEMS

"""The contract of recommenders as a suite of tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.errors import ArtifactError, InputError, NotFittedError, UnknownIdError
from recotransfer.recommenders import Recommender
from recotransfer.registry import recommenders
from recotransfer.testing.checkerboard import ITEMS, USERS, answer, checkerboard, colours, item_ids, priced


class RecommenderContract:
    """Derive from it, and define `make()`.

    Attributes:
        finds_answer: users with different histories get different lists, by collaborative or content evidence.
        symmetric_similarity: a is as similar to b as b is to a.
        batch_tolerance: relative difference of scores that a user may have alone and among others.
    """

    finds_answer = True
    symmetric_similarity = False
    batch_tolerance = 1e-5

    def make(self) -> Recommender:
        """A new model, not fitted, with settings that suit forty users and a dozen items."""
        raise NotImplementedError

    def embeddings(self) -> Embeddings | None:
        """What is given to `fit` beside the log; vectors only where the model needs them."""
        return colours() if self.make().needs_items else None

    def fitted(self, events: Interactions | None = None, columns: Items | None = None) -> Recommender:
        """A new model that learned `events`, by default the checkerboard."""
        return self.make().fit(checkerboard() if events is None else events, self.embeddings(), columns=columns)

    def test_checkerboard(self) -> None:
        """Each user gets the one item of their colour that they lack."""
        found = self.fitted().recommend(k=1)
        assert found.users.tolist() == [f"u{i}" for i in range(USERS)]
        right = found.items[:, 0] == np.array([f"i{i}" for i in answer()])
        assert right.all() if self.finds_answer else found.positions.shape == (USERS, 1)

    def test_batch_equals_one_by_one(self) -> None:
        """A list does not depend on who else is asked for."""
        model = self.fitted()
        together = model.recommend(["u3", "u0", "u7", "u3"], 4)
        for row, user in enumerate(together.users):
            alone = model.recommend([user], 4)
            assert alone.items[0].tolist() == together.items[row].tolist()
            np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=self.batch_tolerance)

    def test_seen_items_are_left_out_unless_asked_for(self) -> None:
        """The user's own items are left out by default."""
        events = checkerboard()
        own = set(events.items.take(events.item[events.user == 0]).tolist())
        model = self.fitted()
        assert not own & set(model.recommend(["u0"], ITEMS).items[0].tolist())
        if self.finds_answer:
            assert own & set(model.recommend(["u0"], 6, exclude_seen=False).items[0].tolist())

    def test_lists_are_full_ordered_and_without_repeats(self) -> None:
        """Scores fall along a list, and no item stands in it twice."""
        found = self.fitted().recommend(k=5)
        assert (found.positions >= 0).all()
        assert (np.diff(found.scores, axis=1) <= 0).all()
        assert all(len(set(row)) == 5 for row in found.items.tolist())

    def test_k_beyond_the_catalogue(self) -> None:
        """A list longer than what may be listed ends in None and -inf."""
        found = self.fitted().recommend(["u0"], ITEMS + 5)
        assert found.positions.shape == (1, ITEMS + 5)
        assert (found.positions[0] >= 0).sum() == ITEMS - 5
        assert found.items[0, -1] is None
        assert found.scores[0, -1] == -np.inf
        assert len(found.to_frame()) == ITEMS - 5

    def test_filters_never_shorten_a_list_that_could_be_filled(self) -> None:
        """Filters choose from all items, not from a list cut before."""
        model = self.fitted(columns=priced())
        allowed = ["i1", "i3", "i4", "i5"]
        found = model.recommend(["u0", "u1"], 3, filter=Filter(allow=allowed, deny=["i5"]), exclude_seen=False)
        assert set(found.items.ravel().tolist()) == {"i1", "i3", "i4"}
        cheap = model.recommend(["u0"], 2, filter=Filter(where="price < 2"), exclude_seen=False)
        assert set(cheap.items[0].tolist()) == {"i0", "i1"}
        with pytest.raises(InputError, match="'cost'"):
            model.recommend(["u0"], filter=Filter(where="cost < 2"))

    def test_unknown_ids_are_named(self) -> None:
        """An id that the model does not know is named in the error."""
        with pytest.raises(UnknownIdError, match="'nobody'"):
            self.fitted().recommend(["nobody"])
        with pytest.raises(UnknownIdError, match="'nothing'"):
            self.fitted().recommend(["u0"], filter=Filter(deny=["nothing"]))

    def test_bad_k_and_unfitted_models_are_refused(self) -> None:
        """What cannot be asked is refused in a sentence."""
        with pytest.raises(InputError, match="k must be at least 1, got 0"):
            self.fitted().recommend(k=0)
        with pytest.raises(NotFittedError, match="fit or load"):
            self.make().recommend()

    def test_empty_log_is_refused(self) -> None:
        """There is nothing to learn from no events."""
        with pytest.raises(InputError, match="no interactions"):
            self.fitted(checkerboard().select(np.zeros(0, np.int64)))

    def test_new_users_are_their_history(self) -> None:
        """A user unseen in fit is ranked for by their history; a known one keeps their list."""
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
            assert {int(str(i)[1:]) % 2 for i in found.items[0]} == {1}
        known = checkerboard()
        np.testing.assert_array_equal(model.recommend(k=3, histories=known).positions, model.recommend(k=3).positions)

    def test_users_without_events_get_the_most_popular_items(self) -> None:
        """An empty history is no error, also where nobody else is asked for."""
        model = self.fitted()
        if model.scores_new_users:
            none = checkerboard().select(np.zeros(0, np.int64))
            found = model.recommend(["u0", "u1"], 3, histories=none)
            most = np.argsort(-model.popularity_, kind="stable")[:3]
            assert found.positions.tolist() == [most.tolist()] * 2

    def test_refit_equals_fresh_fit_and_inputs_stay_untouched(self) -> None:
        """Nothing of an earlier fit remains, and nothing given is changed."""
        events = checkerboard()
        before = [events.user.copy(), events.item.copy(), events.weight.copy()]
        model = self.fitted(events)
        twice = model.fit(events, self.embeddings()).recommend(k=4)
        fresh = self.fitted(events).recommend(k=4)
        np.testing.assert_array_equal(twice.positions, fresh.positions)
        np.testing.assert_array_equal(twice.scores, fresh.scores)
        for old, new in zip(before, [events.user, events.item, events.weight], strict=True):
            np.testing.assert_array_equal(old, new)

    def test_partial_fit_takes_new_events_users_and_items(self) -> None:
        """Learning goes on with new events, users and items."""
        events = checkerboard()
        assert events.time is not None
        first = np.flatnonzero((events.user < 30) & (events.item < 10))
        known = Interactions.from_frame(
            pd.DataFrame({"u": events.users.ids[events.user[first]], "i": events.items.ids[events.item[first]],
                          "t": events.time[first]}), user="u", item="i", time="t"
        )  # fmt: skip
        vectors = self.embeddings()
        model = self.make().fit(known, None if vectors is None else vectors.align(known.items))
        assert len(model.catalogue_) == 10
        rest = events.select(np.setdiff1d(np.arange(len(events)), first))
        assert model.partial_fit(rest, vectors) is model
        assert len(model.catalogue_) == ITEMS
        report = {name: model.update_[name] for name in ("events", "users", "items")}
        assert report == {"events": len(rest), "users": 10, "items": 2}
        assert model.update_["how"]
        found = model.recommend(events.users.ids, 1)
        right = found.items[:, 0] == np.array([f"i{i}" for i in answer()])
        assert right.all() if self.finds_answer else (found.positions >= 0).all()

    def test_untimed_logs_are_taken(self) -> None:
        """Times are optional."""
        assert (self.fitted(checkerboard(timed=False)).recommend(k=2).positions >= 0).all()

    def test_save_and_load_give_the_same(self, tmp_path: Path) -> None:
        """A loaded model gives the same lists, scores and settings."""
        model = self.fitted(columns=priced())
        model.save(tmp_path / "m")
        again = type(model).load(tmp_path / "m")
        assert again.params() == model.params()
        for filter in (None, Filter(where="price >= 6")):
            old, new = model.recommend(k=4, filter=filter), again.recommend(k=4, filter=filter)
            assert old.items.tolist() == new.items.tolist()
            np.testing.assert_array_equal(old.scores, new.scores)

    def test_edited_models_are_refused(self, tmp_path: Path) -> None:
        """A damaged part is named."""
        self.fitted().save(tmp_path / "m")
        part = tmp_path / "m" / "popularity.npy"
        part.write_bytes(part.read_bytes()[:-1] + b"x")
        with pytest.raises(ArtifactError, match=r"popularity\.npy was truncated or edited"):
            type(self.make()).load(tmp_path / "m")

    def test_reasons_name_own_items_or_say_popularity(self) -> None:
        """Reasons name the user's own items, with shares that add up to 1."""
        model = self.fitted()
        found = model.recommend(["u0"], 3, reason=True)
        assert found.reason is not None
        own = set(checkerboard().items.take(checkerboard().item[checkerboard().user == 0]).tolist())
        for reason in found.reason[0]:
            assert {item for item, _ in reason.because} <= own
            assert sum(reason.parts.values()) == pytest.approx(1, abs=1e-4)
        assert "[" in found.to_frame()["reason"][0]
        assert ("popularity" in found.reason[0, 0].parts) != self.finds_answer

    def test_similar_items(self) -> None:
        """An item is not similar to itself, and is to those of its colour."""
        model = self.fitted()
        if not model.scores_new_users and not hasattr(model, "factors_"):
            return
        found = model.similar_items(["i0", "i1"], 3)
        assert found.users.tolist() == ["i0", "i1"]
        assert "i0" not in found.items[0].tolist()
        if self.finds_answer:
            assert {int(str(i)[1:]) % 2 for i in found.items[1]} == {1}

    def test_flags_are_true(self) -> None:
        """needs_items and scores_new_items are what the model does."""
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

    def test_similarity_is_symmetric_where_promised(self) -> None:
        """The score of b among those like a is that of a among those like b."""
        if not self.symmetric_similarity:
            pytest.skip("the model does not promise symmetric similarity")

        found = self.fitted().similar_items(item_ids().ids, ITEMS - 1)
        score = np.full((ITEMS, ITEMS), np.nan)
        rows, columns = np.nonzero(found.positions >= 0)
        score[rows, found.positions[rows, columns]] = found.scores[rows, columns]
        both = ~np.isnan(score) & ~np.isnan(score.T)
        assert both.any()
        np.testing.assert_allclose(score[both], score.T[both], rtol=1e-4, atol=1e-6)

    def test_settings_are_kept_and_allowed(self) -> None:
        """Settings fit their declaration, and `params` gives those that the constructor takes."""
        model = self.make()
        model.check_settings()
        again = type(model)(**model.params())
        assert again.params() == model.params()

    def test_the_registry_finds_the_class_again(self) -> None:
        """The class can be named in a saved task."""
        kind = type(self.make())
        assert recommenders.find(recommenders.name_to_save(kind)) is kind

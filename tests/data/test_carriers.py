import datetime
import uuid

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import Embeddings, IdMap, Interactions, Items, Reason, Recommendations
from recotransfer.errors import InputError, UnknownIdError

ODD_IDS = {
    "integers": [3, 1, 2],
    "great integers": [2**53, 2**53 + 1, 2**63 + 5, 2**80],
    "floats": [0.5, -1.0, 1e300],
    "text": ["b", "", "ä", " a", "nan", "x" * 10_000],
    "text and numbers": [1, "1", 1.5, "1.5"],
    "truth values": [True, False],
    "bytes": [b"a", b"\x00"],
    "uuids": [uuid.UUID(int=7), uuid.UUID(int=8)],
    "pairs": [(1, 2), (3, 4), (1, "a")],
    "pairs and text": [(1, 2), "a"],
    "days": [datetime.date(2025, 1, 1), datetime.date(2024, 1, 1)],
    "moments": [datetime.datetime(2025, 1, 1, 12), datetime.datetime(2025, 1, 2)],
    "everything": [1, "a", b"a", uuid.UUID(int=1), (1,), 2.5, datetime.date(2025, 1, 1)],
}
SCALARS = st.one_of(st.integers(), st.text(), st.binary(), st.uuids(), st.floats(allow_nan=False), st.booleans())


@pytest.mark.parametrize("ids", ODD_IDS.values(), ids=ODD_IDS.keys())
def test_ids_of_any_type_are_kept_as_they_came(ids):
    kept = IdMap(ids)
    assert kept.ids.tolist() == ids
    assert [type(i) for i in kept.ids.tolist()] == [type(i) for i in ids]
    assert kept.positions(ids[::-1]).tolist() == list(range(len(ids)))[::-1]
    assert kept.take(np.array([0, -1])).tolist() == [ids[0], None]
    assert all(i in kept for i in ids)


@settings(deadline=None)
@given(st.lists(SCALARS, unique=True), st.randoms(use_true_random=False))
def test_ids_come_back_from_their_positions(ids, random):
    kept = IdMap(ids)
    shuffled = random.sample(ids, len(ids))
    found = kept.positions(shuffled)
    assert kept.take(found).tolist() == shuffled
    assert sorted(found.tolist()) == list(range(len(ids)))


@settings(deadline=None)
@given(st.lists(SCALARS, unique=True), st.lists(SCALARS, unique=True))
def test_union_keeps_the_old_positions_and_adds_what_is_new(old, new):
    if {type(i) for i in old} & {bool} or {type(i) for i in new} & {bool}:
        return  # True and 1 cannot stand in one map
    both = IdMap(old).union(IdMap(new))
    assert both.ids.tolist() == list(dict.fromkeys(old + new))


def test_text_is_not_a_number_and_truth_is_not_one():
    assert IdMap([1, "1"]).positions(["1", 1]).tolist() == [1, 0]
    assert IdMap([1, 2]).positions(["1"], missing="negative").tolist() == [-1]
    assert IdMap([1, 2]).positions([2.0, 1.5], missing="negative").tolist() == [1, -1]
    assert IdMap([True, False]).positions([1, 0], missing="negative").tolist() == [-1, -1]
    assert IdMap([True, False]) != IdMap([1, 0])
    with pytest.raises(InputError, match="ids must be unique; these occur twice: True"):
        IdMap([1, True])


def test_great_integers_do_not_run_together():
    assert IdMap([2**53 + 1]).positions([float(2**53)], missing="negative").tolist() == [-1]
    assert IdMap([2**63 + 1]).positions([2**63, 1], missing="negative").tolist() == [-1, -1]


def test_unknown_ids_are_named_or_negative():
    ids = IdMap(["a", "b", "c", "d"])
    assert ids.positions(["x", "b"], missing="negative").tolist() == [-1, 1]
    with pytest.raises(UnknownIdError, match=r"unknown ids: 'x'; known ids look like 'a', 'b', 'c' and 1 more"):
        ids.positions(["a", "x"])


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_missing_ids_are_refused_and_never_known(missing):
    with pytest.raises(InputError, match="must not be missing; position 1 is"):
        IdMap(["a", missing])
    assert IdMap(["a", "nan", "None"]).positions([missing], missing="negative").tolist() == [-1]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("abc", "put a single one in brackets"),
        (7, "put a single one in brackets"),
        (np.array([[1, 2]]), r"flat list, got an array of shape \(1, 2\)"),
        ([["a"]], r"\['a'\] cannot be an id"),
        (["a", {}], "{} cannot be an id"),
    ],
)
def test_odd_shapes_of_ids_are_refused(ids, message):
    with pytest.raises(InputError, match=message):
        IdMap(ids)
    with pytest.raises(InputError, match=message):
        IdMap(["a"]).positions(ids)


@pytest.mark.parametrize(
    "ids",
    [
        np.array(["a", "b"]),
        pd.Series(["a", "b"], index=[7, 7]),
        pd.Categorical(["a", "b"]),
        pd.Series(["a", "b"], dtype="category"),
        pd.Index(["a", "b"]),
        pd.array(["a", "b"], dtype="string"),
        (i for i in ("a", "b")),
        {"a": 1, "b": 2},
    ],
)
def test_ids_come_in_any_container(ids):
    kept = IdMap(ids)
    assert kept.ids.tolist() == ["a", "b"]
    assert kept == IdMap(["a", "b"])
    assert kept.union(IdMap(["b", "c"])).ids.tolist() == ["a", "b", "c"]


def test_ids_cannot_be_changed_from_outside():
    given_ids = np.array([1, 2])
    ids = IdMap(given_ids)
    given_ids[0] = 9
    assert ids.ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        ids.ids[0] = 5


def test_take_keeps_the_shape_and_an_empty_map_has_nothing_to_give():
    assert IdMap([4, 5]).take(np.array([[1, -1], [0, 0]])).tolist() == [[5, None], [4, 4]]
    assert IdMap([]).take(np.array([[-1, -1]])).tolist() == [[None, None]]
    assert IdMap([]).positions([1, "a"], missing="negative").tolist() == [-1, -1]
    assert IdMap([]).union(IdMap([1])).ids.tolist() == [1]


def log(**changes):
    parts = {"user": [0, 0, 1], "item": [2, 0, 0], "weight": [1, 2, 0.5], "time": [5, 4, 3]} | changes
    return Interactions(IdMap(["u", "v"]), IdMap(["a", "b", "c"]), **parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item": np.array([0, 1])}, r"item has shape \(2,\), wanted \(3,\)"),
        ({"user": np.array([0, 0, 2])}, r"user positions must lie in 0\.\.1"),
        ({"item": np.array([0, 0, -1])}, r"item positions must lie in 0\.\.2"),
        ({"user": np.array([0.0, 0.5, 1.0])}, "user must be an array of whole numbers, got an array of float64"),
        ({"weight": np.array([1, np.nan, 1])}, "must be finite"),
        ({"weight": np.array([1, 1e300, 1])}, "must be finite"),
        ({"weight": np.array(["1", "1", "1"])}, "weight must be an array of numbers, got an array of <U1"),
        ({"time": np.array([1, np.inf, 1])}, "must be finite"),
        ({"time": np.ones((3, 1))}, r"time has shape \(3, 1\)"),
        ({"kind": np.array([0, 1, 0]), "kinds": ("view",)}, r"kind positions must lie in 0\.\.0"),
    ],
)
def test_events_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        log(**changes)


def test_events_settle_their_types_and_leave_the_input_writable():
    user = np.array([0, 0, 1], np.int32)
    events = log(user=user)
    assert [a.dtype for a in (events.user, events.item, events.weight, events.time)] == [
        np.int64,
        np.int64,
        np.float32,
        np.float64,
    ]
    assert not any(a.flags.writeable for a in (events.user, events.item, events.weight, events.time))
    weight = np.ones(3, np.float32)
    events = log(weight=weight)
    assert weight.flags.writeable
    assert np.shares_memory(weight, events.weight)


def test_matrix_sums_the_weights_of_a_pair():
    events = log(item=np.array([2, 2, 0]))
    assert events.matrix().toarray().tolist() == [[0, 0, 3], [0.5, 0, 0]]
    assert events.select(np.zeros(0, int)).matrix().toarray().tolist() == [[0, 0, 0], [0, 0, 0]]


def test_order_is_by_user_then_time_and_ties_keep_the_log():
    events = log(user=np.array([1, 0, 0]), time=np.array([1.0, 2.0, 2.0]))
    assert events.order.tolist() == [1, 2, 0]
    assert log(user=np.array([1, 0, 1]), time=None).order.tolist() == [1, 0, 2]


def test_with_items_moves_positions_and_names_what_is_lost():
    moved = log().with_items(IdMap(["z", "c", "a"]))
    assert moved.items.take(moved.item).tolist() == ["c", "a", "a"]
    with pytest.raises(UnknownIdError, match="'a'"):
        log().with_items(IdMap(["c"]))


def test_from_frame_takes_named_columns():
    frame = pd.DataFrame(
        {"who": ["x", "y", "x"], "what": [7, 7, 8], "much": [1, 2, 3], "t": [3, 2, 1]}, index=[5, 5, 5]
    )
    before = frame.copy()
    events = Interactions.from_frame(frame, user="who", item="what", weight="much", time="t")
    assert events.users.ids.tolist() == ["x", "y"]
    assert events.matrix().toarray().tolist() == [[1, 3], [2, 0]]
    assert events.time.tolist() == [3, 2, 1]
    pd.testing.assert_frame_equal(frame, before)


def test_from_frame_takes_categories_and_names_what_it_lacks():
    frame = pd.DataFrame(
        {"user": pd.Categorical(["y", "x"]), "item": pd.Categorical(["b", "b"], categories=["a", "b"])}
    )
    events = Interactions.from_frame(frame)
    assert (events.users.ids.tolist(), events.items.ids.tolist()) == (["y", "x"], ["b"])
    with pytest.raises(InputError, match=r"no column 'when'; the frame has \['user', 'item'\]"):
        Interactions.from_frame(frame, time="when")
    with pytest.raises(UnknownIdError, match="'b'"):
        Interactions.from_frame(frame, items=IdMap(["a"]))


@pytest.mark.parametrize(
    ("labels", "users", "user", "item"),
    [
        (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1], [0, 1, 2]),
        (["dog", None, float("nan")], ["dog"], [0], [0]),
        ([2, 10, 2], [2, 10], [0, 1, 0], [0, 1, 2]),
        ([True, False, None], [False, True], [1, 0], [0, 1]),
        (["b", 1, "b"], ["b", 1], [0, 1, 0], [0, 1, 2]),
        ([None, None, None], [], [], []),
        (pd.Categorical(["b", "a", "b"]), ["a", "b"], [1, 0, 1], [0, 1, 2]),
    ],
)
def test_a_label_is_the_user_who_holds_the_item(labels, users, user, item):
    events = Interactions.from_labels(labels, IdMap(["i", "j", "k"]))
    assert events.users.ids.tolist() == users
    assert events.user.tolist() == user
    assert events.item.tolist() == item


def test_labels_must_fit_the_items():
    with pytest.raises(InputError, match="1 labels for 2 items; give one per item"):
        Interactions.from_labels(["dog"], IdMap(["i", "j"]))
    with pytest.raises(InputError, match=r"\['dog'\] cannot be an id"):
        Interactions.from_labels([["dog"], None], IdMap(["i", "j"]))


def test_items_check_their_columns():
    columns = pd.DataFrame({"title": ["a", None], "price": [1.0, 2.0]}, index=[4, 9])
    items = Items(IdMap([1, 2]), columns, {"title": "text"})
    assert items.of_kind("text") == ["title"]
    assert items.columns.index.tolist() == [0, 1]
    columns.loc[4, "price"] = 99.0
    assert items.columns["price"].tolist() == [1.0, 2.0]
    last = items.take(np.array([1]))
    assert (last.ids.ids.tolist(), last.columns["price"].tolist()) == ([2], [2.0])
    with pytest.raises(InputError, match="1 ids but 2 rows"):
        Items(IdMap([1]), columns)
    with pytest.raises(InputError, match=r"kinds names unknown columns \['name'\]"):
        Items(IdMap([1, 2]), columns, {"name": "text"})
    with pytest.raises(InputError, match="these occur twice: 'title'"):
        Items(IdMap([1, 2]), columns.set_axis(["title", "title"], axis=1))


def vectors(n=3, dim=2):
    return np.arange(1, n * dim + 1, dtype=np.float32).reshape(n, dim)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": vectors(2)}, r"shape \(2, 2\), wanted \(3, dim\)"),
        ({"vectors": np.ones(3)}, r"shape \(3,\), wanted \(3, dim\)"),
        ({"vectors": vectors() * np.nan}, "these items have NaN or infinity: 'a', 'b', 'c'"),
        ({"vectors": np.full((3, 2), 1e300)}, "NaN or infinity"),
        ({"vectors": np.full((3, 2), "x")}, "vectors must be an array of numbers, got an array of <U1"),
        ({"present": np.array([True])}, r"present has shape \(1,\), wanted \(3,\)"),
        ({"blocks": (("text", 1),)}, "do not add up to dim 2"),
    ],
)
def test_embeddings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Embeddings(**({"ids": IdMap(["a", "b", "c"]), "vectors": vectors()} | changes))


def test_embeddings_are_read_only_and_share_the_callers_memory():
    given_vectors = vectors()
    items = Embeddings(IdMap(["a", "b", "c"]), given_vectors)
    assert np.shares_memory(items.vectors, given_vectors)
    assert given_vectors.flags.writeable
    assert not items.vectors.flags.writeable
    assert (items.dim, items.blocks) == (2, (("content", 2),))
    assert Embeddings(IdMap(["a"]), [[1, 2]]).vectors.dtype == np.float32


def test_items_without_content_are_zero_whatever_came():
    given_vectors = vectors()
    items = Embeddings(IdMap(["a", "b", "c"]), given_vectors, present=np.array([True, False, True]))
    assert items.vectors.tolist() == [[1, 2], [0, 0], [5, 6]]
    assert given_vectors[1].tolist() == [3, 4]


def test_align_marks_items_without_a_vector_as_not_present():
    items = Embeddings(IdMap(["a", "b", "c"]), vectors(), "model@1", np.array([True, False, True]))
    moved = items.align(IdMap(["c", "x", "b", "a"]))
    assert moved.vectors.tolist() == [[5, 6], [0, 0], [0, 0], [1, 2]]
    assert moved.has_content.tolist() == [True, False, False, True]
    assert moved.source == "model@1"
    nothing = Embeddings(IdMap([]), np.zeros((0, 2))).align(IdMap(["x"]))
    assert (nothing.vectors.tolist(), nothing.has_content.tolist()) == ([[0, 0]], [False])


def lists(**changes):
    parts = {
        "users": np.array(["u", "v"], dtype=object),
        "catalogue": IdMap([10, 20, 30]),
        "positions": np.array([[2, 0], [1, -1]]),
        "scores": np.array([[0.5, 0.25], [1.0, -np.inf]], np.float32),
    }
    return Recommendations(**(parts | changes))


def test_a_frame_of_recommendations_leaves_the_padding_out():
    assert lists().to_frame("shopper", "product").to_dict("list") == {
        "shopper": ["u", "u", "v"],
        "product": [30, 10, 20],
        "rank": [1, 2, 1],
        "score": [0.5, 0.25, 1.0],
    }
    assert lists().items.tolist() == [[30, 10], [20, None]]
    assert len(lists()) == 2


def test_a_frame_of_recommendations_tells_reasons():
    reason = np.full((2, 2), None, dtype=object)
    reason[:] = Reason((("a", 0.7),), {"text": 1.0})
    reason[1, 0] = Reason((), {"popularity": 1.0})
    text = lists(reason=reason).to_frame()["reason"].tolist()
    assert text == ["because of a (70%) [text 100%]"] * 2 + ["[popularity 100%]"]


def test_empty_recommendations_make_an_empty_frame():
    none = lists(catalogue=IdMap([]), positions=np.full((2, 2), -1), scores=np.full((2, 2), -np.inf, np.float32))
    assert none.to_frame().columns.tolist() == ["user", "item", "rank", "score"]
    assert len(none.to_frame()) == 0


def test_recommendations_are_read_only_and_of_one_shape():
    assert not any(a.flags.writeable for a in (lists().users, lists().positions, lists().scores))
    with pytest.raises(InputError, match=r"scores has shape \(2, 1\), wanted \(2, 2\)"):
        lists(scores=np.zeros((2, 1), np.float32))
    with pytest.raises(InputError, match=r"positions has shape \(1, 2\), wanted \(2, 2\)"):
        lists(positions=np.zeros((1, 2), int))

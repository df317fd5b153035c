import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders.features import attribute_transformer, behaviour_counts, event_counts
from recotransfer.errors import InputError

DAY = 86400.0
FRAME = pd.DataFrame(
    {
        "price": [1.0, None, 3.0, 1000.0, 2.0, 2.0],
        "size": ["1", "2", "x", "4", None, "3"],
        "brand": ["A", "A", None, "B", "A", "C"],
        "genres": ["Drama|War", "War", None, "War", "Drama | Comedy", "War"],
        "in_stock": [True, False, True, True, False, True],
        "title": ["t"] * 6,
    }
)
KINDS = {"price": "number", "size": "number", "brand": "category", "genres": "category", "title": "text"}
ITEMS = Items(IdMap(range(6)), FRAME, KINDS)


def log_of(user, item, time, kind=None, kinds=()) -> Interactions:
    n = len(user)
    return Interactions(
        IdMap(range(5)),
        IdMap(range(5)),
        np.array(user, np.int64),
        np.array(item, np.int64),
        np.ones(n, np.float32),
        None if time is None else np.array(time, np.float64),
        None if kind is None else np.array(kind, np.int16),
        kinds,
    )


def test_attributes_become_the_expected_table():
    transformer = attribute_transformer(ITEMS)
    got = pd.DataFrame(transformer.fit_transform(FRAME), columns=transformer.get_feature_names_out())
    assert list(got) == [
        "size", "missingindicator_size", "price", "missingindicator_price", "brand_A", "brand_infrequent_sklearn",
        "genres_(missing)", "genres_Comedy", "genres_Drama", "genres_War",
    ]  # fmt: skip
    log_price = np.log1p([1, 2, 3, 1000, 2, 2])
    np.testing.assert_allclose(got["price"], (log_price - log_price.mean()) / log_price.std())
    size = np.array([1, 2, 2.5, 4, 2.5, 3])
    np.testing.assert_allclose(got["size"], (size - size.mean()) / size.std())
    assert (got["missingindicator_size"] > 0).tolist() == [False, False, True, False, True, False]
    assert got["brand_A"].tolist() == [1, 1, 0, 0, 1, 0]
    assert got["brand_infrequent_sklearn"].tolist() == [0, 0, 1, 1, 0, 1]
    assert got["genres_Drama"].tolist() == [1, 0, 0, 0, 1, 0]
    assert got["genres_War"].tolist() == [1, 1, 0, 1, 0, 1]


def test_new_items_with_gaps_and_unseen_values_get_finite_features():
    transformer = attribute_transformer(ITEMS, ["price", "size", "brand", "genres", "in_stock"]).fit(FRAME)
    new = pd.DataFrame(
        {
            "price": [None, -5.0],
            "size": [np.inf, 2],
            "brand": ["?", None],
            "genres": ["Opera", None],
            "in_stock": [True] * 2,
        }
    )
    got = transformer.transform(new)
    assert got.shape == (2, 11)
    assert np.isfinite(got.astype(np.float32)).all()


def test_a_column_without_any_value_is_harmless():
    frame = pd.DataFrame({"price": [None, None], "brand": [None, None]})
    items = Items(IdMap([1, 2]), frame, {"price": "number", "brand": "category"})
    assert np.isfinite(attribute_transformer(items).fit_transform(frame)).all()


def test_categories_are_capped():
    frame = pd.DataFrame({"brand": [f"b{i // 2}" for i in range(100)]})
    items = Items(IdMap(range(100)), frame, {"brand": "category"})
    assert attribute_transformer(items, max_categories=10).fit_transform(frame).shape == (100, 10)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["nix"], ["no column 'nix'", "price"]),
        (["title"], ["'title' is text", "set its kind"]),
        ([], ["no number or category column", "encode their text"]),
    ],
)
def test_columns_of_no_use_are_named(columns, words):
    with pytest.raises(InputError) as caught:
        attribute_transformer(ITEMS, columns)
    assert all(word in str(caught.value) for word in words)


def test_counts_by_kind_and_window_for_users_and_items():
    log = log_of([0, 0, 1, 0, 0], [2, 2, 2, 3, 2], [0, DAY, DAY, 8 * DAY, 40 * DAY], [0, 1, 0, 0, 0], ("view", "buy"))
    got = behaviour_counts(log, "user")
    expected = {
        "user_view_7d": [0, 1, 0, 0, 0],
        "user_view_30d": [0, 1, 0, 1, 0],
        "user_view_all": [0, 1, 0, 1, 2],
        "user_buy_7d": [0, 0, 0, 1, 0],
        "user_buy_30d": [0, 0, 0, 1, 0],
        "user_buy_all": [0, 0, 0, 1, 1],
    }
    assert got.to_dict("list") == expected
    assert behaviour_counts(log, "item", windows=(None,)).to_dict("list") == {
        "item_view_all": [0, 1, 1, 0, 2],
        "item_buy_all": [0, 0, 0, 0, 1],
    }
    assert list(event_counts(log, windows=(7,))) == ["user_view_7d", "user_buy_7d", "item_view_7d", "item_buy_7d"]


def test_asked_moments_and_unknown_ids():
    log = log_of([0, 0, 1], [2, 2, 2], [0, DAY, DAY])
    got = behaviour_counts(log, "user", ids=[1, 0, 99], at=[2 * DAY, DAY, DAY], windows=(None,))
    assert got["user_event_all"].tolist() == [1, 1, 0]
    assert behaviour_counts(log, "item", at=2 * DAY, windows=(None,))["item_event_all"].tolist() == [0, 0, 3, 0, 0]


EVENT = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 12), st.integers(0, 1))


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(EVENT, max_size=25), asked=st.lists(st.tuples(st.integers(-1, 5), st.integers(-2, 15)), max_size=8)
)
def test_counts_equal_a_naive_count_of_the_strict_past(events, asked):
    user, item, time, kind = (list(c) for c in zip(*events, strict=True)) if events else ([], [], [], [])
    log = log_of(user, item, np.array(time) * DAY, kind, ("view", "buy"))
    moments = [(u, t) for u, _, t, _ in events]
    for rows, options in (
        (moments, {}),
        (asked, {"ids": np.array([i for i, _ in asked], int), "at": [t * DAY for _, t in asked]}),
    ):
        got = behaviour_counts(log, "user", windows=(3, None), **options)
        for name, position in (("view", 0), ("buy", 1)):
            for label, window in (("3d", 3), ("all", np.inf)):
                naive = [
                    sum(u == i and k == position and t - window <= s < t for u, _, s, k in events) for i, t in rows
                ]
                assert got[f"user_{name}_{label}"].tolist() == naive


@settings(max_examples=60, deadline=None)
@given(events=st.lists(EVENT, min_size=1, max_size=25), cut=st.integers(0, 12))
def test_what_happens_later_never_changes_what_was_counted(events, cut):
    user, item, time, kind = (np.array(c) for c in zip(*events, strict=True))
    log = log_of(user, item, time * DAY, kind, ("view", "buy"))
    past = time < cut
    now, then = event_counts(log), event_counts(log.select(past))
    pd.testing.assert_frame_equal(now[past].reset_index(drop=True), then)


@pytest.mark.parametrize(
    ("time", "options", "words"),
    [
        (None, {}, ["no times"]),
        ([1.0], {"ids": [0]}, ["ids without at"]),
        ([1.0], {"at": [1.0, 2.0]}, ["no ids"]),
        ([1.0], {"ids": [0], "at": [1.0, 2.0]}, ["1 ids", "(2,)"]),
        ([1.0], {"ids": [0], "at": [np.nan]}, ["moment 0 is NaN"]),
        ([1.0], {"windows": (0,)}, ["windows must be positive"]),
    ],
)
def test_wrong_questions_are_refused(time, options, words):
    log = log_of([0], [0], time)
    with pytest.raises(InputError) as caught:
        behaviour_counts(log, "user", **options)
    assert all(word in str(caught.value) for word in words)

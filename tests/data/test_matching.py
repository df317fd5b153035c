"""Ids of two sources in different types: one user stays one user, or a sentence names what is mixed."""

import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import IdMap, Interactions
from recotransfer.data.matching import match_ids, mixed_types
from recotransfer.errors import InputError

KEY = uuid.UUID(int=5)


@pytest.mark.parametrize(
    ("known", "given", "wanted"),
    [
        (["5", "7"], [5, 7.0, Decimal(6), np.int64(5), "8"], ["5", "7", "6", "5", "8"]),
        ([5, 7], ["5", "7.0", Decimal(7), 5.0, "6"], [5, 7, 7, 5, 6]),
        ([5, 7], ["005", "7"], ["005", 7]),
        (["005"], [5, "005"], ["5", "005"]),
        ([KEY], [str(KEY), str(KEY).upper()], [KEY, KEY]),
        ([str(KEY)], [KEY], [str(KEY)]),
        ([b"ab"], ["ab"], [b"ab"]),
        (["ab"], [b"ab"], ["ab"]),
        ([1.5, 2.5], ["1.5"], [1.5]),
        ([1, "1"], [1.0, "1", "2"], [1, "1", "2"]),
        ([(1, 2)], [(1, 2)], [(1, 2)]),
        ([], ["a"], ["a"]),
    ],
    ids=str,
)
def test_ids_are_written_as_the_known_ones_where_that_loses_nothing(known, given, wanted):
    got = match_ids(given, IdMap(known)).ids.tolist()
    assert got == wanted
    assert [type(v) for v in got] == [type(v) for v in wanted]


def test_conversions_are_noted_and_what_cannot_be_converted_is_named():
    matched = match_ids(["1", "bob"], IdMap([1, 2]))
    assert "converted from str to the known ids' int" in matched.notes[0]
    assert matched.mixed == "ids are of mixed types: known ones are int such as 1, and 1 new ones are str such as 'bob'"
    assert match_ids(["a", "b"], IdMap(["a"])).notes == ()


@pytest.mark.parametrize(("known", "given"), [(["005", "x"], ["x", "5"]), ([5, 6], ["006", "5"]), (["5"], ["05"])])
def test_ids_that_differ_by_leading_zeros_only_are_noted(known, given):
    assert any("leading zeros" in note for note in match_ids(given, IdMap(known)).notes)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([1, "1"], ["mixed types", "int such as 1", "str such as '1'", "1 and '1' count as different ids"]),
        ([1, "x"], ["mixed types", "int such as 1", "str such as 'x'"]),
        (["5", "005"], ["'5' and '005'", "leading zeros"]),
        ([1, 2.5, Decimal(3)], []),
        (["a", "0b1"], []),
        ([1, 2], []),
    ],
    ids=str,
)
def test_a_column_that_mixes_types_is_named(ids, words):
    notes = " ".join(mixed_types(pd.Index(ids)))
    assert bool(notes) == bool(words)
    for word in words:
        assert word in notes


def test_events_move_to_the_ids_of_a_fitted_model():
    new = Interactions.from_frame(pd.DataFrame({"user": [5, 6, 5], "item": ["1", "2", "3"]}))
    same = new.with_ids_like(IdMap(["5", "9"]), IdMap([1, 2]))
    assert same.users.ids.tolist() == ["5", "6"]
    assert same.items.ids.tolist() == [1, 2, 3]
    assert (same.user.tolist(), same.item.tolist()) == ([0, 1, 0], [0, 1, 2])


def test_two_spellings_of_one_user_become_one():
    users = IdMap([5, "5"])
    new = Interactions(users, IdMap(["a"]), np.array([0, 1]), np.array([0, 0]), np.ones(2, np.float32))
    same = new.with_ids_like(IdMap(["5", "6"]), IdMap(["a"]))
    assert same.users.ids.tolist() == ["5"]
    assert same.user.tolist() == [0, 0]


def test_events_whose_ids_cannot_be_those_of_a_fitted_model_are_refused():
    new = Interactions.from_frame(pd.DataFrame({"user": ["bob"], "item": ["a"]}))
    with pytest.raises(InputError, match=r"user ids are of mixed types: known ones are int such as 1.*'bob'"):
        new.with_ids_like(IdMap([1]), IdMap(["a"]))


def test_a_frame_that_writes_one_user_in_two_types_is_refused():
    frame = pd.DataFrame({"user": pd.Series([5, "5"], dtype=object), "item": ["a", "a"]})
    with pytest.raises(InputError, match="column 'user' holds both 5 and '5'"):
        Interactions.from_frame(frame)
    assert Interactions.from_frame(frame, users=IdMap([5])).user.tolist() == [0, 0]

"""The checks that every room uses: what passes, what is refused, and each limit from both sides."""

import numpy as np
import pytest

from hae_lab.checks import (
    MOST_SEED,
    HAELabError,
    is_number,
    is_whole,
    plain,
    require,
    require_flag,
    require_name,
    require_number,
    require_seed,
    require_whole,
)

INFINITE = float("inf")


def message(call, *args, **options) -> str:
    with pytest.raises(HAELabError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_require_raises_its_message_when_the_condition_fails():
    assert require(True, "never") is None
    assert message(require, False, "two is not three") == "two is not three"


# names


def test_a_known_name_passes_and_the_list_may_be_used_up():
    assert require_name("rule", "b", iter("abc")) is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Documnet", "did you mean 'document'? "), ("DENSE", "did you mean 'dense'? "), ("xyz", ""), (None, "")],
)
def test_an_unknown_name_is_told_the_nearest_and_all(name, hint):
    told = message(require_name, "rule", name, ["document", "dense"])
    assert told == f"unknown rule {name!r}: {hint}known are document, dense"


# kinds of numbers


@pytest.mark.parametrize("value", [0, -3, 10**30, np.int64(4), np.uint8(4), np.array(4)])
def test_whole_numbers_are_whole_and_finite(value):
    assert is_whole(value)
    assert is_number(value)


@pytest.mark.parametrize("value", [0.0, -2.5, np.float32(1), np.array(0.5)])
def test_real_numbers_are_numbers_and_not_whole(value):
    assert is_number(value)
    assert not is_whole(value)


@pytest.mark.parametrize("value", [np.array([1, 2]), "3", b"3", None, INFINITE, -INFINITE, float("nan"), 2j, [1]])
def test_words_lists_and_the_infinite_are_neither(value):
    assert not is_whole(value)
    assert not is_number(value)


@pytest.mark.parametrize("value", [True, False, np.True_, np.array(False)])
def test_truth_values_are_not_whole(value):
    assert not is_whole(value)


def test_a_whole_number_beyond_the_floats_is_no_finite_number():
    assert is_whole(10**400)
    assert not is_number(10**400)


# whole numbers


@pytest.mark.parametrize("value", [2, 3, 5, np.int64(3), np.array(2)])
def test_whole_numbers_between_both_limits_come_back_as_int(value):
    got = require_whole("n", value, 2, 5)
    assert (type(got), got) == (int, int(value))


@pytest.mark.parametrize(
    ("value", "high", "limit"), [(1, 5, "from 2 to 5"), (6, 5, "from 2 to 5"), (1, None, "from 2")]
)
def test_whole_numbers_beyond_a_limit_are_refused(value, high, limit):
    assert message(require_whole, "n", value, 2, high) == f"n is a whole number {limit}, got {value}"


def test_limits_are_written_with_commas():
    assert message(require_whole, "n", 0, 1000, 20000) == "n is a whole number from 1,000 to 20,000, got 0"


def test_the_most_that_can_be_borne_is_told_only_to_what_makes_sense():
    assert require_whole("n", 4000, 0, most=4000) == 4000
    assert message(require_whole, "n", 4001, 0, most=4000) == "n is at most 4,000, got 4001"
    assert message(require_whole, "n", -1, 0, most=4000) == "n is a whole number from 0, got -1"
    assert message(require_whole, "n", "9", 0, most=4) == "n is a whole number from 0, got '9'"


def test_seeds_are_what_sqlite_holds():
    assert MOST_SEED == 9223372036854775807
    assert require_seed("seed", 0) == 0
    assert require_seed("seed", MOST_SEED) == MOST_SEED
    assert message(require_seed, "seed", MOST_SEED + 1).startswith("seed is at most 9,223,372,036,854,775,807, got")
    assert message(require_seed, "seed", -1) == "seed is a whole number from 0, got -1"


# truth values and real numbers


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_flags_come_back_as_bool(value):
    assert require_flag("on", value) is bool(value)


@pytest.mark.parametrize("value", [0, 1, "True", None])
def test_what_is_no_flag_is_refused(value):
    assert message(require_flag, "on", value) == f"on is True or False, got {value!r}"


@pytest.mark.parametrize(("value", "kind"), [(1, int), (1.5, float), (np.float32(1.5), float), (np.int64(2), int)])
def test_numbers_come_back_as_pythons(value, kind):
    got = require_number("x", value, 1, 2)
    assert (type(got), got) == (kind, value)


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "words"),
    [
        ({}, [-1e300, 0, 1e300], [INFINITE, float("nan"), "1"], "a finite number"),
        ({"low": 2}, [2, 2.1], [1.9], "a number from 2 on"),
        ({"low": 2, "low_open": True}, [2.1], [2, 1.9], "a number above 2"),
        ({"high": 2}, [2, -5], [2.1], "a number up to 2"),
        ({"high": 2, "high_open": True}, [1.9], [2, 2.1], "a number below 2"),
        ({"low": 0, "high": 1}, [0, 0.5, 1], [-0.1, 1.1], "in [0, 1]"),
        ({"low": 0, "high": 1, "low_open": True}, [0.5, 1], [0, 1.1], "in (0, 1]"),
        ({"low": 0, "high": 1, "high_open": True}, [0, 0.5], [-0.1, 1], "in [0, 1)"),
        ({"low": 0, "high": 1, "low_open": True, "high_open": True}, [0.5], [0, 1], "in (0, 1)"),
    ],
)
def test_intervals_hold_their_ends_and_are_named(limits, inside, outside, words):
    for value in inside:
        assert require_number("x", value, **limits) == value
    for value in outside:
        assert message(require_number, "x", value, **limits) == f"x is {words}, got {value!r}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.float64(1.5), 1.5), (np.array(3), 3), (np.array([7]), 7), (2, 2), ("a", "a"), (None, None)],
)
def test_one_number_of_an_array_is_pythons(value, expected):
    got = plain(value)
    assert got == expected
    assert type(got) is type(expected)


def test_an_array_of_more_than_one_stays_an_array():
    values = np.array([1, 2])
    assert plain(values) is values

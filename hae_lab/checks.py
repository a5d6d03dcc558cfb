"""The one exception of the toolkit, and the checks that raise it."""

from collections.abc import Iterable
from difflib import get_close_matches
from math import isfinite
from operator import index
from typing import Any

MOST_SEED = 2**63 - 1  # the largest whole number of SQLite, which keeps the seeds of runs


class HAELabError(ValueError):
    """What is wrong, the value, and what would be right, in one message."""


def require(condition: bool, message: str) -> None:
    """Raise `HAELabError(message)` unless the condition holds."""
    if not condition:
        raise HAELabError(message)


def require_name(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise `HAELabError` unless `name` is one of `known`; the message offers the nearest name."""
    known = list(known)
    if name in known:
        return
    spelled = {str(option).lower(): option for option in known}
    near = get_close_matches(str(name).lower(), spelled, n=1)
    hint = f"did you mean {spelled[near[0]]!r}? " if near else ""
    raise HAELabError(f"unknown {kind} {name!r}: {hint}known are {', '.join(map(str, known))}")


def _is_truth(value: Any) -> bool:
    """Whether a value is Python's or numpy's True or False; numpy 1 calls its own bool_."""
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number: Python's, numpy's or a 0-d array's; truth values are none."""
    if _is_truth(value):
        return False
    try:
        index(value)
    except TypeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number: Python's, numpy's or a 0-d array's; truth values are none."""
    if isinstance(value, str | bytes) or _is_truth(value) or not hasattr(value, "__float__"):
        return False
    try:
        return isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def require_whole(name: str, value: Any, low: int, high: int | None = None, *, most: int | None = None) -> int:
    """The value as an int. Raises `HAELabError` unless it is a whole number from `low` to `high`, both included.

    `most` is the largest that a computer could bear; a value below it that makes no sense is not told of it.
    """
    limit = f"from {low:,}" + ("" if high is None else f" to {high:,}")
    fits = is_whole(value) and index(value) >= low and (high is None or index(value) <= high)
    require(fits, f"{name} is a whole number {limit}, got {value!r}")
    if most is not None:
        require(index(value) <= most, f"{name} is at most {most:,}, got {value!r}")
    return index(value)


def require_seed(name: str, value: Any) -> int:
    """The value as an int. Raises `HAELabError` unless it is a whole number that a store of runs can hold."""
    return require_whole(name, value, 0, most=MOST_SEED)


def plain(value: Any) -> Any:
    """One number of numpy or torch, or a 0-d array, as Python's; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value


def require_flag(name: str, value: Any) -> bool:
    """The value as a bool. Raises `HAELabError` unless it is a truth value, Python's or numpy's."""
    require(_is_truth(value), f"{name} is True or False, got {value!r}")
    return bool(value)


def require_number(
    name: str,
    value: Any,
    low: float = float("-inf"),
    high: float = float("inf"),
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """The value as it is, numpy's as Python's. Raises `HAELabError` unless it is a finite number in the interval."""
    fits = is_number(value) and low <= float(value) <= high
    fits = fits and not (low_open and float(value) == low) and not (high_open and float(value) == high)
    require(fits, f"{name} is {_interval(low, high, low_open, high_open)}, got {value!r}")
    return index(value) if is_whole(value) else float(value)


def _interval(low: float, high: float, low_open: bool, high_open: bool) -> str:
    if low == float("-inf") and high == float("inf"):
        return "a finite number"
    if high == float("inf"):
        return f"a number above {low:g}" if low_open else f"a number from {low:g} on"
    if low == float("-inf"):
        return f"a number below {high:g}" if high_open else f"a number up to {high:g}"
    return f"in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"

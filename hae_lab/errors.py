"""The one exception of the toolkit, and the checks that raise it."""

from collections.abc import Iterable
from difflib import get_close_matches


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

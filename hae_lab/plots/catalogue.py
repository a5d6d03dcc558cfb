"""The language of the figures: one catalogue of what their titles and labels say, and the font that can draw it.

English stands where it is written; `zh.toml` beside this file has the Chinese for it, template by template. What has no
entry there stays English.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from hae_lab.checks import HAELabError, require_name

LANGUAGES = ("en", "zh")
FONTS = (  # families of the system that have simplified Chinese, the first that is there is taken
    "Noto Sans SC", "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC",
    "Microsoft YaHei", "SimHei",
)  # fmt: skip
WHEEL = ("zhplot", "fonts/NotoSansSC-Regular.ttf")  # of the extra [zh]: a module that is never imported, its font
SPACES = re.compile(r"(?<=[，；：、（）]) | (?=[，；：、（）])")  # these letters bring their own
NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LANGUAGE: ContextVar[str] = ContextVar("language", default="en")


@contextmanager
def language(name: str) -> Iterator[None]:
    """Draw the figures made inside the `with` in "en" or "zh".

    Raises `HAELabError` for another language; drawing raises it if no font for the language is found.
    """
    require_name("language", name, LANGUAGES)
    token = _LANGUAGE.set(name)
    try:
        yield
    finally:
        _LANGUAGE.reset(token)


def current_language() -> str:
    """The language in which figures are drawn now."""
    return _LANGUAGE.get()


def say(english: str, **values: Any) -> str:
    """A text in the language of now, its `{names}` filled in; English where the catalogue has nothing for it.

    A text from a table comes with its numbers in it; the catalogue has {0}, {1} for them: "{0} heads" for "8 heads".
    """
    known = {} if current_language() == "en" else entries(current_language())
    if values or english in known:
        template = known.get(english, english)
        text = template.format(**values) if values else template
        return SPACES.sub("", text) if known else text
    template = known.get(_without_numbers(english), "")
    return template.format(*NUMBER.findall(english)) or english


def _without_numbers(text: str) -> str:
    places = count()
    return NUMBER.sub(lambda _: f"{{{next(places)}}}", text)


def listed(names: Sequence[str]) -> str:
    """ "a, b and c", in English."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def say_list(names: Sequence[str]) -> str:
    """The same in the language of now, for a text that `say` has."""
    return listed(names) if current_language() == "en" else "、".join(names)


def commas(names: Iterable[str]) -> str:
    """ "a, b, c", in the language of now."""
    return (", " if current_language() == "en" else "、").join(names)


@cache
def entries(name: str) -> dict[str, str]:
    """What the catalogue of a language has: English template -> its own."""
    return tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))


def fonts() -> list[str]:
    """The families that the language of now is drawn with, after matplotlib's own."""
    return [] if current_language() == "en" else [chinese_font()]


@cache
def chinese_font() -> str:
    """The family of a font with simplified Chinese, of the extra [zh] or of the system.

    Raises `HAELabError` where there is none, with the ways to get one.
    """
    from matplotlib import font_manager

    module, file = WHEEL
    spec = find_spec(module)
    path = Path(spec.origin or "").parent / file if spec else None
    if path is not None and path.is_file():
        font_manager.fontManager.addfont(path)
        entry = font_manager.fontManager.ttflist[-1]
        font_manager.fontManager.ttflist.append(
            replace(entry, weight="bold")
        )  # titles are bold, the wheel has one file
        return entry.name
    there = {font.name for font in font_manager.fontManager.ttflist}
    for family in FONTS:
        if family in there:
            return family
    raise HAELabError(
        f"no font with Chinese, such as {FONTS[0]}, is installed: python -m pip install -e '.[zh]' brings one, "
        "the package fonts-noto-cjk of Debian and Ubuntu too"
    )

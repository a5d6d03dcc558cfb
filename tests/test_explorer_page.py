"""The explorer without a kernel: the masks in the page are Python's, and what the page computes of them is too."""

import base64
import re
import zlib

import numpy as np
import pytest
from browser import chromium_page, keep_picture

from hae_lab import HAELabError
from hae_lab.explorer import MaskExplorerModel
from hae_lab.explorer.page import SIDES, page_data, page_html
from hae_lab.explorer.widgets import caption, grids, numbers_html
from hae_lab.plots import masks as pictures
from hae_lab.rules import RULES

LARGEST = 200_000  # letters: a page that a slow line loads at once
QUERIES = {16: (0, 5 * 16 + 7, 255, 260, 274), 32: (5 * 32 + 7, 31 * 32 + 31, 1024 + 9, 1103)}  # pixels and regions


@pytest.fixture(scope="module")
def data() -> dict:
    return page_data()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("side", SIDES)
def test_the_bits_are_the_mask(data, side, rule):
    model = MaskExplorerModel(rule=rule, side=side)
    found = data["maps"][str(side)]["rules"][rule]
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(found["bits"])), np.uint8))
    blocked = model.mask.blocked().reshape(found["groups"], model.grid.n, model.grid.n)
    assert (bits[: blocked.size].reshape(blocked.shape) == ~blocked).all()
    assert not bits[blocked.size :].any()


def test_the_page_is_small_and_asks_for_nothing():
    page = page_html()
    assert len(page) < LARGEST
    assert not re.search(r"https?:|\bimport\b|fetch\(|<link|src=", page)


def test_a_map_that_cannot_be_is_refused():
    with pytest.raises(HAELabError, match="a side of the map"):
        page_html([0])


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    """The page in a browser without a network; what it complained about is asserted at the end."""
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    path.write_text(f"<!doctype html><meta charset='utf-8'><title>explorer</title>{page_html()}", encoding="utf-8")
    with chromium_page(offline=True) as (page, watched):
        page.goto(path.as_uri())
        page.locator(".hae-numbers td").first.wait_for()
        yield page
        keep_picture(page, "explorer_page")
        assert watched.complaints == []
        assert watched.urls == [path.as_uri()]


def choose(page, rule: str, side: int) -> None:
    page.locator("select[name=rule]").select_option(rule)
    page.locator("select[name=map]").select_option(str(side))
    tokens = f"of {MaskExplorerModel(side=side).grid.n:,}"
    page.wait_for_function(
        "([rule, tokens]) => { const root = document.querySelector('.hae-explorer');"
        " return root.explorer.get('label').startsWith(`${rule}:`) && root.innerText.includes(tokens); }",
        arg=[rule, tokens],
    )


def look(page, name: str):
    """A trait of what the page draws."""
    value = f"document.querySelector('.hae-explorer').explorer.get({name!r})"
    return page.evaluate(f"Array.from({value})" if name == "colours" else value)


def numbers(page) -> dict[str, str]:
    cells = page.locator(".hae-numbers td").all_inner_texts()
    return dict(zip(cells[::2], cells[1::2], strict=True))


def numbers_of_python(model: MaskExplorerModel) -> dict[str, str]:
    rows = re.findall(r"<td[^>]*>(.*?)</td><td><b>(.*?)</b>", numbers_html(model.view()))
    return dict(rows)


@pytest.mark.browser
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("side", SIDES)
def test_the_page_shows_what_python_computes(explorer, side, rule):
    choose(explorer, rule, side)
    for query in QUERIES[side]:
        explorer.evaluate(f"document.querySelector('.hae-explorer').explorer.send({{pick: {query}}})")
        model = MaskExplorerModel(rule=rule, side=side, query=query)
        view = model.view()
        colours = pictures.token_colours(view)
        assert numbers(explorer) == numbers_of_python(model)
        assert look(explorer, "captions") == [caption(view, p) for p in colours]
        assert look(explorer, "grids") == [list(grid) for grid in grids(model)]
        assert bytes(look(explorer, "colours")) == b"".join(each.tobytes() for each in colours.values())
        key = "{grid}-{row}-{column}-{size}-{query}"
        of_python = sorted(key.format(**mark) for mark in pictures.query_marks(view))
        assert sorted(key.format(**mark) for mark in look(explorer, "marks")) == of_python


@pytest.mark.browser
def test_mouse_and_keys_choose_the_query_as_in_python(explorer):
    choose(explorer, "document", 16)
    model = MaskExplorerModel(rule="document", side=16, query=5 * 16 + 7)
    canvas = explorer.locator("canvas")
    cell = canvas.bounding_box()["width"] / 25  # about: the pixels have 16 cells beside a column of grids
    canvas.click(position={"x": 3 * cell, "y": 60})
    (mark,) = [mark for mark in look(explorer, "marks") if mark["query"]]
    assert mark["grid"] == 0
    model.pick(16 * mark["row"] + mark["column"])
    assert numbers(explorer) == numbers_of_python(model)
    for key in ("ArrowDown", "ArrowRight", "PageDown", "ArrowLeft", "PageDown", "PageDown", "ArrowUp", "PageUp"):
        explorer.keyboard.press(key)
        if key.startswith("Page"):
            model.switch_grid(1 if key == "PageDown" else -1)
        else:
            model.move(key.removeprefix("Arrow").lower())
        assert numbers(explorer) == numbers_of_python(model), key
    explorer.locator("select[name=map]").select_option("32")
    explorer.wait_for_function("document.querySelector('.hae-numbers').innerText.includes('of 1,104')")
    model.set(side=32)
    assert numbers(explorer) == numbers_of_python(model)

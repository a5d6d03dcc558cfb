"""The notebooks in a real JupyterLab in a real browser: they run, and the mask explorer answers to mouse and keys."""

import shutil
from pathlib import Path

import pytest
from browser import (
    PROJECT,
    chromium_page,
    jupyter_lab,
    keep_picture,
    open_notebook,
    output_kinds,
    run_all,
    when_changed,
)

from hae_lab.book import notebooks

pytestmark = [pytest.mark.slow, pytest.mark.browser]

START, MASKS = (PROJECT / "notebooks" / f"{name}.ipynb" for name in ("00_start_here", "07_sparse_masks"))
BAD_OUTPUTS = {"application/vnd.jupyter.error", "application/vnd.jupyter.stderr"}


def stage(path: Path, folder: Path) -> str:
    """Copy a notebook without its outputs, and what notebooks read, to a folder; return its path there."""
    for name in ("data", "figures"):
        shutil.copytree(PROJECT / name, folder / name)
    notebook = notebooks.read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebooks.write(notebook, folder / "notebooks" / path.name)
    return f"notebooks/{path.name}"


def slide(page, name: str, key: str, times: int = 1) -> None:
    """Move one of the explorer's sliders by the keyboard."""
    page.locator(".widget-hslider", has_text=name).first.locator(".noUi-handle").focus()
    for _ in range(times):
        page.keyboard.press(key)


class Explorer:
    """The first mask explorer of the open notebook, as a reader sees it."""

    def __init__(self, page) -> None:
        self.page = page
        self.canvas = page.locator("canvas.hae-grids").first
        self.canvas.wait_for()
        self.canvas.scroll_into_view_if_needed()

    def picture(self) -> bytes:
        return self.canvas.screenshot()

    def numbers(self) -> str:
        return self.page.locator(".hae-numbers").first.inner_text()

    def wait_for(self, text: str) -> None:
        self.page.locator(".hae-numbers", has_text=text).first.wait_for()


def check_explorer(page) -> None:
    """Slider, mouse and keyboard each change the picture and the numbers."""
    explorer = Explorer(page)
    before, numbers = explorer.picture(), explorer.numbers()
    slide(page, "sparsity", "ArrowLeft", 20)
    picture = when_changed(page, explorer.picture, before)
    when_changed(page, explorer.numbers, numbers)

    explorer.canvas.click(position={"x": 3, "y": 30})  # the caption is 26 pixels high
    explorer.wait_for("pixel (0, 0)")
    picture = when_changed(page, explorer.picture, picture)

    for key, place in [("ArrowDown", "pixel (1, 0)"), ("ArrowRight", "pixel (1, 1)"), ("PageDown", "token (0, 0)")]:
        page.keyboard.press(key)
        explorer.wait_for(place)
        picture = when_changed(page, explorer.picture, picture)

    page.locator(".widget-dropdown", has_text="rule").first.locator("select").select_option("window2d")
    when_changed(page, explorer.picture, picture)


def take_picture(page) -> None:
    """The explorer as the README shows it: the document's rule on a map of 32 x 32, a query in the middle."""
    page.keyboard.press("Control+b")  # the file browser makes room
    explorer = Explorer(page)
    page.locator(".widget-dropdown", has_text="rule").first.locator("select").select_option("document")
    slide(page, "sparsity", "ArrowRight", 20)
    slide(page, "map", "ArrowLeft")
    explorer.wait_for("of 1,104")
    numbers = explorer.numbers()
    box = explorer.canvas.bounding_box()
    explorer.canvas.click(position={"x": 0.37 * box["width"], "y": 0.42 * box["height"]})
    when_changed(page, explorer.numbers, numbers)
    explorer.canvas.evaluate("canvas => canvas.blur()")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    keep_picture(page.locator(".hae-explorer").first, "explorer")


def test_the_first_notebook_runs(tmp_path):
    path = stage(START, tmp_path / "project")
    with jupyter_lab(tmp_path / "project", tmp_path) as lab, chromium_page() as (page, watched):
        open_notebook(page, lab, path)
        run_all(page)
        kinds = output_kinds(page)
        keep_picture(page, START.stem)
    assert kinds
    assert BAD_OUTPUTS.isdisjoint(kinds)
    assert watched.hosts() == {lab.host}
    assert watched.complaints == []


def test_the_masks_can_be_touched(tmp_path):
    path = stage(MASKS, tmp_path / "project")
    with jupyter_lab(tmp_path / "project", tmp_path) as lab, chromium_page() as (page, watched):
        open_notebook(page, lab, path)
        run_all(page)
        kinds = output_kinds(page)
        check_explorer(page)
        keep_picture(page, MASKS.stem)
        take_picture(page)
    assert kinds
    assert BAD_OUTPUTS.isdisjoint(kinds)
    assert watched.hosts() == {lab.host}
    assert watched.complaints == []

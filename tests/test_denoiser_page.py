"""The page that draws: its steps are diffusers', its samples torch's, and it asks for nothing."""

import json
import re

import numpy as np
import pytest
import torch
from browser import chromium_page, keep_picture, missing

from hae_lab import HAELabError, build
from hae_lab.audit.lessons import RECIPE, lesson_model
from hae_lab.deploy import page as denoiser
from hae_lab.deploy import web_runtime
from hae_lab.deploy.page import CHAINS, COUNT, ddim_steps, write_page
from hae_lab.deploy.web_runtime import WebRuntime
from hae_lab.diffusion.sampling import denoise, starting_noise
from hae_lab.diffusion.training import Recipe

LARGEST = 12 * 2**20  # bytes: a mail takes that
DRAW = "async (noise) => [...await document.querySelector('.hae-denoiser').draw(new Float32Array(noise))]"
STAND_IN = WebRuntime(b"export const env = {};", b"no program")


class Linear(torch.nn.Module):
    """A model that says 0.3 x + 0.1 at any timestep."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config, self.place = config, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, timesteps, y=None):
        return 0.3 * x + 0.1


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("steps", CHAINS)
def test_the_steps_are_those_of_the_sampler(prediction, steps):
    recipe, model = Recipe(prediction=prediction), Linear(build("unet", "lesson16").config)
    images = starting_noise(2, (1, 16, 16), seed=1)
    sampled = list(denoise(model, images, recipe, steps=steps))
    rows = ddim_steps(recipe, steps)
    assert [row["timestep"] for row in rows] == [step.timestep for step in sampled]
    for row, step in zip(rows, sampled, strict=True):
        output = model(images, None)
        clean, images = (row[name][0] * images + row[name][1] * output for name in ("clean", "next"))
        torch.testing.assert_close(clean, step.clean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(images, step.images, rtol=1e-4, atol=1e-5)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A page without the cost of an export."""

    def export(model, path):
        path.write_bytes(b"model")
        return denoiser.Exported(path, 5, 0.0, 1.0)

    monkeypatch.setattr(denoiser, "export", export)
    return tmp_path / "page.html"


def test_the_page_has_what_it_needs_and_asks_for_nothing(stand_in):
    model = build("v2", "lesson16", num_classes=2)
    made = write_page(model, stand_in, "<V2>", Recipe(timesteps=100), ("healthy", "</script>"), STAND_IN)
    page = stand_in.read_text()
    assert made.path == stand_in
    assert made.file_bytes == len(page.encode())
    assert not re.search(r"https?:|fetch\(|<link|src=", page)
    assert "<h1>&lt;V2&gt;</h1>" in page
    data = json.loads(re.search(r"^const DATA = (.*);$", page, re.MULTILINE)[1])
    assert data["labels"] == ["healthy", "</script>"]
    assert data["shape"] == [1, 16, 16]
    assert list(data["chains"]) == ["5", "10", "25", "50", "100"]
    assert [len(chain) for chain in data["chains"].values()] == [5, 10, 25, 50, 100]
    assert page.count("</script>") == 4  # three packed files and the script


def test_wrong_pages_are_refused(stand_in):
    model = build("v2", "lesson16", num_classes=2)
    with pytest.raises(HAELabError, match=r"page files end in '\.html'"):
        write_page(model, stand_in.with_suffix(".htm"), "V2", runtime=STAND_IN)
    with pytest.raises(HAELabError, match="the model has 2 classes, got 1 labels"):
        write_page(model, stand_in, "V2", labels=("healthy",), runtime=STAND_IN)
    with pytest.raises(HAELabError, match="no chain of"):
        write_page(model, stand_in, "V2", Recipe(timesteps=7), runtime=STAND_IN)
    assert not stand_in.exists()


# where the runtime comes from


def test_files_of_another_version_are_refused(tmp_path):
    for name in web_runtime.SHA256:
        (tmp_path / name).write_bytes(b"older")
    with pytest.raises(HAELabError, match=r"is not the file of onnxruntime-web [\d.]+: delete it"):
        web_runtime.web_runtime(tmp_path)


def test_without_npm_the_way_by_hand_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(web_runtime.shutil, "which", lambda name: None)
    with pytest.raises(HAELabError, match=r"install Node\.js, .* or put ort\.wasm\.bundle\.min\.mjs and .* into"):
        web_runtime.web_runtime(tmp_path / "empty")


def test_what_npm_complains_about_is_told(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(web_runtime.shutil, "which", lambda name: str(npm))
    with pytest.raises(HAELabError, match=r"npm could not fetch onnxruntime-web [\d.]+ \(no network\): put"):
        web_runtime.web_runtime(tmp_path / "empty")


# in a browser


@pytest.fixture(scope="module")
def lesson_page(tmp_path_factory):
    try:
        runtime = web_runtime.web_runtime()
    except HAELabError as error:
        missing(f"onnxruntime-web ({error})")
    path = tmp_path_factory.mktemp("denoiser") / "denoiser.html"
    write_page(lesson_model("v2"), path, "HAE V2", RECIPE, ("healthy", "with a lesion"), runtime)
    return path


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_draws_the_sample_of_torch(lesson_page):
    assert lesson_page.stat().st_size < LARGEST
    model, noise = lesson_model("v2"), starting_noise(COUNT, (1, 32, 32), seed=3)
    with chromium_page(offline=True) as (page, watched):
        page.goto(lesson_page.as_uri())
        page.locator(".hae-denoiser[data-ready]").wait_for()
        for label, steps in ((1, 25), (-1, 25), (0, 5)):
            page.locator("select[name=label]").select_option(str(label))
            page.locator("select[name=steps]").select_option(str(steps))
            drawn = torch.tensor(page.evaluate(DRAW, noise.flatten().tolist())).view_as(noise)
            labels = torch.full((COUNT,), label)
            *_, right = denoise(model, noise, RECIPE, steps=steps, labels=labels)
            assert right.images.std() > 0.1
            assert (drawn - right.images).abs().max() < 1e-3
            assert f"step {steps} of {steps}" in page.locator(".hae-status").inner_text()
        assert np.ptp(pixels(page)) > 100
        keep_picture(page, "denoiser")
        before = pixels(page)
        page.locator("button[name=draw]").click()
        page.locator(".hae-status", has_text="step 5 of 5").wait_for()
        assert (pixels(page) != before).any()
    assert watched.hosts() == set()
    assert {url.split(":")[0] for url in watched.urls} <= {"file", "data", "blob"}
    assert watched.complaints == []


def pixels(page) -> np.ndarray:
    """What the canvas shows."""
    read = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    return np.array(page.locator("canvas").evaluate(read))

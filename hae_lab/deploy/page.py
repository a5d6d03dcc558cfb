"""A trained model in one page that draws from it, without a kernel, a server or a network: model and runtime inside."""

import base64
import gzip
import html
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hae_lab.checks import require, require_whole
from hae_lab.deploy.export import Exported, export
from hae_lab.deploy.web_runtime import VERSION, WebRuntime, web_runtime
from hae_lab.diffusion.sampling import STEPS, sampling_scheduler
from hae_lab.diffusion.training import Recipe
from hae_lab.files import atomic_path
from hae_lab.models import HAEUNet

CHAINS = (5, 10, STEPS, 50, 100)  # numbers of steps to choose from
COUNT = 4  # images drawn together
FOLDER = Path(__file__).parent
STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff; }
.hae-denoiser { max-width: 720px; }
.hae-denoiser canvas { width: 100%; image-rendering: pixelated; background: #fff; }
.hae-denoiser select, .hae-denoiser button { font: inherit; margin: 0 1.2em 0 0.4em; }
.hae-denoiser small { color: #595959; }
"""
NOTICE = f"Runs on ONNX Runtime Web {VERSION}, © Microsoft Corporation, MIT licence."


def write_page(
    model: HAEUNet,
    path: str | Path,
    title: str,
    recipe: Recipe | None = None,
    labels: Sequence[str] = (),
    runtime: WebRuntime | None = None,
) -> Exported:
    """Write a page of some MB that draws from a model by DDIM; `labels` name its classes, in their order.

    The model is exported and checked as by `export`, whose errors are raised; `runtime` is `web_runtime()` by default.
    Raises `HAELabError` also for a path that does not end in .html and for the wrong number of labels.
    """
    path = Path(path)
    require(path.suffix == ".html", f"page files end in '.html', got {str(path)!r}")
    classes = model.config.num_classes or 0
    labels = labels or [f"class {index}" for index in range(classes)]
    require(len(labels) == classes, f"the model has {classes} classes, got {len(labels)} labels")
    runtime = runtime or web_runtime()
    with TemporaryDirectory() as folder:
        exported = export(model, Path(folder, "model.onnx"))
        packed = {"hae-model": exported.path.read_bytes(), "hae-script": runtime.script, "hae-program": runtime.program}
        page = _document(title, page_data(model, recipe or Recipe(), labels), packed)
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return exported._replace(path=path, file_bytes=path.stat().st_size)


def page_data(model: HAEUNet, recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
    """What the script reads: shape (C, H, W), count, labels, and the steps of each chain."""
    config = model.config
    chains = [steps for steps in CHAINS if steps <= recipe.timesteps and recipe.timesteps % steps == 0]
    require(bool(chains), f"no chain of {CHAINS} steps divides the recipe's {recipe.timesteps} timesteps")
    return {
        "shape": [config.in_channels, config.image_size, config.image_size],
        "count": COUNT,
        "labels": list(labels),
        "chains": {steps: ddim_steps(recipe, steps) for steps in chains},
    }


def ddim_steps(recipe: Recipe, steps: int) -> list[dict[str, Any]]:
    """DDIM as numbers: after a step the images, and the clean images seen, are a images + b output.

    A row a step, in order: timestep, next (a, b), clean (a, b). Read off diffusers' sampler, which is linear in both.
    """
    require_whole("steps", steps, 1)
    scheduler = sampling_scheduler(recipe, "ddim", steps)
    one, rows = torch.tensor([1.0, 0.0]), []
    for timestep in scheduler.timesteps:
        step = scheduler.step(one.flip(0), timestep, one)  # the images alone, then the output alone
        rows.append({
            "timestep": int(timestep),
            "next": step.prev_sample.tolist(),
            "clean": step.pred_original_sample.tolist(),
        })  # fmt: skip
    return rows


def _document(title: str, data: dict[str, Any], packed: dict[str, bytes]) -> str:
    files = "\n".join(
        f'<script type="text/plain" id="{name}">{_packed(each)}</script>' for name, each in packed.items()
    )
    values = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    script = (FOLDER / "denoiser.js").read_text(encoding="utf-8")
    return (
        f"<!doctype html>\n<html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>\n"
        f"<style>\n{STYLE}</style>\n{_body(title, data)}\n{files}\n"
        f'<script type="module">\nconst DATA = {values};\n{script}</script>\n</html>\n'
    )


def _body(title: str, data: dict[str, Any]) -> str:
    labels = [("-1", "no label"), *((str(index), label) for index, label in enumerate(data["labels"]))]
    steps = [(str(each), str(each)) for each in data["chains"]]
    default = str(STEPS) if STEPS in data["chains"] else steps[-1][0]
    choices = _choice("steps", steps, default) + (_choice("label", labels, labels[-1][0]) if data["labels"] else "")
    return (
        f'<div class="hae-denoiser"><h1>{html.escape(title)}</h1>'
        f'<p>{choices}<button name="draw" disabled>Draw others</button></p><canvas></canvas>'
        "<p>Above: noise, from which the model takes away what it takes for noise, step by step. "
        "Below: the clean images that it sees in them at this step.</p>"
        f'<p class="hae-status" role="status">Unpacking the model …</p><p><small>{NOTICE}</small></p></div>'
    )


def _choice(name: str, options: Sequence[tuple[str, str]], chosen: str) -> str:
    lines = "".join(
        f'<option value="{value}"{" selected" * (value == chosen)}>{html.escape(text)}</option>'
        for value, text in options
    )
    return f'<label>{name}<select name="{name}" autocomplete="off">{lines}</select></label>'


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")

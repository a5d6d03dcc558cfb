"""The page of the site on which the lesson model of V2 draws."""

from pathlib import Path

from hae_lab.audit.lessons import RECIPE, checkpoint, lesson
from hae_lab.checks import HAELabError
from hae_lab.deploy.page import write_page
from hae_lab.models import load_checkpoint

VARIANT = "v2"
LABELS = ("healthy", "with a lesion")  # of the lesson models' data
TITLE = "HAE V2 draws"
PAGE = """\
# HAE V2 draws, here

The trained lesson model of notebook 05 runs in this page: heads of 32 × 32 pixels grow out of noise, and nobody has to
install anything. The frame is [one file](_static/denoiser.html), which works by itself; `hae-lab export --format page`
makes such a file of any model.

````{raw} html
<iframe src="_static/denoiser.html" title="HAE V2 draws" style="width: 100%; height: 760px; border: 0"></iframe>
````
"""
MISSING = """\
# HAE V2 draws, elsewhere

On this page the trained lesson model of notebook 05 would draw heads out of noise. It was built without that: {}.
"""


def model_file(project: Path) -> Path:
    """Where a project's lesson model of V2 lies, if it has one."""
    return checkpoint(project / "data" / "checkpoints", VARIANT)


def stage(project: Path, source: Path) -> str | None:
    """Write `denoiser.md`, and beside it the page that draws; without what that needs, `denoiser.md` and we say why."""
    try:
        model = load_checkpoint(model_file(project), lesson(VARIANT).config)
        write_page(model, source / "_static" / "denoiser.html", TITLE, RECIPE, LABELS)
    except HAELabError as error:
        (source / "denoiser.md").write_text(MISSING.format(error), encoding="utf-8")
        return f"no model draws on the site: {error}"
    (source / "denoiser.md").write_text(PAGE, encoding="utf-8")
    return None

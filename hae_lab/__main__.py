"""The command line, `hae-lab` or `python -m hae_lab`: it parses, calls and prints. Commands import torch, not this."""

import argparse
import io
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from hae_lab.checks import HAELabError, require
from hae_lab.files import atomic_path, held, require_file, require_folder
from hae_lab.parts import load_module
from hae_lab.presets import PRESETS, VARIANTS, config, variant_title

SAME_RUN = 1e-3  # relative difference of a metric that two computers may make of one run
EXPORTED = {"onnx": ".onnx", "int8": "-int8.onnx", "pt2": ".pt2", "page": ".html"}  # formats, and how files end
FEW = 6  # files that are told by name
WRITE_A_FILE = ("profile", "report", "sample", "export")  # the others write into the folder --out
Commands = argparse._SubParsersAction  # what `add_subparsers` returns; argparse has no public name for it


def parser() -> argparse.ArgumentParser:
    """The whole command line; each command adds itself."""
    top = argparse.ArgumentParser(prog="hae-lab", description="The HAE family of diffusion U-Nets, audited.")
    top.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module or file.py first: it may register variants, mask rules, data ... (repeatable)",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_reproduce,
        add_audit,
        add_train,
        add_sample,
        add_study,
        add_search,
        add_show,
        add_profile,
        add_notebooks,
        add_site,
        add_report,
        add_bench,
        add_export,
    ):
        add(commands)
    return top


def add_reproduce(commands: Commands) -> None:
    command = commands.add_parser("reproduce", help="make every table and figure anew, print the parameter table")
    command.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="this table or figure (repeatable)"
    )
    command.add_argument(
        "--full", action="store_true", help="first run the studies again and train the lesson models; says the cost"
    )
    command.add_argument("--fresh", action="store_true", help="with --full: run again what the committed rows hold too")
    command.add_argument(
        "--store", type=Path, default=Path("runs/studies.sqlite"), help="of --full (default: runs/studies.sqlite)"
    )
    command.add_argument("--list", action="store_true", help="print the names, and what the figures show, and stop")
    command.add_argument("--lang", default="en", help="of the figures: en, or zh, which go to runs/zh (default: en)")
    command.add_argument(
        "--seconds", action="store_true", help="measure how long each takes, keep data/seconds.csv, and stop"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where data/ and figures/ go (default: here); with a style, format or width: where the figures go "
        "(default: runs/STYLE)",
    )
    command.add_argument("--style", help="draw the figures alone, as committed: talk or paper, 7 to 8 point writing")
    command.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="KIND",
        help="png, pdf or svg; csv or tex: the rows that go into it (repeatable; default: pdf)",
    )
    command.add_argument("--grey", action="store_true", help="figures alone, in greys that print keeps apart")
    command.add_argument(
        "--width",
        type=float,
        metavar="INCHES",
        help="of paper (default: one column, 3.3; 6.9 where that is too narrow)",
    )
    for kind, known in (("variant", VARIANTS), ("preset", PRESETS)):
        command.add_argument(
            f"--{kind}s",
            type=lambda text: text.split(","),
            default=[],
            metavar="NAMES",
            help=f"figures alone, of these {kind}s: some of {','.join(known)}",
        )
    command.set_defaults(run=run_reproduce)


def add_audit(commands: Commands) -> None:
    command = commands.add_parser("audit", help="list the document's claims and verdicts, or compute one anew")
    command.add_argument("claim", nargs="?", metavar="ID", help="of one claim: its readings, evidence and what judges")
    command.set_defaults(run=run_audit)


def add_train(commands: Commands) -> None:
    command = commands.add_parser(
        "train", help="train one model; on several GPUs: accelerate launch -m hae_lab train ..."
    )
    command.add_argument("variant", help=", ".join(VARIANTS))
    command.add_argument("--preset", default="lesson16", help="default: lesson16")
    command.add_argument(
        "--data",
        default="phantoms",
        help="phantoms, lesions, digits, twins, scales, mri, a FOLDER of pictures, MODULE:FUNCTION or FILE.py:FUNCTION",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value of a field of HAEConfig or Recipe: mlp_ratio=0.5, patch_sizes=1,4 (repeatable)",
    )
    command.add_argument("--steps", type=int, default=1500, help="default: 1500")
    command.add_argument(
        "--batch-size", type=int, default=32, help="images of a step, over all processes (default: 32)"
    )
    command.add_argument("--learning-rate", type=float, default=2e-3, help="default: 0.002")
    command.add_argument("--precision", default="no", help="no, bf16 or fp16")
    command.add_argument("--device", help="cpu, cuda or mps (default: what accelerate finds)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="keeps state, weights, samples; the same command continues"
    )
    command.set_defaults(run=run_train)


def add_sample(commands: Commands) -> None:
    command = commands.add_parser("sample", help="draw images with a trained model")
    command.add_argument("model", type=Path, metavar="FOLDER", help="of `train`, or a .safetensors file")
    command.add_argument("--count", type=int, default=16, help="default: 16")
    command.add_argument("--sampler", default="ddim", help="ddim or ddpm (default: ddim)")
    command.add_argument("--steps", type=int, default=25, help="of denoising; divides the chain (default: 25)")
    command.add_argument("--label", type=int, help="class of all images, of a model with classes")
    command.add_argument("--guidance", type=float, default=1.0, help="how strongly the label is followed (default: 1)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, metavar="FILE", help="a .png (default: samples.png beside the weights)")
    command.set_defaults(run=run_sample)


def add_study(commands: Commands) -> None:
    command = commands.add_parser("study", help="run a grid of configs x seeds, where the last run of it stopped")
    command.add_argument(
        "file", type=Path, metavar="FILE.toml", help="see the docstring of hae_lab.study.Study.from_toml"
    )
    command.add_argument("--static", action="store_true", help="print parameters and MACs of each cell, and stop")
    command.add_argument("--cost", action="store_true", help="print how long it will take, and stop")
    command.add_argument(
        "--verify", type=int, metavar="N", help="train N of the runs again, compare them with --rows, and stop"
    )
    command.add_argument("--rows", type=Path, metavar="CSV", help="of --verify (default: data/study_NAME.csv)")
    command.add_argument(
        "--store", type=Path, default=Path("runs/studies.sqlite"), metavar="PATH", help="keeps the runs"
    )
    command.add_argument("--workers", type=int, default=2, help="processes of this computer (default: 2)")
    command.add_argument("--backend", default="local", help="local, or dask with --address tcp://HOST:PORT")
    command.add_argument("--address", help="of a Dask scheduler")
    command.add_argument("--retry-failed", action="store_true", help="run again what failed")
    command.add_argument(
        "--trust", action="store_true", help="run the code that FILE names, MODULE:NAME or FILE.py:NAME; read it before"
    )
    command.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="where tables go (default: runs)"
    )
    command.set_defaults(run=run_study)


def add_search(commands: Commands) -> None:
    command = commands.add_parser("search", help="search a v3: candidates from optuna, halved on longer runs")
    command.add_argument(
        "--store", type=Path, default=Path("runs/search/runs.sqlite"), metavar="PATH", help="keeps runs and times"
    )
    command.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="where v3_search.csv goes")
    command.set_defaults(run=run_search)


def add_show(commands: Commands) -> None:
    command = commands.add_parser("show", help="print a model's module tree with shapes and parameter counts")
    command.add_argument("variant", help=", ".join(VARIANTS))
    command.add_argument("--preset", default="brats128", help=", ".join(PRESETS))
    command.add_argument("--depth", type=int, default=5, help="levels of the tree (default: 5)")
    command.set_defaults(run=run_show)


def add_profile(commands: Commands) -> None:
    command = commands.add_parser("profile", help="parameters, MACs and training memory of any model, module by module")
    command.add_argument(
        "model", help=f"{', '.join(VARIANTS)}; or MODULE:FUNCTION that returns a model, or (model, inputs)"
    )
    command.add_argument("--preset", default="brats128", help="of a variant (default: brats128)")
    command.add_argument("--batch", type=int, default=1, help="images of a variant (default: 1)")
    command.add_argument("--time", action="store_true", help="run it too, and say where the time goes")
    command.add_argument("--depth", type=int, default=3, help="levels of the tree (default: 3)")
    command.add_argument("--out", type=Path, metavar="FILE", help="keep the rows: .csv, .parquet, or the tree: .html")
    command.set_defaults(run=run_profile)


def add_notebooks(commands: Commands) -> None:
    command = commands.add_parser("notebooks", help="execute the notebooks, or make copies or slides for class")
    task = command.add_mutually_exclusive_group(required=True)
    task.add_argument("--refresh", nargs="*", metavar="NAME", help="execute these, or all, and write them back")
    task.add_argument("--blank", nargs="*", metavar="NAME", help="copies of these, or all, without answers")
    task.add_argument("--slides", nargs="*", metavar="NAME", help="a talk of each of these, or of all")
    command.add_argument(
        "--from", type=Path, default=Path("notebooks"), dest="folder", metavar="DIR", help="default: notebooks"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="of copies (default: blank), of talks (slides)")
    command.set_defaults(run=run_notebooks)


def add_site(commands: Commands) -> None:
    command = commands.add_parser("site", help="build the reading site, which opens without a kernel or a network")
    command.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="default: site")
    command.set_defaults(run=run_site)


def add_report(commands: Commands) -> None:
    command = commands.add_parser("report", help="write what the audit found as one page, two sheets when printed")
    command.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE.html", help="default: report.html"
    )
    command.add_argument("--lang", default="en", help="en or zh (default: en)")
    command.set_defaults(run=run_report)


def add_bench(commands: Commands) -> None:
    command = commands.add_parser("bench", help="measure on this computer and keep the rows")
    command.add_argument("what", help="masks, attention, model, training, layers, compile or deployment")
    command.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    command.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where data/ is (default: runs; with . they replace this computer's committed rows)",
    )
    command.set_defaults(run=run_bench)


def add_export(commands: Commands) -> None:
    command = commands.add_parser("export", help="a model as a file for other runtimes, or as a page that draws")
    command.add_argument("model", help=f"a FOLDER of `train`, a .safetensors file, or {', '.join(VARIANTS)}")
    command.add_argument("--preset", help="of a variant (default: lesson16)")
    command.add_argument("--rule", metavar="NAME", help="of a variant: mask rule (default: the preset's)")
    command.add_argument(
        "--classes", type=int, metavar="N", help="of a variant: labels that it knows (default: the preset's)"
    )
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="of a variant: its weights (default: fresh)")
    command.add_argument(
        "--format",
        default="onnx",
        choices=list(EXPORTED),
        help="onnx; int8: ONNX, eight bits a weight; pt2: torch.export; page: HTML that draws without a network",
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="default: beside the weights, or runs/VARIANT-PRESET and an ending"
    )
    command.set_defaults(run=run_export)


def run_reproduce(options: argparse.Namespace) -> None:
    from hae_lab.audit import reproduce
    from hae_lab.book import readme

    if options.list:
        print(reproduce.listed())
        return
    subset = options.variants or options.presets or options.grey
    if options.style or options.format or subset or options.width is not None or options.lang != "en":
        run_print(options)
        return
    options.out = options.out or Path()
    if options.seconds:
        from hae_lab.audit import seconds

        print(seconds.measure(options.out, progress=True).resolve())
        return
    if options.full:
        from hae_lab.audit.rerun import rerun

        for line in rerun(options.out, options.store, fresh=options.fresh):
            print(line)
    # a second process would not know what plugins have registered
    two = (os.cpu_count() or 1) > 1 and not options.plugin
    written = reproduce.reproduce(options.out, options.only, progress=True, two_processes=two)
    if not options.only:
        for name in readme.PAGES:
            if (options.out / name).exists():
                readme.update(options.out / name)
        print("\nParameters in percent of HAE, whole model\n")
        print(reproduce.parameter_summary())
        print(f"\n{textwrap.fill(reproduce.verdict(), 100)}\n")
    tell(written)


def tell(written: list[Path]) -> None:
    """Say where files are, each by name if they are few."""
    folders = sorted({str(path.parent.resolve()) for path in written})
    each = "\n".join(str(path.resolve()) for path in written)
    print(each if 0 < len(written) <= FEW else f"{len(written)} files in {' and '.join(folders)}")


def run_print(options: argparse.Namespace) -> None:
    from hae_lab.audit import reproduce
    from hae_lab.plots.catalogue import language

    require(
        not (options.full or options.fresh),
        "--full makes tables; --style, --format, --width, --grey, --lang, --variants and --presets draw figures alone",
    )
    translated = options.lang != "en"
    style = options.style or ("talk" if options.width is None else "paper")
    out = options.out or Path("runs") / (options.lang if translated else style)
    formats = options.format or (("png",) if translated else ("pdf",))
    chosen = {"variants": options.variants, "presets": options.presets, "grey": options.grey}
    with language(options.lang):
        written, left_out = reproduce.print_figures(
            out, options.only, style, options.width, formats, progress=True, **chosen
        )
    for line in left_out:
        print(f"not drawn, {line}")
    tell(written)


def run_audit(options: argparse.Namespace) -> None:
    from hae_lab.audit.claims import told
    from hae_lab.audit.clone import read_table

    committed = read_table("claims")
    if options.claim is None:
        print(told.tree(committed))
        return
    known = told.readings_of(committed, options.claim)
    from hae_lab.audit.claims import ledger
    from hae_lab.audit.measured import Measured

    print(told.claim(*ledger.audit(options.claim, Measured()), known))


def run_train(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    from hae_lab.diffusion.datasets import require_fit
    from hae_lab.diffusion.experiment import Experiment, run
    from hae_lab.diffusion.sampling import sample
    from hae_lab.diffusion.settings import with_settings
    from hae_lab.diffusion.training import WEIGHTS, Recipe
    from hae_lab.models import load_checkpoint

    data = re.sub(r"\W+", "-", options.data)
    seed = f"-seed-{options.seed}" if options.seed else ""
    out = options.out or Path("runs") / f"{options.variant}-{options.preset}-{data}{seed}"
    recipe = Recipe(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        precision=options.precision,
    )
    model_config, recipe = with_settings(config(options.variant, options.preset), recipe, options.set)
    require_fit(options.data, model_config)
    experiment = Experiment(config=model_config, recipe=recipe, data=options.data, seed=options.seed)
    require_folder(out)
    first = int(os.environ.get("RANK", 0)) == 0  # of the processes that train together
    taken = f"{str(out)!r} is taken: another process trains there; wait for it, or name another folder with --out"
    with held(out, taken) if first else nullcontext():
        metrics = run(experiment, out, progress=True, device=options.device)
    if PartialState().is_main_process:
        images = sample(load_checkpoint(out / WEIGHTS), 16, recipe)
        title = f"16 samples of {variant_title(options.variant)} after {recipe.steps:,} steps on {options.data}"
        write_images(images, title, out / "samples.png")
        print(f"held-out loss {metrics['loss']:.4f}; state, weights and samples in {out.resolve()}")


def write_images(images: Any, title: str, path: Path) -> None:
    from hae_lab import plots

    channels = images.shape[1]
    if channels not in (1, 3):  # no colours: a picture a channel
        images, title = images.flatten(0, 1)[:, None], f"{title}, {channels} channels each"  # (N * C, 1, H, W)
    write_picture(plots.image_grid(images, title=title, columns=8), path)


def write_picture(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(figure.png())


def run_sample(options: argparse.Namespace) -> None:
    import torch

    from hae_lab.diffusion.sampling import sample

    if options.out:
        require_file(options.out, (".png",))
    model, recipe, title, stem = trained_model(options)
    out = options.out or stem.with_name("samples.png")
    labels = None if options.label is None else torch.full((options.count,), options.label)
    images = sample(
        model,
        options.count,
        recipe,
        seed=options.seed,
        sampler=options.sampler,
        steps=options.steps,
        labels=labels,
        guidance=options.guidance,
    )
    label = "" if options.label is None else f", label {options.label}"
    title = f"{options.count} samples of {title}{label}"
    write_images(images, f"{title}, {options.steps} steps of {options.sampler}, seed {options.seed}", out)
    print(f"{options.count} images in {out.resolve()}")


def run_study(options: argparse.Namespace) -> None:
    from hae_lab.study import Study, means
    from hae_lab.tables import read, write

    study = Study.from_toml(options.file, trust=options.trust, announce=partial(print, file=sys.stderr))
    if options.static:
        print(study.static(progress=True).to_string(index=False))
        return
    if options.cost:
        print(study.cost(options.store, options.workers, retry_failed=options.retry_failed))
        return
    if options.verify is not None:
        from hae_lab.study.committed import verify

        path = options.rows or Path("data") / f"study_{study.name}.csv"
        found = verify(study, read(path), options.verify, options.workers)
        skipped, found = found[found["equal"].isna()], found.dropna(subset="equal")
        print(found.to_string(index=False))
        if len(skipped):
            print(f"not compared, for {str(path)!r} does not keep them: {', '.join(skipped['metric'].unique())}")
        unequal, worst = int((~found["equal"]).sum()), found["relative_difference"].max()
        print(f"{unequal} of {len(found)} numbers differ in six digits, the most by {worst:.1g} of its value")
        require(
            worst <= SAME_RUN, f"these are not the runs of {str(path)!r}: two computers differ by {SAME_RUN:g} at most"
        )
        return
    try:
        rows = study.run(
            options.store,
            workers=options.workers,
            backend=options.backend,
            address=options.address,
            retry_failed=options.retry_failed,
        )
    except KeyboardInterrupt:
        kept = f"finished runs are kept in {str(options.store)!r}, and the same command continues"
        raise KeyboardInterrupt(f"stopped; {kept}") from None
    print(means(rows).to_string(index=False))
    curves = study.curves(options.store)
    for table, name in ((rows, study.name), (curves, f"{study.name}_curves")):
        print(write(table, options.out / f"{name}.csv").resolve())
    draw_study(rows, curves, options.out / study.name)
    needed = len(study.needed(options.store))
    missing = needed - len(rows)
    require(not missing, f"{missing} of {needed} runs of {study.name} are missing from these tables")


def run_search(options: argparse.Namespace) -> None:
    from hae_lab.audit.search import search
    from hae_lab.tables import write

    print(write(search(options.store, print), options.out / "v3_search.csv"))


def draw_study(rows: Any, curves: Any, stem: Path) -> None:
    from hae_lab.plots import study_figures

    figures, left_out = study_figures(rows, curves)
    for name, figure in figures.items():
        path = stem.with_name(f"{stem.name}_{re.sub(r'[^a-zA-Z0-9_-]+', '-', name)}.png")
        write_picture(figure, path)
        print(path.resolve())
    for line in left_out:
        print(f"not drawn, {line}")


def run_show(options: argparse.Namespace) -> None:
    from hae_lab.profilers.tree import module_tree

    print(module_tree(config(options.variant, options.preset), options.depth))


def run_profile(options: argparse.Namespace) -> None:
    from hae_lab.profilers import report

    if options.out:
        require_file(options.out, report.KEPT)
    if ":" in options.model:
        model, inputs = report.load_model(options.model)
    else:
        model, inputs = config(options.model, options.preset), None
    result = report.profile(model, inputs, batch=options.batch, time=options.time)
    print(result.text(options.depth))
    if options.out:
        print(f"\nkept in {result.write(options.out).resolve()}")


def run_notebooks(options: argparse.Namespace) -> None:
    from hae_lab.book import notebooks

    for task, write in {"blank": notebooks.write_blank, "slides": notebooks.write_slides}.items():
        names = getattr(options, task)
        if names is not None:
            print(*write(options.folder, options.out or Path(task), tuple(names)), sep="\n")
            return
    for path in notebooks.find(options.folder, tuple(options.refresh)):
        notebooks.refresh(path)
        print(path)


def run_site(options: argparse.Namespace) -> None:
    from hae_lab.book.site import build_site

    site = build_site("notebooks", options.out)
    for warning in site.warnings:
        print(f"hae-lab: {warning}", file=sys.stderr)
    print(f"open {site.index.resolve()}")


def run_report(options: argparse.Namespace) -> None:
    from hae_lab.book.report import write_report

    print(f"open {write_report(options.out, options.lang).resolve()}")


def run_bench(options: argparse.Namespace) -> None:
    from hae_lab.audit import benchmarks

    path, rows = benchmarks.bench(options.what, options.out / "data", options.device)
    print(rows.to_string(index=False))
    print(f"\nrows kept in {path.resolve()}")


def run_export(options: argparse.Namespace) -> None:
    from hae_lab.deploy.export import export
    from hae_lab.deploy.page import write_page

    if options.out:
        require_file(options.out, (Path(f"model{EXPORTED[options.format]}").suffix,))
    path = Path(options.model)
    trained = options.model not in VARIANTS and (path.is_dir() or path.suffix == ".safetensors")
    model, recipe, title, stem = (trained_model if trained else variant_model)(options)
    out = options.out or stem.with_name(stem.name + EXPORTED[options.format])
    made = write_page(model, out, title, recipe) if options.format == "page" else export(model, out, options.format)
    print(f"{made.file_bytes / 1e6:.1f} MB in {made.path.resolve()}")
    print(f"largest difference to the model {made.difference:.2g}, of outputs up to {made.largest_output:.3g}")
    if not made.largest_output:
        print("all outputs are 0, since the last layer of a fresh model is: give the weights with --checkpoint")


def trained_model(options: argparse.Namespace) -> tuple[Any, Any, str, Path]:
    """What a file of weights carries: the model, its recipe and title; and how a file beside it begins."""
    from hae_lab.diffusion.training import WEIGHTS, saved_recipe
    from hae_lab.models import load_checkpoint
    from hae_lab.presets import variant_of

    path = Path(options.model) / WEIGHTS if Path(options.model).is_dir() else Path(options.model)
    for option in ("preset", "rule", "classes", "checkpoint"):
        given = getattr(options, option, None) is not None
        require(not given, f"--{option} is of a variant; {str(path)!r} carries its weights and says which model it is")
    model = load_checkpoint(path)
    return model, saved_recipe(path), variant_title(variant_of(model.config) or "a model"), path.with_suffix("")


def variant_model(options: argparse.Namespace) -> tuple[Any, Any, str, Path]:
    """A variant by name, with the weights of a checkpoint or fresh ones, as `trained_model` gives it."""
    from hae_lab.models import build, load_checkpoint

    preset = options.preset or "lesson16"
    changes = {"mask_rule": options.rule, "num_classes": options.classes}
    changes = {name: value for name, value in changes.items() if value is not None}
    model_config = config(options.model, preset, **changes)
    model = load_checkpoint(options.checkpoint, model_config) if options.checkpoint else build(model_config)
    return model, None, variant_title(options.model), Path("runs") / f"{options.model}-{preset}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status. A `HAELabError` is one line on stderr and status 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or file of few characters shows others as "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for "module:name" of one's own; last, so that it hides nothing
    try:
        for plugin in options.plugin:
            load_module(plugin, f"--plugin {plugin}")
        if getattr(options, "out", None) is not None and options.command not in WRITE_A_FILE:
            require_folder(options.out)
        options.run(options)
        sys.stdout.flush()
    except HAELabError as error:
        print(f"hae-lab: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"hae-lab: there is not enough memory for this: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nhae-lab: {stop or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())

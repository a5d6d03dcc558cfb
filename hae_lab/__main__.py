"""The command line, `hae-lab` or `python -m hae_lab`: it parses, calls and prints. Commands import torch, not this."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hae_lab.checks import HAELabError, require
from hae_lab.presets import PRESETS, VARIANTS, config


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="hae-lab", description="The HAE family of diffusion U-Nets, audited.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    reproduce = commands.add_parser("reproduce", help="make every table and figure anew, print the parameter table")
    reproduce.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="this table or figure (repeatable)"
    )
    reproduce.add_argument(
        "--full", action="store_true", help="first run the studies again and train the lesson models; says the cost"
    )
    reproduce.add_argument(
        "--store", type=Path, default=Path("runs/studies.sqlite"), help="of --full (default: runs/studies.sqlite)"
    )
    reproduce.add_argument("--list", action="store_true", help="print the names and stop")
    reproduce.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where data/ and figures/ go (default: here)"
    )
    reproduce.set_defaults(run=run_reproduce)

    train = commands.add_parser(
        "train", help="train one model; on several GPUs: accelerate launch -m hae_lab train ..."
    )
    train.add_argument("variant", help=", ".join(VARIANTS))
    train.add_argument("--preset", default="lesson16", help="default: lesson16")
    train.add_argument("--data", default="phantoms", help="phantoms, lesions, digits, or MODULE:FUNCTION of your own")
    train.add_argument("--steps", type=int, default=1500, help="default: 1500")
    train.add_argument("--batch-size", type=int, default=32, help="images of a step, over all processes (default: 32)")
    train.add_argument("--learning-rate", type=float, default=2e-3, help="default: 0.002")
    train.add_argument("--precision", default="no", help="no, bf16 or fp16")
    train.add_argument("--device", help="cpu, cuda or mps (default: what accelerate finds)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--out", type=Path, metavar="DIR", help="keeps state, weights, samples; the same command continues"
    )
    train.set_defaults(run=run_train)

    study = commands.add_parser("study", help="run a grid of configs x seeds, where the last run of it stopped")
    study.add_argument(
        "file", type=Path, metavar="FILE.toml", help="see the docstring of hae_lab.study.Study.from_toml"
    )
    study.add_argument("--static", action="store_true", help="print parameters and MACs of each cell, and stop")
    study.add_argument("--cost", action="store_true", help="print how long it will take, and stop")
    study.add_argument("--store", type=Path, default=Path("runs/studies.sqlite"), metavar="PATH", help="keeps the runs")
    study.add_argument("--workers", type=int, default=2, help="processes of this computer (default: 2)")
    study.add_argument("--backend", default="local", help="local, or dask with --address tcp://HOST:PORT")
    study.add_argument("--address", help="of a Dask scheduler")
    study.add_argument("--retry-failed", action="store_true", help="run again what failed")
    study.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where tables go (default: runs)")
    study.set_defaults(run=run_study)

    show = commands.add_parser("show", help="print a model's module tree with shapes and parameter counts")
    show.add_argument("variant", help=", ".join(VARIANTS))
    show.add_argument("--preset", default="brats128", help=", ".join(PRESETS))
    show.add_argument("--depth", type=int, default=5, help="levels of the tree (default: 5)")
    show.set_defaults(run=run_show)

    profile = commands.add_parser("profile", help="parameters, MACs and training memory of any model, module by module")
    profile.add_argument(
        "model", help=f"{', '.join(VARIANTS)}; or MODULE:FUNCTION that returns a model, or (model, inputs)"
    )
    profile.add_argument("--preset", default="brats128", help="of a variant (default: brats128)")
    profile.add_argument("--batch", type=int, default=1, help="images of a variant (default: 1)")
    profile.add_argument("--time", action="store_true", help="run it too, and say where the time goes")
    profile.add_argument("--depth", type=int, default=3, help="levels of the tree (default: 3)")
    profile.add_argument("--out", type=Path, metavar="FILE", help="keep the rows: .csv, .parquet, or the tree: .html")
    profile.set_defaults(run=run_profile)

    notebooks = commands.add_parser("notebooks", help="execute the notebooks, or make copies for class")
    task = notebooks.add_mutually_exclusive_group(required=True)
    task.add_argument("--refresh", nargs="*", metavar="NAME", help="execute these, or all, and write them back")
    task.add_argument("--blank", action="store_true", help="copies without outputs and solutions, under --out")
    notebooks.add_argument("--out", type=Path, default=Path("blank"), metavar="DIR", help="default: blank")
    notebooks.set_defaults(run=run_notebooks)

    site = commands.add_parser("site", help="build the reading site, which opens without a kernel or a network")
    site.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="default: site")
    site.set_defaults(run=run_site)

    bench = commands.add_parser("bench", help="measure on this computer and keep the rows in data/")
    bench.add_argument("what", choices=["masks", "attention", "model", "training"])
    bench.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    bench.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where data/ is (default: here)")
    bench.set_defaults(run=run_bench)
    return top


def run_reproduce(options: argparse.Namespace) -> None:
    from hae_lab.audit import reproduce
    from hae_lab.book import readme

    if options.list:
        print("\n".join(reproduce.NAMES))
        return
    if options.full:
        from hae_lab.audit.rerun import rerun

        for line in rerun(options.out, options.store):
            print(line)
    written = reproduce.reproduce(options.out, options.only, progress=True)
    if not options.only:
        if (options.out / "README.md").exists():
            readme.update(options.out / "README.md")
        print("\nParameters in percent of HAE, whole model\n")
        print(reproduce.parameter_summary())
        print(f"\n{textwrap.fill(reproduce.verdict(), 100)}\n")
    folders = sorted({str(path.parent.resolve()) for path in written})
    print(f"{len(written)} files in {' and '.join(folders)}")


def run_train(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    from hae_lab import plots
    from hae_lab.audit.reproduce import write_figure
    from hae_lab.diffusion.experiment import Experiment, run
    from hae_lab.diffusion.sampling import sample
    from hae_lab.diffusion.training import WEIGHTS, Recipe
    from hae_lab.models import load_checkpoint

    out = options.out or Path("runs") / f"{options.variant}-{options.preset}-{options.data.replace(':', '-')}"
    recipe = Recipe(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        precision=options.precision,
    )
    model_config = config(options.variant, options.preset)
    experiment = Experiment(config=model_config, recipe=recipe, data=options.data, seed=options.seed)
    metrics = run(experiment, out, progress=True, device=options.device)
    if PartialState().is_main_process:
        images = sample(load_checkpoint(out / WEIGHTS, model_config), 16, recipe)
        title = f"16 samples of {plots.VARIANT_NAMES[options.variant]} after {recipe.steps:,} steps on {options.data}"
        write_figure(plots.image_grid(images, title=title, columns=8), out / "samples")
        print(f"held-out loss {metrics['loss']:.4f}; state, weights and samples in {out.resolve()}")


def run_study(options: argparse.Namespace) -> None:
    from hae_lab.study import Study, summary
    from hae_lab.tables import write

    study = Study.from_toml(options.file)
    if options.static:
        print(study.static(progress=True).to_string(index=False))
        return
    if options.cost:
        print(study.cost(options.store, options.workers, retry_failed=options.retry_failed))
        return
    rows = study.run(
        options.store,
        workers=options.workers,
        backend=options.backend,
        address=options.address,
        retry_failed=options.retry_failed,
    )
    print(summary(rows).to_string(index=False))
    for table, name in ((rows, study.name), (study.curves(options.store), f"{study.name}_curves")):
        print(write(table, options.out / f"{name}.csv").resolve())
    missing = len(study.planned) - len(rows)
    require(not missing, f"{missing} of {len(study.planned)} runs of {study.name} are missing from these tables")


def run_show(options: argparse.Namespace) -> None:
    from hae_lab.profilers.tree import module_tree

    print(module_tree(config(options.variant, options.preset), options.depth))


def run_profile(options: argparse.Namespace) -> None:
    from hae_lab.profilers import report

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

    if options.blank:
        written = notebooks.write_blank("notebooks", options.out)
        print(f"{len(written)} copies without outputs and solutions in {options.out.resolve()}")
        return
    for path in notebooks.find("notebooks", tuple(options.refresh)):
        notebooks.refresh(path)
        print(path)


def run_site(options: argparse.Namespace) -> None:
    from hae_lab.book.site import build_site

    site = build_site("notebooks", options.out)
    for warning in site.warnings:
        print(f"hae-lab: {warning}", file=sys.stderr)
    print(f"open {site.index.resolve()}")


def run_bench(options: argparse.Namespace) -> None:
    from hae_lab.audit import benchmarks

    path, rows = benchmarks.bench(options.what, options.out / "data", options.device)
    print(rows.to_string(index=False))
    print(f"\nrows kept in {path.resolve()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status. A `HAELabError` is one line on stderr and status 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except HAELabError as error:
        print(f"hae-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

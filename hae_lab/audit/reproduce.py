"""The one writer of data/ and figures/: tables as the registry makes them, figures of the tables as they were written;
and of figures in another style, elsewhere.

`parameter_summary` and `verdict` say in words what the parameter table comes to.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from hae_lab import plots, tables
from hae_lab.audit import parameter_tables
from hae_lab.audit.clone import read_table
from hae_lab.audit.registry import APART, SLOW_TABLES, TABLES, FigureSource, figures, names
from hae_lab.checks import HAELabError, require_name
from hae_lab.files import atomic_path
from hae_lab.presets import PRESETS, VARIANTS
from hae_lab.sources import unwrapped

ROW_FORMATS = {"csv": tables.to_csv, "tex": tables.to_latex}  # of the rows that a figure draws


def listed() -> str:
    """What can be made, as lines: the tables, then the figures and what each shows."""
    drawn = figures()
    width = max(map(len, drawn))
    shown = [f"  {name:{width}}  {_summary(source.draw)}{_of_data(source)}" for name, source in drawn.items()]
    made = [f"  {name}" for name in (*TABLES, *SLOW_TABLES)]
    return "\n".join(["tables (data/README.md says what a row of each is)", *made, "figures", *shown])


def _of_data(source: FigureSource) -> str:
    return f" Of {source.data}." if source.data else ""


def _summary(function: Callable[..., Any]) -> str:
    """The first line of what a function says about itself."""
    return (unwrapped(function).__doc__ or "").strip().split("\n")[0]


def reproduce(
    out: str | Path = ".", only: Iterable[str] = (), progress: bool = False, two_processes: bool = False
) -> list[Path]:
    """Make the tables and figures anew under `out`/data and `out`/figures; return the paths written.

    `only` names tables or figures; none means all but `SLOW_TABLES`. A figure shows the file of its table: the one
    written now, else the committed one. Two runs write the same bytes on one computer. With `two_processes` a second
    one makes the tables of `APART` meanwhile, if all are made; it does not know what was registered in this one.
    Raises `HAELabError` for an unknown name, before anything is written, and if the second process dies.
    """
    only = set(only)
    chosen = only or set(names())
    for name in sorted(chosen):
        require_name("table or figure", name, names())
    made = [name for name in (TABLES | SLOW_TABLES if only else TABLES) if name in chosen]
    apart = APART if two_processes and not only else ()
    drawn = {name: source for name, source in figures().items() if name in chosen}
    data = Path(out) / "data"

    @cache
    def rows(name: str) -> pd.DataFrame:
        return tables.read(data / f"{name}.csv") if name in made else read_table(name)

    bar = tqdm(total=len(made) + len(drawn), disable=not progress, unit="file")
    with bar, _second_process(apart, data) as coming:
        for name in sorted(made, key=coming.__contains__):  # its own first
            bar.set_description(name)
            coming[name].result() if name in coming else write_table(name, data)
            bar.update()
        written = [data / f"{name}.csv" for name in made]
        for name, source in drawn.items():
            bar.set_description(name)
            written += write_figure(draw(source, rows), Path(out) / "figures" / name, source.vector)
            bar.update()
    return written


def write_table(name: str, data: Path) -> Path:
    """Make a table of the registry and write it into a folder."""
    return tables.write((TABLES | SLOW_TABLES)[name](), data / f"{name}.csv")


@contextmanager
def _second_process(apart: Sequence[str], data: Path) -> Iterator[dict[str, Future[Path]]]:
    """The tables that a second process writes meanwhile, in this order; it ends with the block."""
    if not apart:
        yield {}
        return
    # started anew on every system; whoever interrupts it means this process, which then ends it
    options = {"mp_context": get_context("spawn"), "initializer": signal, "initargs": (SIGINT, SIG_IGN)}
    pool = ProcessPoolExecutor(1, **options)
    try:
        yield {name: pool.submit(write_table, name, data) for name in apart}
    except BrokenExecutor:
        raise HAELabError("the second process died, perhaps for want of memory") from None
    finally:
        pool.shutdown(cancel_futures=True)


def print_figures(
    out: str | Path,
    only: Iterable[str] = (),
    style: str = "paper",
    width: float | None = None,
    formats: Sequence[str] = ("pdf",),
    progress: bool = False,
    *,
    variants: Iterable[str] = (),
    presets: Iterable[str] = (),
    grey: bool = False,
) -> tuple[list[Path], list[str]]:
    """Draw figures of the committed tables in a style into `out`; return the paths, and what was left out, and why.

    `only` names figures; none means all. Without a `width` a figure for paper fills one column, or two where it must.
    `variants` and `presets` leave the rows of others out; "csv" and "tex" among the `formats` are the rows that stay.
    A figure that needs more width, or more rows, or for `grey` fewer colours, is named instead of drawn. Two runs write
    the same bytes on one computer.
    Raises `HAELabError` for unknown names and formats before anything is written, and for a figure of `only` that
    cannot be drawn so.
    """
    variants = list(variants)
    rows = subset(variants, presets)
    sources, chosen = figures(), list(dict.fromkeys(only))
    for name in chosen:
        require_name("figure", name, sources)
    for kind in formats:
        require_name("format", kind, (*plots.FORMATS, *ROW_FORMATS))
    written, left_out = [], []
    for name in tqdm(chosen or list(sources), disable=not progress, unit="figure"):
        try:
            with plots.only(variants):
                figure = _draw_in(style, width, grey, sources[name], rows)
        except HAELabError as error:
            if chosen:
                raise
            left_out.append(f"{name}: {error}")
            continue
        for kind in formats:
            if kind in ROW_FORMATS:
                written += _write_rows(kind, Path(out) / name, {table: rows(table) for table in sources[name].tables})
            else:
                written.append(_write(figure.picture(kind), Path(out) / f"{name}.{kind}"))
    return written, left_out


def _write_rows(kind: str, stem: Path, found: dict[str, pd.DataFrame]) -> list[Path]:
    """The rows of a figure as files: `stem` with the format's ending, or one a table if they are several."""
    return [
        _write(ROW_FORMATS[kind](frame).encode(), stem.with_name(f"{stem.name}{f'_{table}' * (len(found) > 1)}.{kind}"))
        for table, frame in found.items()
    ]


def subset(variants: Iterable[str] = (), presets: Iterable[str] = ()) -> Callable[[str], pd.DataFrame]:
    """A reader of the committed tables that leaves out the rows of other variants and presets; none means all.

    A row that belongs to no variant, as a cell of a study of its own, stays.
    Raises `HAELabError` for a name that is no variant, and no preset.
    """
    variants, presets = list(variants), list(presets)
    for name in variants:
        require_name("variant", name, VARIANTS)
    for name in presets:
        require_name("preset", name, PRESETS)
    left_out = {name for name in VARIANTS if variants and name not in variants}
    other = {name for name in PRESETS if presets and name not in presets}

    def rows(name: str) -> pd.DataFrame:
        table = read_table(name)
        for columns, gone in ((("variant", "cell", "first", "second"), left_out), (("preset",), other)):
            for column in table.columns.intersection(columns):
                table = table[~table[column].isin(gone)]
        return table

    return rows


def _draw_in(
    style: str, width: float | None, grey: bool, source: FigureSource, rows: Callable[[str], pd.DataFrame]
) -> plots.Chart:
    """A figure at a width; without one, in one column of a paper, or in two where it does not fit one."""
    try:
        with plots.style(style, width, grey=grey):
            return draw(source, rows)
    except plots.TooNarrow:
        if width is not None:
            raise
        with plots.style(style, plots.TWO_COLUMNS, grey=grey):
            return draw(source, rows)


def draw(source: FigureSource, rows: Callable[[str], pd.DataFrame] = read_table) -> plots.Chart:
    """A figure of the tables that `rows` gives by name; by default the committed ones."""
    tables = [rows(name) for name in source.tables]
    if source.data is not None:
        tables = [table[table["data"] == source.data] for table in tables]
    return source.draw(*tables)


def write_figure(figure: plots.Chart, stem: Path, vector: bool = False) -> list[Path]:
    """Write `stem`.png and, if asked, `stem`.svg."""
    return [_write(figure.picture(kind), stem.with_suffix(f".{kind}")) for kind in ("png", "svg")[: 1 + vector]]


def _write(picture: bytes, path: Path) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_bytes(picture)
    return path


def parameter_summary() -> str:
    """The parameter table as text: the claim, the published counts, and like for like on each preset."""
    published = parameter_tables.published_counts().set_index("variant")
    like = parameter_tables.parameter_table().query("scope == 'whole model'")
    table = like.pivot(index="variant", columns="preset", values="percent_of_hae")[list(parameter_tables.TABLE_PRESETS)]
    table.insert(0, "claim", published["claim_percent"])
    table.insert(1, "published", published["published_percent"])
    table.insert(2, "rebuilt", published["our_percent"])
    return table.loc[list(VARIANTS)].to_string(float_format="%.1f %%", na_rep="-")


def verdict() -> str:
    """What the parameter table proves, in three sentences with computed numbers."""
    published = parameter_tables.published_counts()
    points = parameter_tables.feasibility().set_index("preset")
    claim = points.loc["the claim"]
    take, less = parameter_tables.what_it_would_take(), parameter_tables.one_change_less()
    bounds = parameter_tables.impossibility()["impossible_below_points"]
    if parameter_tables.impossibility()["possible"].any():
        raise HAELabError("the bounds of `impossibility` no longer exclude the claim: the verdict must be rewritten")
    return (
        f"The published counts are real ({', '.join(f'{count:,}' for count in published['our_params'])}), but they "
        f"compare three different models: {'; '.join(published['our_changes'])}. "
        f"Like for like, with patches of 4 and 8, Lite at {claim['lite_percent']:.0f} % forces V2 to "
        f"{claim['line_v2_percent']:.1f} %, not {claim['v2_percent']:.0f} %, at any width, depth or scope; with any "
        f"patches, no setting comes nearer to the claim than {bounds.max():.1f} points. Reaching 100/70/40 within a "
        f"point takes at least {take['changes'].min()} changes outside the slots; with one less it is missed by "
        f"{less['misses_by_points'].item():.2f} points."
    )

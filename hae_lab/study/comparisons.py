"""What a study compares: its question by data set, the same at equal cost, and its controls.

Rows are those of `Study.results`; those of older tables, without roles, are all of the question.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pandas as pd

from hae_lab.checks import require
from hae_lab.study.equivalence import CANNOT_TELL, alpha_of, margin_of
from hae_lab.study.grid import CONTROL, EQUAL_COST
from hae_lab.study.power import ALPHA
from hae_lab.study.statistics import compared, lower_is_better, pair_contrasts, paired_differences, question, seed_table

FOUND, NOT_FOUND, NONE = "found", "not found", "none"
STEPS = "steps"


class Family(NamedTuple):
    """Rows whose cells are compared with one another: the data, and what is held equal ("steps", "MACs", ...)."""

    data: str
    equal: str
    rows: pd.DataFrame


def families(rows: pd.DataFrame) -> Iterator[Family]:
    """The question on each data set, and each group of cells at equal cost with the cell whose cost they have.

    A group of different variants has their names for cells: what differs beside the variant is what makes them equal.
    """
    for data, here in rows.groupby("data", sort=False):
        yield Family(str(data), STEPS, question(here))
        if "role" in here.columns:
            at_cost = here[here["role"].str.startswith(EQUAL_COST)]
            for (role, reference), cells in at_cost.groupby(["role", "reference"], sort=False) if len(at_cost) else ():
                group = pd.concat([here[here["cell"] == reference], cells]).drop(columns=["role", "reference"])
                yield Family(str(data), str(role).removeprefix(EQUAL_COST), _by_variant(group, here["cell"].unique()))


def _by_variant(rows: pd.DataFrame, order: Iterable[str]) -> pd.DataFrame:
    """The rows with variants for cells, in the order of the question, if no two cells are of one variant."""
    cells = rows[["cell", "variant"]].drop_duplicates() if "variant" in rows.columns else rows.iloc[:0]
    if len(cells) == 0 or not cells["variant"].is_unique:
        return rows
    places = {cell: place for place, cell in enumerate(order)}
    return rows.assign(cell=rows["variant"]).sort_values("cell", key=lambda names: names.map(places), kind="stable")


def differences(rows: pd.DataFrame, metric: str = "loss") -> pd.DataFrame:
    """`paired_differences` of every family with two or more cells: data, equal, controls, and its columns.

    `controls` says whether the study finds its controls on these data: "found", "not found" or "none".
    """
    parts, controls = [], {data: controls_found(rows, data) for data in rows["data"].unique()}
    for family in families(rows):
        if family.rows["cell"].nunique() > 1 and family.rows[metric].notna().all():
            found = paired_differences(family.rows, metric)
            labels = {"data": family.data, "equal": family.equal, "controls": controls[family.data]}
            parts.append(pd.DataFrame(labels, index=found.index).join(found))
    require(len(parts) > 0, "no comparison: no data set has two or more cells")
    return pd.concat(parts, ignore_index=True)


def control_effects(rows: pd.DataFrame, metric: str = "loss", *, lower_better: bool | None = None) -> pd.DataFrame:
    """How much worse each control is than its reference, on each data set; Holm over the controls of a data set.

    Columns: data, those of `paired_differences` with the control for the first, and found: whether the control is
    worse by the rule of every verdict, and by more than the margin in the mean. No rows where there are no controls.
    """
    parts = []
    for data, here in rows.groupby("data", sort=False) if "role" in rows.columns else ():
        controls = here[here["role"] == CONTROL]
        if len(controls):
            pairs = list(controls[["cell", "reference"]].drop_duplicates().itertuples(index=False, name=None))
            contrasts = pair_contrasts(seed_table(here, metric), pairs)
            better = lower_is_better(metric, lower_better)
            effects = compared(contrasts, better, 1 - ALPHA, margin_of(here, metric), alpha_of(here))
            percent = 100 * effects["mean_difference"].abs() / effects["mean_second"].abs()
            found = (effects["verdict"] == "second better") & (percent > effects["margin_percent"])
            effects.insert(0, "data", data)
            parts.append(effects.assign(found=found))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["data", "first", "second", "found"])


def controls_found(rows: pd.DataFrame, data: str | None = None) -> str:
    """Whether all controls of a study, or of one of its data sets, are found by their loss: "found", "not found",
    or "none" where none are declared."""
    effects = control_effects(rows)
    effects = effects if data is None else effects[effects["data"] == data]
    return (FOUND if effects["found"].all() else NOT_FOUND) if len(effects) else NONE


def all_decided(rows: pd.DataFrame, metric: str = "loss") -> bool:
    """Whether every comparison has a verdict, and every control is found."""
    undecided = (differences(rows, metric)["verdict"] == CANNOT_TELL).any()
    return not undecided and controls_found(rows) != NOT_FOUND

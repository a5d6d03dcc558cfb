"""All claims in the order of the document, their table, and one of them alone."""

import inspect
from functools import cache
from time import perf_counter
from types import ModuleType
from typing import NamedTuple

import pandas as pd

from hae_lab.audit.claims import (
    attention,
    code,
    compute,
    devices,
    encoder,
    fusion,
    interface,
    masks,
    mlps,
    parameters,
    projections,
    quality,
    scales,
    slots,
    structure,
)
from hae_lab.audit.claims.base import Claim
from hae_lab.audit.measured import Measured
from hae_lab.checks import require_name

SUBJECTS: tuple[ModuleType, ...] = (
    structure, encoder, parameters, projections, fusion, mlps, slots, code, scales, masks, attention, compute, quality,
    devices, interface,
)  # fmt: skip


@cache
def claims() -> dict[str, Claim]:
    """Every claim by its id, in the order of the document; what others say comes last."""
    found = [each for subject in SUBJECTS for each in vars(subject).values() if isinstance(each, Claim)]
    return {each.id: each for each in sorted(found, key=lambda each: each.order)}


def rows(measured: Measured) -> pd.DataFrame:
    """A row for each claim and way of reading it. Columns: those of `Claim.rows`; data/README.md explains them."""
    return pd.DataFrame([row for each in claims().values() for row in each.rows(measured)])


class Audited(NamedTuple):
    """One claim computed anew: its rows, the function that judges, as "path:line name", and seconds."""

    rows: pd.DataFrame
    function: str
    seconds: float


def audit(name: str, measured: Measured) -> Audited:
    """Compute one claim alone. Raises `HAELabError` for an unknown id, with the nearest."""
    require_name("claim", name, claims())
    check = claims()[name].check
    _, line = inspect.getsourcelines(check)
    start = perf_counter()
    found = pd.DataFrame(claims()[name].rows(measured))
    return Audited(found, f"{check.__module__.replace('.', '/')}.py:{line} {check.__name__}", perf_counter() - start)

"""How much of what can be gained the trained models gain, on images whose least loss is known."""

import numpy as np
import pandas as pd

from hae_lab.audit.measured import Measured
from hae_lab.diffusion.bounds import loss_bounds
from hae_lab.diffusion.patterns import PATTERNS, Pattern
from hae_lab.study import statistics
from hae_lab.study.grid import QUESTION

COLUMNS = ["study", "data", "cell", "role", "n_seeds", "loss_mean", "loss_own", "loss_shared"]
SHARES = {"mean": "gain_share_mean", "ci_low": "gain_share_ci_low", "ci_high": "gain_share_ci_high"}


def gain_shares(measured: Measured) -> pd.DataFrame:
    """A row a cell of a study on `diffusion.patterns`: 0 sees each cell of an image alone, 1 is the optimum.

    Columns: study, data, cell, role, n_seeds, loss_mean, loss_own and loss_shared (the two bounds), gain_share_mean,
    gain_share_ci_low, gain_share_ci_high (t interval over the seeds).
    """
    parts = [
        _of_data(name, str(data), here)
        for name, rows in measured.studies.items()
        for data, here in rows.groupby("data", sort=False)
        if data in PATTERNS
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS, *SHARES.values()])


def mean_distance_px(pattern: Pattern) -> float:
    """How far apart the two cells that show a bit are, middle to middle, in pixels; the mean over the bits."""
    rows, columns = np.indices(pattern.cells.shape)
    shown = pd.DataFrame({"bit": pattern.bits.ravel(), "cell": pattern.cells.ravel(), "y": rows.ravel()})
    shown = shown.assign(x=columns.ravel()).query("bit >= 0")
    middles = shown.groupby(["bit", "cell"]).mean().groupby("bit")  # two rows a bit
    return float(np.hypot(*(middles.last() - middles.first()).to_numpy().T).mean())


def _of_data(study: str, data: str, rows: pd.DataFrame) -> pd.DataFrame:
    bounds = loss_bounds(data)
    shares = statistics.summary(rows.assign(gain_share=rows["loss"].map(bounds.gain_share)), "gain_share")
    roles = rows["role"] if "role" in rows else pd.Series(QUESTION, rows.index)
    known = {
        "study": study,
        "data": data,
        "role": shares["cell"].map(roles.groupby(rows["cell"]).first()),
        "loss_mean": shares["cell"].map(rows.groupby("cell")["loss"].mean()),
        "loss_own": bounds.own["loss"],
        "loss_shared": bounds.shared["loss"],
    }
    return shares.assign(**known).rename(columns=SHARES)[[*COLUMNS, *SHARES.values()]]

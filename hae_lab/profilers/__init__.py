"""Profilers: models in, rows out (pandas DataFrames, units in the column names).

Four questions have a function each: where the parameters sit, where the work goes, who sees whom, how long it takes.
"""

from hae_lab.profilers.macs import compute
from hae_lab.profilers.params import parameters
from hae_lab.profilers.reach import visibility
from hae_lab.profilers.timing import latency

__all__ = ["compute", "latency", "parameters", "visibility"]

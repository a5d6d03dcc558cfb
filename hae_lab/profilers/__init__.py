"""Profilers: models in, rows out (pandas DataFrames, units in the column names).

The four questions have a function each, named like its module: where the parameters sit, where the work goes, who sees
whom, how long it takes.
"""

from hae_lab.profilers.compute import compute
from hae_lab.profilers.latency import latency
from hae_lab.profilers.parameters import parameters
from hae_lab.profilers.visibility import visibility

__all__ = ["compute", "latency", "parameters", "visibility"]

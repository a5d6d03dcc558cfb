"""Profilers: models in, rows out (pandas DataFrames, units in the column names).

Questions have a function each: where the parameters sit, where the work goes, forward and backward, who sees whom, what
training keeps in memory, how long it takes, layer by layer; `profile` answers most of them at once, for any module.
"""

from hae_lab.profilers.backward import backward_macs
from hae_lab.profilers.layer_times import time_by_kind, time_by_layer
from hae_lab.profilers.macs import compute
from hae_lab.profilers.memory import memory_totals, training_memory
from hae_lab.profilers.params import parameters
from hae_lab.profilers.reach import visibility
from hae_lab.profilers.report import Profile, profile
from hae_lab.profilers.timing import latency

__all__ = [
    "Profile",
    "backward_macs",
    "compute",
    "latency",
    "memory_totals",
    "parameters",
    "profile",
    "time_by_kind",
    "time_by_layer",
    "training_memory",
    "visibility",
]

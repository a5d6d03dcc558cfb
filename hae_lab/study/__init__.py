"""Studies: a grid of configs x seeds, run once on the processes of one computer or a cluster, read as tidy tables."""

from hae_lab.study.declaration import Study
from hae_lab.study.tables import summary
from hae_lab.tables import write

__all__ = ["Study", "summary", "write"]

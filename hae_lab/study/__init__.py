"""Studies: a grid of configs x seeds, run once on the processes of one computer or a cluster, read as tidy tables."""

from hae_lab.study.declaration import Study
from hae_lab.study.tables import means

__all__ = ["Study", "means"]

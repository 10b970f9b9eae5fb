"""The league: every pruner of NNI and Torch-Pruning, and ours, under one protocol."""

from .league import League, names, read_league
from .page import bench, champions_table, standing_table, write_page
from .rivals import rivals_of

__all__ = ["League", "bench", "champions_table", "names", "read_league", "rivals_of", "standing_table", "write_page"]

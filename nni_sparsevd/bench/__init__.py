"""The league: every pruner of NNI and Torch-Pruning, and ours, under one protocol."""

from .league import League, league, names
from .page import bench, champions_table, standing_table, write_page
from .rivals import rivals_of

__all__ = ["League", "bench", "champions_table", "league", "names", "rivals_of", "standing_table", "write_page"]

"""The league: every pruner of NNI and Torch-Pruning, and ours, under one protocol."""

from .league import League, list_leagues, read_league
from .page import format_champions, format_level, format_paired_champions, format_standings, run_league, write_page
from .rivals import rivals_of

__all__ = [
    "League",
    "format_champions",
    "format_level",
    "format_paired_champions",
    "format_standings",
    "list_leagues",
    "read_league",
    "rivals_of",
    "run_league",
    "write_page",
]

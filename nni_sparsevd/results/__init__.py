"""The end of a run: the small network, checked and measured, in its folder, and what can be done with that."""

from .finishing import finish_run
from .run_files import FILES, check_run, export_run, find_network_folder

__all__ = ["FILES", "check_run", "export_run", "find_network_folder", "finish_run"]

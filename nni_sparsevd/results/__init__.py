"""The end of a run: the small network, checked and measured, in its folder, and what can be done with that."""

from .finishing import finish_run
from .run_export import RunExport, export_run
from .run_files import FILES, check_run, find_network_folder
from .runtimes import measure_run

__all__ = ["FILES", "RunExport", "check_run", "export_run", "find_network_folder", "finish_run", "measure_run"]

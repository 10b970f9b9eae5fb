"""The paper's experiments, each from one committed file: run, resumed, gathered, drawn."""

from .calibration import calibration_table
from .experiment import Experiment, experiment, names
from .page import reproduce
from .table import table

__all__ = ["Experiment", "calibration_table", "experiment", "names", "reproduce", "table"]

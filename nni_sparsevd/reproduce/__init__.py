"""The paper's experiments, each from one committed file: run, resumed, gathered, drawn."""

from .calibration import calibration_table
from .experiments import Experiment, experiment, names
from .page import reproduce
from .table import table
from .tradeoff import tradeoff_table

__all__ = ["Experiment", "calibration_table", "experiment", "names", "reproduce", "table", "tradeoff_table"]

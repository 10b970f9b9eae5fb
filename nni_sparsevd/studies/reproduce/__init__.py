"""The paper's experiments, each from one committed file: run, resumed, gathered, drawn."""

from .experiments import Experiment, list_experiments, read_experiment
from .measures import MEASURES
from .page import reproduce_experiment
from .tables import format_table

__all__ = ["MEASURES", "Experiment", "format_table", "list_experiments", "read_experiment", "reproduce_experiment"]

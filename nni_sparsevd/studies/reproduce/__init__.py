"""The paper's experiments, each from one committed file: run, resumed, gathered, drawn."""

from .experiments import Experiment, experiment, names
from .measures import MEASURES
from .page import reproduce
from .tables import table

__all__ = ["MEASURES", "Experiment", "experiment", "names", "reproduce", "table"]

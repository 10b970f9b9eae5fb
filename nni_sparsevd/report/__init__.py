"""What came out: sizes, times, tables and pictures."""

from .measure import latencies, macs, parameters
from .page import write_report

__all__ = ["latencies", "macs", "parameters", "write_report"]

"""The report of a run: pages and pictures."""

from .page import write_report
from .remarks import write_remarks

__all__ = ["write_remarks", "write_report"]

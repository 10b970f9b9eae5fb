"""The report of a run: pages and pictures."""

from .page import write_report

__all__ = ["write_report"]

"""Out of the house: files that other runtimes run, compared with the network before they are given away."""

from .exporting import FORMATS, Comparison, Format, Run, export, opened

__all__ = ["FORMATS", "Comparison", "Format", "Run", "export", "opened"]

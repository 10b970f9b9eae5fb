"""Out of the house: files that other runtimes run, compared with the network before they are given away."""

from .exporting import FORMATS, Comparison, Format, export

__all__ = ["FORMATS", "Comparison", "Format", "export"]

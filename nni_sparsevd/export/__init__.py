"""Out of the house: files that other runtimes run, compared with the network before they are given away."""

from .exporting import FORMATS, Comparison, Format, Run, export, opened
from .runtime import Deployed, open_exported
from .sparse_inference import Choice, SparseLinear, to_sparse_inference_

__all__ = [
    "FORMATS",
    "Choice",
    "Comparison",
    "Deployed",
    "Format",
    "Run",
    "SparseLinear",
    "export",
    "open_exported",
    "opened",
    "to_sparse_inference_",
]

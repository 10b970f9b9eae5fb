"""Out of the house: files that other runtimes run, compared with the network before they are given away."""

from .deployed import Deployed, deployed
from .exporting import FORMATS, Comparison, Format, Run, export, opened
from .sparse_inference import Choice, SparseLinear, to_sparse_inference_

__all__ = [
    "FORMATS",
    "Choice",
    "Comparison",
    "Deployed",
    "Format",
    "Run",
    "SparseLinear",
    "deployed",
    "export",
    "opened",
    "to_sparse_inference_",
]

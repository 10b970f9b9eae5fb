"""Export and deploy: files that other runtimes run, compared with the network before they are handed over."""

from .exporting import FORMATS, Comparison, Format, Run, export, open_file
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
    "open_file",
    "to_sparse_inference_",
]

"""Export and deploy: files that other runtimes run, compared with the network before they are handed over."""

from .exporting import FORMATS, Format, Run, check_format, export, open_file
from .file_comparison import Comparison, OutputDifference
from .latency import RUNTIMES, LatencyMeter
from .quantization import Quantization
from .runtime import Deployed, open_exported
from .sparse_inference import Choice, SparseLinear, to_sparse_inference_

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "Choice",
    "Comparison",
    "Deployed",
    "Format",
    "LatencyMeter",
    "OutputDifference",
    "Quantization",
    "Run",
    "SparseLinear",
    "check_format",
    "export",
    "open_exported",
    "open_file",
    "to_sparse_inference_",
]

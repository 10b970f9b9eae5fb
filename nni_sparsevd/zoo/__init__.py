"""The zoo: does exact shrinking hold for every architecture that timm has?"""

from .run import Limits, run_zoo
from .table import summary, table

__all__ = ["Limits", "run_zoo", "summary", "table"]

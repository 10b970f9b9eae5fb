"""The zoo: does exact shrinking hold for every architecture that timm has?"""

from ..processes import Limits
from .run import run_zoo
from .tables import format_summary, format_table

__all__ = ["Limits", "format_summary", "format_table", "run_zoo"]

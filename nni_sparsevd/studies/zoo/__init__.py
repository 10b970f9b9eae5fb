"""The zoo: does exact shrinking hold for every architecture that timm has?"""

from ..processes import Limits
from .run import run_zoo
from .tables import summary, table

__all__ = ["Limits", "run_zoo", "summary", "table"]

"""The zoo: does exact shrinking hold for every architecture that timm has?"""

from .run import run_zoo

__all__ = ["run_zoo"]

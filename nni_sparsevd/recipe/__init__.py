"""The recipe of `nni-sparsevd compress`: its sections, and the TOML or YAML file that holds it.

`recipe` has `Recipe`, the whole, and refuses settings that contradict each other; `data`, `model`, `stages` and
`budget` have its sections, beside those of `nni_sparsevd.settings`; `recipe_file` reads and writes it.
"""

from .budget import LADDER, BudgetKind, BudgetSettings
from .bundled import list_bundled_settings, read_bundled_settings
from .data import DataSettings
from .model import ModelSettings, TeacherSettings
from .recipe import Recipe
from .recipe_file import RECIPE_FILE, read_recipe, write_recipe
from .stages import FinetuneStage, QuantizeStage, SparseStage, Stage

__all__ = [
    "LADDER",
    "RECIPE_FILE",
    "BudgetKind",
    "BudgetSettings",
    "DataSettings",
    "FinetuneStage",
    "ModelSettings",
    "QuantizeStage",
    "Recipe",
    "SparseStage",
    "Stage",
    "TeacherSettings",
    "list_bundled_settings",
    "read_bundled_settings",
    "read_recipe",
    "write_recipe",
]

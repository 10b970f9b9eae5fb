"""A recipe in a TOML or YAML file."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import tomli_w
import yaml

from ..errors import SettingError
from ..files import write_bytes
from ..settings import make_settings
from .recipe import Recipe

RECIPE_FILE = "recipe.toml"
"""The settings of a run, in its folder."""


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a file; keys that it does not hold take their defaults.

    Args:
        path: A .toml, .yaml or .yml file.

    Returns:
        The recipe.

    Raises:
        SettingError: The file is missing, has another suffix or cannot be parsed, or a key in it is unknown or has a
            wrong value. The message names the file and each such key.
    """
    parsers: dict[str, Callable[[str], object]] = {
        ".toml": tomllib.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
    }
    if path.suffix not in parsers:
        raise SettingError(f"{path}: a recipe is a .toml, .yaml or .yml file")
    try:
        values = parsers[path.suffix](path.read_text())
    except FileNotFoundError:
        raise SettingError(f"{path}: no such recipe") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not readable as {path.suffix[1:]}: {error}") from None
    if not isinstance(values, dict):
        raise SettingError(f"{path}: a recipe is a table of settings, found {type(values).__name__}")
    try:
        return make_settings(Recipe, values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write all settings as TOML; `read_recipe` returns an equal recipe.

    Args:
        recipe: The recipe.
        path: The file to write, whole or not at all.

    Raises:
        FileFormatError: The file cannot be written.
    """
    values = recipe.model_dump(mode="json", exclude_none=True)
    write_bytes(path, tomli_w.dumps(values).encode())

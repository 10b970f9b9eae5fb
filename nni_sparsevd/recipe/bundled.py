"""Settings in TOML files that come with this package: leagues, and recipes of the paper."""

import tomllib
from importlib.resources.abc import Traversable
from typing import TypeVar

from ..errors import SettingError
from ..settings import Settings, make_settings

S = TypeVar("S", bound=Settings)


def list_bundled_settings(folder: Traversable) -> list[str]:
    """List the names of the TOML files in a folder of this package, sorted."""
    names = [path.name for path in folder.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def read_bundled_settings(folder: Traversable, kind: type[S], name: str) -> S:
    """Read settings of one kind from a TOML file that comes with this package.

    Args:
        folder: The folder of the package that holds the files.
        kind: The class of the settings.
        name: Name of the file, without ".toml".

    Returns:
        The settings.

    Raises:
        SettingError: The folder has no such file, or the file does not hold valid settings of this kind.
    """
    names = list_bundled_settings(folder)
    if name not in names:
        raise SettingError(f"no {kind.__name__.lower()} is named {name!r}; there are {', '.join(names)}")
    return make_settings(kind, tomllib.loads((folder / f"{name}.toml").read_text()))

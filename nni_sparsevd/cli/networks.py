"""`list-models`: the networks that `compress` knows by name."""

from jsonargparse import ArgumentParser, Namespace

from ..errors import SettingError
from .command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """Add the pattern."""
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'resnet*'")


def run(arguments: Namespace, command_line: list[str]) -> None:
    """Print one name a line; raises `SettingError` when no network matches the pattern."""
    from ..models import list_models

    names = list_models(arguments.pattern)
    if not names:
        raise SettingError(f"no network matches {arguments.pattern!r}")
    print("\n".join(names))


LIST_MODELS = Command(
    name="list-models",
    summary="list the networks that compress knows",
    description="List the networks that compress knows.",
    add_arguments=add_arguments,
    run=run,
)

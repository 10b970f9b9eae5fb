"""Networks by name, and how a network was built."""

import difflib
from typing import Any, cast

import timm
from torch import nn

from ..errors import ModelError, describe_error
from ..preprocessing import read_configuration
from ..settings import Argument
from .paper_networks import OWN_MODELS


def list_models(pattern: str = "*") -> list[str]:
    """List the names that match a shell pattern, the papers' networks first."""
    names = timm.list_models(pattern)
    own = [name for name in OWN_MODELS if name in names]
    return own + [name for name in names if name not in OWN_MODELS]


def build_model(name: str, arguments: dict[str, Argument], pretrained: bool = False) -> nn.Module:
    """Build a network by its name; `read_origin` reads name and arguments from it later.

    Args:
        name: A name that timm knows, the papers' networks included.
        arguments: Arguments of the network's constructor.
        pretrained: Load timm's pre-trained weights.

    Returns:
        The network.

    Raises:
        ModelError: timm does not know the name, the network does not take the arguments, or the weights cannot be
            loaded.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`nni-sparsevd list-models` lists them"
        raise ModelError(f"model.name: no network is named {name!r}; {hint}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **cast(dict[str, Any], arguments))
    except ModelError:
        raise
    except Exception as error:  # timm, the network's constructor, or the hub
        what = "weights cannot be loaded" if pretrained else "cannot be built"
        raise ModelError(f"{name} {what} with {arguments}: {describe_error(error)}") from error
    model.sparsevd_origin = {"name": name, "arguments": arguments}  # type: ignore[assignment]
    return model


def read_origin(model: nn.Module) -> dict[str, Any]:
    """Read how a network was built: {"name", "arguments"}, {"name"}, or {} where it is not known."""
    origin = getattr(model, "sparsevd_origin", None)
    if origin is not None:
        return dict(origin)
    architecture = read_configuration(model).get("architecture")
    return {"name": architecture} if architecture else {}


def resolve_origin(
    model: nn.Module, name: str | None, arguments: dict[str, Argument] | None
) -> tuple[str | None, dict[str, Argument]]:
    """Find out how to build a network again.

    Args:
        model: The network.
        name: Its name; None: the name that it was built by.
        arguments: Its arguments; None: the arguments that it was built with.

    Returns:
        The name, or None where it is unknown, and the arguments.
    """
    known = read_origin(model)
    return name or known.get("name"), known.get("arguments", {}) if arguments is None else arguments

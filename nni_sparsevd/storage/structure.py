"""timm's own text of a pruned network, `name:[shape]***name:[shape]...`, for those who rebuild with timm alone."""

import torch
from torch import nn

from ..errors import ModelError, describe_error
from ..graph import Inputs, as_tuple, evaluation_mode
from ..recipe import Argument
from ..shrinking import draw_inputs

SEPARATOR = "***"
TOLERANCE = 1e-4
"""Largest difference, relative to the largest output."""


def timm_structure(
    model: nn.Module, example_inputs: Inputs, *, name: str | None = None, arguments: dict[str, Argument] | None = None
) -> str:
    """Every tensor of `model` and its shape, as `timm.models.adapt_model_from_string` reads it.

    timm then gives the shrunk network without this package:
    `adapt_model_from_string(timm.create_model(NAME, **ARGUMENTS), text)` and `load_state_dict(model.state_dict())`.
    That is tried here, and the output compared on random inputs, because timm can do it for few networks: plain and
    depthwise convolutions, batch norms, and a last linear layer.

    `name` and `arguments` are those of `save`.  Raises `ModelError` when timm does not give the network back; `save`
    keeps every network.
    """
    from timm.models import adapt_model_from_string  # timm takes seconds to import

    from .. import models

    name, arguments = models.resolve_origin(model, name, arguments)
    if name is None:
        raise ModelError(f"timm does not know {type(model).__name__}: pass the name that it is built by")
    text = SEPARATOR.join(f"{key}:{list(tensor.shape)}" for key, tensor in model.state_dict().items())
    given = as_tuple(example_inputs)
    drawn = draw_inputs(given, 2, torch.Generator().manual_seed(0))
    inputs = [value.to(like.dtype) for value, like in zip(drawn, given, strict=True)]
    try:
        rebuilt = adapt_model_from_string(models.build_model(name, arguments), text)
        rebuilt.load_state_dict(model.state_dict())
        with torch.no_grad(), evaluation_mode(model):
            found, expected = rebuilt.eval()(*inputs), model(*inputs)
    except ModelError:
        raise
    except Exception as error:  # of timm, or of the network that it made
        raise ModelError(f"timm cannot rebuild {name} from its shapes: {describe_error(error)}; use save") from error
    if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
        raise ModelError(f"what timm rebuilds of {name} from its shapes computes something else; use save")
    return text

"""timm's own text of a pruned network, `name:[shape]***name:[shape]...`, for those who rebuild with timm alone."""

import torch
from torch import Tensor, nn

from ..errors import ModelError, describe_error
from ..graph import CallArguments, Inputs, as_arguments, evaluation_mode
from ..settings import Argument
from ..shrinking import batch_sizes, draw_inputs
from .wrappers import without_wrappers

SEPARATOR = "***"
TOLERANCE = 1e-4
"""Largest difference, relative to the largest output."""


def timm_structure(
    model: nn.Module, example_inputs: Inputs, *, name: str | None = None, arguments: dict[str, Argument] | None = None
) -> str:
    """Write the name and the shape of every tensor, as `timm.models.adapt_model_from_string` reads them.

    timm then makes the shrunk network without this package:
    `adapt_model_from_string(timm.create_model(NAME, **ARGUMENTS), text)` and `load_state_dict(model.state_dict())`.
    That is tried here, and the output compared on random inputs, because timm can do it for few networks: plain and
    depthwise convolutions, batch norms, and a last linear layer.

    Args:
        model: A network, shrunk for instance.
        example_inputs: What `model` is called with; see `shrink`.
        name: timm's name of the network before it was shrunk.  Networks that timm made know their name.
        arguments: The arguments that timm builds it with, such as {"num_classes": 10}.

    Returns:
        The text, `name:[shape]***name:[shape]...`.

    Raises:
        ModelError: timm does not give the network back.  `save` keeps every network.

    Example:
        ```python
        import timm
        import torch
        from torch import nn

        import nni_sparsevd as svd

        model = timm.create_model("test_resnet", num_classes=5).eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight[::2] = module.bias[::2] = 0
        images = torch.randn(1, 3, 32, 32)
        small, plan = svd.shrink(model, images)
        text = svd.timm_structure(small, images, arguments={"num_classes": 5})
        assert text.startswith("conv1.0.weight:[")
        ```
    """
    with without_wrappers(model) as network:
        return _write_checked(network, as_arguments(example_inputs), name, arguments)


def _write_checked(
    model: nn.Module, example: CallArguments, name: str | None, arguments: dict[str, Argument] | None
) -> str:
    """Write the text, and see that timm gives the network back."""
    from .. import models  # timm takes seconds to import

    name, arguments = models.resolve_origin(model, name, arguments)
    if name is None:
        raise ModelError(f"timm does not know {type(model).__name__}: pass the name that it is built by")
    text = SEPARATOR.join(f"{key}:{list(tensor.shape)}" for key, tensor in model.state_dict().items())
    inputs = _draw_typed_inputs(example)
    try:
        rebuilt = _rebuild(models.build_model(name, arguments), text, model.state_dict())
        with torch.no_grad(), evaluation_mode(model):
            rebuilt_output, expected = inputs.call(rebuilt), inputs.call(model)
    except ModelError:
        raise
    except Exception as error:  # of timm, or of the network that it made
        raise ModelError(f"timm cannot rebuild {name} from its shapes: {describe_error(error)}; use save") from error
    if not (rebuilt_output - expected).abs().max() <= TOLERANCE * expected.abs().max():  # nor may it be NaN
        raise ModelError(f"what timm rebuilds of {name} from its shapes computes something else; use save")
    return text


def _draw_typed_inputs(example: CallArguments) -> CallArguments:
    # Drawn in float64, as for `check`; the two networks run in the example's own type.
    drawn = draw_inputs(example, batch_sizes(example, 2), torch.Generator().manual_seed(0))
    pairs = zip(drawn.tensors, example.tensors, strict=True)
    return drawn.with_tensors([value.to(like.dtype) for value, like in pairs])


def _rebuild(original: nn.Module, text: str, tensors: dict[str, Tensor]) -> nn.Module:
    from timm.models import adapt_model_from_string

    rebuilt: nn.Module = adapt_model_from_string(original, text)
    rebuilt.load_state_dict(tensors)
    return rebuilt.eval()

"""What `sparsify_` leaves without a posterior, and why."""

import warnings
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from ..errors import SparseVDError, SparseVDWarning
from ..graph import Inputs, find_users, is_inside, trace
from ..settings import PosteriorSettings, choose_settings
from .gating import find_silencings, name_passed_over_groups
from .selection import group_by_weight, is_selected, select_layers

ADDED = ("bias", "embed", "pos", "token", "table", "cls", "prompt")
"""Parts of the names of parameters that are added or looked up, and multiply nothing."""
SHOWN = 5
"""How many names a warning has."""


def find_passed_over(
    model: nn.Module,
    settings: PosteriorSettings | None = None,
    *,
    example_inputs: Inputs | None = None,
    **keywords: object,
) -> dict[str, str]:
    """Find what `sparsify_` with the same arguments leaves without a posterior.

    What the settings exclude is not named, and neither is a channel group that is pinned: no gate could remove it.

    Args:
        model: An ordinary network; it stays as it is.
        settings: What is learned, and about which layers; None: the defaults.
        example_inputs: What the network is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or
            a pair (args, kwargs), in any nesting; needed for gates only.
        keywords: Fields of `PosteriorSettings`, instead of `settings`.

    Returns:
        Name of a weight or of a channel group -> why it has no posterior.

    Raises:
        SettingError: As `sparsify_`.
        ModelError: No layer that can be converted is selected.
        TraceError: The network cannot be traced with `example_inputs`.

    Example:
        ```python
        import nni_sparsevd as svd
        from torch import nn

        model = nn.ModuleDict({"reader": nn.LSTM(8, 16), "head": nn.Linear(16, 2)})
        passed_over = svd.find_passed_over(model)
        assert list(passed_over) == ["reader.weight_ih_l0", "reader.weight_hh_l0"]
        ```
    """
    chosen = choose_settings("find_passed_over", PosteriorSettings, settings, keywords)
    passed_over: dict[str, str] = {}
    layers = select_layers(model, chosen)
    if chosen.granularity in ("weight", "both"):
        passed_over |= find_passed_over_weights(model, chosen, layers) | find_used_by_code(
            model, layers, example_inputs
        )
    if chosen.granularity in ("gate", "both"):
        passed_over |= name_passed_over_groups(find_silencings(model, chosen, example_inputs))
    return passed_over


def find_passed_over_weights(model: nn.Module, settings: PosteriorSettings, layers: list[str]) -> dict[str, str]:
    """Find the weights that get no posterior of their own.

    Args:
        model: The network, still ordinary.
        settings: They say which modules are selected.
        layers: Names of the layers that are converted.

    Returns:
        Name of a weight -> the reason.
    """
    converted = {model.get_submodule(name).get_parameter("weight") for name in layers}
    passed_over = {}
    for name, module in model.named_modules():
        if not is_selected(name, module, settings):
            continue
        for key, weight in _find_weights(module):
            if weight not in converted:
                kind = type(module).__name__
                passed_over[f"{name}.{key}".removeprefix(".")] = f"no posterior fits what {kind} does with this weight"
    return passed_over


def find_used_by_code(model: nn.Module, layers: list[str], example_inputs: Inputs | None) -> dict[str, str]:
    """Find the layers whose weight other code computes with, beside the layer or in its place.

    That code would see neither noise nor zeros, and what is baked would compute something else: the queries, keys and
    values of BEiT, and a table of words that the code multiplies with.

    Args:
        model: The network, still ordinary.
        layers: Names of the layers that are converted.
        example_inputs: What the network is called with; without them, or where it cannot be traced, nothing is found.

    Returns:
        Name of a weight -> the reason.
    """
    if example_inputs is None:
        return {}
    try:
        users = find_users(trace(model, example_inputs))
    except SparseVDError:  # for gates it has to be traced; weights get along without
        return {}
    used = {}
    for names in group_by_weight(model, layers):
        keys = [f"{name}.weight".removeprefix(".") for name in names]
        others = {
            user for key in keys for user in users.get(key, ()) if not any(is_inside(user, name) for name in names)
        }
        for key in keys if others else ():
            code = type(model.get_submodule(min(others))).__name__
            used[key] = f"the code of {code} uses it beside the layer"
    return used


def _find_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a module itself that multiply channels, as far as shapes and names tell.

    A weight has rows and columns.  A first axis of size 1 is that of a table which is added to each sample.
    """
    for key, parameter in module._parameters.items():
        if parameter is None or not parameter.requires_grad or parameter.dim() < 2 or parameter.shape[0] == 1:
            continue
        has_columns = parameter.numel() > len(parameter)
        if has_columns and not any(part in key for part in ADDED):
            yield key, parameter


def list_reasons(passed_over: Iterable[tuple[str, str]]) -> str:
    """Write names of weights or channel groups, each with the reason in parentheses."""
    return "; ".join(f"{name} ({reason})" for name, reason in passed_over)


def warn_of_passed_over(model: nn.Module, passed_over: dict[str, str]) -> None:
    """Warn once of what is left without a posterior.

    Args:
        model: The network.
        passed_over: Name of a weight or of a channel group -> the reason; without any there is no warning.
    """
    if not passed_over:
        return
    shown = list_reasons(list(passed_over.items())[:SHOWN])
    rest = f" and {len(passed_over) - SHOWN} more" if len(passed_over) > SHOWN else ""
    warnings.warn(
        f"{type(model).__name__}: left without a posterior: {shown}{rest}; exclude them, or see find_passed_over",
        SparseVDWarning,
        stacklevel=3,
    )

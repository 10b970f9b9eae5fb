"""`sparsify_` and `bake_`: ordinary layers learn a posterior, and become ordinary again.  A pair that undoes itself."""

from torch import nn

from ..errors import ModelError, SparseVDError
from ..graph import Inputs, require_convertible, require_numbers
from ..masks import Masks, apply_masks_, compute_masks, validate_masks
from ..nn import gate_sites, is_variational, share_posterior_, to_plain_network_, to_variational_
from ..settings import PosteriorSettings, choose_settings
from .gating import attach_gates_
from .passed_over import find_passed_over_weights, find_used_by_code, list_reasons, warn_of_passed_over
from .selection import find_kl_weight, group_by_weight, require_whole_ties, select_layers, settle_estimator


def sparsify_(
    model: nn.Module,
    settings: PosteriorSettings | None = None,
    *,
    example_inputs: Inputs | None = None,
    **keywords: object,
) -> nn.Module:
    """Give the layers of a network a posterior, in place.

    Linear, convolution, transposed convolution and embedding layers become variational. Their parameters stay the same
    objects, so an optimizer made before still holds them, but it does not hold the new ones. Layers that share a weight
    share its posterior: what it removes is removed for all of them, and its KL counts once. With gates, the network is
    traced, and each coupled channel group gets one gate, after the normalization behind each of its last writers.

    What gets no posterior though it is selected is named in one warning, with the reason: a free channel group without
    a gate, or a weight of a module that no twin is known of. `find_passed_over` gives the whole list.

    Law: `bake_` undoes it. With nothing removed, the network then computes what it computed before, with its own
    classes and state-dict keys. After an error the network is what it was, too.

    Args:
        model: Any network.
        settings: What is learned, and about which layers; None: the defaults.
        example_inputs: What the network is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or
            a pair (args, kwargs), in any nesting; needed for gates. With them, layers are found whose weight other code
            computes with, as `F.linear(x, self.table.weight)`; these get no posterior.
        keywords: Fields of `PosteriorSettings`, instead of `settings`: `sparsify_(model, exclude=["head"])`.

    Returns:
        `model`.

    Raises:
        SettingError: Both `settings` and keywords, an unknown keyword or a wrong value, a pattern that matches no
            module, gates without `example_inputs`, a layer that cannot carry a posterior, or one that shares its weight
            with a module that gets none.
        ModelError: The network is variational already, quantized, exported or lazy, or has no layer or channel group to
            convert.
        TraceError: The network cannot be traced with `example_inputs`.

    Example:
        ```python
        import nni_sparsevd as svd
        import torch
        from torch import nn

        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        svd.sparsify_(model, granularity="gate", example_inputs=torch.zeros(1, 8))
        optimizer = torch.optim.Adam(model.parameters())
        ```
    """
    chosen = choose_settings("sparsify_", PosteriorSettings, settings, keywords)
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} is variational already; bake_ it first")
    require_convertible(model)
    require_numbers(model)
    warn_of_passed_over(model, _convert_or_undo_(model, chosen, example_inputs))
    return model


def _convert_or_undo_(model: nn.Module, settings: PosteriorSettings, example_inputs: Inputs | None) -> dict[str, str]:
    """`_convert_`, and after an error no posterior at all."""
    try:
        return _convert_(model, settings, example_inputs)
    except SparseVDError:
        remove_posteriors_(model)
        raise


def remove_posteriors_(model: nn.Module) -> None:
    """Undo `sparsify_` before anything is learned: the means of gates are dropped, and not baked.

    Args:
        model: The network, changed in place.
    """
    for _, site, gate in list(gate_sites(model)):
        gate.detach_(site)
    to_plain_network_(model)


def _convert_(model: nn.Module, settings: PosteriorSettings, example_inputs: Inputs | None) -> dict[str, str]:
    """Give everything a posterior that can have one; returns what is left without, and why."""
    layers = select_layers(model, settings)
    require_whole_ties(model, layers)
    passed_over: dict[str, str] = {}
    if settings.granularity in ("weight", "both"):
        passed_over |= find_passed_over_weights(model, settings, layers)
        used = find_used_by_code(model, layers, example_inputs)
        passed_over |= used
        layers = [name for name in layers if f"{name}.weight".removeprefix(".") not in used]
        if used and not layers:
            raise ModelError(f"{type(model).__name__} has no layer to convert: {list_reasons(used.items())}")
    if settings.granularity in ("gate", "both"):
        passed_over |= attach_gates_(model, settings, example_inputs)
    if settings.granularity in ("weight", "both"):
        for names in group_by_weight(model, layers):
            _add_posterior_(model, names, settings)
    return passed_over


def _add_posterior_(model: nn.Module, names: list[str], settings: PosteriorSettings) -> None:
    """Make layers variational that share one weight; mostly that is a single layer."""
    modules = {name: model.get_submodule(name) for name in names}
    kl_weight = find_kl_weight(modules, settings)
    layers = []
    for name, module in modules.items():
        layer = to_variational_(module, settle_estimator(name, module, settings))
        layer.kl_weight = kl_weight
        layers.append(layer)
    if len(layers) > 1:
        share_posterior_(layers[0], layers[1:])


def bake_(model: nn.Module, masks: Masks | None = None, *, allow_empty: bool = False) -> nn.Module:
    """Make every layer of a network ordinary again, in place, with zeros where the masks remove.

    Gates are multiplied into the normalization or layer that they follow. Networks without posteriors only get the
    masks.

    Law: in evaluation mode a variational network computes exactly what `bake_(model)` computes.

    Args:
        model: Any network.
        masks: What to keep and remove; they may name ordinary layers too, and what they do not name is kept whole.
            None: every layer and gate is cut at its own threshold, as in evaluation mode.
        allow_empty: Accept masks that remove a whole layer.

    Returns:
        `model`.

    Raises:
        MaskError: A mask names no module or parameter, has another shape than the parameter, holds other values than 0
            and 1, or removes a whole layer without `allow_empty`. The network is then what it was.

    Example:
        ```python
        import nni_sparsevd as svd
        from torch import nn

        model = svd.sparsify_(nn.Sequential(nn.Linear(8, 2)))
        svd.bake_(model, svd.compute_masks(model, ratio=0.5))
        assert type(model[0]) is nn.Linear and model[0].weight.count_nonzero() == 8
        ```
    """
    if masks is not None:
        validate_masks(model, masks, allow_empty=allow_empty)
        chosen = masks
    else:
        chosen = compute_masks(model) if is_variational(model) else {}
    to_plain_network_(model)
    apply_masks_(model, chosen)
    return model

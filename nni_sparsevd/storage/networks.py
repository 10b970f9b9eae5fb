"""`save` and `load`: a network, shrunk or not, packed or not, in one safetensors file that gives back a working module.

The file holds every tensor, how to build the network's unpruned original (its timm name and arguments), and the plain
attributes in which the two differ (`out_channels`, `num_features`, ...).  Loading builds the original, puts the tensors
in at the sizes that they have, and sets those attributes: nothing is unpickled, no training code is needed.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FileFormatError, ModelError, SettingError
from ..files import load_tensors, save_tensors
from ..graph import ShrinkableMultiheadAttention, copy_module, evaluation_mode, free_attentions_
from ..nn import is_variational
from ..preprocessing import check_values, read_values, set_values_
from ..settings import Argument
from ..shrinking import (
    Attributes,
    PaddedNorm,
    RememberingLayerNorm,
    pad_norm_,
    read_attributes,
    read_changed_attributes,
    resize_,
    set_possible_attributes_,
    split_attributes,
)
from .packing import Coding, pack, unpack
from .precision import choose_steps
from .wrappers import without_wrappers

FORMAT = "nni_sparsevd.model"
"""Metadata key of the header."""
VERSION = 1
PACKED = "packed"
"""The only tensor of a file that holds packed ones, and what its metadata say then."""
HEADER = ("class", "name", "arguments", "attributes")
"""Keys that every header has."""
READS_FILES = ("pretrained", "checkpoint", "cache")
"""How arguments begin that have timm open other files: on this machine, or at an address anywhere."""
MAX_REMEMBERED = 1 << 24
"""Channels that a norm may remember, at most: a file that claims more would only take memory."""
MAX_DIMENSIONS = 8
"""Dimensions of the input of a norm, at most."""


def save(
    model: nn.Module,
    path: Path | str,
    *,
    name: str | None = None,
    arguments: dict[str, Argument] | None = None,
    coding: Coding | None = None,
    posterior: nn.Module | None = None,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Write a network to a .safetensors file, whole or not at all; `load` makes a working module of it.

    Args:
        model: An ordinary network, masked, shrunk or neither.  Wrappers, as that of `torch.compile`, are left out.
        path: The file to write.  Missing folders are made.
        name: timm's name of the network before it was shrunk.  Networks that timm made know their name.  A network of
            your own is saved without: `load(path, model=...)` then wants a fresh instance.
        arguments: The arguments that timm builds it with, such as {"num_classes": 10}.  The networks of this package
            know theirs.
        coding: If given, only what is not zero is written: positions near their entropy, and values "exact", in
            "float16", in "int8" or "int4" with a scale for each row, or, with "posterior", as multiples of a step that
            the posterior of each layer sets.
        posterior: With `coding="posterior"` the variational network that `model` was baked from.
        measure: Called on the network as the file gives it back, after quantization say.  The numbers that it returns,
            {name: value}, are kept in the file; `describe_file` reads them.
        preprocessing: How inputs are made, and the `label_names` of the classes, where that is not what the network's
            `pretrained_cfg` says: "mean", "std", "input_size" and so on, under timm's names.

    Raises:
        SettingError: `preprocessing`, `pretrained_cfg` or `arguments` have a value that is not allowed; `posterior` is
            missing with `coding="posterior"`, or given without.
        ModelError: The network still has posteriors, or is not what `name` and `arguments` build; `posterior` has no
            posterior on weights, or weights of other shapes.
        FileFormatError: The file cannot be written; what was there before is intact.

    Example:
        ```python
        import timm
        import torch

        import nni_sparsevd as svd

        model = timm.create_model("test_resnet", num_classes=5).eval()
        svd.save(model, "network.safetensors", arguments={"num_classes": 5}, coding="float16")
        again = svd.load("network.safetensors")
        images = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(again(images), model(images), rtol=1e-2, atol=1e-2)
        ```
    """
    path = Path(path)
    with without_wrappers(model) as network:
        if is_variational(network):
            raise ModelError(f"{type(network).__name__} still has posteriors; save what bake_ or shrink gives back")
        steps = _choose_steps(network, coding, posterior)
        header = _make_header(network, name, arguments, path, check_values(preprocessing or {}))
        # Measured before the file is written: the file is whole, or it is not there.
        if measure is not None:
            header["measured"] = _measure(network, measure, coding, steps)
        _write(network.state_dict(), path, header, coding, steps)


def _write(
    tensors: dict[str, Tensor], path: Path, header: dict[str, Any], coding: Coding | None, steps: dict[str, float]
) -> None:
    if coding is None:
        save_tensors(tensors, path, {FORMAT: json.dumps(header)})
    else:
        # The packed bytes are a tensor of a safetensors file, so that its digest and its readers serve for them, too.
        content = torch.frombuffer(bytearray(pack(tensors, coding, header, steps)), dtype=torch.uint8)
        save_tensors({PACKED: content}, path, {FORMAT: PACKED})


def _choose_steps(model: nn.Module, coding: Coding | None, posterior: nn.Module | None) -> dict[str, float]:
    """The step of each weight; none with a coding that is the same for all."""
    if (coding == "posterior") != (posterior is not None):
        if posterior is None:
            raise SettingError(
                f"coding='posterior' chooses precision by the posterior, and {type(model).__name__} is baked and has "
                "none: pass posterior=, the variational network that it was baked from"
            )
        raise SettingError(f"posterior: counts only with coding='posterior', found coding={coding!r}")
    if posterior is None:
        return {}
    with without_wrappers(posterior) as variational:
        return choose_steps(model, variational)


def _make_header(
    model: nn.Module, name: str | None, arguments: dict[str, Argument] | None, path: Path, preprocessing: dict[str, Any]
) -> dict[str, Any]:
    """What the file says besides its tensors: how to build the original, and how it differs."""
    from .. import models  # timm takes seconds to import: not before a network is saved or loaded

    name, arguments = models.resolve_origin(model, name, arguments)
    # The file has the weights, and says how inputs are made: it needs no other.
    arguments = {key: value for key, value in arguments.items() if not key.startswith(READS_FILES)}
    _require_plain(arguments)
    remembering = _describe_remembering_norms(model)
    attentions = [name for name, module in model.named_modules() if isinstance(module, ShrinkableMultiheadAttention)]
    possible_attributes: Attributes = {}
    # What timm has for the network is not repeated: a file says what is different.
    inputs = read_values(model)
    if name is None:
        attributes, possible_attributes = split_attributes(model, read_attributes(model))
    else:
        # The original is built now, so that a wrong name is an error of `save` and not of some later `load`.
        original = models.build_model(name, arguments)
        _put_remembering_norms_(original, remembering, path)
        free_attentions_(original, attentions)
        _require_same_modules(original, model, f"timm.create_model({name!r}, **{arguments})")
        attributes = read_changed_attributes(model, original)
        inputs = {} if inputs == read_values(original) else inputs
    return {
        "version": VERSION,
        "class": type(model).__name__,
        "name": name,
        "arguments": arguments,
        "remembering": remembering,
        "attentions": attentions,
        "attributes": attributes,
        "possible_attributes": possible_attributes,
        "preprocessing": check_values(inputs | preprocessing),
    }


def _require_plain(arguments: dict[str, Argument]) -> None:
    for key, value in arguments.items():
        try:
            json.dumps(value)
        except TypeError:
            raise SettingError(
                f"arguments: {key} = {value!r} cannot be written; name what timm knows by name"
            ) from None


def _describe_remembering_norms(model: nn.Module) -> dict[str, dict[str, int]]:
    norms = {}
    for name, module in model.named_modules():
        if isinstance(module, RememberingLayerNorm):
            norms[name] = {"channel_dim": module.channel_dim, "removed": module.removed}
        elif isinstance(module, PaddedNorm):
            removed, channels = len(module.removed_constants), len(module.padding_order)
            norms[name] = {"channel_dim": module.remembered_dim, "removed": removed, "channels": channels}
    return norms


def _measure(
    model: nn.Module,
    measure: Callable[[nn.Module], Mapping[str, float]],
    coding: Coding | None,
    steps: dict[str, float],
) -> dict[str, float]:
    """What is measured of a network as its file gives it back, in evaluation mode, as numbers that JSON can hold."""
    as_loaded = model if coding is None else _copy_as_packed(model, coding, steps)
    with evaluation_mode(as_loaded):
        return {name: float(value) for name, value in measure(as_loaded).items()}


def _copy_as_packed(model: nn.Module, coding: Coding, steps: dict[str, float]) -> nn.Module:
    """The network as a packed file would give it back."""
    copied = copy_module(model).cpu().eval()
    _, tensors = unpack(memoryview(pack(copied.state_dict(), coding, {}, steps)))
    copied.load_state_dict(dict(tensors))
    return copied


def describe_file(path: Path | str) -> dict[str, Any]:
    """Read what a file of `save` says of itself.

    Args:
        path: The file.

    Returns:
        Its header: "class", "name", "arguments" and "attributes" of the network, and what was "measured".

    Raises:
        FileFormatError: The file is missing, truncated, altered, or of another format or version.

    Example:
        ```python
        from torch import nn

        import nni_sparsevd as svd

        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        svd.save(model, "own.safetensors", measure=lambda network: {"largest": network[1].weight.max().item()})
        header = svd.describe_file("own.safetensors")
        assert header["class"] == "Sequential" and header["attributes"]["1"]["in_features"] == 16
        print(header["measured"])
        ```
    """
    return read_file(Path(path))[0]


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Read a file of `save` and give back the working module, in evaluation mode.

    Args:
        path: The file.
        model: For networks that timm does not know: a fresh, unpruned instance.  It is changed in place.

    Returns:
        The network, `model` itself if that was given.

    Raises:
        FileFormatError: The file is missing, truncated, altered, of another format or version, or does not fit.
    """
    path = Path(path)
    header, tensors = read_file(path)
    if model is None:
        if header["name"] is None:
            raise FileFormatError(f"{path}: holds a {header['class']} that timm cannot build; load(path, model=fresh)")
        model = _build_original(header["name"], header["arguments"], path)
    with without_wrappers(model) as network:
        _fill_(network, header, tensors, path)
    return model.eval()


def _fill_(model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    """Make a network what a file says, in place; older files lack the keys that have a default here."""
    _put_remembering_norms_(model, header.get("remembering", {}), path)
    _free_attentions_(model, header.get("attentions", []), path)
    _match_buffer_types_(model, tensors)
    resize_(model, tensors, header["attributes"], path)
    set_possible_attributes_(model, header.get("possible_attributes", {}), path)
    try:
        inputs = check_values(header.get("preprocessing", {}))
    except SettingError as error:
        raise FileFormatError(f"{path}: {error}") from None
    if inputs:
        set_values_(model, inputs)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read header and tensors of a file, packed or not.

    Args:
        path: The file.

    Returns:
        What the file says of itself, and name -> tensor.

    Raises:
        FileFormatError: The file is missing, truncated, altered, or of another format or version.
    """
    tensors, metadata = load_tensors(path)
    if FORMAT not in metadata:
        raise FileFormatError(f"{path}: plain tensors, not a network written by nni_sparsevd.save")
    try:
        if metadata[FORMAT] == PACKED:
            header, unpacked = unpack(memoryview(tensors[PACKED].numpy().tobytes()))
            tensors = dict(unpacked)
        else:
            header = json.loads(metadata[FORMAT])
        missing = [key for key in (*HEADER, "version") if key not in header]
    except (ValueError, RecursionError, KeyError, TypeError, FileFormatError) as error:
        raise FileFormatError(f"{path}: its header is damaged: {error}") from None
    if missing:
        raise FileFormatError(f"{path}: its header is damaged: it lacks {', '.join(missing)}")
    if header["version"] != VERSION:
        raise FileFormatError(f"{path}: format version {header['version']}, this release reads {VERSION}")
    return header, tensors


def _match_buffer_types_(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Where a file is of another precision than the network, give that to the buffers that no file has, in place."""
    types, own_types = _find_float_types(tensors), _find_float_types(model.state_dict())
    if len(types) != 1 or types == own_types:
        return
    (dtype,) = types
    for module in model.modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers[key]
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.to(dtype)


def _find_float_types(tensors: Mapping[str, Tensor]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}


def _build_original(name: Any, arguments: Any, path: Path) -> nn.Module:
    """Build the unpruned original.

    A file says what to build, never what else to read: no weights, paths or addresses.
    """
    from .. import models

    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise FileFormatError(f"{path}: names no network: {name!r} with {arguments!r}")
    refused = [key for key in arguments if key.startswith(READS_FILES)]
    if refused:
        raise FileFormatError(f"{path}: wants to load other files ({', '.join(refused)}), which none may")
    try:
        return models.build_model(name, arguments)
    except ModelError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _put_remembering_norms_(model: nn.Module, norms: Any, path: Path) -> None:
    """Make norms remember removed channels: the file names them, and brings what they remember as tensors."""
    if not isinstance(norms, dict):
        raise FileFormatError(f"{path}: its header is damaged: remembering is {norms!r}, not a table of norms")
    modules = dict(model.named_modules())
    for name, settings in norms.items():
        norm = modules.get(name)
        # Only the number of removed channels counts here: the file's own tensors bring what they were.
        if norm is not None and norm is not model and _is_padded(settings):
            removed = torch.zeros(settings["removed"])
            pad_norm_(norm, settings["channel_dim"], settings["channels"], range(len(removed)), removed)
        elif isinstance(norm, nn.LayerNorm) and norm is not model and _is_remembering(settings):
            removed = torch.zeros(min(max(settings["removed"], 0), MAX_REMEMBERED))
            owner, _, key = name.rpartition(".")
            setattr(modules[owner], key, RememberingLayerNorm(norm, settings["channel_dim"], removed))
        else:
            raise FileFormatError(f"{path}: makes a norm that remembers of {name!r}: {settings!r}")


def _free_attentions_(model: nn.Module, names: Any, path: Path) -> None:
    """Give attentions of PyTorch's, and nothing else, the form that has fewer heads or dimensions."""
    if not isinstance(names, list):
        raise FileFormatError(f"{path}: its header is damaged: attentions is {names!r}, not a list of names")
    modules = dict(model.named_modules())
    for name in names:
        if not isinstance(name, str) or not isinstance(modules.get(name), nn.MultiheadAttention):
            raise FileFormatError(f"{path}: makes a smaller attention of {name!r}, which is none")
        free_attentions_(model, [name])


def _is_remembering(settings: Any) -> bool:
    """Whether a file's description of a norm that remembers is well-formed."""
    if not isinstance(settings, dict):
        return False
    return settings.get("channel_dim") in (-1, 1) and type(settings.get("removed")) is int


def _is_padded(settings: Any) -> bool:
    """Whether a file's description of a norm that sees all channels is well-formed."""
    if not isinstance(settings, dict) or settings.keys() != {"channel_dim", "removed", "channels"}:
        return False
    dim, removed, channels = settings["channel_dim"], settings["removed"], settings["channels"]
    if not all(type(number) is int for number in (dim, removed, channels)):
        return False
    return bool(-1 <= dim < MAX_DIMENSIONS and 0 <= removed <= channels <= MAX_REMEMBERED)


def _require_same_modules(original: nn.Module, model: nn.Module, what: str) -> None:
    """Compare names and classes of all modules; raises `ModelError` at the first difference."""
    expected = {name: type(module).__name__ for name, module in original.named_modules()}
    present = {name: type(module).__name__ for name, module in model.named_modules()}
    for name in [*expected, *present]:
        if expected.get(name) != present.get(name):
            raise ModelError(
                f"{what} has {expected.get(name)} where the network has {present.get(name)}, at {name or 'its root'!r};"
                " pass the name and arguments that it was made with: save(model, path, name=..., arguments={...})"
            )

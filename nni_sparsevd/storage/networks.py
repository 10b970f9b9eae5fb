"""`save` and `load`: a network, shrunk or not, packed or not, in one safetensors file that gives back a working module.

The file holds every tensor, how to build the network's unpruned original (its timm name and arguments), and the plain
attributes in which the two differ (`out_channels`, `num_features`, ...).  Loading builds the original, puts the tensors
in at the sizes that they have, and sets those attributes: nothing is unpickled, no training code is needed.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FileFormatError, ModelError
from ..files import load_tensors, save_tensors
from ..nn import is_variational
from ..recipe import Argument
from ..shrinking import RememberingLayerNorm, read_attributes, read_changed_attributes, resize_
from .packing import Coding, pack, unpack

FORMAT = "nni_sparsevd.model"
VERSION = 1
PACKED = "packed"
"""The only tensor of a file that holds packed ones, and what its metadata say then."""
HEADER = ("class", "name", "arguments", "attributes")


def save(
    model: nn.Module,
    path: Path | str,
    *,
    name: str | None = None,
    arguments: dict[str, Argument] | None = None,
    coding: Coding | None = None,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> None:
    """Write `model` to `path` (.safetensors), whole or not at all.

    With a `coding` only what is not zero is written: positions near their entropy, values exact, or in float16, or in
    int8 or int4 with a scale for each row.  `measure` is called on the network as the file gives it back, and what it
    finds, an error after quantisation say, is kept in the file (see `described`).

    `name` and `arguments` tell how timm builds the network before shrinking; networks made by timm know their name,
    ours both.  A network of your own is saved without, and `load(path, model=...)` then wants a fresh one.

    Raises `ModelError` when the network is still variational, or is not what `name` and `arguments` build.
    """
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} still has posteriors; save what bake_ or shrink gives back")
    from .. import models  # timm takes seconds to import: not before a network is saved or loaded

    name, arguments = models.resolve_origin(model, name, arguments)
    header: dict[str, Any] = {"version": VERSION, "class": type(model).__name__, "name": name, "arguments": arguments}
    header["remembering"] = {
        path: {"channel_dim": module.channel_dim, "removed": module.removed}
        for path, module in model.named_modules()
        if isinstance(module, RememberingLayerNorm)
    }
    if name is not None:
        reference = models.build_model(name, arguments)
        _remember_(reference, header["remembering"], Path(path))
        _same_skeleton(reference, model, f"timm.create_model({name!r}, **{arguments})")
        header["attributes"] = read_changed_attributes(model, reference)
    else:
        header["attributes"] = read_attributes(model)
    tensors = model.state_dict()
    if measure is not None:
        header["measured"] = dict(measure(model if coding is None else _as_packed(model, coding)))
    if coding is None:
        save_tensors(tensors, Path(path), {FORMAT: json.dumps(header)})
    else:
        content = torch.frombuffer(bytearray(pack(tensors, coding, header)), dtype=torch.uint8)
        save_tensors({PACKED: content}, Path(path), {FORMAT: PACKED})


def _as_packed(model: nn.Module, coding: Coding) -> nn.Module:
    twin = copy.deepcopy(model).cpu().eval()
    twin.load_state_dict(dict(unpack(memoryview(pack(twin.state_dict(), coding, {})))[1]))
    return twin


def describe_file(path: Path | str) -> dict[str, Any]:
    """What a file of `save` says of itself: class, name, arguments, attributes, and what was measured.

    Raises `FileFormatError` as `load` does.
    """
    return _read(Path(path))[0]


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Read a file of `save` and give back the working module, in evaluation mode.

    `model`, for networks that timm does not know: a fresh, unpruned instance; it is changed in place and returned.

    Raises `FileFormatError` when the file is missing, truncated, of another format or version, or does not fit.
    """
    path = Path(path)
    header, tensors = _read(path)
    kind, name, arguments, sizes = (header[key] for key in HEADER)
    if model is None:
        if name is None:
            raise FileFormatError(f"{path}: holds a {kind} that timm cannot build; load(path, model=fresh)")
        model = _build(name, arguments, path)
    _remember_(model, header.get("remembering", {}), path)
    resize_(model, tensors, sizes, path)
    return model.eval()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors), packed or not."""
    tensors, metadata = load_tensors(path)
    if FORMAT not in metadata:
        raise FileFormatError(f"{path}: plain tensors, not a network written by nni_sparsevd.save")
    try:
        if metadata[FORMAT] == PACKED:
            header, found = unpack(memoryview(tensors[PACKED].numpy().tobytes()))
            tensors = dict(found)
        else:
            header = json.loads(metadata[FORMAT])
        missing = [key for key in (*HEADER, "version") if key not in header]
    except (json.JSONDecodeError, KeyError, TypeError, FileFormatError) as error:
        raise FileFormatError(f"{path}: its header is damaged: {error}") from None
    if missing:
        raise FileFormatError(f"{path}: its header is damaged: it lacks {', '.join(missing)}")
    if header["version"] != VERSION:
        raise FileFormatError(f"{path}: format version {header['version']}, this release reads {VERSION}")
    return header, tensors


def _build(name: Any, arguments: Any, path: Path) -> nn.Module:
    """The unpruned original.  A file says what to build, never what else to read: no weights, paths or addresses."""
    from .. import models

    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise FileFormatError(f"{path}: names no network: {name!r} with {arguments!r}")
    refused = [key for key in arguments if key.startswith(("pretrained", "checkpoint", "cache"))]
    if refused:
        raise FileFormatError(f"{path}: wants to load other files ({', '.join(refused)}), which none may")
    try:
        return models.build_model(name, arguments)
    except ModelError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _remember_(model: nn.Module, norms: Any, path: Path) -> None:
    """Put norms that remember lost channels in the places of layer norms, and of nothing else."""
    modules = dict(model.named_modules())
    for name, settings in norms.items() if isinstance(norms, dict) else ():
        known = isinstance(settings, dict) and settings.get("channel_dim") in (-1, 1)
        if not (known and type(settings.get("removed")) is int and isinstance(modules.get(name), nn.LayerNorm)):
            raise FileFormatError(f"{path}: makes a norm that remembers of {name!r}: {settings!r}")
        owner, _, key = name.rpartition(".")
        gone = torch.zeros(min(max(settings["removed"], 0), 2**24))
        setattr(modules[owner], key, RememberingLayerNorm(modules[name], settings["channel_dim"], gone))  # type: ignore[arg-type]


def _same_skeleton(reference: nn.Module, model: nn.Module, what: str) -> None:
    expected = {name: type(module).__name__ for name, module in reference.named_modules()}
    found = {name: type(module).__name__ for name, module in model.named_modules()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ModelError(
                f"{what} has {expected.get(name)} where the network has {found.get(name)}, at {name or 'its root'!r}; "
                "pass the name and arguments that it was made with: save(model, path, name=..., arguments={...})"
            )

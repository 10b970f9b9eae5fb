"""A network as a folder, the way timm and the Hugging Face hub have them: to save, to push, and to fetch again.

`model.safetensors` is a file of `save` and holds all that `load` needs.  `config.json` says the same to people and to
the hub, under timm's keys, with what timm knows of the inputs; `README.md` is the model card.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import FileFormatError, SettingError, describe_error
from ..files import write_bytes, write_json
from ..recipe import Argument
from . import networks
from .packing import Coding

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf-hub:"
"""Of an address on the hub, as in timm: hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION."""
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FROM_TIMM = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "mean", "std")
"""What config.json takes over from timm's `pretrained_cfg`: how to make inputs.  The license is for you to choose."""


def save_folder(
    model: nn.Module,
    folder: Path | str,
    *,
    name: str | None = None,
    arguments: dict[str, Argument] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    coding: Coding | None = None,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> None:
    """Write `model` as a new folder: model.safetensors, config.json, README.md; all of it, or nothing.

    `name`, `arguments`, `coding` and `measure` are those of `save`.  `preprocessing` is how inputs are made where that
    is not what timm has for the network: "mean", "std", "input_size" and so on, under timm's names.

    Raises `SettingError` when the folder is there and not empty, or `preprocessing` has a key that timm does not, or a
    value that JSON does not; `ModelError` as `save` does.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder}: is there already; delete it, or choose another folder")
    unknown = sorted(set(preprocessing or {}) - set(FROM_TIMM))
    if unknown:
        raise SettingError(f"preprocessing has no {', '.join(unknown)}; it has {', '.join(FROM_TIMM)}")
    try:
        json.dumps(preprocessing)
    except (TypeError, ValueError) as error:
        raise SettingError(f"preprocessing: {error}; give numbers, words and lists") from None
    with _replacing(folder) as made:
        networks.save(model, made / WEIGHTS, name=name, arguments=arguments, coding=coding, measure=measure)
        config = _config(model, networks.describe_file(made / WEIGHTS), preprocessing or {})
        write_json(made / CONFIG, config)
        write_bytes(made / CARD, _card(config, (made / WEIGHTS).stat().st_size).encode())


def push(folder: Path | str, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a folder of `save_folder` to the hub as OWNER/NAME, which is made if need be; gives the commit's address.

    The token is that of `hf auth login`, or of HF_TOKEN.

    Raises `FileFormatError` when the folder is none of `save_folder`'s, `SettingError` when the hub refuses.
    """
    folder = Path(folder)
    networks.describe_file(folder / WEIGHTS)
    with _hub(repository) as api:
        api.create_repo(repository, private=private, exist_ok=True)
        sent = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, allow_patterns=[WEIGHTS, CONFIG, CARD],
            commit_message="Add a network of nni_sparsevd",
        )  # fmt: skip
    return str(sent.commit_url)


def fetch_weights(address: str) -> Path:
    """Download the one file that `load` reads from hf-hub:OWNER/NAME[@REVISION]; gives its place in the hub's cache.

    Raises `SettingError` when the hub has no such network or cannot be reached.
    """
    repository, _, revision = address.removeprefix(PREFIX).partition("@")
    with _hub(address) as api:
        return Path(api.hf_hub_download(repository, WEIGHTS, revision=revision or None))


@contextlib.contextmanager
def _hub(what: str) -> Iterator["HfApi"]:
    from huggingface_hub import HfApi  # its HTTP client is not for every import of this package

    try:
        yield HfApi(library_name="nni_sparsevd")
    except Exception as error:  # of the hub, or of the way there
        raise SettingError(f"{what}: the hub says: {describe_error(error)}") from error


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to fill beside `folder`, which takes its name when all went well."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            made = Path(place) / folder.name
            made.mkdir()
            yield made
            os.replace(made, folder)
    except OSError as error:
        raise FileFormatError(f"{folder}: cannot be written ({error.strerror or error}); nothing was") from error


def _config(model: nn.Module, header: dict[str, Any], preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    known = getattr(model, "pretrained_cfg", None) or {}
    inputs = {key: known[key] for key in FROM_TIMM if known.get(key) is not None} | dict(preprocessing)
    classes = getattr(model, "num_classes", None)
    weights = [parameter.detach() for parameter in model.parameters() if parameter.dim() > 1]
    return {
        "architecture": header["name"],
        "class": header["class"],
        "num_classes": classes,
        "num_features": getattr(model, "num_features", None),
        "model_args": header["arguments"],
        "pretrained_cfg": {"num_classes": classes, **inputs},
        "library_name": "nni_sparsevd",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": sum(weight.numel() for weight in weights),
        "weights_not_zero": sum(int(weight.count_nonzero()) for weight in weights),
        **({"measured": header["measured"]} if "measured" in header else {}),
    }


def _card(config: dict[str, Any], size: int) -> str:
    from huggingface_hub import ModelCardData

    front = ModelCardData(library_name="nni_sparsevd", tags=["pruned", "sparse-variational-dropout"])
    measured = "".join(f"| {name} | {value:g} |\n" for name, value in config.get("measured", {}).items())
    fresh = "" if config["architecture"] else ", model=fresh"
    return f"""---
{front.to_yaml()}
---

# {config["architecture"] or config["class"]}, pruned

| | |
|---|--:|
| parameters | {config["parameters"]:,} |
| weights | {config["weights"]:,} |
| of them not zero | {config["weights_not_zero"]:,} |
| bytes of `{WEIGHTS}` | {size:,} |
{measured}
`nni_sparsevd.load(address{fresh})` opens it: the address is this folder, or `hf-hub:` and its name on the hub.
"""

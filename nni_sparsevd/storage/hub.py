"""A network as a folder, the way timm and the Hugging Face hub have them: to save, to push, and to fetch again.

`model.safetensors` is a file of `save` and holds all that `load` needs.  `config.json` says the same to people and to
the hub, under timm's keys, with what timm knows of the inputs; `README.md` is the model card.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import SettingError, describe_error
from ..files import replace_when_whole, write_bytes, write_json
from ..preprocessing import check_values, read_values
from ..settings import Argument
from . import networks
from .packing import Coding
from .wrappers import without_wrappers

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf-hub:"
"""How an address on the hub begins, as in timm: hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION."""
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def save_folder(
    model: nn.Module,
    folder: Path | str,
    *,
    name: str | None = None,
    arguments: dict[str, Argument] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    coding: Coding | None = None,
    posterior: nn.Module | None = None,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> None:
    """Write a network as a new folder: model.safetensors, config.json and README.md; all of them, or nothing.

    Args:
        model: An ordinary network, masked, shrunk or neither; see `save`.
        folder: The folder to make.  It may exist if it is empty.
        name: timm's name of the network before it was shrunk.  Networks that timm made know their name.
        arguments: The arguments that timm builds it with, such as {"num_classes": 10}.
        preprocessing: How inputs are made, where that is not what timm has for the network: "mean", "std",
            "input_size" and so on, under timm's names, and the `label_names` of the classes.
        coding: If given, only what is not zero is written, with values "exact", in "float16", "int8" or "int4", or,
            with "posterior", as multiples of a step that the posterior of each layer sets.
        posterior: With `coding="posterior"` the variational network that `model` was baked from.
        measure: Called on the network as the file gives it back; the numbers that it returns, {name: value}, are
            written to all three files.

    Raises:
        SettingError: The folder is there and not empty, or `preprocessing` has a key that timm does not have, or a
            value that JSON cannot hold; `posterior` is missing with `coding="posterior"`, or given without.
        ModelError: The network still has posteriors, is not what `name` and `arguments` build, or not of `posterior`.
        FileFormatError: The folder cannot be written.

    Example:
        ```python
        import timm
        import torch

        import nni_sparsevd as svd

        model = timm.create_model("test_resnet").eval()
        svd.save_folder(model, "network", preprocessing={"mean": [0.5, 0.5, 0.5]})
        images = torch.randn(1, 3, 32, 32)
        assert torch.equal(svd.load("network")(images), model(images))
        ```
    """
    folder = Path(folder)
    _require_empty(folder)
    checked = check_values(preprocessing or {})
    with without_wrappers(model) as network, replace_when_whole(folder) as unfinished:
        networks.save(
            network,
            unfinished / WEIGHTS,
            name=name,
            arguments=arguments,
            coding=coding,
            posterior=posterior,
            measure=measure,
            preprocessing=checked,
        )
        _describe_folder(unfinished, network, checked)


def push(folder: Path | str, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a folder of `save_folder` to the Hugging Face hub.

    The token is that of `hf auth login`, or of the environment variable HF_TOKEN.

    Args:
        folder: The folder.  Its three files are uploaded, and nothing else that lies in it.
        repository: OWNER/NAME on the hub; it is made if it is not there.
        private: Whether a repository that is made is private.
        revision: The branch to write to; the main one if None.

    Returns:
        The address of the commit.

    Raises:
        FileFormatError: The folder is none that `save_folder` has written.
        SettingError: The hub refuses, or cannot be reached.

    Example:
        ```python
        import nni_sparsevd as svd
        from torch import nn

        svd.save_folder(nn.Linear(8, 2), "small")
        svd.push("small", "me/small-network", private=True)
        ```
    """
    folder = Path(folder)
    networks.describe_file(folder / WEIGHTS)  # or it is none of ours: said before anything is sent
    with _connect(repository) as api:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            allow_patterns=[WEIGHTS, CONFIG, CARD],
            commit_message="Add a network of nni_sparsevd",
        )
    return str(commit.commit_url)


def fetch_weights(address: str) -> Path:
    """Download the one file that `load` reads.

    Args:
        address: hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION.

    Returns:
        Where the file lies in the hub's cache.

    Raises:
        SettingError: The hub has no such network, or cannot be reached.
    """
    repository, _, revision = address.removeprefix(PREFIX).partition("@")
    with _connect(address) as api:
        return Path(api.hf_hub_download(repository, WEIGHTS, revision=revision or None))


@contextlib.contextmanager
def _connect(address: str) -> Iterator["HfApi"]:
    """The hub; whatever goes wrong there, or on the way, is said under this address."""
    from huggingface_hub import HfApi  # its HTTP client is not for every import of this package

    try:
        yield HfApi(library_name="nni_sparsevd")
    except Exception as error:
        raise SettingError(f"{address}: the hub says: {describe_error(error)}") from error


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder}: is there already; delete it, or choose another folder")


def _describe_folder(folder: Path, model: nn.Module, preprocessing: dict[str, Any]) -> None:
    """Write config.json and README.md beside the weights."""
    weights = folder / WEIGHTS
    header, tensors = networks.read_file(weights)
    config = _make_config(model, header, tensors, preprocessing)
    write_json(folder / CONFIG, config)
    write_bytes(folder / CARD, _write_card(config, weights.stat().st_size).encode())


def _make_config(
    model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor], preprocessing: dict[str, Any]
) -> dict[str, Any]:
    """The content of config.json, under timm's keys where timm has one."""
    num_classes = getattr(model, "num_classes", None)
    # As the file gives them back: a coding may round weights to zero.
    weights = [tensors[name] for name, parameter in model.named_parameters() if parameter.dim() > 1]
    config = {
        "architecture": header["name"],
        "class": header["class"],
        "num_classes": num_classes,
        "num_features": getattr(model, "num_features", None),
        "model_args": header["arguments"],
        # The license is for you to choose.
        "pretrained_cfg": {"num_classes": num_classes, **read_values(model), **preprocessing},
        "library_name": "nni_sparsevd",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": sum(weight.numel() for weight in weights),
        "weights_not_zero": sum(int(weight.count_nonzero()) for weight in weights),
    }
    if "measured" in header:
        config["measured"] = header["measured"]
    return config


def _write_card(config: dict[str, Any], file_bytes: int) -> str:
    """The model card: what the network is, its figures, and how to open it."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(library_name="nni_sparsevd", tags=["pruned", "sparse-variational-dropout"])
    measured = "".join(f"| {name} | {value:g} |\n" for name, value in config.get("measured", {}).items())
    fresh = "" if config["architecture"] else ", model=fresh"
    return f"""---
{metadata.to_yaml()}
---

# {config["architecture"] or config["class"]}, pruned

| | |
|---|--:|
| parameters | {config["parameters"]:,} |
| weights | {config["weights"]:,} |
| of them not zero | {config["weights_not_zero"]:,} |
| bytes of `{WEIGHTS}` | {file_bytes:,} |
{measured}
`nni_sparsevd.load(address{fresh})` opens it: the address is this folder, or `hf-hub:` and its name on the hub.
"""

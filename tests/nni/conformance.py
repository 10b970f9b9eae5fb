"""The conformance table: what can be done with each pruner of NNI, and with ours, on each network.

`python tests/nni/conformance.py FILE` runs the whole table and writes it as JSON; `test_conformance.py` runs a part.
"""

import copy
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from evaluators import SAMPLES, lightning_evaluator, small_cnn, torch_evaluator, transformers_evaluator
from nni.compression import pruning
from nni.compression.base.config import select_modules_by_config
from nni.compression.distillation import DynamicLayerwiseDistiller
from nni.compression.quantization import QATQuantizer
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import auto_set_denpendency_group_ids
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.plugins.nni import ExactSpeedup, SparseVDPruner, SparseVDSettings, enable
from nni_sparsevd.plugins.nni.exact import parameter_masks
from nni_sparsevd.training.environment import describe_environment

STEPS, CLASSES = 8, 4
Masks = dict[str, dict[str, Any]]


def cnn() -> nn.Module:
    return small_cnn(SHAPE[0], CLASSES)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "CNN": (cnn, {"op_types": ["Conv2d"]}),
    "MLP": (mlp, {"op_types": ["Linear"], "exclude_op_names": ["5"]}),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=CLASSES), {"op_types": ["Conv2d"]}),
    "mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_100", num_classes=CLASSES), {"op_types": ["Conv2d"]}),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0", num_classes=CLASSES), {"op_types": ["Conv2d"]}),
    "deit_tiny_patch16_224": (
        lambda: timm.create_model("deit_tiny_patch16_224", num_classes=CLASSES, img_size=32),
        {"op_names_re": [r"blocks\.\d+\.mlp\.fc1"]},
    ),
}
SMALL_NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "resnet18": (
        lambda: timm.create_model("resnet18", num_classes=CLASSES, channels=(16, 32, 64, 128)),
        {"op_types": ["Conv2d"]},
    ),
    "mobilenetv2_035": (
        lambda: timm.create_model("mobilenetv2_035", num_classes=CLASSES, depth_multiplier=0.34),
        {"op_types": ["Conv2d"]},
    ),
    "test_efficientnet": (
        lambda: timm.create_model("test_efficientnet", num_classes=CLASSES),
        {"op_types": ["Conv2d"]},
    ),
    "deit_tiny_patch16_224": (
        lambda: timm.create_model("deit_tiny_patch16_224", num_classes=CLASSES, img_size=32, depth=3),
        {"op_names_re": [r"blocks\.\d+\.mlp\.fc1"]},
    ),
}
"""The same four families of timm, narrower or with fewer blocks, for the part of the table that the tests run."""
SHAPE = (3, 32, 32)


def table_row(name: str) -> tuple[Callable[[], nn.Module], dict[str, Any]]:
    """(builder, entry that selects) of a network; names with the prefix "small " are those of `SMALL_NETWORKS`."""
    small = name.removeprefix("small ")
    return SMALL_NETWORKS[small] if small != name else NETWORKS[name]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return table_row(name)[0]()


@cache
def grouped(name: str) -> list[dict[str, Any]]:
    """NNI's own dependency groups, on output channels."""
    entry = {**table_row(name)[1], "sparse_ratio": 0.5, "granularity": "out_channel"}
    return auto_set_denpendency_group_ids(network(name), [entry], torch.randn(2, *SHAPE))


def entries(name: str, pruner: str, prefix: str = "") -> list[dict[str, Any]]:
    """The config_list for a pruner; with names below `prefix`, where an evaluator wraps the network."""
    if pruner in ("LevelPruner", "SparseVDPruner, by itself"):
        given = [{**table_row(name)[1], "sparse_ratio": 0.5}]
    else:
        given = copy.deepcopy(grouped(name))
    for entry in given:
        if "by itself" in pruner:
            del entry["sparse_ratio"]
        for key in ("op_names", "exclude_op_names"):
            if key in entry:
                entry[key] = [prefix + one for one in entry[key]]
        if "op_names_re" in entry:
            entry["op_names_re"] = [prefix.replace(".", r"\.") + one for one in entry["op_names_re"]]
    return given


def ours(granularity: str) -> Callable[..., Any]:
    settings = SparseVDSettings(
        n_train=SAMPLES, learning_rate=0.05, gate_rate=1.0, posterior={"granularity": granularity}
    )
    return lambda model, evaluator, config: SparseVDPruner(model, config, evaluator, STEPS, settings=settings)


CHAINED = ("training_steps", "settings", "warmup_step", "cooldown_begin_step")
"""What `from_compressor` takes besides, of the pruners that have it."""
PRUNERS: dict[str, Callable[..., Any]] = {
    "LevelPruner": lambda model, evaluator, config: pruning.LevelPruner(model, config, evaluator),
    "L1NormPruner": lambda model, evaluator, config: pruning.L1NormPruner(model, config, evaluator),
    "L2NormPruner": lambda model, evaluator, config: pruning.L2NormPruner(model, config, evaluator),
    "FPGMPruner": lambda model, evaluator, config: pruning.FPGMPruner(model, config, evaluator),
    "SlimPruner": lambda model, evaluator, config: pruning.SlimPruner(model, config, evaluator, STEPS),
    "TaylorPruner": lambda model, evaluator, config: pruning.TaylorPruner(model, config, evaluator, STEPS),
    "MovementPruner": lambda model, evaluator, config: pruning.MovementPruner(model, config, evaluator, 1, STEPS - 2),
    "SparseVDPruner, by itself": ours("weight"),
    "SparseVDPruner, ratio": ours("weight"),
    "SparseVDPruner, gates": ours("gate"),
}
OURS = [name for name in PRUNERS if name.startswith("SparseVD")]
EVALUATORS = {"Torch": torch_evaluator, "Lightning": lightning_evaluator, "Transformers": transformers_evaluator}


class Case:
    """A pruner on a network with an evaluator."""

    def __init__(self, pruner: str, name: str, evaluator: str = "Torch") -> None:
        self.name, self.kind = name, pruner
        self.model, self.evaluator = EVALUATORS[evaluator](network(name), SHAPE, CLASSES)
        self.prefix = "" if evaluator == "Torch" else "network."
        self.plain = copy.deepcopy(self.model)
        self.pruner = PRUNERS[pruner](self.model, self.evaluator, entries(name, pruner, self.prefix))

    @property
    def inner(self) -> nn.Module:
        return getattr(self.model, "network", self.model) if self.prefix else self.model

    def compress(self) -> Masks:
        return self.pruner.compress(*((STEPS, None) if "Movement" in self.kind else ()))[1]

    def check_masks(self, masks: Masks) -> None:
        parameters = dict(self.plain.named_parameters())
        weights = []
        for module, targets in masks.items():
            for target, mask in targets.items():
                if mask is not None:
                    assert mask.shape == parameters[f"{module}.{target}"].shape
                    assert ((mask == 0) | (mask == 1)).all()
            weights.append(targets["weight"].flatten())
        sparsity = 1 - torch.cat(weights).mean().item()
        assert "by itself" in self.kind or abs(sparsity - 0.5) < 0.02, f"asked for a sparsity of 0.5, found {sparsity}"


@dataclass(frozen=True)
class Finished:
    """A case that has run to its end: the ordinary network in evaluation mode, and its masks."""

    case: Case
    masks: Masks
    x: Tensor
    """Inputs, and what the wrapped network made of them."""
    wrapped: Tensor

    def copy_model(self) -> nn.Module:
        """The network, to be changed."""
        return copy.deepcopy(self.case.model)


@lru_cache(maxsize=len(PRUNERS))
def compress_once(pruner: str, name: str) -> tuple[Case, Masks]:
    """Compress with the TorchEvaluator, once for all rows that begin so."""
    case = Case(pruner, name)
    return case, case.compress()


@lru_cache(maxsize=len(PRUNERS))
def finish(pruner: str, name: str) -> Finished:
    """Compress and unwrap, once for all rows that go on from there; each of them meets what fails here."""
    case, masks = compress_once(pruner, name)
    x = torch.randn(2, *SHAPE)
    try:
        with torch.no_grad():
            wrapped = case.model.eval()(x)
        case.pruner.unwrap_model()
    except Exception:
        compress_once.cache_clear()  # it may be unwrapped in part
        raise
    return Finished(case, masks, x, wrapped)


def compress(evaluator: str) -> Callable[[str, str], None]:
    def row(pruner: str, name: str) -> None:
        case = Case(pruner, name, evaluator)
        case.check_masks(case.compress())

    return row


def scheduled(kind: Any) -> Callable[[str, str], None]:
    def row(pruner: str, name: str) -> None:
        case = Case(pruner, name)
        case.check_masks(kind(case.pruner, STEPS, 2, case.evaluator).compress(2 * STEPS, None)[1])

    return row


def halves(name: str, pruner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """An entry for the second selected layer, as the pruner likes it, and one for the first, as L1NormPruner does.

    Not the other way round: in the networks of timm the first layer's channels are those of others, too, which a gate
    on this layer alone could not silence.
    """
    given, model = entries(name, pruner), network(name)
    chosen = {one for entry in given for one in select_modules_by_config(model, entry)[0]}
    first, second, *_ = [one for one, _ in model.named_modules() if one in chosen]
    keys = {key: value for key, value in given[0].items() if key in ("sparse_ratio", "granularity")}
    return {**keys, "op_names": [second]}, {"op_names": [first], "granularity": "out_channel", "sparse_ratio": 0.5}


def after_l1norm(pruner: str, name: str) -> None:
    model, evaluator = torch_evaluator(network(name), SHAPE, CLASSES)
    own, foreign = halves(name, pruner)
    first = pruning.L1NormPruner(model, [foreign], evaluator)
    before = first.compress()[1]
    made = PRUNERS[pruner](*torch_evaluator(network(name), SHAPE, CLASSES), [own])  # for its class and its settings
    given = {key: getattr(made, key) for key in CHAINED if hasattr(made, key)}
    second = type(made).from_compressor(first, [own], **given)
    if second.interval_steps < 0:  # a norm needs no training, but a chain trains
        second.interval_steps = STEPS
    masks = second.compress(STEPS, None)[1]
    check_halves(pruner, masks, own, foreign, before, foreign)


def before_l1norm(pruner: str, name: str) -> None:
    model, evaluator = torch_evaluator(network(name), SHAPE, CLASSES)
    own, foreign = halves(name, pruner)
    first = PRUNERS[pruner](model, evaluator, [own])
    before = first.compress(*((STEPS, None) if pruner == "MovementPruner" else ()))[1]
    second = pruning.L1NormPruner.from_compressor(first, [foreign])
    second.interval_steps = STEPS
    masks = second.compress(STEPS, None)[1]
    check_halves(pruner, masks, own, foreign, before, own)


def check_halves(pruner: str, masks: Masks, own: Any, foreign: Any, before: Masks, kept: Any) -> None:
    """The earlier pruner's masks have stayed, and both layers have the sparsity that was asked for."""
    (layer,) = kept["op_names"]
    assert torch.equal(masks[layer]["weight"], before[layer]["weight"])
    for entry in (own, foreign):
        if "sparse_ratio" in entry:
            assert abs(masks[entry["op_names"][0]]["weight"].mean() - 0.5) < 0.02


def quantized_after(pruner: str, name: str) -> None:
    case = Case(pruner, name)
    masks = case.compress()
    layer = next(module for module in masks)
    entry = {"op_names": [layer], "target_names": ["weight"], "quant_dtype": "int8", "granularity": "default"}
    quantizer = QATQuantizer.from_compressor(case.pruner, [entry], quant_start_step=1)
    _, calibration = quantizer.compress(STEPS, None)
    assert calibration[layer]["weight"]["scale"] is not None
    assert torch.equal(case.pruner.get_masks()[layer]["weight"], masks[layer]["weight"])


def distilled_after(pruner: str, name: str) -> None:
    case = Case(pruner, name)
    masks = case.compress()
    last = [module for module, kind in case.model.named_modules() if isinstance(kind, nn.Linear)][-1]
    entry = {"op_names": [last], "link": "auto", "lambda": 0.5, "apply_method": "mse"}
    distiller = DynamicLayerwiseDistiller.from_compressor(
        case.pruner, [entry], teacher_model=network(name), teacher_predict=lambda batch, model: model(batch[0])
    )
    distiller.compress(STEPS, None)
    layer = next(module for module in masks)
    assert torch.equal(case.pruner.get_masks()[layer]["weight"], masks[layer]["weight"])


def masks_come_and_go(pruner: str, name: str) -> None:
    case = Case(pruner, name)
    masks = case.compress()
    other = {module: {"weight": 1 - targets["weight"]} for module, targets in masks.items()}
    case.pruner.update_masks(other)
    assert all(torch.equal(case.pruner.get_masks()[module]["weight"], t["weight"]) for module, t in other.items())


def compress_and_check(pruner: str, name: str) -> None:
    case, masks = compress_once(pruner, name)
    case.check_masks(masks)


def unwrapped_is_ordinary(pruner: str, name: str) -> None:
    finished = finish(pruner, name)
    model, plain = finished.copy_model(), finished.case.plain
    assert sorted(model.state_dict()) == sorted(plain.state_dict())
    assert [type(module) for module in finished.case.model.modules()] == [type(module) for module in plain.modules()]
    apply_masks_(model, parameter_masks(finished.masks))
    torch.testing.assert_close(model(finished.x), finished.wrapped)


def state_dict_goes_over(pruner: str, name: str) -> None:
    case, twin = Case(pruner, name), Case(pruner, name)
    case.compress()
    twin.compress()
    with TemporaryDirectory() as folder:
        torch.save(case.model.state_dict(), Path(folder) / "state.pt")
        twin.model.load_state_dict(torch.load(Path(folder) / "state.pt"))
    x = torch.randn(2, *SHAPE)
    assert torch.equal(case.model.eval()(x), twin.model.eval()(x))


def copied(pruner: str, name: str) -> None:
    case = Case(pruner, name)
    twin = copy.deepcopy(case)
    case.compress()
    left, right = case.model.state_dict(), twin.model.state_dict()
    assert any(key not in right or not torch.equal(value, right[key]) for key, value in left.items())
    masks = twin.compress()
    twin.check_masks(masks)
    twin.pruner.unwrap_model()
    assert sorted(twin.model.state_dict()) == sorted(case.plain.state_dict())


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sped_up(pruner: str, name: str) -> None:
    finished = finish(pruner, name)
    with TemporaryDirectory() as folder:
        torch.save(finished.masks, Path(folder) / "masks.pth")
        small = ModelSpeedup(
            finished.copy_model(), torch.randn(2, *SHAPE), str(Path(folder) / "masks.pth")
        ).speedup_model()
    assert small(torch.randn(3, *SHAPE)).shape == (3, CLASSES)
    elementwise = pruner in ("LevelPruner", "SparseVDPruner, by itself")
    assert elementwise or count_parameters(small) < 0.9 * count_parameters(finished.case.plain)


def exactly(pruner: str, name: str) -> None:
    finished = finish(pruner, name)
    model = finished.copy_model()
    speedup = ExactSpeedup(model, torch.randn(2, *SHAPE), finished.masks, extend_masks=True)
    speedup.speedup_model()
    assert speedup.check is not None and speedup.check.ok
    elementwise = pruner in ("LevelPruner", "SparseVDPruner, by itself")
    assert elementwise or count_parameters(model) < 0.9 * count_parameters(finished.case.plain)


def exported(pruner: str, name: str) -> None:
    finished = finish(pruner, name)
    small, _ = svd.shrink(finished.copy_model(), torch.randn(2, *SHAPE), parameter_masks(finished.masks))
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), small(x))


ROWS: dict[str, Callable[[str, str], None]] = {
    "construct": lambda pruner, name: Case(pruner, name) and None,
    "compress, TorchEvaluator": compress_and_check,
    **{f"compress, {evaluator}Evaluator": compress(evaluator) for evaluator in EVALUATORS if evaluator != "Torch"},
    "in LinearPruner": scheduled(pruning.LinearPruner),
    "in AGPPruner": scheduled(pruning.AGPPruner),
    "after L1NormPruner": after_l1norm,
    "before L1NormPruner": before_l1norm,
    "before QATQuantizer": quantized_after,
    "before a distiller": distilled_after,
    "get_masks, update_masks": masks_come_and_go,
    "unwrap_model": unwrapped_is_ordinary,
    "state_dict": state_dict_goes_over,
    "deepcopy": copied,
    "mask file, ModelSpeedup": sped_up,
    "ExactSpeedup": exactly,
    "torch.export": exported,
}


def outcome(row: str, pruner: str, name: str) -> str:
    """Empty where it works, else what went wrong."""
    enable()  # NNI's own pruners need the repairs
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ROWS[row](pruner, name)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error) or 'assertion').splitlines()[0][:120]}"
    finally:
        logging.disable(logging.NOTSET)
    return ""


def main(path: Path) -> None:
    """Network by network; what the file has already is not done again."""
    done = read_json(path)["networks"] if path.exists() else {}
    for name in NETWORKS:
        if name not in done:
            done[name] = {row: {pruner: outcome(row, pruner, name) for pruner in PRUNERS} for row in ROWS}
            command = ["tests/nni/conformance.py", str(path)]
            write_json(path, {"environment": describe_environment(command, 0), "networks": done})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

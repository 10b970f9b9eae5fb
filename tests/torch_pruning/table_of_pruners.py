"""What the table says about each pruner of Torch-Pruning with each importance, and about ours, on each network."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.dependency.dependency import Dependency

import nni_sparsevd as svd
from nni_sparsevd.measure import count_parameters
from nni_sparsevd.nn import ChannelGate, Variational, named_posteriors, output_dim
from nni_sparsevd.plugins.torch_pruning import SparseVDImportance, SparseVDPruner, SparseVDSettings
from nni_sparsevd.plugins.torch_pruning.attention import find_attentions
from nni_sparsevd.testing import randomize_

NETWORKS = ("resnet18", "mobilenetv2_100", "convnext_atto", "deit_tiny_patch16_224")
SMALLER: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": (32, 64, 128, 256)},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "deit_tiny_patch16_224": {"depth": 3},
}
"""For tests: fewer and narrower blocks of each kind. The published table is about the whole networks."""
COLUMNS = ("runs", "forward", "backward", "exact")
SIZE, CLASSES, BATCH = 64, 10, 4
TOLERANCE = 1e-10
UNREACHED = "not reached"
PRUNERS = (tp.pruner.BasePruner, tp.pruner.BNScalePruner, tp.pruner.GroupNormPruner, tp.pruner.GrowingRegPruner)
MODES: dict[str, dict[str, Any]] = {
    "local": {},
    "global_pruning": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
    "iterative_steps=3": {"iterative_steps": 3},
    "round_to=8": {"round_to": 8},
    "interactive": {},
}
REDUCTIONS = ("posterior", "sum", "mean", "max", "prod", "first", "gate")
NORMALIZERS = ("sum", "standarization", "mean", "max", "gaussian", "sentinel_0.5", "lamp", torch.tanh)
Kept = dict[str, list[int]]


@dataclass(frozen=True)
class Row:
    """A pruner and its importance."""

    pruner: type
    importance: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=lambda: {"pruning_ratio": 0.5})
    granularity: str = ""
    """Of the network's posteriors; it has none where this is empty."""
    interactive: bool = False

    @property
    def gates_decide(self) -> bool:
        """Whether the network itself, in evaluation mode, says what is to come out."""
        return "pruning_ratio" not in self.options and self.granularity == "gate"


def in_every_mode(name: str, pruner: type, importance: Callable[[], Any], granularity: str = "") -> dict[str, Row]:
    return {
        f"{name}, {pruner.__name__}, {mode}": Row(
            pruner, importance, {"pruning_ratio": 0.5, **options}, granularity, mode == "interactive"
        )
        for mode, options in MODES.items()
    }


BUILT_IN: dict[str, Row] = {
    **{
        f"{kind.__name__}, BasePruner": Row(tp.pruner.BasePruner, kind)
        for kind in (
            tp.importance.BNScaleImportance,
            tp.importance.LAMPImportance,
            tp.importance.FPGMImportance,
            tp.importance.RandomImportance,
            tp.importance.GroupTaylorImportance,
            tp.importance.GroupHessianImportance,
            tp.importance.OBDCImportance,
            tp.importance.ActivationImportance,
        )
    },
    "BNScaleImportance, BNScalePruner": Row(tp.pruner.BNScalePruner, tp.importance.BNScaleImportance),
    "BNScaleImportance, BNScalePruner, group_lasso": Row(
        tp.pruner.BNScalePruner, tp.importance.BNScaleImportance, {"pruning_ratio": 0.5, "group_lasso": True}
    ),
    "GroupMagnitudeImportance, GroupNormPruner": Row(tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance),
    "GroupMagnitudeImportance, GrowingRegPruner": Row(
        tp.pruner.GrowingRegPruner, tp.importance.GroupMagnitudeImportance
    ),
    **in_every_mode("GroupMagnitudeImportance", tp.pruner.BasePruner, tp.importance.GroupMagnitudeImportance),
}
OURS: dict[str, Row] = {
    **{
        key: row
        for pruner in PRUNERS
        for key, row in in_every_mode("SparseVDImportance", pruner, SparseVDImportance, "weight").items()
    },
    **{
        f"SparseVDImportance({key}={getattr(value, '__name__', value)}), BasePruner": Row(
            tp.pruner.BasePruner, partial(SparseVDImportance, **{key: value}), granularity="weight"
        )
        for key, values in {"group_reduction": REDUCTIONS, "normalizer": NORMALIZERS}.items()
        for value in values
    },
    **{
        f"SparseVDPruner, {how}, {granularity}": Row(SparseVDPruner, SparseVDImportance, options, granularity)
        for how, options in {"by itself": {}, "pruning_ratio=0.5": {"pruning_ratio": 0.5}}.items()
        for granularity in ("weight", "gate", "both")
    },
}
ROWS = {**BUILT_IN, **OURS}


def network(name: str, smaller: bool) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": SIZE} if "deit" in name else {}
    if smaller:
        options |= SMALLER.get(name, {})
    return randomize_(timm.create_model(name, num_classes=CLASSES, **options))


def draw_(model: nn.Module) -> None:
    """Log alpha at random: the same for a channel in all layers that it goes through, so that whole channels are noise.

    With a log alpha of its own for each weight, channels with many weights would all have about the same share of
    signal.
    """
    level = torch.empty(4096).uniform_(-6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _, module in named_posteriors(model):
            if isinstance(module, ChannelGate):
                module.log_sigma2.copy_(level[: len(module.mu)])
            else:
                rows, columns, *rest = module.weight.shape
                noise = (level[:rows, None] + level[:columns]).view(rows, columns, *[1] * len(rest))
                module.log_sigma2.copy_(module.weight.square().mean().log() + noise)


class Case:
    """A pruner on a network, and the ordinary network in which the same channels are zero."""

    def __init__(self, row: Row, name: str, smaller: bool) -> None:
        self.row = row
        # Our pruner folds gates and temperatures into weights, which rounds them; some built-ins know float32 alone.
        dtype = torch.float64 if row.pruner is SparseVDPruner else torch.float32
        self.model = network(name, smaller).to(dtype)
        self.x = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.labels = torch.arange(BATCH) % CLASSES
        self.heads = {attention.module.qkv: attention.heads for attention in find_attentions(self.model)}
        self.size = count_parameters(self.model)
        self.kept: Kept = {}
        self.importance = row.importance()
        options = {**row.options, "ignored_layers": [self.model.get_classifier()]}
        if row.pruner is SparseVDPruner:
            settings = SparseVDSettings(n_train=1000, posterior={"granularity": row.granularity})
            options["settings"] = settings
        else:
            if row.granularity:
                svd.sparsify_(self.model, granularity=row.granularity, example_inputs=self.x)
            # Torch-Pruning's defaults of these are shared between all pruners of a process, which write into them.
            options |= {"num_heads": dict(self.heads), "in_channel_groups": {}, "out_channel_groups": {}}
        self.pruner = row.pruner(self.model, self.x, importance=self.importance, **options)
        draw_(self.model)

    def run(self) -> None:
        """Two steps of training with the regularizer, what the importance has to see, and the cut."""
        self._train()
        self._prepare_importance()
        self.before = copy.deepcopy(self.model)
        with recorded_cuts(self.model) as cuts:
            for _ in range(self.pruner.iterative_steps):
                if self.row.interactive:
                    for group in self.pruner.step(interactive=True):
                        group.prune()
                else:
                    self.pruner.step()
        self.cuts = cuts
        if self.row.pruner is not SparseVDPruner:
            self._update_attentions()
            svd.bake_(self.model)
        assert not any(isinstance(module, Variational | ChannelGate) for module in self.model.modules())
        assert count_parameters(self.model) < 0.95 * self.size, "nothing was removed"

    def _train(self) -> None:
        optimizer = torch.optim.SGD(self.model.parameters(), 1e-4)
        self.model.train()
        self.pruner.update_regularizer()
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(self.model(self.x), self.labels).backward()
            if self.row.pruner is not tp.pruner.BasePruner:  # which has none
                self.pruner.regularize(self.model)
            optimizer.step()
            if isinstance(self.pruner, tp.pruner.GrowingRegPruner):
                self.pruner.update_reg()

    def _prepare_importance(self) -> None:
        """Do what Torch-Pruning's documents and examples do for importances that need data."""
        self.model.zero_grad()
        if isinstance(self.importance, tp.importance.ActivationImportance):
            with torch.no_grad(), self.importance.compute_importance(self.model):
                self.model(self.x)
            return
        if isinstance(self.importance, tp.importance.OBDCImportance):
            self.importance._prepare_model(self.model, self.pruner)
        losses = F.cross_entropy(self.model(self.x), self.labels, reduction="none")
        if isinstance(self.importance, tp.importance.GroupHessianImportance):
            for loss in losses:
                self.model.zero_grad()
                loss.backward(retain_graph=True)
                self.importance.accumulate_grad(self.model)
            return
        losses.mean().backward()
        if isinstance(self.importance, tp.importance.OBDCImportance):
            self.importance.step()
            self.importance._rm_hooks(self.model)

    def _update_attentions(self) -> None:
        """Do what Torch-Pruning's examples for transformers do with the sizes that attention remembers."""
        for attention in find_attentions(self.model):
            module = attention.module
            module.num_heads = self.pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim

    def forward(self) -> None:
        output = self.model.eval()(self.x)
        assert output.shape == (BATCH, CLASSES) and output.isfinite().all()

    def backward(self) -> None:
        model = copy.deepcopy(self.model).train()
        model.zero_grad()
        model(self.x).square().sum().backward()
        for name, parameter in model.named_parameters():
            has_gradient = parameter.grad is not None and parameter.grad.shape == parameter.shape
            assert has_gradient, f"no gradient for {name}"

    def exact(self) -> None:
        """Raise `AssertionError` saying what changed besides the removed channels, which should have become zero.

        The reference is the network before the cut with these channels set to zero. Two differences have a name: a
        LayerNorm computes its statistics from other channels ("mixes"), and an attention divides its scores by another
        root ("temperature"). Each is put into the reference where the outputs differ; then they must agree.
        """
        computed = outputs(self.model, self.x)
        if self.row.gates_decide:
            error = distance(computed, outputs(self.before, self.x))
            assert error < TOLERANCE, f"differs by {error:.1e}"
            return
        reference = svd.bake_(copy.deepcopy(self.before)).double()
        kept = zero_cut_channels_(reference, self.cuts)
        explanations: list[str] = []
        error = distance(computed, outputs(reference, self.x))
        for reason, explain_ in (("mixes", normalize_over_kept_), ("temperature", heat_attentions_)):
            if error >= TOLERANCE and explain_(reference, kept):
                error = distance(computed, outputs(reference, self.x))
                explanations.append(reason)
        assert error < TOLERANCE, f"differs by {error:.1e}"
        assert not explanations, ", ".join(explanations)


@dataclass(frozen=True)
class Cut:
    """Output channels of a module, or elements of a parameter, that were removed, as numbered before this cut."""

    name: str
    dim: int
    indices: list[int]


@contextmanager
def recorded_cuts(model: nn.Module) -> Iterator[list[Cut]]:
    """All that Torch-Pruning removes from outputs inside the block.

    What reads the removed channels is not recorded: it multiplies zeros.
    """
    cuts: list[Cut] = []
    call = Dependency.__call__

    def recording(self: Dependency, idxs: list[Any]) -> Any:
        target = self.target.module
        is_parameter = isinstance(target, nn.Parameter)
        # Operations without weights stand in the graph as modules of their own.
        if is_parameter or (hasattr(target, "weight") and not self.handler.__name__.endswith("in_channels")):
            named = model.named_parameters() if is_parameter else model.named_modules()
            name = next(name for name, owner in named if owner is target)
            indices = [int(getattr(index, "idx", index)) for index in idxs]  # some are Torch-Pruning's hybrid indices
            cuts.append(Cut(name, self.target.pruning_dim, indices))
        return call(self, idxs)

    Dependency.__call__ = recording
    try:
        yield cuts
    finally:
        Dependency.__call__ = call


@torch.no_grad()
def zero_cut_channels_(model: nn.Module, cuts: list[Cut]) -> Kept:
    """Set what was cut to zero; returns name -> output channels that are left, by their original numbers."""
    kept: Kept = {}
    for cut in cuts:
        tensors = tensors_with_channels(model, cut)
        first, first_dim = tensors[0]
        left = kept.setdefault(cut.name, list(range(first.shape[first_dim])))
        removed = [left[index] for index in cut.indices]
        for tensor, dim in tensors:
            tensor.index_fill_(dim, torch.tensor(removed), 0)
        kept[cut.name] = [index for index in left if index not in removed]
    return kept


def tensors_with_channels(model: nn.Module, cut: Cut) -> list[tuple[Tensor, int]]:
    """(tensor, its dimension of the channels) of the module or parameter that was cut."""
    module = dict(model.named_modules()).get(cut.name)
    if module is None:
        return [(model.get_parameter(cut.name), cut.dim)]
    tensors = []
    for key in ("weight", "bias", "running_mean"):
        tensor = getattr(module, key, None)
        if tensor is not None:
            tensors.append((tensor, output_dim(module) if key == "weight" else 0))
    return tensors


def normalize_over_kept_(model: nn.Module, kept: Kept) -> bool:
    """Let each LayerNorm see only the channels that are left; returns whether there is such a LayerNorm."""
    cut = [(name, norm) for name, norm in model.named_modules() if isinstance(norm, nn.LayerNorm) and name in kept]
    for name, norm in cut:
        index, dim = torch.tensor(kept[name]), 1 if "2d" in type(norm).__name__ else -1

        def hook(norm: Any, inputs: Any, output: Tensor, index: Tensor = index, dim: int = dim) -> Tensor:
            x = inputs[0].index_select(dim, index).movedim(dim, -1)
            small = F.layer_norm(x, (len(index),), norm.weight[index], norm.bias[index], norm.eps)
            return torch.zeros_like(output).index_copy(dim, index, small.movedim(-1, dim))

        norm.register_forward_hook(hook)
    return bool(cut)


@torch.no_grad()
def heat_attentions_(model: nn.Module, kept: Kept) -> bool:
    """Divide scores by the root of the smaller heads' dimension; returns whether there is such an attention."""
    is_cut = False
    for attention in find_attentions(model):
        name, projection = f"{attention.name}.qkv", attention.module.qkv
        if name not in kept:
            continue
        is_cut = True
        rows = projection.out_features
        factor = (rows / len(kept[name])) ** 0.5
        projection.weight[: rows // 3] *= factor
        projection.bias[: rows // 3] *= factor
    return is_cut


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(x.double())


def distance(computed: Tensor, expected: Tensor) -> float:
    """Largest difference, as a part of the largest output."""
    return ((computed - expected).abs().max() / expected.abs().max()).item()


def outcome(row: str, name: str, smaller: bool = False) -> dict[str, str]:
    """For each column: empty where it works, else what went wrong; of the network, or of a smaller one of its kind."""
    torch.manual_seed(0)
    outcomes = dict.fromkeys(COLUMNS, UNREACHED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case = Case(ROWS[row], name, smaller)
            case.run()
        except Exception as error:
            return {**outcomes, "runs": summarize_error(error)}
        outcomes["runs"] = ""
        for column in COLUMNS[1:]:
            try:
                getattr(case, column)()
                outcomes[column] = ""
            except Exception as error:
                outcomes[column] = summarize_error(error)
                if column == "forward":
                    break
    return outcomes


def summarize_error(error: Exception) -> str:
    text = (str(error) or "assertion").splitlines()[0][:120]
    return text if type(error) is AssertionError else f"{type(error).__name__}: {text}"

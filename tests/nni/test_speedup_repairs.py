"""NNI's `ModelSpeedup`, installed as it is, with and without each of our repairs; and the graph that it is given."""

import copy
import logging

import pytest
import timm
import torch
from conftest import randomize_
from timm.layers import BatchNormAct2d, Conv2dSame, GroupNorm1, GroupNormAct, LayerNorm2d
from torch import nn

from nni_sparsevd.errors import TraceError
from nni_sparsevd.plugins.nni.compatibility import REPAIRS, disable, enable, speedup
from nni_sparsevd.plugins.nni.graph import trace

OURS = {name for name, repair in REPAIRS.items() if repair.apply.__module__ == speedup.__name__}


@pytest.fixture(autouse=True)
def _disabled():
    disable()
    yield
    disable()


def enable_without(*names):
    return enable(leave={*names} | (set(REPAIRS) - OURS))


def quiet_logger():
    logger = logging.getLogger("speedup under test")
    logger.setLevel(logging.ERROR)
    return logger


def run_speedup(model, inputs, masks, **kwargs):
    from nni.compression.speedup import ModelSpeedup

    return ModelSpeedup(model, inputs, masks, logger=quiet_logger(), **kwargs).speedup_model()


def half(model, *names):
    """Masks that keep the upper half of each layer's outputs."""
    masks = {}
    for name in names:
        layer = model.get_submodule(name)
        masks[name] = {key: torch.ones_like(value) for key, value in layer.named_parameters()}
        for mask in masks[name].values():
            mask[: len(mask) // 2] = 0
    return masks


class Net(nn.Module):
    """conv, norm, conv, pool, classifier; the norm is what the test says."""

    def __init__(self, norm=None, conv=nn.Conv2d):
        super().__init__()
        self.first = conv(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm is None else norm
        self.last = nn.Conv2d(8, 6, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu()).mean((2, 3))


class Sizes(nn.Module):
    """Control flow, unpacking, assertions, sizes in factories and slices, in-place writing, a constant, a buffer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x, y=None, *, factor=2):
        x = self.conv(x) if y is None else self.conv(x + y)
        if x.shape[-1] < 3 or x.mean() > 1e9:
            return x
        batch, _, height, width = x.shape
        torch._assert(height == width, "not square")
        assert len(x.shape) == x.ndim == 4
        first, *others = x.split(2, dim=1)
        x = torch.cat([first, *others], dim=1).clone()
        x[:, :1].zero_()  # has no user, and an effect
        added = torch.zeros(batch, 4, height, width, dtype=x.dtype, device=x.device)
        added += torch.arange(4.0).view(4, 1, 1) * torch.arange(99)[:batch].sum()
        x = x + added[:, :, : height - 1, : int(width) - 1].mean((2, 3), keepdim=True)
        for number in range(factor):
            x = x + number * self.shift.view(1, -1, 1, 1)
        return {"x": x.reshape(batch, -1), "size": batch}


def small_networks():
    torch.manual_seed(0)
    return {
        "cnn": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()), 8),
        "mlp": (nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5)), 8),
    }


def build(name, **kwargs):
    if name in small_networks():
        model, size = small_networks()[name]
    else:
        model, size = timm.create_model(name, num_classes=10, **kwargs), kwargs.get("img_size", 32)
    randomize_(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.05)  # timm's heads start at zero, and NNI takes them for pruned
    return model.eval(), torch.randn(2, 3, size, size)


NETWORKS = [
    *("cnn", "mlp", "resnet18", "mobilenetv2_100", "mobilenetv3_small_050", "tinynet_e", "regnetx_002"),
    *("resnext50_32x4d", "densenet121", "convnext_atto", "vgg11_bn"),
    *("swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "mixer_s32_224"),
]
# Fewer and narrower blocks of each kind: what the tracer and NNI come upon is the same.
SMALLER = {
    "resnet18": {"channels": (32, 64, 128, 256), "layers": (1, 1, 1, 2)},
    "mobilenetv2_100": {"depth_multiplier": 0.34},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1)},
    "densenet121": {"block_config": (2, 2, 2, 2), "growth_rate": 16},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "vgg11_bn": {"mlp_ratio": 0.05},
    "swin_tiny_patch4_window7_224": {"img_size": 224, "depths": (2, 2, 1, 1)},
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 3},
    "mixer_s32_224": {"img_size": 64, "mlp_ratio": (0.5, 1.0)},
}


# ---- the graph


@pytest.mark.parametrize("name", NETWORKS)
def test_graph_computes_what_the_network_does_at_any_batch_size(name):
    model, x = build(name, **SMALLER.get(name, {}))
    model.train()
    attributes, training = set(vars(model)), [module.training for module in model.modules()]
    graph = trace(model, x)
    assert set(vars(model)) == attributes and [module.training for module in model.modules()] == training
    assert graph.training
    model.eval(), graph.eval()
    layers = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    stock = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm)
    wanted = {name for name, module in model.named_modules() if isinstance(module, stock)}
    assert wanted <= layers
    for batch in (1, 3):
        y = torch.randn(batch, *x.shape[1:])
        with torch.no_grad():
            assert torch.equal(model(y), graph(y))


def test_graph_follows_values_and_keeps_sizes():
    model = Sizes().eval()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    assert set(vars(model)) == set(vars(Sizes()))  # no constant left behind
    model.shift.mul_(2)  # a buffer is followed, not copied
    for batch, size in ((1, 8), (5, 11)):
        x = torch.randn(batch, 3, size, size)
        expected, got = model(x), graph(x)
        assert torch.equal(expected["x"], got["x"]) and got["size"] == batch
    targets = [node.target for node in graph.graph.nodes]
    assert torch._assert not in targets and slice in targets


def test_graph_of_keyword_inputs_is_in_their_order():
    model = Sizes().eval()
    x, y = torch.randn(2, 2, 3, 8, 8)
    graph = trace(model, {"y": y, "x": x})
    assert [node.target for node in graph.graph.nodes if node.op == "placeholder"] == ["y", "x"]
    assert torch.equal(graph(y, x)["x"], model(x, y)["x"])
    assert torch.equal(trace(model, [x, y])(x, y)["x"], model(x, y)["x"])


def test_inputs_are_not_written_to():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), torch.full((2, 3), -1.0)
    trace(model, x)
    assert (x == -1).all()


def test_trace_error_names_network_and_line():
    class Odd(nn.Module):
        def forward(self, x):
            if not isinstance(x, torch.Tensor):
                raise TypeError("tensors only")
            return x

    with pytest.raises(TraceError, match=r"Odd could not be traced: `raise TypeError.*test_speedup_repairs"):
        trace(Odd(), torch.randn(1))
    net = Net().train()
    with pytest.raises(TraceError, match=r"Net could not be traced: `return self.last.*channels"):
        trace(net, torch.randn(2, 5, 8, 8))
    assert all(module.training for module in net.modules())


# ---- all repairs together


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("cnn", None),
        ("mlp", ["1"]),
        ("resnet18", None),
        ("mobilenetv2_100", None),
        ("tinynet_e", None),  # the blocks of EfficientNet-B0
        ("densenet121", None),
        ("vgg11_bn", None),
        ("convnext_atto", [r".*mlp\.fc1"]),  # NNI does not cut the bare parameter of a layer scale
        ("deit_tiny_patch16_224", [r".*mlp\.fc1"]),  # nor the heads of an attention
        ("mixer_s32_224", [r".*fc1"]),
    ],
)
def test_speedup(name, names):
    enable_without()
    from nni.compression.pruning import L1NormPruner
    from nni.compression.utils import auto_set_denpendency_group_ids

    model, x = build(name, **SMALLER.get(name, {}))
    before = sum(parameter.numel() for parameter in model.parameters())
    chosen = {"op_types": ["Conv2d"]} if names is None else {"op_names_re": names}
    config = auto_set_denpendency_group_ids(model, [{**chosen, "sparse_ratio": 0.5}], x)
    pruner = L1NormPruner(model, config)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    small = run_speedup(model, x, masks)
    assert sum(parameter.numel() for parameter in small.parameters()) < 0.85 * before
    assert not any(module.training for module in small.modules())
    assert small(torch.randn(3, *x.shape[1:])).isfinite().all()
    small.train()(torch.randn(3, *x.shape[1:])).sum().backward()


def test_removal_of_silent_channels_is_exact():
    enable_without()
    model = randomize_(Net(BatchNormAct2d(8, act_layer=nn.Hardswish), conv=Conv2dSame)).eval()
    masks = half(model, "first")
    with torch.no_grad():
        for tensor in (*model.first.parameters(), *model.norm.parameters()):
            tensor[:4] = 0
    x = torch.randn(3, 3, 9, 9)
    expected = model(x)
    small = run_speedup(model, torch.randn(2, 3, 9, 9), masks)
    assert small.norm.num_features == small.first.out_channels == small.last.in_channels == 4
    torch.testing.assert_close(small(x), expected)


def test_layers_of_timm_are_pruned_like_their_base():
    from nni.compression.pruning import L1NormPruner

    config = [{"op_names": ["first"], "sparse_ratio": 0.5}]
    with pytest.raises(AssertionError, match="Conv2dSame is not registered"):
        L1NormPruner(Net(conv=Conv2dSame), config)
    enable()
    _, masks = L1NormPruner(Net(conv=Conv2dSame), config).compress()
    assert masks["first"]["weight"].sum() == 4 * 3 * 9 and masks["first"]["bias"].sum() == 4


# ---- each repair by itself


def test_without_tracer_nothing_runs():
    enable_without("tracer")
    with pytest.raises(Exception):  # noqa: B017, PT011  of whatever kind the installed PyTorch makes it
        run_speedup(Net().eval(), torch.randn(2, 3, 8, 8), half(Net(), "first"))


@pytest.mark.parametrize(
    "norm", [lambda: BatchNormAct2d(8), lambda: LayerNorm2d(8), lambda: GroupNorm1(8), lambda: GroupNormAct(8, 4)]
)
def test_layers(norm):
    model = randomize_(Net(norm())).eval()
    original, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    masks = half(model, "first")
    if isinstance(model.norm, GroupNormAct):  # each group keeps as many
        for mask in masks["first"].values():
            mask[:] = torch.tensor([0.0, 1.0]).repeat(4).view(-1, *[1] * (mask.dim() - 1))
    kept = masks["first"]["bias"].bool()
    enable_without("layers")
    with pytest.raises(RuntimeError):
        run_speedup(copy.deepcopy(model), x, copy.deepcopy(masks))(x)
    enable_without()
    small = run_speedup(model, x, masks)
    assert type(small.norm) is type(original.norm)
    assert torch.equal(small.norm.weight, original.norm.weight[kept]) and small(x).shape == (2, 6)


def test_layers_without_shape(caplog):
    model = Net(nn.Identity()).eval()
    x, masks = torch.randn(2, 3, 8, 8), half(model, "first")
    for leave, complaints in (("layers", 1), (None, 0)):
        enable_without(*filter(None, [leave]))
        logger, heard = quiet_logger(), []
        logger.error, error = heard.append, logger.error
        run_speedup(copy.deepcopy(model), x, copy.deepcopy(masks))
        logger.error = error
        assert len(heard) == complaints


def test_flags():
    for leave in ("flags", None):
        model = Net().train()
        model.norm.eval()
        model.last.weight.requires_grad_(False)
        enable_without(*filter(None, [leave]))
        small = run_speedup(model, torch.randn(2, 3, 8, 8), half(model, "first"))
        kept = leave is None
        assert small.norm.training is not kept and small.last.weight.requires_grad is not kept
        assert small.training and small.first.training and small.first.weight.requires_grad


def test_dependency_inputs():
    from nni.compression.utils import auto_set_denpendency_group_ids

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    config, (x, y) = [{"op_types": ["Linear"], "sparse_ratio": 0.5}], torch.randn(2, 2, 3)
    model = Sum().train()
    model.a.eval()
    enable_without("dependency_inputs")
    with pytest.raises(TypeError, match="missing"):
        auto_set_denpendency_group_ids(copy.deepcopy(model), config, {"y": y, "x": x})
    other = copy.deepcopy(model)
    auto_set_denpendency_group_ids(other, config, (x, y))
    assert other.a.training
    enable_without()
    for inputs in ((x, y), [x, y], {"y": y, "x": x}):
        groups = {entry["dependency_group_id"] for entry in auto_set_denpendency_group_ids(model, config, inputs)}
        assert len(groups) == 1 and not model.a.training and model.b.training


def test_mask_files(tmp_path):
    from collections import defaultdict

    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    masks = defaultdict(dict)  # what pruner.get_masks() makes
    masks.update(half(model, "first"))
    torch.save(masks, tmp_path / "masks.pth")
    allowed = set(torch.serialization.get_safe_globals())
    enable_without("mask_files")
    with pytest.raises(Exception, match="defaultdict"):
        run_speedup(model, x, tmp_path / "masks.pth")
    enable_without()
    assert run_speedup(model, x, str(tmp_path / "masks.pth")).first.out_channels == 4
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_last_use():
    class View(Net):
        def forward(self, x):
            y = self.last(self.norm(self.first(x)))
            return y.flatten(1) * x.size(0)  # the last use of x

    model, x = View().eval(), torch.randn(2, 3, 8, 8)
    masks = half(model, "first")
    enable_without("last_use")
    with pytest.raises(AttributeError, match="_output_randomize"):
        run_speedup(copy.deepcopy(model), x, copy.deepcopy(masks))
    enable_without()
    assert run_speedup(model, x, masks).first.out_channels == 4


def test_gradients():
    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    masks = half(model, "first")
    enable_without("gradients")
    with torch.no_grad():
        with pytest.raises(Exception):  # noqa: B017, PT011
            run_speedup(copy.deepcopy(model), x, copy.deepcopy(masks))
        enable_without()
        assert run_speedup(model, x, masks).first.out_channels == 4
        assert not torch.is_grad_enabled()


def empty():
    """A network and masks that cut a layer, `first`, and then find another, `last`, empty."""
    model = randomize_(Net()).eval()
    masks = half(model, "first", "last")
    for mask in masks["last"].values():
        mask.zero_()
    return model, masks


def test_failing_layer():
    from nni.compression.speedup.error_code import SpeedupError

    for leave in ("failing_layer", None):
        enable_without(*filter(None, [leave]))
        with pytest.raises(SpeedupError) as error:
            run_speedup(empty()[0], torch.randn(2, 3, 8, 8), empty()[1])
        assert getattr(error.value, "__notes__", []) == ([] if leave else ["while ModelSpeedup replaced first"])


def test_failed_run(monkeypatch):
    from nni.compression.speedup import ModelSpeedup
    from nni.compression.speedup.replacement import replace_module

    def broken(*args):
        raise ValueError("broken on purpose")

    x = torch.randn(2, 3, 8, 8)
    for where in ("while weights are random", "between two layers"):
        for leave in ("failed_run", None):
            enable_without(*filter(None, [leave]))
            model = randomize_(Net()).eval()
            masks = half(model, "first")
            before = {name: value.clone() for name, value in model.state_dict().items()}
            with monkeypatch.context() as context:
                if where == "between two layers":
                    context.setitem(replace_module, "BatchNorm2d", broken)
                else:
                    context.setattr(ModelSpeedup, "update_indirect_sparsity", broken)
                with pytest.raises(ValueError, match="on purpose"):
                    run_speedup(model, x, masks)
            after = model.state_dict()
            same = all(
                after[name].shape == value.shape and torch.equal(after[name], value) for name, value in before.items()
            )
            assert same is (leave is None)
            assert leave or not any(module.training for module in model.modules())
            disable()


def test_disable_restores_every_attribute_and_enable_is_safe_to_repeat():
    from nni.common.graph_utils import TorchGraph
    from nni.compression.speedup import model_speedup
    from nni.compression.speedup.container import NodeInfo
    from nni.compression.speedup.replacement import replace_module
    from nni.compression.speedup.replacer import DefaultReplacer

    owners = [replace_module]
    owners += map(vars, (model_speedup, model_speedup.ModelSpeedup, NodeInfo, DefaultReplacer, TorchGraph))

    def identities():
        return [{name: id(value) for name, value in owner.items()} for owner in owners]

    before = identities()
    names = enable_without()
    during = identities()
    assert all(old != new for old, new in zip(before, during, strict=True))
    assert enable_without() == names and identities() == during
    disable()
    assert identities() == before

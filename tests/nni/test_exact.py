"""`ExactSpeedup`: masks of any pruner of NNI, and the function stays."""

import copy
import pickle

import pytest
import timm
import torch
from conftest import randomize_
from nni.compression import pruning
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import auto_set_denpendency_group_ids
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import FileFormatError, MaskError, ModelError, SettingError
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.plugins.nni import ExactSpeedup, SparseVDPruner, disable, enable, save_masks
from nni_sparsevd.plugins.nni.exact import parameter_masks

IMAGE = torch.randn(2, 3, 32, 32)


@pytest.fixture(autouse=True, scope="module")
def _repaired_nni():
    enable()
    yield
    disable()


def network():
    torch.manual_seed(0)
    blocks = [
        (nn.Conv2d(3, 8, 3), nn.ReLU()),
        (nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid()),
        (nn.Conv2d(8, 8, 3), nn.Tanh()),
    ]
    layers = [layer for conv, act in blocks for layer in (conv, nn.BatchNorm2d(8), act)]
    return randomize_(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))).eval()


def pruned(model, ratio=0.5, kind=pruning.L1NormPruner, types=("Conv2d",), **keys):
    pruner = kind(model, [{"op_types": list(types), "sparse_ratio": ratio, **keys}])
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return masks


def masked(model, masks):
    other = copy.deepcopy(model)
    apply_masks_(other, parameter_masks(masks))
    return other


def difference(left, right, x):
    with torch.no_grad():
        expected, found = left.eval()(x), right.eval()(x)
    return ((expected - found).abs().max() / expected.abs().max()).item()


CUTTING = [pruning.L1NormPruner, pruning.L2NormPruner, pruning.FPGMPruner, SparseVDPruner]


@pytest.mark.filterwarnings("ignore:.*pruning by magnitude:nni_sparsevd.errors.SparseVDWarning")
@pytest.mark.parametrize("kind", CUTTING)
def test_the_small_model_computes_what_the_masked_one_does(kind):
    model = network()
    masks = pruned(model, kind=kind, granularity="out_channel")
    before = masked(model, masks)
    speedup = ExactSpeedup(model, IMAGE, masks)
    assert speedup.speedup_model() is model
    assert speedup.check.ok and speedup.plan.removed > 0
    assert difference(before, model, IMAGE) < 1e-5
    assert difference(before, ModelSpeedup(copy.deepcopy(before), IMAGE, masks).speedup_model(), IMAGE) > 1e-2


def test_element_wise_masks_go_through_it_too():
    model = network()
    masks = pruned(model, 0.97, pruning.LevelPruner)
    before = masked(model, masks)
    speedup = ExactSpeedup(model, IMAGE, masks)
    speedup.speedup_model()
    assert speedup.plan.removed > 0 and difference(before, model, IMAGE) < 1e-5


def test_with_extended_masks_all_masked_channels_are_removed():
    model = network()
    masks = pruned(model)
    exact, extended = copy.deepcopy(model), copy.deepcopy(model)
    for speedup in ExactSpeedup(exact, IMAGE, masks), ExactSpeedup(extended, IMAGE, masks, extend_masks=True):
        speedup.speedup_model()
        assert speedup.check.ok
    assert exact[0].out_channels > extended[0].out_channels == extended[3].out_channels == extended[6].out_channels == 4
    # the extended masks are those of the masked model with its norms zeroed where nothing is written
    before = masked(model, masks)
    with torch.no_grad():
        for conv, norm in ((0, 1), (3, 4), (6, 7)):
            dead = ~before[conv].weight.flatten(1).any(1)
            before[norm].weight[dead], before[norm].bias[dead] = 0, 0
    assert difference(before, extended, IMAGE) < 1e-5
    assert difference(masked(model, masks), extended, IMAGE) > 1e-2


@pytest.mark.parametrize(
    ("name", "options", "entry"),
    [
        ("resnet18", {"channels": (32, 64, 128, 256)}, {"op_types": ["Conv2d"]}),
        ("mobilenetv2_100", {}, {"op_types": ["Conv2d"]}),
        ("deit_tiny_patch16_224", {"img_size": 32, "depth": 3}, {"op_names_re": [r"blocks\.\d+\.mlp\.fc1"]}),
    ],
    ids=["resnet18", "mobilenetv2_100", "deit_tiny_patch16_224"],
)
def test_timm_networks_with_nnis_own_dependencies(name, options, entry):
    torch.manual_seed(0)
    model = randomize_(timm.create_model(name, num_classes=10, **options)).eval()
    x = torch.randn(2, 3, 32, 32)
    entries = auto_set_denpendency_group_ids(model, [{**entry, "sparse_ratio": 0.5}], x)
    pruner = pruning.L1NormPruner(model, entries)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    before, size_before = masked(model, masks), sum(p.numel() for p in model.parameters())
    kind = type(model)
    speedup = ExactSpeedup(model, x, masks)
    speedup.speedup_model()
    assert type(model) is kind and sum(p.numel() for p in model.parameters()) < 0.8 * size_before
    assert difference(before, model, torch.randn(3, 3, 32, 32)) < 1e-5


def test_what_is_small_can_be_trained_saved_and_exported(tmp_path):
    model = network()
    ExactSpeedup(model, IMAGE, pruned(model), extend_masks=True).speedup_model()
    model.train()
    model(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    svd.save(model, tmp_path / "small.safetensors")
    again = svd.load(tmp_path / "small.safetensors", model=network())
    torch.testing.assert_close(again(IMAGE), model(IMAGE))
    program = torch.export.export(model, (IMAGE,))
    torch.testing.assert_close(program.module()(IMAGE), model(IMAGE))


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"input": x}])
def test_inputs_come_as_modelspeedup_takes_them(form):
    model = network()
    assert ExactSpeedup(model, form(IMAGE), pruned(model), "cpu", 0, 8).speedup_model() is model


# Files and mistakes.


def test_masks_go_through_a_file(tmp_path):
    model, other = network(), network()
    masks = pruned(model)
    save_masks(masks, tmp_path / "masks.safetensors")
    ExactSpeedup(model, IMAGE, masks).speedup_model()
    ExactSpeedup(other, IMAGE, tmp_path / "masks.safetensors").speedup_model()
    torch.testing.assert_close(model(IMAGE), other(IMAGE))


class Trap:
    def __reduce__(self):
        return exec, ("raise RuntimeError('unpickled')",)


def test_a_pickle_is_never_read(tmp_path):
    (tmp_path / "masks.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileFormatError, match="never read"):
        ExactSpeedup(network(), IMAGE, str(tmp_path / "masks.pth"))
    torch.save(pruned(network()), tmp_path / "nni.pth")
    with pytest.raises(FileFormatError, match="never read"):
        ExactSpeedup(network(), IMAGE, str(tmp_path / "nni.pth"))
    with pytest.raises(FileFormatError, match="no such file"):
        ExactSpeedup(network(), IMAGE, str(tmp_path / "none"))


def test_mistakes_are_named_and_leave_the_model_alone():
    model = network()
    state = copy.deepcopy(model.state_dict())
    masks = pruned(model)
    wrong = {"0": {"weight": torch.ones(2)}}
    everything = {"0": {"weight": torch.zeros_like(model[0].weight)}}
    for bad, error, words in (
        (wrong, MaskError, "0.weight has the shape"),
        (everything, MaskError, "removes the whole layer"),
        ({"zero": {"weight": torch.ones(1)}}, MaskError, "no module 'zero'"),
        ({"0": {"_input_0": torch.zeros(2, 3)}}, MaskError, "0._input_0 masks an activation"),
        ("nowhere", FileFormatError, "nowhere"),
        (7, MaskError, "found int"),
    ):
        with pytest.raises(error, match=words):
            ExactSpeedup(model, IMAGE, bad).speedup_model()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert ExactSpeedup(model, IMAGE, {"0": {"weight": None, "_input_0": torch.ones(2, 3)}}).masks == {}
    with pytest.raises(SettingError, match="customized_replacers"):
        ExactSpeedup(model, IMAGE, masks, customized_replacers=[object()])
    with pytest.raises(SettingError, match="dummy_input"):
        ExactSpeedup(model, (2, 3, 32, 32), masks)
    pruner = pruning.L1NormPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    with pytest.raises(ModelError, match="0 is still wrapped"):
        ExactSpeedup(model, IMAGE, pruner.compress()[1])

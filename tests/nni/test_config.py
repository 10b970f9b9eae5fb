"""A config_list that cannot mean what it says: the message names the entry, the key, and what was found."""

import re

import pytest
import torch
from torch import nn

from nni_sparsevd.errors import SettingError
from nni_sparsevd.plugins.nni import SparseVDPruner, SparseVDSettings

GOOD = {"op_types": ["Linear"], "sparse_ratio": 0.5}
LINEAR = {"op_types": ["Linear"]}


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Tanh())


MALFORMED = {
    "not a list": ("Linear", "config_list", "str"),
    "not a dictionary": ([GOOD, "Linear"], "config_list[1]", "'Linear'"),
    "nothing selects": ([{"sparse_ratio": 0.5}], "config_list[0]", "op_types, op_names, op_names_re"),
    "misspelt key": ([{**LINEAR, "sparse_ration": 0.5}], "config_list[0].sparse_ration", "did you mean sparse_ratio"),
    "unknown key": ([GOOD, {**LINEAR, "colour": 1}], "config_list[1].colour", "known keys: "),
    "nothing given": ([{**GOOD, "exclude_op_names": None}], "config_list[0].exclude_op_names", "leave the key out"),
    "op_types no list": ([{"op_types": "Linear"}], "config_list[0].op_types", "found 'Linear'"),
    "op_types empty": ([{"op_types": []}], "config_list[0].op_types", "at least 1"),
    "op_types of numbers": ([{"op_types": [1]}], "config_list[0].op_types.0", "found 1"),
    "misspelt module": ([{"op_names": ["00"], "sparse_ratio": 0.5}], "config_list[0].op_names", "did you mean 0"),
    "misspelt exclusion": ([{**GOOD, "exclude_op_names": ["22"]}], "config_list[0].exclude_op_names", "'22'"),
    "no such type": ([{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], "config_list[0]", "selects no module"),
    "everything excluded": ([{**GOOD, "exclude_op_types": ["Linear"]}], "config_list[0]", "selects no module"),
    "broken expression": ([{"op_names_re": ["("]}], "config_list[0].op_names_re", "no regular expression"),
    "broken exclusion": ([{**GOOD, "exclude_op_names_re": ["["]}], "config_list[0].exclude_op_names_re", "'['"),
    "ratio is a truth": ([{**LINEAR, "sparse_ratio": True}], "config_list[0].sparse_ratio", "found True"),
    "ratio is a word": ([{**LINEAR, "sparse_ratio": "0.5"}], "config_list[0].sparse_ratio", "found '0.5'"),
    "ratio too large": ([{**LINEAR, "sparse_ratio": 1.5}], "config_list[0].sparse_ratio", "less than or equal to 1"),
    "ratio is no number": ([{**LINEAR, "sparse_ratio": float("nan")}], "config_list[0].sparse_ratio", "nan"),
    "ratio negative": ([{**LINEAR, "sparse_ratio": -0.1}], "config_list[0].sparse_ratio", "greater than or equal to 0"),
    "ratio and threshold": ([{**GOOD, "sparse_threshold": 0.1}], "config_list[0]", "exclude each other"),
    "threshold too large": ([{**LINEAR, "sparse_threshold": 3.0}], "config_list[0].sparse_threshold", "found 3.0"),
    "minimum too large": ([{**GOOD, "min_sparse_ratio": 1.0}], "config_list[0].min_sparse_ratio", "less than 1"),
    "maximum zero": ([{**GOOD, "max_sparse_ratio": 0}], "config_list[0].max_sparse_ratio", "greater than 0"),
    "minimum above maximum": (
        [{**GOOD, "min_sparse_ratio": 0.9, "max_sparse_ratio": 0.1}], "config_list[0].min_sparse_ratio", "above"),
    "granularity unknown": ([{**GOOD, "granularity": "channel"}], "config_list[0].granularity", "'channel'"),
    "granularity of activations": (
        [{**GOOD, "granularity": "per_channel"}], "config_list[0].granularity", "wants out_channel"),
    "blocks do not tile": ([{**GOOD, "granularity": [3, 3]}], "config_list[0].granularity", "0.weight of shape (8, 6)"),
    "blocks of zero": ([{**GOOD, "granularity": [0, 1]}], "config_list[0].granularity", "do not tile"),
    "blocks too deep": ([{**GOOD, "granularity": [1, 1, 1]}], "config_list[0].granularity", "do not tile"),
    "blocks padded oddly": ([{**GOOD, "granularity": [[1], "left"]}], "config_list[0].granularity", "left"),
    "apply_method unknown": ([{**GOOD, "apply_method": "times"}], "config_list[0].apply_method", "'times'"),
    "metric block zero": ([{**GOOD, "internal_metric_block": 0}], "config_list[0].internal_metric_block", "found 0"),
    "target unknown": ([{**GOOD, "target_names": ["wieght"]}], "config_list[0].target_names", "weight, bias"),
    "target setting unknown": (
        [{**LINEAR, "target_settings": {"weight": {"sparse_rato": 0.5}}}],
        "config_list[0].target_settings.weight.sparse_rato", "did you mean"),
    "target of no layer": (
        [{**LINEAR, "target_settings": {"gamma": {"sparse_ratio": 0.5}}}], "config_list[0].target_settings", "'gamma'"),
    "activation": (
        [{**LINEAR, "target_names": ["_input_0"], "target_settings": {"_input_0": {"sparse_ratio": 0.5}}}],
        "config_list[0].target_names", "prune '_input_' of Linear"),
    "type that NNI does not know": ([{"op_types": ["Tanh"], "sparse_ratio": 0.5}], "config_list[0]", "PruningSetting"),
    "align with no module": (
        [{**GOOD, "target_settings": {"bias": {"align": {"module_name": "9", "target_name": "weight", "dims": [0]}}}}],
        "config_list[0].align", "9.weight"),
    "align with no dimension": (
        [{**GOOD, "target_settings": {"bias": {"align": {"module_name": "0", "target_name": "weight", "dims": [5]}}}}],
        "config_list[0].align.dims", "[5]"),
    "align with an unselected module": (
        [{"op_names": ["0"], "target_settings": {"bias": {"align":
            {"module_name": "2", "target_name": "weight", "dims": [0]}}}}], "config_list[0].align", "2.weight, which"),
    "bias without the weight that it follows": (
        [{**GOOD, "target_names": ["bias"]}], "config_list[0].align", "0.bias takes its mask from 0.weight"),
    "group of two ratios": (
        [{**GOOD, "op_names": ["0"], "global_group_id": "g"},
         {"op_names": ["2"], "sparse_ratio": 0.25, "global_group_id": "g"}], "config_list[1].sparse_ratio", "'g'"),
    "group of two sizes": (
        [{**GOOD, "dependency_group_id": "g"}], "config_list[0].dependency_group_id", "0.weight has (8, 1)"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_the_entry_and_the_key_are_named(case):
    config_list, where, what = MALFORMED[case]
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SettingError) as raised:
        SparseVDPruner(model, config_list)
    message = str(raised.value)
    assert message.startswith(where) and what in message, message
    assert model.state_dict().keys() == before.keys()  # nothing has happened to the model
    assert not any(hasattr(module, "_nni_wrapper") for module in model.modules())


@pytest.mark.parametrize(
    ("config_list", "kept"),
    [
        ([{"sparsity": 0.5, "op_types": ["Linear"]}], {"0": 0.5, "2": 0.5}),
        ([{"sparsity": 0.5, "op_types": ["Linear"]}, {"exclude": True, "op_names": ["2"]}], {"0": 0.5}),
        ([{"sparsity_per_layer": 0.25, "op_partial_names": ["2"]}], {"2": 0.75}),
        ([{"total_sparsity": 0.5, "op_types": ["Linear"]}], {"0": 3 / 8, "2": 3 / 4}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*pruning by magnitude:nni_sparsevd.errors.SparseVDWarning")
def test_keys_of_nni_2(config_list, kept):
    model = network()
    with torch.no_grad():
        model[0].weight[3:] = 1e-3
        model[2].weight[:3] = 1.0
        model[2].weight[3:] = 1e-4
    _, masks = SparseVDPruner(model, config_list).compress()
    assert {name: targets["weight"].mean().item() for name, targets in masks.items()} == kept


def test_the_hint_is_about_the_key_that_is_wrong():
    entry = {**LINEAR, "target_settings": {"weight": {"sparse_rato": 0.5}}}
    with pytest.raises(SettingError, match="sparse_rato: did you mean sparse_ratio"):
        SparseVDPruner(network(), [entry])


def test_what_nni_accepts_is_accepted():
    for keys in (
        {"sparse_ratio": 0.5},
        {"sparse_threshold": 0.1},
        {},
        {"max_sparse_ratio": 1},
        {"granularity": "default"},
        {"granularity": [2, 2]},
        {"granularity": [[2], "front"]},
        {"granularity": [[1], "back", -1]},
        {"global_group_id": 3, "sparse_ratio": 0.5},
        {"apply_method": "add"},
        {"target_names": ["weight", "bias"]},
        {"exclude_op_names": ["2"]},
        {"exclude_op_names_re": ["2"]},
        {"exclude_op_types": ["ReLU"]},
    ):
        SparseVDPruner(network(), [{**LINEAR, **keys}])
    SparseVDPruner(network(), [{"op_types": ["Linear"], "sparsity": 0.5}])  # the keys of NNI 2
    SparseVDPruner(network(), [{"op_types": ["Linear", "Conv2d"]}])  # a type of which the network has none


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**LINEAR}, "channels of '2' cannot have a gate (output of the network)"),
        ({"op_names": ["0"], "granularity": "in_channel"}, "config_list[0].granularity: 'in_channel'"),
    ],
)
def test_gates_that_cannot_be(entry, message):
    from evaluators import torch_evaluator

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    names = {"op_names": ["1" if name == "0" else name for name in entry["op_names"]]} if "op_names" in entry else {}
    model, evaluator = torch_evaluator(network)
    gates = SparseVDSettings(posterior={"granularity": "gate"})
    with pytest.raises(SettingError, match=re.escape(message.replace("'2'", "'3'"))):
        SparseVDPruner(model, [{**entry, **names}], evaluator, 5, settings=gates)
    assert "gate" not in " ".join(model.state_dict())


def test_gates_are_on_output_channels_whoever_says_otherwise():
    from evaluators import network, torch_evaluator

    model, evaluator = torch_evaluator(network())
    for granularity in ("in_channel", [1]):
        entry = {
            "op_types": ["Conv2d"],
            "target_settings": {"weight": {"sparse_ratio": 0.5, "granularity": granularity}},
        }
        with pytest.raises(SettingError, match=r"target_settings\['weight'\].granularity: .* gates are on output"):
            SparseVDPruner(model, [entry], evaluator, settings=SparseVDSettings(posterior={"granularity": "both"}))


def test_a_gate_is_not_on_the_inputs_of_a_transposed_convolution():
    from evaluators import torch_evaluator

    network = nn.Sequential(nn.ConvTranspose2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(324, 4))
    entries = [{"op_types": ["ConvTranspose2d"]}]
    for granularity in ("gate", "both"):
        model, evaluator = torch_evaluator(network)
        settings = SparseVDSettings(n_train=64, posterior={"granularity": granularity})
        if granularity == "gate":
            with pytest.raises(SettingError, match="'0' cannot have a gate"):
                SparseVDPruner(model, entries, evaluator, 5, settings=settings)
        else:
            assert SparseVDPruner(model, entries, evaluator, 5, settings=settings).gates.all() == []


def test_gates_need_inputs_to_trace_with():
    with pytest.raises(SettingError, match="dummy_input"):
        SparseVDPruner(network(), [{"op_names": ["0"]}], settings=SparseVDSettings(posterior={"granularity": "gate"}))


def test_include_and_exclude_belong_to_the_config_list():
    with pytest.raises(SettingError, match="config_list selects"):
        SparseVDPruner(network(), [LINEAR], settings=SparseVDSettings(posterior={"exclude": ["2"]}))

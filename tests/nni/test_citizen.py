"""`SparseVDPruner` among NNI's own: chains in both directions, schedules, saving, several processes, and by name."""

import copy

import nni.compression.pruning
import pytest
import torch
import torch.distributed as dist
from evaluators import SAMPLES, lightning_evaluator, network, torch_evaluator
from nni.compression.base.compressor import Pruner
from nni.compression.distillation import DynamicLayerwiseDistiller
from nni.compression.pruning import AGPPruner, L1NormPruner, LinearPruner
from nni.compression.quantization import QATQuantizer
from nni.compression.speedup import ModelSpeedup
from processes import run_ranks
from torch.nn.parallel import DistributedDataParallel

from nni_sparsevd.errors import SettingError, SparseVDWarning
from nni_sparsevd.plugins.nni import SparseVDPruner, SparseVDSettings, disable, enable


@pytest.fixture(autouse=True, scope="module")
def _repaired_nni():
    enable()
    yield
    disable()


def settings(granularity="weight"):
    return SparseVDSettings(n_train=SAMPLES, learning_rate=0.1, gate_rate=1.0, posterior={"granularity": granularity})


FIRST, SECOND = {"op_names": ["0"]}, {"op_names": ["3"]}


def sparsity(masks, name):
    return round(1 - masks[name]["weight"].mean().item(), 2)


def test_it_is_found_where_nnis_pruners_are():
    assert nni.compression.pruning.SparseVDPruner is SparseVDPruner
    assert "SparseVDPruner" in vars(nni.compression.pruning)
    assert issubclass(SparseVDPruner, Pruner)


@pytest.mark.parametrize("granularity", ["weight", "gate", "both"])
@pytest.mark.parametrize("kind", [AGPPruner, LinearPruner])
@pytest.mark.parametrize(("keys", "final"), [({"sparse_ratio": 0.5}, 0.5), ({}, None)])
@pytest.mark.filterwarnings("ignore:.*the masks remove nothing:nni_sparsevd.errors.SparseVDWarning")
def test_schedules_raise_the_sparsity_step_by_step(granularity, kind, keys, final):
    model, evaluator = torch_evaluator(network())
    pruner = SparseVDPruner(model, [{"op_types": ["Conv2d"], **keys}], evaluator, settings=settings(granularity))
    seen = []
    update = pruner.update_masks
    pruner.update_masks = lambda masks: (seen.append(sparsity(masks, "3")), update(masks))
    scheduled = kind(pruner, interval_steps=5, total_times=4)
    trained, masks = scheduled.compress(24, None)
    assert trained is model and len(seen) == 4
    assert seen[-1] == sparsity(masks, "3")
    if final is not None:
        assert seen == sorted(seen) and seen[0] < final and seen[-1] == final
    scheduled.unwrap_model()
    assert sorted(model.state_dict()) == sorted(network().state_dict())


def test_after_l1norm():
    model, evaluator = torch_evaluator(network())
    first = L1NormPruner(model, [{**FIRST, "sparse_ratio": 0.5}], evaluator)
    first.compress()
    pruner = SparseVDPruner.from_compressor(
        first, [{**SECOND, "sparse_ratio": 0.75}], training_steps=20, settings=settings()
    )
    kept = first.get_masks()["0"]["weight"].clone()
    _, masks = pruner.compress(20)
    assert torch.equal(masks["0"]["weight"], kept)
    assert sparsity(masks, "3") == 0.75


def test_a_chain_lasts_as_long_as_a_single_pruner():
    for training_steps, length in ((20, {}), (None, {"max_steps": 20}), (None, {"max_epochs": 5})):
        model, evaluator = lightning_evaluator(network())
        first = L1NormPruner(model, [{"op_names": ["network.0"], "sparse_ratio": 0.5}], evaluator)
        entry = {"op_names": ["network.3"], "sparse_ratio": 0.75}
        pruner = SparseVDPruner.from_compressor(first, [entry], training_steps=training_steps, settings=settings())
        _, masks = pruner.compress(**length)
        assert sparsity(masks, "network.3") == 0.75
    first = L1NormPruner(network(), [{**FIRST, "sparse_ratio": 0.5}])
    pruner = SparseVDPruner.from_compressor(first, [{**SECOND, "sparse_ratio": 0.5}])
    with pytest.raises(SettingError, match="evaluator"):
        pruner.compress()


def test_what_an_earlier_pruner_has_masked_is_named():
    model, evaluator = torch_evaluator(network())
    first = L1NormPruner(model, [{**FIRST, "sparse_ratio": 0.5}], evaluator)
    first.compress()
    kept = first.get_masks()["0"]["weight"].clone()
    with pytest.warns(SparseVDWarning, match="has masked 0, and NNI masks no target"):
        pruner = SparseVDPruner.from_compressor(first, [{**FIRST, "sparse_ratio": 0.25}], training_steps=4)
    _, masks = pruner.compress()
    assert torch.equal(masks["0"]["weight"], kept)


def test_before_l1norm():
    model, evaluator = torch_evaluator(network())
    pruner = SparseVDPruner(model, [FIRST], evaluator, 20, settings=settings())
    _, before = pruner.compress()
    after = L1NormPruner.from_compressor(pruner, [{**SECOND, "sparse_ratio": 0.5}])
    after.interval_steps = 5
    _, masks = after.compress(10, None)
    assert torch.equal(masks["0"]["weight"], before["0"]["weight"])
    assert sparsity(masks, "3") == 0.5


@pytest.mark.parametrize("decided", [True, False])
def test_before_a_quantizer(decided):
    """Decided first, or learning while the quantizer trains."""
    model, evaluator = torch_evaluator(network())
    pruner = SparseVDPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], evaluator, 10, settings=settings())
    if decided:
        pruner.compress()
    entries = [{"op_types": ["Conv2d"], "target_names": ["weight"], "quant_dtype": "int8", "granularity": "default"}]
    quantizer = QATQuantizer.from_compressor(pruner, entries, quant_start_step=2)
    _, calibration = quantizer.compress(15, None)
    assert calibration["3"]["weight"]["scale"] is not None
    masks = pruner.get_masks()
    assert sparsity(masks, "0") == sparsity(masks, "3") == 0.5
    model.eval()
    model(torch.randn(2, 1, 8, 8))
    assert not model[3].weight[masks["3"]["weight"] == 0].any()


def test_before_a_distiller():
    model, evaluator = torch_evaluator(network())
    teacher = network()
    pruner = SparseVDPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], evaluator, 10, settings=settings())
    _, masks = pruner.compress()
    entries = [{"op_names": ["8"], "link": "auto", "lambda": 0.5, "apply_method": "mse"}]
    distiller = DynamicLayerwiseDistiller.from_compressor(
        pruner, entries, teacher_model=teacher, teacher_predict=lambda batch, model: model(batch[0])
    )
    distiller.compress(10, None)
    assert torch.equal(pruner.get_masks()["3"]["weight"], masks["3"]["weight"])
    distiller.unwrap_model()
    assert sorted(model.state_dict()) == sorted(network().state_dict())


def test_wrap_unwrap_and_masks_go_back_and_forth():
    model = network()
    pruner = SparseVDPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    learning = {name for name in model.state_dict() if name.endswith("log_sigma2")}
    assert learning == {"0._nni_wrapper.weight_log_sigma2", "3._nni_wrapper.weight_log_sigma2"}
    pruner.unwrap_model()
    assert sorted(model.state_dict()) == sorted(network().state_dict())
    images = torch.randn(2, 1, 8, 8)
    model.train()
    assert torch.equal(model(images), model(images))  # an unwrapped model has no noise
    pruner.wrap_model()
    assert not torch.equal(model(images), model(images))
    other = {name: {"weight": torch.zeros_like(t["weight"])} for name, t in pruner.get_masks().items()}
    other["0"]["weight"][0] = 1
    pruner.update_masks(other)
    assert torch.equal(pruner.get_masks()["0"]["weight"], other["0"]["weight"])
    model.eval()
    model(images)
    assert not model[3].weight.any()


@pytest.mark.parametrize("granularity", ["weight", "both"])
def test_a_state_dict_taken_while_it_learns_goes_on_elsewhere(granularity, tmp_path):

    def fresh():
        model, evaluator = torch_evaluator(network())
        return model, SparseVDPruner(model, [{"op_types": ["Conv2d"]}], evaluator, 10, settings=settings(granularity))

    model, pruner = fresh()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other, again = fresh()
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    for name, targets in pruner.log_alpha().items():
        assert torch.equal(targets["weight"], again.log_alpha()[name]["weight"])
    assert torch.equal(pruner.kl(), again.kl())


@pytest.mark.filterwarnings("ignore::nni_sparsevd.errors.SparseVDWarning")  # the copy's variances are far too large
def test_a_copy_has_posteriors_of_its_own():
    model = network()
    pruner = SparseVDPruner(model, [{"op_types": ["Conv2d"]}])
    twin = copy.deepcopy(pruner)
    with torch.no_grad():
        for posterior in twin._posteriors.values():
            posterior.log_sigma2.add_(9.0)
    assert twin.bound_model is not model
    assert not torch.equal(twin.kl(), pruner.kl())
    assert sparsity(twin.compress()[1], "0") > sparsity(pruner.compress()[1], "0")
    twin.bound_model.train()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(twin.bound_model(images), twin.bound_model(images))


@pytest.mark.filterwarnings("ignore:.*pruning by magnitude:nni_sparsevd.errors.SparseVDWarning")
def test_masks_go_through_a_file_into_modelspeedup(tmp_path):
    model = network()
    entry = {"op_types": ["Conv2d"], "granularity": "out_channel", "sparse_ratio": 0.5}
    pruner = SparseVDPruner(model, [entry])
    _, masks = pruner.compress()
    pruner.unwrap_model()
    torch.save(masks, tmp_path / "masks.pth")
    small = ModelSpeedup(model, torch.randn(2, 1, 8, 8), str(tmp_path / "masks.pth")).speedup_model()
    assert small[0].out_channels == small[3].out_channels == 4


# Several processes: every rank holds the same posterior and reaches the same masks.


def prune_rank(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {}
    for granularity in ("weight", "gate"):
        model = DistributedDataParallel(network())
        torch.manual_seed(rank)  # each its own data order and noise
        _, evaluator = torch_evaluator(model)
        entry = {"op_types": ["Conv2d"], "sparse_ratio": 0.5}
        pruner = SparseVDPruner(model, [entry], evaluator, 15, settings=settings(granularity))
        _, masks = pruner.compress(20)
        found |= {(granularity, "mask", name): targets["weight"] for name, targets in masks.items()}
        found |= {(granularity, "learnt", name): t["weight"] for name, t in pruner.log_alpha().items()}
    torch.save(found, folder / f"{rank}.pt")


def test_ranks_agree(tmp_path):
    run_ranks(2, prune_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(first) == 8 and first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        assert value.double().std() > 0

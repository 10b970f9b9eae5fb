"""What a script of Torch-Pruning gets wrong is refused or named, and is never silently something else."""

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import SettingError, SparseVDWarning, TraceError
from nni_sparsevd.plugins.torch_pruning import Budget, SparseVDImportance, SparseVDPruner, SparseVDSettings

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (16,), generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))


def made(model, inputs=IMAGES[:2], **options):
    settings = SparseVDSettings(n_train=16, learning_rate=0.05)
    return SparseVDPruner(model, inputs, **{"settings": settings, "ignored_layers": [model[7]], **options})


def train(model, pruner, regularizes=True):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        if regularizes:
            pruner.regularize(model)
        optimizer.step()


def widths(model):
    return [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_ratio": 1.0}, "pruning_ratio = 1.0 has to be a part"),
        ({"pruning_ratio": -0.5}, "pruning_ratio = -0.5 has to be a part"),
        ({"pruning_ratio": "0.5"}, "pruning_ratio = '0.5' has to be a part"),
        ({"max_pruning_ratio": 2.0}, "max_pruning_ratio = 2.0"),
        ({"iterative_steps": 0}, "iterative_steps = 0 has to be a whole number of at least 1"),
        ({"iterative_steps": 2.5}, "iterative_steps = 2.5"),
        ({"training_steps": -5}, "training_steps = -5"),
        ({"round_to": -4}, "round_to = -4 has to be a whole number of at least 0"),
        ({"settings": {"n_train": 16}}, "settings has to be a SparseVDSettings"),
        ({"budget": 0.5}, r"budget has to be a Budget\(...\), found 0.5"),
        ({"ignored_layers": nn.Linear(1, 1)}, "ignored_layers has to be a list of layers"),
        ({"ignored_layers": ["7"]}, "ignored_layers: '7' is no layer of this Sequential"),
        ({"ignored_layers": [network()[7]]}, r"ignored_layers: Linear\(.* is no layer of this Sequential"),
        ({"pruning_ratio_dict": {network()[0]: 0.5}}, r"pruning_ratio_dict: Conv2d\(.* is no layer"),
        ({"pruning_ratio_dict": {nn.Conv2d: 0.5}}, "pruning_ratio_dict: .*Conv2d'> is no layer"),
        ({"num_heads": {network()[7]: 2}}, r"num_heads: Linear\(.* is no layer"),
        ({"num_heads": 2}, "num_heads has to be a dictionary of layers, found 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(options, message):
    model = network()
    with pytest.raises(SettingError, match=message):
        made(model, **options)
    assert not svd.nn.is_variational(model)


@pytest.mark.parametrize("inputs", [torch.randn(2, 3, 8, 8), None])
def test_a_network_that_cannot_be_traced_stays_what_it_was(inputs):
    model = network()
    before = dict(model.state_dict())
    with pytest.raises(TraceError, match="Torch-Pruning cannot trace Sequential: "):
        made(model, inputs, pruning_ratio=0.5)
    assert type(model[0]) is nn.Conv2d and model.state_dict().keys() == before.keys()
    made(model, pruning_ratio=0.5)  # so it can be tried again


def test_a_list_of_inputs_is_taken_as_torch_pruning_takes_it_and_without_gradients_too():
    model = network()
    with torch.no_grad():
        pruner = made(model, [IMAGES[:2]], pruning_ratio=0.5)
    train(model, pruner)
    pruner.step()
    assert widths(model) == [4, 4]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "No channel that may leave has a log alpha of 3"),
        ({"pruning_ratio": 0.0}, "The ratio, rounded for each layer"),
        ({"pruning_ratio": 0.5, "round_to": 64}, "The ratio, rounded for each layer"),
        ({"budget": Budget(fraction=0.9999)}, "No cut comes closer to the budget"),
    ],
)
def test_a_step_that_removes_nothing_says_so(options, reason):
    model = network()
    pruner = made(model, **options)
    train(model, pruner)
    with pytest.warns(SparseVDWarning, match=f"nothing was removed. {reason}"):
        pruner.step()
    assert widths(model) == [8, 8]


def test_a_budget_that_is_missed_is_named():
    model = network()
    pruner = made(model, budget=Budget(fraction=0.001))
    train(model, pruner)
    with pytest.warns(SparseVDWarning, match="the budget of 0.001 of the macs is missed"):
        pruner.step()


def test_a_training_without_the_kl_is_named():
    model = network()
    pruner = made(model, pruning_ratio=0.5)
    train(model, pruner, regularizes=False)
    with pytest.warns(SparseVDWarning, match=r"has not been trained.*regularize\(model\) in each step") as caught:
        pruner.step()
    assert len(caught) == 1


def test_what_another_script_has_trained_may_be_cut_without_a_warning():
    source, target = network(), network()
    pruner, other = made(source, pruning_ratio=0.5), made(target, pruning_ratio=0.5)
    train(source, pruner)
    target.load_state_dict(source.state_dict())
    other.step()  # a warning would be an error
    assert widths(target) == [4, 4]


def test_variances_that_were_loaded_by_assignment_learn_on():
    model = network()
    pruner = made(model, pruning_ratio=0.5)
    train(model, pruner)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    before = model[0].log_sigma2.detach().clone()
    train(model, pruner)
    assert (model[0].log_sigma2 - before).abs().mean() > 0.05


@pytest.mark.parametrize(("mistake", "message"), [("eval", "evaluation mode"), ("early", "no gradient at any")])
def test_a_loss_that_says_nothing_of_the_variances_is_named(mistake, message):
    model = network()
    pruner = made(model)
    if mistake == "eval":
        F.cross_entropy(model.eval()(IMAGES), LABELS).backward()
    with pytest.warns(SparseVDWarning, match=f"SparseVDPruner: .*{message}"):
        pruner.regularize(model)


def test_an_importance_of_posteriors_that_were_never_trained_says_so_once():
    model = svd.sparsify_(network())
    pruner = tp.pruner.BasePruner(model, IMAGES[:2], SparseVDImportance(), pruning_ratio=0.5, ignored_layers=[model[7]])
    with pytest.warns(SparseVDWarning, match="has not been trained, so its channels are ranked by magnitude") as caught:
        pruner.step()
    assert len(caught) == 1

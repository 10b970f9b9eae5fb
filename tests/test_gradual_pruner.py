"""A budget in a loop of one's own: what `GradualPruner` promises."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError, SettingError, SparseVDWarning
from nni_sparsevd.measure import count_macs, count_parameters
from nni_sparsevd.regularize import Budget, GradualPruner, gradual_pruner

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (32,), generator=torch.Generator().manual_seed(1))
STEPS = 50


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32, 4))


def make(model: nn.Module, fraction: float = 0.4, **settings: int) -> GradualPruner:
    return GradualPruner(
        model, IMAGES[:2], Budget(fraction=fraction), n_train=len(IMAGES), **{"steps": STEPS, "round_to": 4, **settings}
    )


def batch_loss(model: nn.Module, step: int) -> Tensor:
    rows = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(step))[: 16 if step % 3 else 8]
    return F.cross_entropy(model(IMAGES[rows]), LABELS[rows])


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        batch_loss(model, step).backward()
        optimizer.step()


def test_a_loop_that_knows_nothing_of_it_ends_with_the_budget_met() -> None:
    model = network()
    dense = count_macs(model, IMAGES[:1])
    pruner = make(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.01)
    pruner.attach_(optimizer)
    train(model, optimizer)
    model.eval()
    before = model(IMAGES)
    assert pruner.finish() is model
    torch.testing.assert_close(model(IMAGES), before)
    assert type(model[0]) is nn.Conv2d and not svd.nn.is_variational(model)
    assert model[0].out_channels % 4 == model[3].out_channels % 4 == 0
    assert pruner.part_left() == count_macs(model, IMAGES[:1]) / dense
    assert 0.25 < pruner.part_left() <= 0.42
    # The optimizer has learned what is left: the same parameters, with moments in their shapes.
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.parameters()} <= held
    for parameter, memory in optimizer.state.items():
        assert memory["exp_avg"].shape == parameter.shape
    # Nothing of it stays behind.
    assert not (model._forward_pre_hooks or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def test_evaluation_shows_what_ships_although_a_channel_that_stays_is_noise() -> None:
    model = network()
    pruner = make(model, 0.7, round_to=8)
    with torch.no_grad():
        model[1].gate.log_sigma2[:3] = 9.0  # a multiple of 8 needs them
    model.eval()
    before = model(IMAGES)
    with pytest.warns(SparseVDWarning, match="not met"):  # no step was taken
        pruner.finish()
    torch.testing.assert_close(model(IMAGES), before)
    assert (model[1].weight != 0).all()


def test_a_loop_that_calls_it_step_by_step_gets_the_same_network() -> None:
    attached, called = network(), network()
    pruner = make(attached)
    optimizer = torch.optim.SGD(attached.parameters(), 1e-2, momentum=0.9)
    pruner.attach_(optimizer)
    train(attached, optimizer)

    own = make(called)
    optimizer = torch.optim.SGD(called.parameters(), 1e-2, momentum=0.9)
    cuts = []
    for step in range(STEPS):
        optimizer.zero_grad()
        batch_loss(called, step).backward()
        own.learn(16 if step % 3 else 8)
        own.regularize()
        optimizer.step()
        if own.remove_(optimizer):
            cuts.append(step + 1)
    assert cuts == [10, 20, 30, 32]
    assert attached.state_dict().keys() == called.state_dict().keys()
    for name, value in attached.state_dict().items():
        assert torch.equal(value, called.state_dict()[name]), name


def test_accumulated_gradients_need_the_calls() -> None:
    model = network()
    pruner = make(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    pruner.attach_(optimizer)
    with torch.no_grad():
        model(IMAGES)  # a look at the network on the way is none of a step's passes
    for step in range(2):
        batch_loss(model, step).backward()
    with pytest.raises(SettingError, match="called 2 times before one step"):
        optimizer.step()


def test_a_step_that_runs_backward_itself_is_refused() -> None:
    """Lightning's steps do: what is added before them would be lost."""
    model = network()
    pruner = make(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    pruner.attach_(optimizer)
    before = copy.deepcopy(model.state_dict())
    for steps in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(SettingError, match="gets a closure and runs backward itself"):
            steps()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parameters_may_be_what_counts() -> None:
    model = network()
    dense = count_parameters(model)
    pruner = GradualPruner(
        model, IMAGES[:2], Budget(kind="parameters", fraction=0.5), n_train=32, steps=STEPS, round_to=1
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    pruner.attach_(optimizer)
    train(model, optimizer)
    pruner.finish()
    assert 0.4 < count_parameters(model) / dense <= 0.51


def test_latency_is_measured_at_every_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts multiplications and adds an overhead, as real ones do."""
    measured = []

    def measure(model: nn.Module) -> float:
        measured.append(count_macs(model, IMAGES[:1]))
        return measured[-1] + 20_000.0

    monkeypatch.setattr(gradual_pruner, "cost_function", lambda kind, inputs: measure)
    model = network()
    budget = Budget(kind="latency", fraction=0.6)
    pruner = GradualPruner(model, IMAGES[:2], budget, n_train=32, steps=STEPS, round_to=1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    pruner.attach_(optimizer)
    train(model, optimizer)
    assert len(measured) > 4
    assert 0.5 < pruner.part_left() <= 0.606


def test_what_cannot_be_reached_is_said_before_training_and_changes_nothing() -> None:
    model = network()
    with pytest.raises(SettingError, match=r"0.05 of the macs cannot be reached: once every .* 0.5\d\d is left"):
        make(model, fraction=0.05, round_to=16)
    assert type(model[0]) is nn.Conv2d and not svd.nn.is_variational(model)


def test_what_was_not_met_is_said() -> None:
    pruner = make(network())
    with pytest.warns(SparseVDWarning, match=r"the budget of 0.4 of the macs was not met: 1.000 is left"):
        pruner.finish()  # before any step


@pytest.mark.parametrize(
    "values", [{"reached_at": 0.0}, {"reached_at": 1.5}, {"n_train": 0}, {"round_to": 0}, {"cuts": 0}]
)
def test_a_number_out_of_range_is_named(values: dict[str, Any]) -> None:
    (name,) = values
    settings = {"n_train": len(IMAGES), "steps": STEPS, **values}
    with pytest.raises(SettingError, match=rf"GradualPruner: {name} = "):
        GradualPruner(network(), IMAGES[:2], Budget(fraction=0.4), **settings)


def test_bad_input_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SettingError, match=r"in 30 steps the gates cannot learn .* take at least 31"):
        make(model, steps=30)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(SettingError, match="several processes"):
        make(model)
    monkeypatch.undo()
    assert model.state_dict().keys() == before.keys()
    svd.sparsify_(model)
    with pytest.raises(ModelError, match="variational already"):
        make(model)

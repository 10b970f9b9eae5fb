"""What a training loop of the user's own gets wrong is refused or named, and is never silently something else."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import FileFormatError, SettingError, SparseVDWarning, TrainingError
from nni_sparsevd.regularize import Budget, GradualPruner, Regularizer, SparseVDSettings
from nni_sparsevd.regularize.step_hooks import read_loss_scale

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (16,), generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))


def regularizer(model: nn.Module | None = None, **settings: Any) -> Regularizer:
    inputs = IMAGES[:2] if "posterior" in settings else None
    return Regularizer(model or network(), SparseVDSettings(n_train=16, **settings), inputs)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    F.cross_entropy(model(IMAGES), LABELS).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        backward(model)
        optimizer.step()


def variances(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for name, value in model.named_parameters() if name.endswith("log_sigma2")]


@pytest.mark.parametrize("steps", [0, -5])
def test_a_training_without_steps_is_refused(steps: int) -> None:
    made = regularizer()
    with pytest.raises(SettingError, match=f"steps = {steps} has to be at least 1"):
        made.attach_(torch.optim.SGD(made.model.parameters(), 0.1), steps)


@pytest.mark.parametrize("progress", [-1.0, float("nan")])
def test_progress_that_is_no_part_of_a_training_is_refused_before_anything_changes(progress: float) -> None:
    made = regularizer()
    backward(made.model)
    before = copy.deepcopy(made.model.state_dict())
    with pytest.raises(SettingError, match="progress"):
        made.regularize(progress)
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


@pytest.mark.parametrize("settings", [{"n_train": 16}, svd.PosteriorSettings()])
def test_settings_of_another_kind_are_refused_before_anything_changes(settings: Any) -> None:
    model = network()
    with pytest.raises(SettingError, match=r"settings has to be a SparseVDSettings\(.*found a"):
        Regularizer(model, settings)
    assert not svd.nn.is_variational(model)


def test_attached_twice_the_kl_counts_once() -> None:
    once, twice = regularizer(), regularizer()
    for made, times in ((once, 1), (twice, 2)):
        optimizer = torch.optim.SGD(made.model.parameters(), 0.1)
        for _ in range(times):
            made.attach_(optimizer, 4)
        torch.manual_seed(0)
        train(made.model, optimizer)
    for value, expected in zip(variances(twice.model), variances(once.model), strict=True):
        assert torch.equal(value, expected)
    assert pickle.loads(pickle.dumps(twice)).sparsity() == twice.sparsity()


def test_an_optimizer_of_another_network_is_named() -> None:
    with pytest.warns(SparseVDWarning, match="no parameter of the network"):
        regularizer().attach_(torch.optim.SGD(network().parameters(), 0.1), 4)


def replace_by_cut(model: nn.Module) -> None:
    with torch.no_grad():
        model[1].gate.log_sigma2[:4] = 8.0
    assert svd.shrink_(model, IMAGES[:2]).removed == 4


def replace_by_assignment(model: nn.Module) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("replace", [replace_by_cut, replace_by_assignment])
def test_variances_that_have_replaced_others_learn_on(replace: Callable[[nn.Module], None]) -> None:
    made = regularizer(posterior={"granularity": "both"}, warmup=0.0)
    backward(made.model)
    made.regularize(0.1)
    replace(made.model)
    before = variances(made.model)
    backward(made.model)
    made.regularize(0.2)
    assert all(bool((now != then).any()) for now, then in zip(variances(made.model), before, strict=True))


@pytest.mark.parametrize(
    ("mistake", "message"), [("eval", "evaluation mode"), ("early", "no gradient at any variance")]
)
def test_a_loss_that_says_nothing_of_the_variances_is_named_once(mistake: str, message: str) -> None:
    made = regularizer()
    if mistake == "eval":
        made.model.eval()
        backward(made.model)
    with pytest.warns(SparseVDWarning, match=message):
        made.regularize(0.0)
    made.regularize(0.1)  # a second warning would be an error


def test_variances_in_half_precision_are_named() -> None:
    made = regularizer()
    made.model.bfloat16()
    F.cross_entropy(made.model(IMAGES.bfloat16()), LABELS).backward()
    with pytest.warns(SparseVDWarning, match="half precision"):
        made.regularize(0.0)


@pytest.mark.parametrize("fused", [False, True])
def test_the_kl_keeps_its_weight_under_a_loss_scaler(fused: bool) -> None:
    model = network()
    made = regularizer(model, warmup=0.0)
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    made.attach_(optimizer, 4)
    gradients: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: gradients.append(model[0].weight.grad / read_loss_scale(optimizer)))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((model(IMAGES) * 0).sum()).backward()
    scaler.step(optimizer)
    expected = regularizer(model=network(), warmup=0.0)
    backward_of_nothing = (expected.model(IMAGES) * 0).sum()
    backward_of_nothing.backward()
    expected.regularize(0.0)
    torch.testing.assert_close(gradients[0], expected.model[0].weight.grad)


@pytest.mark.parametrize("damage", ["a part is missing", "a key is unknown", "a shape is another"])
def test_a_damaged_state_is_refused(damage: str) -> None:
    source, target = regularizer(), regularizer()
    backward(source.model)
    source.regularize(0.1)
    state = source.state()
    if damage == "a part is missing":
        del state["0.exp_avg_sq"]
    elif damage == "a key is unknown":
        state["0.speed"] = state["0.exp_avg"]
    else:
        state["0.exp_avg"] = torch.zeros(())
    with pytest.raises(FileFormatError, match="the state of"):
        target.load_state_(state)


# ---- a budget


def pruner(model: nn.Module, **settings: Any) -> GradualPruner:
    numbers = {"n_train": 16, "steps": 50, "round_to": 2, **settings}
    return GradualPruner(model, IMAGES[:2], numbers.pop("budget", Budget(fraction=0.5)), **numbers)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kl_coefficient": 0.0},
        {"kl_coefficient": -1.0},
        {"n_train": None},
        {"steps": 60.5},
        {"cuts": 0},
        {"budget": 0.5},
        {"budget": {"fraction": 0.5}},
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_changes(wrong: dict[str, Any]) -> None:
    model = network()
    with pytest.raises(SettingError, match=f"GradualPruner: {next(iter(wrong))}"):
        pruner(model, **wrong)
    assert not svd.nn.is_variational(model)


def test_a_batch_without_samples_is_refused() -> None:
    model = network()
    made = pruner(model)
    backward(model)
    with pytest.raises(SettingError, match="batch_size = 0"):
        made.learn(0)


@pytest.mark.parametrize("attached", [False, True])
def test_gates_that_have_learned_nothing_remove_nothing(attached: bool) -> None:
    model = network().eval()
    made = pruner(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if attached:
        made.attach_(optimizer)
    step = optimizer.step if attached else lambda: made.remove_(optimizer)

    def train_to_the_end() -> None:
        for _ in range(50):
            backward(model)
            step()

    with pytest.raises(TrainingError, match="the gates have learned nothing"):
        train_to_the_end()
    assert made.part_left() == 1.0


def test_attached_twice_a_budget_takes_its_steps_once() -> None:
    model = network()
    made = pruner(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    made.attach_(optimizer)
    made.attach_(optimizer)
    train(model, optimizer, 25)
    assert made._steps_done == 25
    train(model, optimizer, 25)
    made.finish()
    assert not (model._forward_pre_hooks or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def test_an_optimizer_that_was_made_before_the_gates_is_named() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(SparseVDWarning, match="make the optimizer of .* after the pruner"):
        pruner(model).attach_(optimizer)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Budget, {"fraction": 1.0}, "fraction: Input should be less than 1"),
        (Budget, {"fractoin": 0.5}, "did you mean fraction?"),
        (SparseVDSettings, {"n_train": 0}, "n_train: Input should be greater than 0"),
        (SparseVDSettings, {"posterior": {"granularty": "gate"}}, "did you mean posterior.granularity?"),
    ],
)
def test_settings_that_cannot_be_are_errors_of_ours(
    kind: Callable[..., object], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        kind(**values)

"""What a report says of layers, channels and photos: against counts made by hand."""

import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.data import load_data
from nni_sparsevd.measure import count_macs, measure_layers
from nni_sparsevd.nn import find_gates
from nni_sparsevd.recipe import DataSettings
from nni_sparsevd.training import classify, find_mistakes
from nni_sparsevd.training.sensitivity import measure_sensitivities


class _Twice(nn.Module):
    """A layer that runs twice, one that never runs, and a parameter of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.idle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale * self.inner(self.inner(x)))


def test_a_layer_costs_what_all_its_runs_cost() -> None:
    model, example = _Twice(), torch.randn(1, 4)
    both = measure_layers({"model": model, "head": nn.Sequential(nn.Linear(4, 3))}, example, rounds=2)
    costs = both["model"]
    assert {name: cost.macs for name, cost in costs.items()} == {"inner.0": 2 * 16, "head": 12}
    assert sum(cost.macs for cost in costs.values()) == count_macs(model, example)
    assert all(cost.latency_ms > 0 for cost in costs.values())
    assert set(both["head"]) == {"0"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_the_expected_rise_of_the_loss_is_what_removing_the_channel_costs() -> None:
    """A linear model of independent channels: the second order is all there is."""
    torch.manual_seed(0)
    n_train, factors = 400, torch.tensor([3.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    x = torch.linalg.qr(torch.randn(n_train, 4, dtype=torch.float64)).Q * n_train**0.5  # uncorrelated channels
    y = x @ factors
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
    nn.init.eye_(model[0].weight)
    nn.init.ones_(model[1].weight)
    svd.sparsify_(model, granularity="gate", example_inputs=x[:1])
    (gate,) = find_gates(model)
    with torch.no_grad():
        gate.mu.copy_(factors)
        gate.log_sigma2.fill_(-torch.tensor(float(n_train)).log())  # 1 / (N * curvature), which is 1 here
    (account,) = measure_sensitivities(model, n_train, at_rest=True)
    assert account.writers == ("0",)
    assert account.channels == 4

    def loss_without(channel: int | None) -> float:
        kept = torch.tensor([float(index != channel) for index in range(4)], dtype=torch.float64)
        return float((x @ (factors * kept) - y).square().mean() / 2)

    rises = [loss_without(channel) - loss_without(None) for channel in range(4)]
    torch.testing.assert_close(account.loss_rise, min(rises), rtol=1e-6, atol=0)
    lowest, median, highest = account.log_alpha
    log_alpha = gate.log_alpha().sort().values
    assert (lowest, median, highest) == (log_alpha[0].item(), log_alpha[1].item(), log_alpha[3].item())


def test_a_channel_of_weights_is_worth_what_its_weights_are() -> None:
    model = svd.sparsify_(nn.Sequential(nn.Linear(2, 3, bias=False)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.001, 0.0]]))
        model[0].log_sigma2.copy_(torch.tensor([[0.0, 0.0], [0.0, -1.0], [0.0, 0.0]]))
    (account,) = measure_sensitivities(model, 10, at_rest=True)
    assert account.channels == 2  # the third output is noise
    torch.testing.assert_close(account.loss_rise, (1 + torch.e) / 20)
    (account,) = measure_sensitivities(model, 10, at_rest=False)
    assert account.loss_rise is None


def test_a_network_that_keeps_nothing_has_no_channel_to_lose() -> None:
    model = svd.sparsify_(nn.Sequential(nn.Linear(2, 3, bias=False)))
    model[0].log_sigma2.data.fill_(20.0)
    assert measure_sensitivities(model, 10, at_rest=True) == []


def test_mistakes_are_counted_and_the_surest_shown_first() -> None:
    data = load_data(DataSettings(limit=50))
    torch.manual_seed(0)
    dense, small = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    dense_answers, small_answers, sure = [], [], []
    for images, _ in data.batches(data.test, 1):  # one by one, by hand
        dense_answers.append(int(dense(images).argmax()))
        small_answers.append(int(small(images).argmax()))
        sure.append(float(small(images).softmax(1).max()))
    labels = data.test.labels.tolist()
    lost = [k for k in range(len(labels)) if dense_answers[k] == labels[k] != small_answers[k]]
    gained = [k for k in range(len(labels)) if small_answers[k] == labels[k] != dense_answers[k]]
    expected = sorted(lost, key=lambda k: -sure[k])[:12]
    by_dense, by_small = (classify(network, data, data.test) for network in (dense, small))
    mistakes = find_mistakes(by_dense, by_small, data)
    assert len(expected) == 12
    assert (mistakes.lost, mistakes.gained) == (len(lost), len(gained))
    assert torch.equal(mistakes.images, data.test.read(expected))
    assert mistakes.labels.tolist() == [labels[k] for k in expected]
    assert mistakes.answers.tolist() == [small_answers[k] for k in expected]
    assert by_small.classes.tolist() == small_answers
    nothing = find_mistakes(by_dense, by_dense, data)
    assert (nothing.lost, nothing.gained, len(nothing.images)) == (0, 0, 0)

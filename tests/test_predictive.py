"""Networks drawn from the posterior, and what their predictions say."""

import math

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import models
from nni_sparsevd.errors import ModelError


def network(log_sigma2: float, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return svd.sparsify_(model, init_log_sigma2=log_sigma2, **settings)


def test_a_drawn_network_is_ordinary_and_its_weights_have_the_posteriors_moments() -> None:
    model = network(2 * math.log(0.3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = [svd.sample_network(model) for _ in range(4000)]
    assert {type(module) for module in drawn[0]} == {nn.Linear, nn.ReLU}
    weights = torch.stack([each[0].weight for each in drawn])
    torch.testing.assert_close(weights.mean(0), before["0.weight"], atol=4 * 0.3 / 4000**0.5, rtol=0)
    torch.testing.assert_close(weights.std(0), torch.full((8, 6), 0.3), atol=0.02, rtol=0)
    assert torch.equal(drawn[0][0].bias, before["0.bias"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_padding_row_is_not_drawn() -> None:
    torch.manual_seed(0)
    model = svd.sparsify_(nn.Sequential(nn.Embedding(5, 4, padding_idx=1)), init_log_sigma2=0.0)
    drawn, before = svd.sample_network(model)[0].weight, model[0].weight
    assert torch.equal(drawn[1], before[1]) and (drawn[[0, 2, 3, 4]] != before[[0, 2, 3, 4]]).all()


def test_masks_silence_mean_and_noise() -> None:
    model = network(-4.0)
    masks = {"0": {"weight": (torch.arange(48).view(8, 6) % 3 == 0).float()}}
    drawn = svd.sample_network(model, masks)
    assert torch.equal(drawn[0].weight != 0, masks["0"]["weight"].bool())


def test_gates_are_drawn_and_folded() -> None:
    images = torch.randn(2, 1, 28, 28)
    torch.manual_seed(0)
    plain = models.build_model("lenet5_caffe", {})
    before = plain.conv1.weight.detach().clone()
    model = svd.sparsify_(plain, granularity="gate", init_log_sigma2=-4.0, example_inputs=images)
    drawn = svd.sample_network(model)
    ratio = (drawn.conv1.weight / before).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4, rtol=1e-3)  # one factor a channel
    assert 0.03 < ratio[:, 0].std() < 0.3  # sigma = 0.135
    assert model.conv1.weight is plain.conv1.weight


def test_without_noise_the_prediction_is_the_networks_own() -> None:
    model, inputs = network(-60.0), torch.randn(50, 6)
    said = svd.predict(model, inputs, samples=3)
    expected = svd.bake_(network(-60.0), {})(inputs).double().softmax(-1)
    torch.testing.assert_close(said.probabilities, expected, atol=1e-6, rtol=0)
    assert said.disagreement.max() < 1e-9


def test_entropy_is_what_the_networks_are_unsure_of_and_what_they_disagree_on() -> None:
    inputs = torch.randn(40, 6)
    said = svd.predict(network(0.0), inputs, samples=200)
    torch.testing.assert_close(said.probabilities.sum(-1), torch.ones(40, dtype=torch.float64))
    by_hand = -(said.probabilities * said.probabilities.log()).sum(-1)
    torch.testing.assert_close(said.entropy, by_hand)
    assert (said.disagreement > 0.05).all() and (said.disagreement < said.entropy).all()
    assert (said.entropy <= math.log(3)).all()
    # the noise grows with the input, the mean does, too: the networks disagree more than near 0
    near = svd.predict(network(0.0), 0.01 * inputs, samples=200)
    assert near.disagreement.mean() < said.disagreement.mean()


def test_refusals() -> None:
    with pytest.raises(ModelError, match="no posterior to draw from"):
        svd.sample_network(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="at least one"):
        svd.predict(network(0.0), torch.randn(1, 6), samples=0)


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mul_(2))


def test_a_network_that_writes_into_its_inputs_sees_the_same_each_time() -> None:
    x = torch.ones(1, 4)
    svd.predict(svd.sparsify_(Doubling()), x, samples=3)
    assert torch.equal(x, torch.ones(1, 4))

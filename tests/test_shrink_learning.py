"""`shrink_`: a network that is still learning loses what is dead, and nothing else changes."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from shrinking import outputs, prepared
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.nn import ChannelGate, Variational, gate_sites, named_posteriors
from nni_sparsevd.shrinking import shrink_

Make = Callable[[], tuple[nn.Module, Tensor]]


def timms(name: str, size: int, **arguments: object) -> Make:
    def make() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return prepared(timm.create_model(name, num_classes=4, **arguments)), torch.randn(
            2, 3, size, size, dtype=torch.float64
        )

    return make


def carrying() -> tuple[nn.Module, Tensor]:
    """A layer that reads constants and has no bias to take them up: one channel carries for the others."""
    body = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 5, bias=False), nn.Tanh(), nn.Linear(5, 3))
    return prepared(body), torch.randn(2, 6, dtype=torch.float64)


NETWORKS = {
    "resnet18": timms("resnet18", 32, channels=[8, 8, 16, 16]),
    "densenet121": timms("densenet121", 32, growth_rate=4, block_config=(2, 2)),
    "mobilenetv2_050": timms("mobilenetv2_050", 32),
    "vit": timms("vit_tiny_patch16_224", 32, img_size=32, embed_dim=24, depth=2, num_heads=3),
    "carrying": carrying,
}


def remove_half_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Let posteriors remove about half of the channels, in rows and columns of weights and in gates."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in named_posteriors(model):
            if isinstance(module, ChannelGate):
                module.mu.copy_(torch.rand(module.mu.shape, generator=draw) + 0.5)
                module.log_sigma2[torch.rand(module.mu.shape, generator=draw) < 0.5] = 5.0
            elif isinstance(module, Variational):
                for dim in range(min(module.weight.dim(), 2)):
                    dead = torch.rand(module.weight.shape[dim], generator=draw) < 0.4
                    if module.log_sigma2.shape == module.weight.shape:
                        module.log_sigma2.movedim(dim, 0)[dead] = 12.0
                    else:
                        module.weight.movedim(dim, 0)[dead] *= 1e-9
    return model


@pytest.mark.parametrize(
    ("granularity", "variance"), [("gate", "weight"), ("weight", "weight"), ("both", "weight"), ("both", "channel")]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_and_channels_go(name: str, granularity: str, variance: str) -> None:
    model, x = NETWORKS[name]()
    remove_half_(svd.sparsify_(model, example_inputs=x, granularity=granularity, variance=variance))
    before, size = outputs(model, x), sum(p.numel() for p in model.parameters())
    classes = [(key, type(module)) for key, module in model.named_modules()]
    plan = shrink_(model, x)
    assert (outputs(model, x) - before).abs().max() < 1e-10 * before.abs().max()
    assert plan.removed > 0 and sum(p.numel() for p in model.parameters()) < size
    assert [(key, type(module)) for key, module in model.named_modules()] == classes, "still variational"
    for _, layer in named_posteriors(model):
        whole = (layer.mu if isinstance(layer, ChannelGate) else layer.weight).shape
        one_a_row = (*whole[:1], *[1] * (len(whole) - 1))
        assert layer.log_sigma2.shape == (whole if variance == "weight" else one_a_row)
    small, _ = svd.shrink(model, x)  # the way out is the usual one
    assert (outputs(small, x) - before).abs().max() < 1e-10 * before.abs().max()
    model.train()
    (model(x).square().mean() + svd.kl(model) / 100).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, 1e-3, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1e-2, momentum=0.9),
}


@pytest.mark.parametrize("chosen", ["adam", "sgd"])
def test_a_step_afterwards_is_the_step_that_would_have_been(chosen: str) -> None:
    """Channels whose gate is 0 without noise do not touch the others, so removing them may not either."""
    model, x = NETWORKS["resnet18"]()
    svd.sparsify_(model, example_inputs=x, granularity="gate", init_log_sigma2=-60.0)
    optimizer = OPTIMIZERS[chosen](model.parameters())
    step(model, optimizer, x)
    with torch.no_grad():
        for _, _, gate in gate_sites(model):
            gate.mu[::2] = 0.0
            gate.log_sigma2.fill_(-60.0)
    left = copy.deepcopy((model, optimizer))
    # copied together, so that the copied optimizer holds the copied parameters
    assert {id(p) for p in left[0].parameters()} == {id(p) for g in left[1].param_groups for p in g["params"]}
    plan = shrink_(model, x, optimizer)
    assert plan.removed > 0
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()} and len(held) == len(set(map(id, held)))
    assert set(optimizer.state) == set(held)
    step(model, optimizer, x)
    step(*left, x)
    small, large = dict(model.named_parameters()), dict(left[0].named_parameters())
    for name in (key for key in small if not key.endswith("log_sigma2")):
        rows = torch.ones(large[name].shape, dtype=torch.bool)
        for dim in range(large[name].dim()):
            removed = plan.cuts.get((name, dim), range(0, large[name].shape[dim], 2) if name.endswith("mu") else ())
            rows.movedim(dim, 0)[list(removed)] = False
        torch.testing.assert_close(small[name].flatten(), large[name][rows], rtol=1e-9, atol=1e-12)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    torch.manual_seed(1)
    model.train()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_a_born_bias_learns() -> None:
    """Constants of removed channels go into a bias; where there was none, the optimizer gets the new one."""
    body = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    model, x = prepared(body), torch.randn(2, 6, dtype=torch.float64)
    svd.sparsify_(model)
    remove_half_(model)
    optimizer = torch.optim.Adam([{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": 1e-4}])
    before = outputs(model, x)
    shrink_(model, x, optimizer)
    assert model[2].bias is not None and (outputs(model, x) - before).abs().max() < 1e-12
    assert any(model[2].bias is p for p in optimizer.param_groups[1]["params"])
    step(model, optimizer, x)


def test_attention_keeps_its_scale() -> None:
    """Queries and keys that lose dimensions are multiplied by what the attention then divides too much."""
    model, x = NETWORKS["vit"]()
    svd.sparsify_(model)
    with torch.no_grad():
        for name, layer in named_posteriors(model):
            if name.endswith("qkv"):  # three heads of eight dimensions
                layer.log_sigma2.view(3, 3, 8, -1)[:, :, :3] = 12.0
                layer.bias.view(3, 3, 8)[:, :, :3] = 0.0
    before = outputs(model, x)
    alpha = model.get_submodule("blocks.0.attn.qkv").log_alpha().view(3, 3, 8, -1)[0, 0, 3].clone()
    assert len(shrink_(model, x).scales) == 2
    assert (outputs(model, x) - before).abs().max() < 1e-10 * before.abs().max()
    torch.testing.assert_close(model.get_submodule("blocks.0.attn.qkv").log_alpha()[0], alpha)


def test_an_ordinary_network_loses_its_zeros() -> None:
    model, x = carrying()
    with torch.no_grad():
        model[2].weight[:, :3] = 0
    before = outputs(model, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert shrink_(model, x, optimizer).removed == 3
    assert (outputs(model, x) - before).abs().max() < 1e-14


def test_nothing_dead_changes_nothing() -> None:
    model, x = NETWORKS["resnet18"]()
    svd.sparsify_(model, example_inputs=x, granularity="gate")
    held = list(model.parameters())
    assert shrink_(model, x, torch.optim.Adam(model.parameters())).removed == 0
    assert all(now is before for now, before in zip(model.parameters(), held, strict=True))


def test_a_threshold_of_its_own_spares_what_may_come_back() -> None:
    """Above it a channel is removed; between the gates' own threshold and it a channel is kept, until asked for."""
    model, x = NETWORKS["resnet18"]()
    svd.sparsify_(model, example_inputs=x, granularity="gate")
    gates = [module for _, module in named_posteriors(model) if isinstance(module, ChannelGate)]
    with torch.no_grad():
        for gate in gates:
            gate.log_sigma2[0], gate.log_sigma2[1] = 4.0, 7.0
    before = outputs(model, x)
    plan = shrink_(model, x, threshold=6.0)
    assert plan.removed == len(gates) and all((gate.log_sigma2 < 6).all() for gate in gates)
    assert all(gate.threshold == 3.0 and int((~gate.mask()).sum()) == 1 for gate in gates)
    assert (outputs(model, x) - before).abs().max() < 1e-12 * before.abs().max()
    assert shrink_(model, x).removed == len(gates)


def test_memory_that_cannot_be_cut_begins_anew() -> None:
    """Adafactor keeps one number for each row and column of a large weight."""
    body = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 4))
    model, x = prepared(body), torch.randn(2, 40, dtype=torch.float64)
    svd.sparsify_(model, example_inputs=x, granularity="gate")
    optimizer = create_optimizer_v2(model, opt="adafactor", lr=1e-3)
    step(model, optimizer, x)
    assert "exp_avg_sq_row" in optimizer.state[model[0].weight]
    with torch.no_grad():
        model[2].gate.log_sigma2[:3] = 8.0
    assert shrink_(model, x, optimizer).removed == 3
    assert model[0].weight in optimizer.state and model[2].weight not in optimizer.state
    assert optimizer.state[model[2].bias]["exp_avg_sq"].shape == (37,)
    step(model, optimizer, x)
    assert optimizer.state[model[2].weight]["exp_avg_sq_col"].shape == (48,)

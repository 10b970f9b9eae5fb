"""The coding "posterior": steps from sigma, and multiples of them near their entropy."""

import contextlib
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import FileFormatError, ModelError, SettingError
from nni_sparsevd.nn import find_gates, named_posteriors
from nni_sparsevd.storage.packing import pack, unpack
from nni_sparsevd.storage.packing.multiples import decode_multiples, encode_multiples, round_to_multiples
from nni_sparsevd.storage.precision import choose_steps


@pytest.mark.parametrize("spread", [0.3, 3.0, 1000.0])
@pytest.mark.parametrize("number", [0, 1, 2000])
def test_multiples_come_back(number: int, spread: float) -> None:
    drawn = np.random.default_rng(0).laplace(scale=spread, size=number)
    multiples = np.rint(drawn).astype(np.int64)
    multiples[multiples == 0] = 1
    found = decode_multiples(encode_multiples(multiples, np.float32(0.37)), number)
    np.testing.assert_array_equal(found, multiples.astype(np.float32) * np.float32(0.37))


def test_multiples_take_little_more_than_their_entropy() -> None:
    multiples = np.rint(np.random.default_rng(0).laplace(scale=2.0, size=20_000)).astype(np.int64)
    multiples = multiples[multiples != 0]
    shares = np.unique(multiples, return_counts=True)[1] / len(multiples)
    entropy = -(shares * np.log2(shares)).sum()
    assert 8 * len(encode_multiples(multiples, np.float32(1.0))) < 1.03 * entropy * len(multiples) + 500


def test_rounding_is_to_the_nearest_multiple_that_fits() -> None:
    values = torch.randn(500).numpy()
    multiples, step = round_to_multiples(values, 0.01)
    assert step == pytest.approx(0.01) and np.abs(multiples * step - values).max() <= 0.5001 * step
    multiples, step = round_to_multiples(np.array([1e30, 1.0], np.float32), 1e-30)
    assert np.abs(multiples).max() < 2**24 and multiples[0] * step == pytest.approx(1e30, rel=1e-6)


@pytest.mark.parametrize("position", range(0, 40, 3))
def test_damage_is_an_error_or_other_numbers(position: int) -> None:
    content = bytearray(encode_multiples(np.arange(1, 40), np.float32(0.1)))
    content[position % len(content)] ^= 0xFF
    for damaged in (bytes(content), bytes(content[:position]), b""):
        with contextlib.suppress(FileFormatError):
            assert decode_multiples(damaged, 39).shape == (39,)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(30, 40)
        self.second = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def trained(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = svd.sparsify_(Net(), example_inputs=torch.zeros(1, 30), **settings)
    with torch.no_grad():
        for name, layer in named_posteriors(model):
            if name in ("first", "second"):
                layer.log_sigma2.copy_(-9.0 + torch.randn(layer.weight.shape))
                layer.log_sigma2[:, ::2] = 9.0
    return model


def test_a_step_is_a_deviation_and_costs_a_nat_for_24_weights() -> None:
    model = trained()
    baked = svd.bake_(copy.deepcopy(model), svd.compute_masks(model))
    steps = choose_steps(baked, model)
    assert steps.keys() == {"first.weight", "second.weight"}
    for name, step in steps.items():
        kept = baked.get_parameter(name) != 0
        layer = model.get_submodule(name.removesuffix(".weight"))
        precisions = (-layer.log_sigma2.detach().double()).exp()[kept]
        assert step**2 / 24 * precisions.sum().item() == pytest.approx(len(precisions) / 24, rel=1e-6)


def test_a_shrunk_network_has_the_steps_of_the_masked_one() -> None:
    model = trained()
    with torch.no_grad():
        model.first.log_sigma2[::4] = 9.0
    baked = svd.bake_(copy.deepcopy(model), svd.compute_masks(model))
    small, _ = svd.shrink(baked, torch.zeros(2, 30))
    assert small.first.weight.shape != baked.first.weight.shape
    assert choose_steps(small, model) == pytest.approx(choose_steps(baked, model))


def test_gates_scale_the_deviations_with_the_weights() -> None:
    """A gate behind a layer is baked into its rows."""
    model = trained(granularity="both")
    before = choose_steps(svd.bake_(copy.deepcopy(model), svd.compute_masks(model)), model)
    for gate in find_gates(model):
        gate.mu.data.fill_(3.0)
    after = choose_steps(svd.bake_(copy.deepcopy(model), svd.compute_masks(model)), model)
    assert after["first.weight"] == pytest.approx(3 * before["first.weight"], rel=1e-6)
    assert after["second.weight"] == pytest.approx(before["second.weight"], rel=1e-6)


def test_a_file_gives_back_what_was_measured_and_is_smaller_where_sigma_is_larger(tmp_path: Path) -> None:
    model, seen, sizes = trained(), [], []
    x = torch.randn(8, 30)
    for widening in (0.0, 4.0):
        with torch.no_grad():
            for _, layer in named_posteriors(model):
                layer.log_sigma2.add_(widening)
        baked = svd.bake_(copy.deepcopy(model), svd.compute_masks(model)).eval()
        path = tmp_path / f"{widening}.safetensors"

        def measure(network: nn.Module) -> dict[str, float]:
            seen.append(network(x))
            return {}

        svd.save(baked, path, coding="posterior", posterior=model, measure=measure)
        again = svd.load(path, model=Net())
        assert torch.equal(again(x), seen[-1]) and not torch.equal(again(x), baked(x))
        sizes.append(path.stat().st_size)
        steps = choose_steps(baked, model)
        for name, step in steps.items():
            error = (again.get_parameter(name) - baked.get_parameter(name)).abs().max()
            assert error <= 0.501 * step, name
    assert sizes[1] < 0.8 * sizes[0]
    # what has no step of its own is in half precision
    assert torch.equal(again.first.bias, baked.first.bias.half().float())


def test_a_folder_holds_the_same_network_as_a_file(tmp_path: Path) -> None:
    model = trained()
    baked = svd.bake_(copy.deepcopy(model), svd.compute_masks(model)).eval()
    svd.save(baked, tmp_path / "file.safetensors", coding="posterior", posterior=model)
    svd.save_folder(baked, tmp_path / "folder", coding="posterior", posterior=model)
    x = torch.randn(8, 30)
    from_file, from_folder = (svd.load(tmp_path / name, model=Net())(x) for name in ("file.safetensors", "folder"))
    assert torch.equal(from_folder, from_file) and not torch.equal(from_file, baked(x))
    with pytest.raises(SettingError, match="pass posterior="):
        svd.save_folder(baked, tmp_path / "other", coding="posterior")
    assert not (tmp_path / "other").exists()


def test_weights_without_a_step_are_in_half_precision() -> None:
    tensors = {"a": torch.randn(5, 4), "b": torch.randn(5, 4), "c": torch.full((2, 2), float("nan"))}
    found = dict(unpack(memoryview(pack(tensors, "posterior", {}, {"a": 0.5, "c": 0.5})))[1])
    torch.testing.assert_close(found["a"], 0.5 * (tensors["a"] / 0.5).round())
    assert torch.equal(found["b"], tensors["b"].half().float())
    assert found["c"].isnan().all()


def test_refusals(tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "a.safetensors"
    baked = svd.bake_(copy.deepcopy(model), svd.compute_masks(model))
    with pytest.raises(SettingError, match="Net is baked and has none: pass posterior="):
        svd.save(baked, path, coding="posterior")
    with pytest.raises(SettingError, match="counts only with coding='posterior', found coding='int8'"):
        svd.save(baked, path, coding="int8", posterior=model)
    with pytest.raises(ModelError, match="Net has no posterior either"):
        svd.save(baked, path, coding="posterior", posterior=baked)
    with pytest.raises(ModelError, match="has gates alone"):
        svd.save(baked, path, coding="posterior", posterior=trained(granularity="gate"))
    larger = copy.deepcopy(baked)
    larger.second = nn.Linear(50, 5)
    with pytest.raises(ModelError, match=r"second\.weight has the shape \(5, 40\) in the posterior and \(5, 50\)"):
        svd.save(larger, path, coding="posterior", posterior=model)
    assert not path.exists()


class Tied(nn.Module):
    """An embedding, which learns no posterior, under the weight of a layer that does."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x))


def test_a_shared_weight_has_one_step_and_stays_shared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    posterior = svd.sparsify_(Tied(), init_log_sigma2=-8.0)
    baked = svd.bake_(copy.deepcopy(posterior), {})
    assert baked.head.weight is baked.words.weight
    svd.save(baked, tmp_path / "net.safetensors", coding="posterior", posterior=posterior)
    loaded = svd.load(tmp_path / "net.safetensors", Tied())
    assert loaded.head.weight is loaded.words.weight

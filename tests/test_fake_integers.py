"""Fake integers round as the runtimes do, and a network that learns with them loses less as integers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integers import run_integers
from sklearn.datasets import load_digits
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError
from nni_sparsevd.export import FORMATS, Quantization, export
from nni_sparsevd.testing import randomize_
from nni_sparsevd.training.fake_integers import RANGES, FakeIntegers, count_places

ONNX = pytest.mark.skipif(bool(FORMATS[".onnx"].missing), reason="ONNX is not installed")
EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
INPUTS = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """A sum of what is rounded already and of what is not, in place or not, between convolutions with norms."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        block = [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)]
        self.block, self.head = nn.Sequential(*block, nn.BatchNorm2d(8)), nn.Linear(8 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.in_place:
            left = self.block(x)
            left.add_(x)
            return self.head(F.relu(left).flatten(1))
        return self.head(F.relu(x + self.block(x)).flatten(1))


@ONNX
@pytest.mark.parametrize("in_place", [False, True])
def test_with_the_ranges_of_onnx_runtime_a_network_computes_what_its_file_does(in_place: bool, tmp_path: Path) -> None:
    """To one step of the output, where rounding itself moves it by several.  Norms are folded in the file alone."""
    onnx = pytest.importorskip("onnx")
    network = randomize_(Residual(in_place)).eval()
    export(network, tmp_path / "net.onnx", EXAMPLE, quantization=Quantization(INPUTS))
    graph = onnx.load(tmp_path / "net.onnx").graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # What is flattened has the step that it had before.
    rounded = dict.fromkeys(tuple(node.input[1:]) for node in graph.node if node.op_type == "QuantizeLinear")
    steps = [(float(values[scale]), int(values[zero])) for scale, zero in rounded]
    ranges = torch.tensor([[-zero * step, (255 - zero) * step] for step, zero in steps])
    with torch.no_grad():
        floats, file = network(INPUTS), run_integers(tmp_path / "net.onnx", INPUTS)
        integers = FakeIntegers(network, EXAMPLE, batches=1)
        # The file rounds the stem's output once; here the depthwise layer and the sum both take it.
        image, stem, middle, end, total, output = ranges
        addends = [end, stem] if in_place else [stem, end]
        network.get_buffer(RANGES).copy_(torch.stack([image, stem, middle, *addends, total, output]))
        fake = network(INPUTS)
        torch.testing.assert_close(copy.deepcopy(network)(INPUTS), fake, rtol=0, atol=0)
        integers.remove_()
        torch.testing.assert_close(network(INPUTS), floats, rtol=0, atol=0)
    step = steps[-1][0]
    assert float((fake - file).abs().max()) <= 1.01 * step
    assert float((fake - file).abs().mean()) < 0.2 * float((floats - file).abs().mean())


def test_ranges_are_the_mean_of_the_first_batches_and_come_to_rest() -> None:
    network = nn.Sequential(nn.Linear(4, 3))
    integers = FakeIntegers(network, torch.zeros(2, 4), batches=5)
    batches = torch.randn(5, 16, 4, generator=torch.Generator().manual_seed(0))
    for count, batch in enumerate(batches, 1):
        network(batch)
        # Four fifths of the batches count.
        counted = batches[: min(count, 4)].flatten(1)
        expected = torch.stack([counted.amin(1).mean(), counted.amax(1).mean()])
        torch.testing.assert_close(network.get_buffer(RANGES)[0], expected)
    before = network.get_buffer(RANGES).clone()
    network.eval()(100 * batches[0])
    assert torch.equal(network.get_buffer(RANGES), before)
    integers.remove_()
    assert list(network.state_dict()) == ["0.weight", "0.bias"]


def test_precision_is_that_of_float32() -> None:
    network = randomize_(Residual()).eval()
    FakeIntegers(network, EXAMPLE, batches=1)
    network.get_buffer(RANGES).copy_(torch.tensor([-3.0, 3.0]))
    expected = network(INPUTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(INPUTS), expected)


def test_the_gradient_passes_the_rounding_and_stops_outside_of_the_range() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False)).eval()
    FakeIntegers(network, torch.zeros(2, 1), batches=1)
    network.get_buffer(RANGES).copy_(torch.tensor([[-1.0, 1.0], [-100.0, 100.0]]))
    inputs = torch.tensor([[0.3], [3.0]], requires_grad=True)
    network(inputs).sum().backward()
    assert inputs.grad is not None and float(inputs.grad[1]) == 0
    torch.testing.assert_close(inputs.grad[0], network[0].weight.detach()[0])


class Otherwise(nn.Module):
    """Has a second head, in training or for some images."""

    def __init__(self, in_training: bool) -> None:
        super().__init__()
        self.in_training, self.head, self.other = in_training, nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        second = self.training if self.in_training else bool(x[0, 0] > 0)
        return self.head(x) + 2 * self.other(x) if second else self.head(x)


def test_a_network_that_computes_otherwise_is_refused() -> None:
    with pytest.raises(ModelError, match=r"quantize.aware: Otherwise rounds 4 values in training and 1 in evaluation"):
        count_places(Otherwise(in_training=True), torch.zeros(2, 4))
    for example, batch in ((torch.zeros(2, 4), torch.ones(2, 4)), (torch.ones(2, 4), torch.zeros(2, 4))):
        network = Otherwise(in_training=False)
        FakeIntegers(network, example, batches=1)
        with pytest.raises(ModelError, match=r"does not compute the same for every batch"):
            network(batch)


# What it is for.


def read_digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16, torch.tensor(labels)[order]


IMAGES, LABELS = read_digits()
TRAIN = 1200


def train_(network: nn.Module, steps: int, rate: float, teacher: nn.Module | None = None) -> None:
    """Learn from the labels, or from the answers of a teacher."""
    optimizer = torch.optim.Adam(network.parameters(), rate)
    generator = torch.Generator().manual_seed(1)
    network.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        chosen = torch.randint(TRAIN, (32,), generator=generator)
        logits = network(IMAGES[chosen])
        loss = F.cross_entropy(logits, LABELS[chosen])
        if teacher is not None:
            with torch.no_grad():
                answers = F.log_softmax(teacher(IMAGES[chosen]), 1)
            loss = F.kl_div(F.log_softmax(logits, 1), answers, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def count_right(run: Any) -> float:
    with torch.no_grad():
        return float((run(IMAGES[TRAIN:]).argmax(1) == LABELS[TRAIN:]).float().mean())


def count_right_as_integers(network: nn.Module, path: Path) -> float:
    export(network, path, IMAGES[:1], quantization=Quantization(IMAGES[:200]))
    return count_right(svd.load(path))


@ONNX
def test_a_network_that_integers_spoil_learns_to_bear_them(tmp_path: Path) -> None:
    """One channel of each layer is 200 times as large as the others: a step for all is too coarse for them."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    layers += [nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * 12, 10))
    train_(network, 200, 3e-3)
    with torch.no_grad():
        for norm, reader, inputs in ((1, 3, 1), (4, 8, 16)):
            network[norm].weight[0] *= 200
            network[norm].bias[0] *= 200
            network[reader].weight[:, :inputs] /= 200
    before = count_right_as_integers(network, tmp_path / "before.onnx")
    plain, aware = copy.deepcopy(network), copy.deepcopy(network)
    train_(plain, 100, 3e-4, teacher=network)
    integers = FakeIntegers(aware, IMAGES[:2], batches=100)
    train_(aware, 100, 3e-4, teacher=network)
    integers.remove_()
    control = count_right_as_integers(plain, tmp_path / "plain.onnx")
    after = count_right_as_integers(aware, tmp_path / "aware.onnx")
    assert count_right(network) > 0.95 and before < 0.8
    assert after > before + 0.12 and after > control + 0.06, (before, control, after)

"""Files of networks with several outputs, keywords and nested inputs, and of other types of numbers."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError, SettingError
from nni_sparsevd.export import FORMATS, Comparison, OutputDifference, export, open_file, torch_export

ONNX = pytest.mark.skipif(bool(FORMATS[".onnx"].missing), reason="ONNX is not installed")
EXECUTORCH = pytest.mark.skipif(bool(FORMATS[".pte"].missing), reason="ExecuTorch is not installed")
SUFFIXES = [pytest.param(".onnx", marks=ONNX), ".pt2", pytest.param(".pte", marks=EXECUTORCH)]
IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Segmenter(nn.Module):
    """Two heads on one backbone, each as large as the image, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(convolution(3, 8, 2), convolution(8, 12, 2))
        self.out, self.aux = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        heads = {"out": self.out(features), "aux": self.aux(features)}
        for name, logits in heads.items():
            heads[name] = nn.functional.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return heads


class Detector(nn.Module):
    """A pyramid of features with a head on each level: lists of scores and of boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = convolution(3, 8, 2), convolution(8, 16, 2)
        self.lateral, self.top = nn.Conv2d(8, 6, 1), nn.Conv2d(16, 6, 1)
        self.scores, self.boxes = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        low = self.stem(x)
        high = self.top(self.deep(low))
        levels = [self.lateral(low) + nn.functional.interpolate(high, scale_factor=2.0), high]
        return [self.scores(level).sigmoid() for level in levels], [self.boxes(level).exp() for level in levels]


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class Asked(nn.Module):
    """Keywords in, a dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor, mask: Tensor | None = None, scale: float = 1.0, options: Any = None) -> Answer:
        hidden = self.hidden(self.words(words)).relu()
        pooled = hidden.mean(1) if mask is None else (hidden * mask[..., None]).mean(1)
        if options is not None:
            pooled = pooled + options["shift"]
        return Answer(self.head(pooled) * scale, (hidden,))


def shrunk(model: nn.Module, inputs: Any) -> nn.Module:
    """The network, without every other channel of each layer but the heads."""
    with torch.no_grad():
        for module in list(model.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::2] = module.bias[::2] = 0
    small, plan = svd.shrink(model.eval(), inputs)
    assert plan.removed > 3
    return small


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [Segmenter, Detector])
def test_segmenters_and_detectors_go_through_a_file(kind: type[nn.Module], suffix: str, tmp_path: Path) -> None:
    small = shrunk(kind(), IMAGE)
    found = export(small, tmp_path / f"net{suffix}", IMAGE)
    names = ["output_0.0", "output_0.1", "output_1.0", "output_1.1"] if kind is Detector else ["out", "aux"]
    assert [output.name for output in found.outputs] == names
    batches = (1, 2, 3) if FORMATS[suffix].dynamic else (1,)
    assert found.ok and found.batches == batches and max(output.max_rel for output in found.outputs) < 1e-5
    computed = open_file(tmp_path / f"net{suffix}")(svd.graph.as_arguments(torch.cat([IMAGE] * min(2, len(batches)))))
    assert [len(value) for value in computed.values()] == [min(2, len(batches))] * len(names)


@ONNX
def test_keywords_go_in_and_names_come_out(tmp_path: Path) -> None:
    inputs = {"words": torch.randint(9, (2, 5)), "mask": torch.rand(2, 5), "scale": 2.0, "options": None}
    model = Asked().eval()
    assert export(model, tmp_path / "net.onnx", inputs).batches == (1, 2, 3)
    loaded = svd.load(tmp_path / "net.onnx")
    expected = model(**inputs)
    for output in (loaded(words=inputs["words"], mask=inputs["mask"]), loaded(inputs["words"], mask=inputs["mask"])):
        assert list(output) == ["logits", "hidden.0"]
        torch.testing.assert_close(output["logits"], expected.logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(SettingError, match=r"the file takes words, mask; found 1 by position"):
        loaded(inputs["words"])


def test_a_file_of_torch_export_needs_no_class_of_the_network(tmp_path: Path) -> None:
    inputs = ((torch.randint(9, (2, 5)),), {"options": {"shift": torch.ones(2, 1)}, "scale": 0.5})
    model = Asked().eval()
    found = export(model, tmp_path / "net.pt2", inputs)
    assert found.ok and found.batches == (1, 2, 3)
    output = torch.export.load(tmp_path / "net.pt2").module()(*inputs[0], **inputs[1])
    assert list(output) == ["logits", "hidden", "loss"] and output["loss"] is None
    torch.testing.assert_close(output["logits"], model(*inputs[0], **inputs[1]).logits)


def test_a_mistake_in_one_of_several_outputs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, write = Segmenter().eval(), torch_export.write

    def write_another(network: nn.Module, *rest: Any) -> None:
        twin = copy.deepcopy(network)
        with torch.no_grad():
            twin.get_submodule("aux").weight[0] += 1  # type: ignore[union-attr, operator]
        write(twin, *rest)

    monkeypatch.setattr(torch_export, "write", write_another)
    with pytest.raises(ModelError, match=r"computes something else than Segmenter: .* in aux\)"):
        export(model, tmp_path / "net.pt2", IMAGE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_types_of_numbers(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    half = export(copy.deepcopy(model).half(), tmp_path / f"half{suffix}", IMAGE.half())
    assert half.ok and half.outputs[0].tolerance >= 4e-3
    path = tmp_path / f"double{suffix}"
    if suffix == ".pt2":
        assert export(model.double(), path, IMAGE.double()).outputs[0].tolerance == 1e-9
        return
    with pytest.raises(ModelError, match=r"ONNX wrote Sequential in torch.float64, but .*model\.float\(\)"):
        export(model.double(), path, IMAGE.double())
    assert not path.exists()


def test_whole_numbers_and_inputs_without_a_batch(tmp_path: Path) -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.layer(x)
            return y, y.argmax(-1)

    found = export(Chooses(), tmp_path / "net.pt2", torch.randn(5))
    assert found.ok and found.batches == (5,)  # the vector's own size: no other one fits the layer
    assert found.outputs[1].tolerance == 0 and found.outputs[1].max_abs == 0


def test_the_example_is_tried_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Sequential itself fails on the example, .*\(1, 4\), in 0: .*mat1"):
        export(nn.Sequential(nn.Linear(5, 3)), tmp_path / "folder" / "net.pt2", torch.zeros(1, 4))
    assert not list(tmp_path.iterdir())


def test_a_dataclass_goes_in_as_tensors_in_a_row(tmp_path: Path) -> None:
    class Opens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, answer: Answer) -> Tensor:
            return self.layer(answer.logits) + answer.hidden[0]

    inputs = (Answer(torch.randn(2, 5), (torch.randn(2, 1),)),)
    assert export(Opens(), tmp_path / "net.pt2", inputs).batches == (1, 2, 3)
    output = torch.export.load(tmp_path / "net.pt2").module()(inputs[0].logits, inputs[0].hidden[0])
    assert output[0].shape == (2, 3)


@pytest.mark.parametrize(("batches", "end"), [((1, 2), "(relative 0.25), batches of 1, 2"), ((), "(relative 0.25)")])
def test_batches_are_told_where_there_are_any(batches: tuple[int, ...], end: str) -> None:
    difference = OutputDifference("output", 0.5, 0.25, 0.3)
    assert str(Comparison("ONNX", 0.5, 0.25, batches, 10, (difference,))).endswith(end)

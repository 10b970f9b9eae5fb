"""A saved plan makes of the same masked network, elsewhere, the network that `shrink` makes; and of no other one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import Child
from safetensors.torch import load_file, save_file
from shrinking import SMALL, Net, image, prepared
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.convert import bake_
from nni_sparsevd.errors import FileFormatError, ShrinkError
from nni_sparsevd.graph import channel_graph
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.shrinking import apply_plan_
from nni_sparsevd.shrinking.plan_file import decode_plan, encode_plan
from nni_sparsevd.studies.zoo.trials import mask_channels


def folding() -> nn.Module:
    """Constants of dead channels go into biases, one of which has to be born."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Sigmoid(),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(216, 4),
    )
    prepared(model)
    with torch.no_grad():
        model[0].weight[1::3] = 0
        model[3].weight[::2] = 0
    return model


def carrying() -> nn.Module:
    """Constants that a padded convolution sees vary at the border: one channel carries the others."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 5, 3, padding=1))
    prepared(model)
    with torch.no_grad():
        model[0].weight[[1, 4, 6]] = 0
    return model


def attention() -> nn.Module:
    """A vision transformer in miniature."""
    arguments = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 4}
    return prepared(timm.create_model("vit_tiny_patch16_224", **arguments))


def masked_attention() -> nn.Module:
    """Half of the heads, of their dimensions, of the hidden neurons and of the width are dead."""
    model = attention()
    apply_masks_(model, mask_channels(model, channel_graph(model, image(32), remember_norms=True), "half", 0)[0])
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int, bool, str]] = {
    # masked network, fresh instance of it, size of its images, remember_norms, the field that the case is about
    "folds": (folding, folding, 8, False, "folds"),
    "carriers": (carrying, carrying, 8, False, "merges"),
    "sizes": (masked_attention, attention, 32, False, "sizes"),
    "scales": (masked_attention, attention, 32, False, "scales"),
    "norms": (masked_attention, attention, 32, True, "norms"),
}


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)


def assert_bit_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        assert torch.equal(bits(found[name]), bits(value)), name


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_plan_makes_the_same_network_bit_for_bit(case: str, tmp_path: Path) -> None:
    make_masked, make_fresh, size, remember_norms, field = CASES[case]
    masked = make_masked()
    small, plan = svd.shrink(masked, image(size), remember_norms=remember_norms)
    assert len(getattr(plan, field)) > 0
    plan.save(tmp_path / "plan.json")
    loaded = svd.Plan.load(tmp_path / "plan.json")
    assert loaded == plan and str(loaded) == str(plan) and loaded.removed == plan.removed > 0
    fresh = make_fresh()
    fresh.load_state_dict(masked.state_dict())
    assert apply_plan_(fresh, loaded) is fresh
    assert_bit_identical(fresh.state_dict(), small.state_dict())
    assert [(n, type(m)) for n, m in fresh.named_modules()] == [(n, type(m)) for n, m in small.named_modules()]
    assert str(fresh) == str(small)
    with torch.no_grad():
        x = torch.randn(image(size).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert torch.equal(fresh.eval()(x), small.eval()(x))


def apply_saved_plan(folder: Path) -> None:
    """What another process does with the files of the masked network and of the plan."""
    model = timm.create_model("resnet18", num_classes=4, channels=[8, 8, 16, 16])
    model.load_state_dict(load_file(folder / "masked.safetensors"))
    apply_plan_(model, svd.Plan.load(folder / "plan.json"))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "small.safetensors")


def test_a_plan_is_applied_in_another_process(tmp_path: Path) -> None:
    masked = prepared(timm.create_model("resnet18", num_classes=4, channels=[8, 8, 16, 16]), "rows").float()
    small, plan = svd.shrink(masked, image(32).float())
    assert plan.removed > 0 and plan.folds
    plan.save(tmp_path / "plan.json")
    save_file(masked.state_dict(), tmp_path / "masked.safetensors")
    assert Child(apply_saved_plan, tmp_path).wait() == (0, "")
    found = load_file(tmp_path / "small.safetensors")
    assert_bit_identical({name: found[name] for name in small.state_dict()}, small.state_dict())


def test_a_plan_of_masks_is_applied_to_the_baked_network(tmp_path: Path) -> None:
    """`shrink` bakes masks in first; whoever applies its plan elsewhere does the same."""
    model = prepared(SMALL["residual"]())
    masks = {"a": {"weight": torch.ones(9, 6, 1, 1), "bias": torch.ones(9)}}
    for mask in masks["a"].values():
        mask[1::3] = 0
    small, plan = svd.shrink(model, image(), masks)
    plan.save(tmp_path / "plan.json")
    again = apply_plan_(bake_(model, masks), svd.Plan.load(tmp_path / "plan.json"))
    assert_bit_identical(again.state_dict(), small.state_dict())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_every_number_comes_back_bit_for_bit(values: list[float]) -> None:
    """Negative zeros and the smallest numbers, too."""
    document = {"groups": [], "shapes": {}, "cuts": {}, "folds": {"bias": values}, "merges": {}, "sizes": [],
                "scales": [], "norms": {}}  # fmt: skip
    read = decode_plan(json.loads(encode_plan(document)), "a file").folds["bias"]
    assert_bit_identical({"bias": torch.tensor(read).double()}, {"bias": torch.tensor(values).double()})


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    plan = svd.make_plan(folding(), image())
    plan.folds["3.bias"][0] = float("inf")
    with pytest.raises(FileFormatError, match="a number that JSON cannot hold"):
        plan.save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


# Files that are not right.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    svd.make_plan(carrying(), image()).save(path)
    return path


def tamper(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter the content, and leave its digest as it is."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter the content, and give it the digest that belongs to it."""
    content = json.loads(path.read_text())
    change(content)
    fields = {key: value for key, value in content.items() if key not in ("format", "version", "digest")}
    path.write_text(encode_plan(fields))


def test_a_file_without_its_line_breaks_is_the_same_plan(saved: Path) -> None:
    before = svd.Plan.load(saved)
    tamper(saved, lambda content: None)
    assert svd.Plan.load(saved) == before


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another index": (lambda c: c["cuts"]["0.weight:0"].append(7), "altered since it was written"),
    "another factor": (lambda c: c["merges"]["3.weight:1"][0].update(factor=1.0), "altered since it was written"),
    "no digest, not a number": (
        lambda c: (c.update(digest=None), c["folds"].update(x=[float("nan")])),
        "altered since it was written",
    ),
    "no digest": (lambda c: c.pop("digest"), "altered since it was written"),
    "not a number": (lambda c: c["merges"]["3.weight:1"][0].update(factor=float("nan")), "altered since it was"),
    "a later version": (lambda c: c.update(version=2), "format version 2, this release reads 1"),
    "another format": (lambda c: c.update(format="x"), "its format is 'x', not 'nni_sparsevd.plan'"),
    "of an older release": (lambda c: c.pop("format"), "no plan that can be applied; an older release wrote"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_file_is_refused(saved: Path, case: str) -> None:
    change, message = TAMPERED[case]
    tamper(saved, change)
    with pytest.raises(FileFormatError, match=rf"plan\.json: {message}"):
        svd.Plan.load(saved)


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no cuts": (lambda c: c.pop("cuts"), "cuts: Field required"),
    "an unknown field": (lambda c: c.update(code="print()"), "code: Extra inputs are not permitted"),
    "a word for an index": (lambda c: c["cuts"].update({"0.weight:0": ["1"]}), r"cuts\.0\.weight:0\.0: .*integer"),
    "a negative index": (lambda c: c["cuts"].update({"0.weight:0": [-1]}), r"cuts\.0\.weight:0\.0: .*greater"),
    "no dimension": (lambda c: c["cuts"].update({"0.weight": [1]}), "'0.weight' is no axis"),
    "a group without a name": (lambda c: c["groups"][0].pop("name"), r"groups\.0\.name: Field required"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_file_is_refused_by_the_field(saved: Path, case: str) -> None:
    change, message = FORGED[case]
    forge(saved, change)
    with pytest.raises(FileFormatError, match=rf"plan\.json: {message}"):
        svd.Plan.load(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"PK\x03\x04 a pickle", b"\x80\x05."])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"plan\.json: (not a whole JSON file|no plan that can be applied)"):
        svd.Plan.load(tmp_path / "plan.json")
    with pytest.raises(FileFormatError, match=r"nowhere\.json: no such file"):
        svd.Plan.load(tmp_path / "nowhere.json")


# Networks that are not the one that the plan was made for.


def widened() -> nn.Module:
    model = carrying()
    model[3] = nn.Conv2d(8, 7, 3, padding=1).double()
    return model


def renamed() -> nn.Module:
    return Net(lambda m, x: m.last(m.first(x)), first=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 5, 3)).double()


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "another shape": (widened, r"Sequential: 3\.weight has the shape \(7, 8, 3, 3\), the plan was made for \(5, 8"),
    "other names": (renamed, r"Net: 0\.weight is missing"),
    "a layer more": (
        lambda: nn.Sequential(*carrying(), nn.Conv2d(5, 2, 1).double()),
        r"Sequential: 4\.bias is unknown to the plan",
    ),
    "already shrunk": (lambda: svd.shrink(carrying(), image())[0], r"0\.weight has the shape \(6, 3, 3, 3\), .*\(8, 3"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_network_is_refused_before_anything_changes(saved: Path, case: str) -> None:
    make, message = OTHERS[case]
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ShrinkError, match=r"the plan was not made for this .*" + message):
        apply_plan_(model, svd.Plan.load(saved))
    assert_bit_identical(model.state_dict(), before)


def test_other_heads_are_refused_though_all_shapes_agree() -> None:
    """Three heads of eight dimensions have the tensors of six heads of four."""
    plan = svd.make_plan(masked_attention(), image(32))
    assert any(change.attribute == "num_heads" for change in plan.sizes)
    model = attention()
    model.blocks[0].attn.num_heads = 6
    with pytest.raises(ShrinkError, match=r"blocks\.0\.attn\.num_heads is 6, the plan was made for 3"):
        apply_plan_(model, plan)


LYING: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a tensor of nobody": (lambda c: c["cuts"].update({"5.weight:0": [1]}), r"5\.weight is missing"),
    "past the end": (lambda c: c["cuts"].update({"0.weight:0": [8]}), r"0\.weight has .* index 8 of dimension 0"),
    "no such dimension": (lambda c: c["cuts"].update({"0.bias:1": [1]}), r"0\.bias has .* of dimension 1"),
    "merged past the end": (
        lambda c: c["merges"]["3.weight:1"][0].update(source=8),
        r"3\.weight has .*changes index 8 of dimension 1",
    ),
    "a bias of nobody": (lambda c: c["folds"].update({"2.bias": [1.0]}), r"2\.bias is missing, and there is no layer"),
    "a short bias": (lambda c: c["folds"].update({"0.bias": [1.0]}), r"0\.bias has 8 entries, the plan adds 1"),
    "a method": (
        lambda c: c["sizes"].append({"module": "", "attribute": "forward", "position": None, "before": 1, "after": 1}),
        "forward is None, the plan was made for 1",
    ),
    "a norm that is none": (
        lambda c: c["norms"].update({"1": {"channel_dim": -1, "removed": [0.5]}}),
        "1 is no layer norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LYING)
def test_a_plan_that_lies_changes_nothing(saved: Path, case: str) -> None:
    change, message = LYING[case]
    forge(saved, change)
    model = carrying()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ShrinkError, match=message):
        apply_plan_(model, svd.Plan.load(saved))
    assert_bit_identical(model.state_dict(), before)

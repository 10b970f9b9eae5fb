"""Packed files: what comes back is what went in, in few bytes, and nothing hostile gets through."""

import copy
import json
import math
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import models
from nni_sparsevd.errors import FileFormatError, SparseVDError
from nni_sparsevd.files import load_tensors, save_tensors
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.storage.packing import CODINGS, pack, unpack
from nni_sparsevd.storage.packing.positions import decode_positions, encode_positions

SMALLEST = 1 << 12


def back(tensors: dict[str, Tensor], coding: str) -> dict[str, Tensor]:
    return dict(unpack(memoryview(pack(tensors, coding, {})))[1])


def sparse(*shape: int, density: float = 0.1, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=drawn) * (torch.rand(shape, generator=drawn) < density)


def entropy(density: float) -> float:
    """Bits a position."""
    return 0.0 if density in (0.0, 1.0) else -density * math.log2(density) - (1 - density) * math.log2(1 - density)


# Laws.


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=4), st.floats(0, 1), st.integers(0, 1000))
def test_exact_is_the_identity(shape: list[int], density: float, seed: int) -> None:
    value = sparse(*shape, density=density, seed=seed)
    assert torch.equal(back({"a": value}, "exact")["a"], value)


@pytest.mark.parametrize("coding", CODINGS)
def test_what_is_no_float32_weight_is_kept_byte_for_byte(coding: str) -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int8, torch.uint8)
    tensors = {str(kind): (100 * torch.rand(3, 5)).to(kind) for kind in kinds}
    tensors |= {
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 3, dtype=torch.int64),
    }
    unpacked = back(tensors, coding)
    assert unpacked.keys() == tensors.keys()
    for name, value in tensors.items():
        assert unpacked[name].dtype == value.dtype and torch.equal(unpacked[name], value), name


LOSS = {"float16": 2**-11, "int8": 0.5 / 127 + 2**-10, "int4": 0.5 / 7 + 2**-10}
"""Of the largest value of a row, at most: half a step, and what rounding the scale adds."""


@pytest.mark.parametrize("coding", LOSS)
@pytest.mark.parametrize("shape", [(50, 40), (12, 7, 3, 3)])
def test_what_a_coding_loses_is_bounded_row_by_row(coding: str, shape: tuple[int, ...]) -> None:
    value = sparse(*shape, density=0.3) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    unpacked = back({"a": value}, coding)["a"]
    largest = value.abs().flatten(1).amax(1)
    assert ((unpacked - value).abs().flatten(1).amax(1) <= LOSS[coding] * largest).all()
    assert not unpacked[value == 0].any()


def test_the_largest_value_of_a_small_row_is_not_cut_off() -> None:
    for largest in (1e-4, 3e-5, 1.1e-5, 1e-5, 1e-6, 1e-45):
        row = largest * torch.linspace(-1, 1, 201)[None]
        unpacked = back({"a": row}, "int8")["a"]
        # Half a step, and the step may be up to the next number of half precision.
        assert (unpacked - row).abs().max() <= 0.5 * (float(row.abs().max()) / 127 + 2.0**-24) * 1.01


@pytest.mark.parametrize("coding", CODINGS)
def test_what_half_precision_cannot_hold_stays_exact(coding: str) -> None:
    odd = torch.tensor([[float("inf"), 1e38, 0.0], [float("nan"), -1e-40, 2.0]])
    tensors = {"weight": odd, "running_var": torch.tensor([1e6, 1.0])}
    unpacked = back(tensors, coding)
    for name, value in tensors.items():
        torch.testing.assert_close(unpacked[name], value, rtol=0, atol=0, equal_nan=True)


def test_a_negative_zero_becomes_zero() -> None:
    unpacked = back({"a": torch.tensor([[-0.0, 1.0]])}, "exact")["a"]
    assert not torch.signbit(unpacked).any()


# Size.


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5])
def test_positions_are_coded_near_their_entropy(density: float) -> None:
    kept = np.random.default_rng(0).random((1000, 2000)) < density
    bits = 8 * len(encode_positions(kept))
    assert bits < 1.01 * kept.size * entropy(kept.mean()) + 3000 + 160  # and a bit for each row and column, at most


def test_empty_rows_and_columns_cost_next_to_nothing() -> None:
    kept = np.zeros((1000, 2000), dtype=bool)
    kept[::10, ::20] = np.random.default_rng(0).random((100, 100)) < 0.3
    bound = 10_000 * entropy(0.3) + 1000 * entropy(0.1) + 2000 * entropy(0.05)
    assert 8 * len(encode_positions(kept)) < 1.02 * bound + 160


@pytest.mark.parametrize("density", [1 / 286, 1 / 68, 1 / 10])
def test_a_network_is_as_small_as_promised(density: float) -> None:
    """Exact within 5 % of the bound; float16 N times, and int8 1.8 N times smaller than the dense file."""
    torch.manual_seed(0)
    model = models.build_model("lenet_300_100", {})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) < density)
    tensors = model.state_dict()
    counts = [(int(value.count_nonzero()), value.numel()) for value in tensors.values()]
    kept = sum(count for count, _ in counts)
    bound = 4 * kept + sum(size * entropy(count / size) for count, size in counts) / 8
    sizes = {coding: len(pack(tensors, coding, {})) for coding in CODINGS}
    assert sizes["exact"] < 1.05 * bound
    assert sizes["float16"] < 4 * kept  # the dense file, less N times
    assert sizes["int4"] < sizes["int8"] < sizes["float16"] < sizes["exact"]
    if density > 1 / 100:
        assert sizes["int8"] < 4 * kept / 1.8


# Networks.


def masked() -> nn.Module:
    torch.manual_seed(0)
    model = models.build_model("resnet18", {"num_classes": 10}).eval()
    masks = {
        name: {"weight": (torch.rand_like(m.weight) < 0.05).float()}
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d)
    }
    apply_masks_(model, masks)
    return model


def test_a_packed_network_comes_back_in_one_call(tmp_path: Path) -> None:
    model, image = masked(), torch.randn(1, 3, 32, 32)
    svd.save(model, tmp_path / "dense.safetensors")
    for coding in ("exact", *LOSS):
        path = tmp_path / f"{coding}.safetensors"
        svd.save(model, path, coding=coding)
        again = svd.load(path)
        assert again.state_dict().keys() == model.state_dict().keys()
        if coding == "exact":
            assert torch.equal(again(image), model(image))
        assert path.stat().st_size < (tmp_path / "dense.safetensors").stat().st_size / 8


def test_a_shrunk_network_is_packed_as_well(tmp_path: Path) -> None:
    model, image = masked(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        model.layer1[0].bn1.weight[::2] = model.layer1[0].bn1.bias[::2] = 0
    small, plan = svd.shrink(model, image)
    assert plan.removed > 0
    svd.save(small, tmp_path / "small.safetensors", coding="exact")
    assert torch.equal(svd.load(tmp_path / "small.safetensors")(image), small(image))


@pytest.mark.parametrize("coding", [None, "int4"])
def test_what_is_measured_is_of_the_network_as_the_file_gives_it(tmp_path: Path, coding: str | None) -> None:
    model, image = masked(), torch.randn(1, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / "net.safetensors"
    svd.save(model, path, coding=coding, measure=lambda network: {"first_logit": float(network(image)[0, 0])})
    assert svd.describe_file(path)["measured"] == {"first_logit": float(svd.load(path)(image)[0, 0])}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_measured_is_in_evaluation_mode_and_may_be_a_tensor(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    path = tmp_path / "net.safetensors"
    svd.save(model, path, measure=lambda network: {"mean": network(torch.ones(4, 3)).mean()})
    assert svd.describe_file(path)["measured"]["mean"] == pytest.approx(float(model.eval()(torch.ones(4, 3)).mean()))
    assert int(model[1].num_batches_tracked) == 0


def test_nearly_nothing_in_a_large_network_is_refused_when_it_is_written(tmp_path: Path) -> None:
    model = nn.Linear(10_000, 1_000, bias=False)
    nn.init.zeros_(model.weight)
    with pytest.raises(FileFormatError, match="shrink it first"):
        svd.save(model, tmp_path / "net.safetensors", coding="exact")
    assert not list(tmp_path.iterdir())


# Hostile content.


CONTENT = pack({"a.weight": sparse(30, 20), "a.bias": torch.randn(30), "steps": torch.tensor(3)}, "int8", {"x": 1})


def table_of(content: bytes) -> tuple[dict[str, object], bytes]:
    (length,) = struct.unpack("<I", content[:4])
    return json.loads(zlib.decompress(content[4 : 4 + length])), content[4 + length :]


def with_table(change) -> bytes:
    header, rest = table_of(CONTENT)
    change(header)
    packed = zlib.compress(json.dumps(header).encode())
    return struct.pack("<I", len(packed)) + packed + rest


def set_row(index: int, place: int, value: object):
    def change(header):
        header["tensors"][index][place] = value

    return change


HOSTILE = {
    "nothing": b"",
    "no table": struct.pack("<I", 0),
    "a table past the end": struct.pack("<I", 2**32 - 1) + CONTENT[4:],
    "a bomb": struct.pack("<I", 4000) + zlib.compress(b"[" * 200_000_000, 9)[:4000],
    "a deep table": struct.pack("<I", len(zlib.compress(b"[" * 100_000))) + zlib.compress(b"[" * 100_000),
    "a list": struct.pack("<I", 10) + zlib.compress(b"[]"),
    "no tensors": with_table(lambda header: header.pop("tensors")),
    "a shape that is too large": with_table(set_row(0, 1, [2**39, 2**39])),
    "a negative shape": with_table(set_row(0, 1, [-30, -20])),
    "a shape of words": with_table(set_row(0, 1, ["30", 20])),
    "many dimensions": with_table(set_row(0, 1, [1] * 100)),
    "another shape": with_table(set_row(0, 1, [20, 29])),
    "an unknown coding": with_table(set_row(0, 2, "pickle")),
    "another coding": with_table(set_row(0, 2, "exact")),
    "raw instead": with_table(set_row(0, 2, "raw int8")),
    "shifted lengths": with_table(lambda header: (set_row(0, 3, 1)(header), set_row(0, 4, 1)(header))),
    "twice the same name": with_table(set_row(1, 0, "a.weight")),
    "a name that is none": with_table(set_row(0, 0, 7)),
    "something behind it": CONTENT + b"\x00",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_content_is_refused(case: str) -> None:
    with pytest.raises(FileFormatError):
        dict(unpack(memoryview(HOSTILE[case]))[1])


def test_fuzzing_ends_in_tensors_or_in_our_own_error() -> None:
    """Truncated, flipped, spliced; PACKING_FUZZ sets how often.  The limit on memory is the library's own."""
    dice = random.Random(os.environ.get("PACKING_SEED", "7"))
    refused, count = 0, int(os.environ.get("PACKING_FUZZ", "2000"))
    header, rest = table_of(CONTENT)
    for _ in range(count):
        content = bytearray(CONTENT)
        match dice.randrange(4):
            case 0:
                content = content[: dice.randrange(len(content))]
            case 1:
                for _ in range(dice.randint(1, 8)):
                    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            case 2:
                place = dice.randrange(len(content))
                content[place:place] = dice.randbytes(dice.randint(1, 40))
            case 3:  # a table that is well-formed and lies
                changed = json.loads(json.dumps(header))
                row = dice.choice(changed["tensors"])
                row[1] = [dice.choice((0, 1, 2, 3, 30, 1 << 12, 1 << 39)) for _ in range(dice.randint(0, 4))]
                row[2] = dice.choice((*CODINGS, "raw int64", "raw bool", "raw"))
                row[3], row[4] = dice.randint(0, 300), dice.randint(0, 300)
                packed = zlib.compress(json.dumps(changed).encode())
                content = bytearray(struct.pack("<I", len(packed)) + packed + rest)
        try:
            unpacked = dict(unpack(memoryview(bytes(content)))[1])
            assert sum(value.numel() for value in unpacked.values()) <= SMALLEST * len(content)
        except FileFormatError:
            refused += 1
    assert refused > count / 2


def test_a_flipped_byte_of_a_file_is_found_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    svd.save(models.build_model("lenet_300_100", {"hidden": [8, 8]}), path, coding="float16")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"net\.safetensors"):
        svd.load(path)


def test_files_that_lie_about_being_packed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    for tensors in (
        {"other": torch.zeros(3)},
        {"packed": torch.zeros(3)},
        {"packed": torch.zeros(0, dtype=torch.uint8)},
    ):
        save_tensors(tensors, path, {"nni_sparsevd.model": "packed"})
        with pytest.raises(SparseVDError, match=r"net\.safetensors"):
            svd.load(path)
    assert "packed" in load_tensors(path)[0]


def test_positions_that_are_cut_off_are_refused() -> None:
    content = encode_positions(np.random.default_rng(0).random((50, 50)) < 0.1)
    for length in (0, 5, len(content) - 1):
        with pytest.raises(FileFormatError, match="cut off"):
            decode_positions(content[:length], (50, 50))

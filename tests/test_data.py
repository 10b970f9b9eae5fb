"""Data: the same splits always, the right labels, vectorised augmentation as one would write it image by image."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST

from nni_sparsevd.data import augment, datasets, load_data, sources, splits
from nni_sparsevd.data.splits import HeldSplit, StreamedSplit
from nni_sparsevd.errors import DataError
from nni_sparsevd.preprocessing import Requirements
from nni_sparsevd.recipe import DataSettings

SHARED = Path(os.environ.get("SPARSEVD_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"no data in {SHARED}; set SPARSEVD_DATA")
VALUES = {"ant": 40, "bee": 120, "cat": 200}


def folder(root: Path, mode: str = "RGB", classes: tuple[str, ...] = ("ant", "bee", "cat"), count: int = 6) -> Path:
    """Images whose brightness tells their class."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new(mode, (12, 10), VALUES[name] if mode == "L" else (VALUES[name],) * 3).save(
                root / name / f"{number}.png"
            )
    return root


def as_tar(root: Path) -> Path:
    path = root.with_suffix(".tar")
    with tarfile.open(path, "w") as file:
        for image in sorted(root.rglob("*.png")):
            content = image.read_bytes()
            entry = tarfile.TarInfo(str(image.relative_to(root)))
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def test_digits_are_split_the_same_way_always() -> None:
    one, two = load_data(DataSettings(), seed=0), load_data(DataSettings(), seed=1)
    assert (len(one.train), len(one.holdout), len(one.test)) == (1293, 144, 360)
    assert (one.num_classes, one.in_chans, one.image_size) == (10, 1, 8)
    assert torch.equal(one.test.images, two.test.images)
    assert not torch.equal(one.holdout.images, two.holdout.images)
    again = load_data(DataSettings(), seed=0)
    assert torch.equal(one.train.images, again.train.images)
    assert torch.equal(one.holdout.labels, again.holdout.labels)
    assert one.test.labels.bincount().min() > 20


def test_held_out_images_are_training_images_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for split, first in (("train", 0), ("test", 100)):
        (tmp_path / split / "a").mkdir(parents=True)
        for value in range(first, first + 50):
            Image.new("L", (4, 4), value).save(tmp_path / split / "a" / f"{value}.png")
    made = load_data(DataSettings(name="", train=tmp_path / "train", test=tmp_path / "test", holdout=0.3), seed=3)
    train, holdout, test = (set(s.images[:, 0, 0, 0].tolist()) for s in (made.train, made.holdout, made.test))
    assert (len(train), len(holdout)) == (35, 15)
    assert train | holdout == set(range(50))
    assert test == set(range(100, 150))


def test_training_images_are_normalised_by_their_own_statistics() -> None:
    made = load_data(DataSettings())
    images = made.normalize(made.train.images)
    assert images.mean().abs() < 1e-5
    assert abs(images.std() - 1) < 1e-5
    together = torch.cat([images for images, _ in made.batches(made.test, 77)])
    assert torch.equal(together, made.normalize(made.test.images))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("packed", [False, True])
def test_folders_and_tars_keep_labels_and_channels(tmp_path: Path, mode: str, packed: bool) -> None:
    roots = [folder(tmp_path / split, mode) for split in ("train", "test")]
    train, test = (as_tar(root) for root in roots) if packed else roots
    made = load_data(DataSettings(name="", train=train, test=test, image_size=8, holdout=0.2))
    assert (made.num_classes, made.in_chans, made.image_size) == (3, 1 if mode == "L" else 3, 8)
    values = torch.tensor(list(VALUES.values()))
    for split in (made.train, made.holdout, made.test):
        assert torch.equal(split.images[:, 0, 0, 0].long(), values[split.labels])
        assert split.images.dtype == torch.uint8


def test_without_a_size_the_images_keep_theirs(tmp_path: Path) -> None:
    roots = [folder(tmp_path / split) for split in ("train", "test")]
    assert load_data(DataSettings(name="", train=roots[0], test=roots[1])).train.images.shape[1:] == (3, 10, 12)


def test_a_limit_counts_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [folder(tmp_path / "train"), folder(tmp_path / "test", count=1)]
    settings = DataSettings(name="", train=roots[0], test=roots[1], holdout=0.5)
    monkeypatch.setattr(splits, "MEMORY_LIMIT", 8 * 10 * 12 * 3)
    assert isinstance(load_data(settings).train, StreamedSplit)
    made = load_data(settings.model_copy(update={"limit": 4}))
    assert isinstance(made.train, HeldSplit)
    assert (len(made.train), len(made.holdout), len(made.test)) == (2, 2, 3)


@pytest.mark.parametrize("margin", [None, 2])
@pytest.mark.parametrize("kind", ["crop", "crop_flip"])
def test_augmentation_is_what_one_would_write_image_by_image(kind: str, margin: int | None) -> None:
    settings = DataSettings(augment=kind, margin=margin)
    images = torch.randint(1, 256, (200, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    made = augment(images, settings, torch.Generator().manual_seed(1))
    assert made.shape == images.shape
    assert made.dtype == torch.uint8
    padded = F.pad(images, [2] * 4)
    seen = set()
    for before, after in zip(padded, made, strict=True):
        crops = {(top, left): before[:, top : top + 16, left : left + 16] for top in range(5) for left in range(5)}
        choices = {(*place, False): crop for place, crop in crops.items()}
        if kind == "crop_flip":
            choices |= {(*place, True): crop.flip(2) for place, crop in crops.items()}
        fits = [choice for choice, crop in choices.items() if torch.equal(crop, after)]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > (40 if kind == "crop_flip" else 23)
    assert torch.equal(made, augment(images, settings, torch.Generator().manual_seed(1)))
    assert augment(images, DataSettings(), torch.Generator()) is images


def test_random_labels_are_random_and_always_the_same() -> None:
    true, drawn = load_data(DataSettings(), seed=3), load_data(DataSettings(random_labels=True), seed=3)
    assert torch.equal(true.train.images, drawn.train.images) and torch.equal(true.test.labels, drawn.test.labels)
    for before, after in ((true.train, drawn.train), (true.holdout, drawn.holdout)):
        assert 0.02 < (before.labels == after.labels).double().mean() < 0.2
        assert set(after.labels.tolist()) == set(range(10))
    assert torch.equal(drawn.train.labels, load_data(DataSettings(random_labels=True), seed=3).train.labels)
    assert not torch.equal(drawn.train.labels, load_data(DataSettings(random_labels=True), seed=4).train.labels)


@needs_shared
def test_mnist_is_the_published_files() -> None:
    made = load_data(DataSettings(name="torch/mnist", train=SHARED))
    images = torch.cat([made.train.images, made.holdout.images])
    assert images.shape == (60000, 1, 28, 28)
    assert abs(images.float().mean().item() - 33.318) < 0.001
    assert len(made.test) == 10000
    assert made.num_classes == 10


@needs_shared
def test_cifar_tars_are_read() -> None:
    root = SHARED / "cifar10"
    test = root / "test.tar"  # a fifth of the photos, which take long to list
    made = load_data(DataSettings(name="", train=test, test=test, limit=300))
    assert made.train.images.shape == (270, 3, 32, 32)
    assert made.test.labels.bincount().tolist() == [1000] * 10


def test_bad_data_is_named(tmp_path: Path) -> None:
    good, fewer = folder(tmp_path / "good"), folder(tmp_path / "fewer", classes=("ant", "cat"))
    (tmp_path / "empty").mkdir()
    broken = folder(tmp_path / "broken")
    content = (broken / "bee" / "3.png").read_bytes()
    (broken / "bee" / "3.png").write_bytes(content[: len(content) // 2])
    first = folder(tmp_path / "first")
    (first / "ant" / "0.png").write_bytes(content[:20])
    uneven = folder(tmp_path / "uneven")
    Image.new("RGB", (9, 9)).save(uneven / "cat" / "2.png")
    (tmp_path / "words.tar").write_text("no tar")
    cases = [
        (DataSettings(name="torch/mnist"), "data.train"),
        (DataSettings(name="torch/mnits", train=good), "torch/mnits"),
        (DataSettings(name="torch/mnist", train=good), str(good)),
        (DataSettings(name="", train=tmp_path / "nowhere", test=good), "nowhere"),
        (DataSettings(name="", train=good, test=tmp_path / "nowhere"), "data.test"),
        (DataSettings(name="", train=good), "data.test"),
        (DataSettings(name="", train=tmp_path / "empty", test=good), "empty"),
        (DataSettings(name="", train=good, test=fewer), "bee"),
        (DataSettings(name="", train=broken, test=good), "bee/3.png"),
        (DataSettings(name="", train=broken, test=good, workers=1), "bee/3.png"),
        (DataSettings(name="", train=first, test=good), "ant/0.png"),
        (DataSettings(name="", train=uneven, test=good), "data.image_size"),
        (DataSettings(name="", train=tmp_path / "words.tar", test=good), "words.tar"),
        (DataSettings(limit=1), "1 training and 360 test images are too few: 2 for training"),
    ]
    for settings, says in cases:
        try:
            load_data(settings)
            told = "nothing"
        except DataError as error:
            told = str(error)
        assert any(word in told for word in says.split("|")), (settings, told)


def test_batches_come_from_memory() -> None:
    """An index into a tensor a batch, no collating of single images."""
    made = load_data(DataSettings())
    rows = torch.from_numpy(np.arange(0, 100))
    assert made.train.images[rows].shape == (100, 1, 8, 8)
    assert made.train.images.is_contiguous()


def in_memory(kind: type[MNIST] | type[CIFAR10]) -> MNIST | CIFAR10:
    """A data set of torchvision with forty images in memory."""
    made = kind.__new__(kind)
    shape = (40, 9, 9) if kind is MNIST else (40, 9, 9, 3)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    made.data, made.targets = (torch.from_numpy(pixels) if kind is MNIST else pixels), [0, 1, 2, 3] * 10
    made.transform = made.target_transform = None
    return made


@pytest.mark.parametrize("kind", [MNIST, CIFAR10])
@pytest.mark.parametrize("in_chans", [None, 1, 3])
@pytest.mark.parametrize("size", [None, 12])
def test_pixels_in_memory_are_what_photo_by_photo_gives(
    monkeypatch: pytest.MonkeyPatch, kind: type[MNIST] | type[CIFAR10], in_chans: int | None, size: int | None
) -> None:
    """Whether they are taken as they are, have their channel repeated, lose their color or are enlarged."""
    images = in_memory(kind)
    source = sources._make_source(images, "in memory", None)
    assert source.held is not None and all(np.array_equal(source.read(row), images[row][0]) for row in range(40))
    monkeypatch.setattr(datasets, "open_sources", lambda settings: (source, source))
    settings = DataSettings(name="in_memory", train=Path(), image_size=size, holdout=0.2)
    fast = load_data(settings, requirements=Requirements(in_chans=in_chans))
    monkeypatch.setattr(source, "held", None)
    slow = load_data(settings, requirements=Requirements(in_chans=in_chans))
    assert fast.preprocessing == slow.preprocessing
    for one, other in ((fast.train, slow.train), (fast.holdout, slow.holdout), (fast.test, slow.test)):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.images.is_contiguous()


def test_digits_are_enlarged_on_request() -> None:
    small, large = load_data(DataSettings()), load_data(DataSettings(image_size=16))
    assert large.train.images.shape[1:] == (1, 16, 16)
    assert large.train.images.dtype == torch.uint8
    assert torch.equal(small.train.labels, large.train.labels)
    again = torch.nn.functional.avg_pool2d(large.test.images.float(), 2)
    assert (again - small.test.images.float()).abs().mean() < 20  # of 255: the same pictures, smoothed

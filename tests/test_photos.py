"""Photos: of every mode, wherever they lie, streamed or in memory with the same bits, augmented by seed alone."""

import io
import itertools
import random
import shutil
import sys
import tarfile
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from nni_sparsevd.data import load_data, sources, splits
from nni_sparsevd.data.augmentation import PhotoAugmentation
from nni_sparsevd.data.photos import decode_photo, make_transform
from nni_sparsevd.data.splits import HeldSplit, StreamedSplit
from nni_sparsevd.data.statistics import _count_values, _summarize_histogram
from nni_sparsevd.errors import DataError, SettingError
from nni_sparsevd.preprocessing import Preprocessing, Requirements
from nni_sparsevd.recipe import DataSettings
from nni_sparsevd.settings import make_settings

CLASSES = ("ant", "bee")


def draw_photo(number: int, width: int = 21, height: int = 17) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_folder(root: Path, count: int = 6) -> Path:
    """A root with train/ and val/, and `count` photos of each class in each."""
    for part in ("train", "val"):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                draw_photo(100 * label + number).save(root / part / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"))


def pack(root: Path) -> Path:
    with tarfile.open(root.with_suffix(".tar"), "w") as file:
        for photo in sorted(root.rglob("*.png")):
            file.add(photo, photo.relative_to(root))
    return root.with_suffix(".tar")


@pytest.mark.parametrize("validation", ["val", "validation", "test"])
def test_one_root_holds_both_parts(photos: Path, tmp_path: Path, validation: str) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "root"))
    (root / "val").rename(root / "val_").rename(root / validation)
    made = load_data(DataSettings(train=root, image_size=8))
    assert (len(made.train) + len(made.holdout), len(made.test)) == (12, 12)
    assert made.preprocessing.label_names == CLASSES


def test_a_class_may_be_called_train(photos: Path, tmp_path: Path) -> None:
    for part in ("one", "two"):
        shutil.copytree(photos / "train" / "ant", tmp_path / part / "train")
        shutil.copytree(photos / "train" / "bee", tmp_path / part / "car")
    made = load_data(DataSettings(train=tmp_path / "one", test=tmp_path / "two", image_size=8))
    assert made.preprocessing.label_names == ("car", "train")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "digits", "train": "photos"}, "data.name"),
        ({"test": "photos"}, "data.train"),
        ({"train": "photos", "aa": "rand-m9"}, "data.aa.*data.augment"),
        ({"mixup": 0.2, "batch_size": 5}, "odd"),
    ],
)
def test_contradictions_are_errors(values: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        make_settings(DataSettings, values)


def save(photo: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path, **options)  # type: ignore[arg-type]


def test_every_mode_of_photo_works_whichever_comes_first(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 21 * 17).reshape(17, 21).astype(np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    colored = draw_photo(0)
    for part in ("train", "val"):
        folder = tmp_path / part
        save(colored.convert("L"), folder / "ant" / "0_gray.jpg")
        save(colored.convert("CMYK"), folder / "ant" / "1_cmyk.jpg")
        save(colored.convert("RGBA"), folder / "ant" / "2_rgba.png")
        save(Image.fromarray(deep), folder / "bee" / "0_deep.png")
        save(colored, folder / "bee" / "1_turned.png", exif=turned)
        save(colored.convert("P"), folder / "bee" / "2_palette.png")
        save(colored.convert("LA"), folder / "bee" / "3_alpha.png")
    made = load_data(DataSettings(train=tmp_path, image_size=8))
    assert made.test.images.shape == (7, 3, 8, 8)
    # 16 bits keep their range, and the EXIF tag turns a photo.
    upright = decode_photo((tmp_path / "val" / "bee" / "1_turned.png").read_bytes())
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(colored), -1))
    shades = np.asarray(decode_photo((tmp_path / "val" / "bee" / "0_deep.png").read_bytes()))
    assert np.array_equal(shades, deep >> 8)


@pytest.mark.parametrize("tarred", [False, True])
def test_photos_of_all_formats_are_read(tmp_path: Path, tarred: bool) -> None:
    root = make_folder(tmp_path / "photos")
    for number, suffix in enumerate((".webp", ".GIF", ".bmp", ".tif", ".jfif")):
        draw_photo(number).save(root / "train" / "ant" / f"x{suffix}", "jpeg" if suffix == ".jfif" else None)
    train = root / "train"
    if tarred:
        with tarfile.open(tmp_path / "train.tar", "w") as file:
            file.add(train, ".")
        train = tmp_path / "train.tar"
    before = timm.data.get_img_extensions()
    data = load_data(DataSettings(train=train, test=root / "val", holdout=0.1), 0)
    assert len(data.train) + len(data.holdout) == 12 + 5
    assert timm.data.get_img_extensions() == before
    (root / "train" / "ant" / "phone.heic").write_bytes(b"Pillow does not know this by itself")
    with pytest.raises(DataError, match=r"1 image cannot be decoded.*\n.*phone.heic"):
        load_data(DataSettings(train=root), 0)


def test_gray_photos_stay_gray_unless_the_network_wants_color(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number in range(4):
            save(draw_photo(number).convert("L"), tmp_path / part / "ant" / f"{number}.png")
    settings = DataSettings(train=tmp_path, image_size=8)
    gray = load_data(settings)
    colored = load_data(settings, requirements=Requirements(in_chans=3))
    assert (gray.in_chans, colored.in_chans) == (1, 3)
    assert torch.equal(gray.train.images.expand(-1, 3, -1, -1), colored.train.images)


def spoil(root: Path) -> list[str]:
    """Cut one photo off, and write nonsense into another one."""
    cut, nonsense = root / "train" / "ant" / "02.png", root / "val" / "bee" / "05.png"
    cut.write_bytes(cut.read_bytes()[:200])
    nonsense.write_text("no photo")
    return [str(cut), str(nonsense)]


@pytest.mark.parametrize("limit", [splits.MEMORY_LIMIT, 0])
def test_bad_photos_are_listed_at_once_or_skipped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(splits, "MEMORY_LIMIT", limit)
    root = Path(shutil.copytree(photos, tmp_path / "root"))
    bad = spoil(root)
    settings = DataSettings(train=root, image_size=8)
    with pytest.raises(DataError, match=r"2 images cannot be decoded.*data\.skip_bad") as caught:
        load_data(settings)
    assert all(path in str(caught.value) for path in bad)
    made = load_data(settings.model_copy(update={"skip_bad": True}))
    assert (len(made.train) + len(made.holdout), len(made.test), len(made.skipped)) == (11, 11, 2)
    assert len(torch.cat([images for images, _ in made.batches(made.test, 4)])) == 11


def pick_two(step: int) -> list[tuple[int, int | None]]:
    return [(1, None), (step % 2, None)]


@pytest.mark.parametrize("packed", [False, True])
def test_streamed_equals_in_memory_batch_by_batch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "root"))
    roots = {"train": pack(root / "train"), "test": pack(root / "val")} if packed else {"train": root}
    settings = make_settings(DataSettings, {**roots, "image_size": 8, "workers": 2, "crop_pct": 0.8, "holdout": 0.3})
    held = load_data(settings, seed=3)
    monkeypatch.setattr(splits, "MEMORY_LIMIT", 0)
    streamed = load_data(settings, seed=3)
    assert isinstance(held.train, HeldSplit) and isinstance(streamed.train, StreamedSplit)
    assert streamed.preprocessing == held.preprocessing
    for one, other in ((held.train, streamed.train), (held.holdout, streamed.holdout), (held.test, streamed.test)):
        pairs = zip(held.batches(one, 3), streamed.batches(other, 3), strict=True)
        assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in pairs)
        followed = zip(one.follow(pick_two, 1), other.follow(pick_two, 1), strict=True)
        assert all(torch.equal(a, b) for a, b in itertools.islice(followed, 3))


def test_photos_become_what_timm_makes_of_them() -> None:
    """The reference is timm's own pipeline for evaluation, normalization included."""
    values = {"input_size": (3, 16, 16), "interpolation": "bicubic", "crop_pct": 0.875}
    values |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    ours = make_transform(Preprocessing.from_values(values))
    reference = timm.data.create_transform(**values)
    for number, size in enumerate([(40, 30), (30, 40), (16, 16)]):
        photo = draw_photo(number, *size)
        mean, std = (torch.tensor(values[key]).view(3, 1, 1) for key in ("mean", "std"))
        torch.testing.assert_close((ours(photo).float() / 255 - mean) / std, reference(photo))


def test_statistics_are_those_of_all_values() -> None:
    images = torch.randint(256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    counts = sum(_count_values(batch) for batch in images.split(7))
    mean, std = _summarize_histogram(counts)
    exact = images.double() / 255
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.double(), exact.std((0, 2, 3)), rtol=1e-6, atol=0)


AUGMENTED = {"augment": "timm", "aa": "rand-m9-mstd0.5", "image_size": 12, "vflip": 0.5}


def test_augmentation_is_a_function_of_the_seed_with_any_number_of_workers(photos: Path) -> None:
    def plan(step: int) -> list[tuple[int, int | None]]:
        return [(place, 10 * step + place) for place in range(5)]

    batches = []
    for workers in (0, 2):
        made = load_data(make_settings(DataSettings, {**AUGMENTED, "train": photos, "workers": workers}))
        assert isinstance(made.train, StreamedSplit) and isinstance(made.test, HeldSplit)
        states = random.getstate(), torch.get_rng_state()
        batches.append(list(itertools.islice(made.train.follow(plan, 0), 3)))
        assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
    assert not torch.equal(batches[0][0], batches[0][1])


def test_augmentation_is_timms() -> None:
    """With the same seeds, timm's own transform for training gives the same pixels."""
    settings = make_settings(DataSettings, {**AUGMENTED, "scale": (0.3, 0.9), "color_jitter": 0.2, "aa": None})
    preprocessing = Preprocessing((3, 12, 12), (0.5,) * 3, (0.5,) * 3)
    augmentation = PhotoAugmentation(settings, preprocessing)
    reference = timm.data.create_transform(
        12, True, scale=(0.3, 0.9), vflip=0.5, color_jitter=0.2, interpolation="bicubic", use_prefetcher=True
    )
    for seed in range(5):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert torch.equal(augmentation(draw_photo(seed), "RGB", seed), reference(draw_photo(seed)))


class FakeRows:
    """As much of a Hugging Face data set as timm's reader asks for."""

    def __init__(self) -> None:
        label = types.SimpleNamespace(names=["bee", "ant"])
        self.info = types.SimpleNamespace(features={"image": None, "label": label}, splits=None)
        self.rows = []
        for number in range(8):
            content = io.BytesIO()
            draw_photo(number).save(content, "PNG")
            self.rows.append({"image": {"bytes": content.getvalue(), "path": None}, "label": number % 2})

    def cast_column(self, *_: object) -> "FakeRows":
        return self

    def remove_columns(self, _: str) -> list[dict[str, object]]:
        return self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, object]:
        return self.rows[row]


def test_hugging_face_data_sets_are_read_through_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    splits_asked = []

    def load_dataset(name: str, split: str, cache_dir: str | None) -> FakeRows:
        splits_asked.append((name, split, cache_dir))
        return FakeRows()

    library = types.SimpleNamespace(load_dataset=load_dataset, Image=lambda decode: None)
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    made = load_data(DataSettings(name="hfds/owner/insects", test_split="test", image_size=8))
    assert splits_asked == [("owner/insects", "train", None), ("owner/insects", "test", None)]
    assert made.preprocessing.label_names == ("bee", "ant")
    assert made.test.labels.tolist() == [0, 1] * 4


class Shards(IterableDataset[tuple[Image.Image, int]]):
    """As WebDataset and TensorFlow Datasets come through timm: in one order, decoded."""

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return iter([(draw_photo(number), number % 2) for number in range(8)])


def test_what_can_only_be_read_in_order_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "create_dataset", lambda *_, **__: Shards())
    made = load_data(make_settings(DataSettings, {**AUGMENTED, "name": "wds/insects"}))
    assert (len(made.train) + len(made.holdout), len(made.test), made.num_classes) == (8, 8, 2)
    (batch,) = itertools.islice(made.train.follow(lambda step: [(0, 1), (0, 1), (0, 2)], 0), 1)
    assert torch.equal(batch[0], batch[1]) and not torch.equal(batch[0], batch[2])

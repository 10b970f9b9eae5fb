"""100,000 photos: memory, seconds to the first batch, and images per second beside timm's own loader.

Run: `python examples/benchmarks/many_photos.py IMAGENETTE WORK OUT.json`

IMAGENETTE is a folder with train.tar and val.tar.  They are unpacked in WORK, and hard links make 100,000 photos of
them: every photo is decoded anew, but the disk holds each once, so what is measured is not the disk.  Memory is the
proportional set size of this process and of its loader processes, beyond what it was before the data were opened.
Both loaders take turns and give normalized batches of 224 pixels, resized and cropped as for ImageNet.
"""

import itertools
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timm.data
import torch
from jsonargparse import auto_cli
from torch import Tensor

from nni_sparsevd.data import DataSets, load_data
from nni_sparsevd.files import write_json
from nni_sparsevd.preprocessing import Requirements
from nni_sparsevd.recipe import DataSettings
from nni_sparsevd.training import describe_environment

SIZE, BATCH = 224, 32
TRAINED = {
    "input_size": (3, SIZE, SIZE),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}
"""Of tf_efficientnet_lite0."""


def make_photos(imagenette: Path, work: Path, count: int) -> Path:
    """Unpack Imagenette and link its training photos under further names, until there are `count` of them."""
    root = work / "photos"
    if not root.exists():
        for split in ("train", "val"):
            with tarfile.open(imagenette / f"{split}.tar") as file:
                file.extractall(root / split, filter="data")
    originals = sorted(path for path in (root / "train").rglob("*.JPEG") if not path.name.startswith("copy_"))
    for number in range(count - len(originals)):
        original = originals[number % len(originals)]
        link = original.with_name(f"copy_{number // len(originals)}_{original.name}")
        if not link.exists():
            os.link(original, link)
    return root


def list_processes() -> list[str]:
    """This process and its children."""
    here = os.getpid()
    return [str(here), *Path(f"/proc/{here}/task/{here}/children").read_text().split()]


def measure_memory() -> int:
    """Bytes of this process and of its children, shared pages in parts."""
    total = 0
    for process in list_processes():
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
    return total


def measure_processor() -> float:
    """Processor seconds of this process and of its children that are alive."""
    ticks = 0
    for process in list_processes():
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def read_ours(data: DataSets) -> Iterator[Tensor]:
    """Our batches of shuffled training photos."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0)).tolist()

    def pick(step: int) -> list[tuple[int, int | None]]:
        return [(order[(BATCH * step + place) % len(order)], step) for place in range(BATCH)]

    for images in data.train.follow(pick, 0):
        yield data.normalize(images)


def read_timms(root: Path, workers: int, augment: bool) -> Iterator[Tensor]:
    """timm's batches: its data set, its loader, its prefetcher."""
    dataset = timm.data.create_dataset("", str(root / "train"))
    loader = timm.data.create_loader(
        dataset,
        batch_size=BATCH,
        num_workers=workers,
        device=torch.device("cpu"),
        is_training=augment,
        persistent_workers=False,
        **TRAINED,
    )
    for images, _ in loader:
        yield images


def race(readers: dict[str, Callable[[], Iterator[Tensor]]], rounds: int, batches: int) -> dict[str, dict[str, float]]:
    """Images per second, and per second of a processor, of each reader: medians of rounds, in which they take turns."""
    clocks = {"images_per_second": time.perf_counter, "images_per_processor_second": measure_processor}
    rates: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in readers} for clock in clocks}
    for _ in range(rounds):
        for name, read in readers.items():
            reading = read()
            next(reading)
            began = {clock: measure() for clock, measure in clocks.items()}
            for _ in itertools.islice(reading, batches):
                pass
            for clock, measure in clocks.items():
                rates[clock][name].append(BATCH * batches / (measure() - began[clock]))
            del reading
    return {
        clock: {name: statistics.median(values) for name, values in of_readers.items()}
        for clock, of_readers in rates.items()
    }


def main(
    imagenette: Path, work: Path, out: Path, count: int = 100_000, workers: int = 2, rounds: int = 5, batches: int = 40
) -> None:
    """Measure.

    Args:
        imagenette: Folder that holds train.tar and val.tar.
        work: Folder for the photos; about 0.4 GB.
        out: Where the results go, as JSON.
        count: Training photos.
        workers: Loader processes.
        rounds: Of the race.
        batches: In a round.
    """
    torch.set_num_threads(1)
    root = make_photos(imagenette, work, count)
    results: dict[str, object] = {"photos": count, "workers": workers}
    for augment in ("none", "timm"):
        settings = DataSettings(train=root, augment=augment, workers=workers, batch_size=BATCH)
        before, began = measure_memory(), time.perf_counter()
        data = load_data(settings, requirements=Requirements(in_chans=3, trained=TRAINED))
        opened = time.perf_counter() - began
        reading = read_ours(data)
        next(reading)
        first = time.perf_counter() - began
        memory = []
        for _ in itertools.islice(reading, 20):
            memory.append(measure_memory() - before)
        del reading
        readers = {
            "ours": lambda data=data: read_ours(data),
            "timm": lambda augment=augment: read_timms(root, workers, augment == "timm"),
        }
        rates = race(readers, rounds, batches)
        results[augment] = {
            "seconds_to_open": opened,
            "seconds_to_first_batch": first,
            "gibibytes": max(memory) / 2**30,
            **rates,
            **{f"share_of_timm, {clock}": of["ours"] / of["timm"] for clock, of in rates.items()},
            "load": os.getloadavg()[0],
        }
        print(augment, results[augment], flush=True)
        write_json(out, {"results": results, "environment": describe_environment(sys.argv, 0)})


if __name__ == "__main__":
    auto_cli(main)

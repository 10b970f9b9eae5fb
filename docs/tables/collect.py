"""Copy what the tables and pages need of a finished run to docs/results/ and docs/pictures/."""

import json
import shutil
from pathlib import Path

from nni_sparsevd.studies import bench, reproduce
from reading import PICTURES, RESULTS, read


def collect_results(folder: Path) -> None:
    """Copy from the folder of an experiment of `reproduce`, of a league of `bench`, or of a run of `compress`."""
    name = folder.name
    if name in reproduce.list_experiments():
        _collect_study(folder, f"reproduce_{name}", f"{name}_")
    elif name in bench.list_leagues():
        _collect_study(folder, f"bench_{name}", "bench_")
    else:
        values = {**read(folder / "result.json"), "environment": read(folder / "environment.json")}
        # A budget decides without a threshold.
        values["curve"] = read(folder / "curve.json") if (folder / "curve.json").exists() else None
        (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
        if (folder / "runtimes.json").exists():
            runtimes = read(folder / "runtimes.json")
            (RESULTS / f"{name}_runtimes.json").write_text(json.dumps(runtimes, indent=1) + "\n")


def _collect_study(folder: Path, name: str, prefix: str) -> None:
    values = read(folder / f"{folder.name}.json")
    (RESULTS / f"{name}.json").write_text(json.dumps(values) + "\n")
    for picture in (*folder.glob("*.png"), *folder.glob("*.gif")):
        shutil.copy(picture, PICTURES / f"{prefix}{picture.name}")

"""How many bytes finished runs of `compress` need as files.

Run: `python examples/benchmarks/packed_sizes.py OUT.json '[RUN,RUN]'`

The dense network, its masked twin compressed by gzip and xz, and the shrunk network packed in every coding, with the
test error of what the file gives back.
"""

import gzip
import lzma
import tempfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

import nni_sparsevd as svd
from nni_sparsevd import data
from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.recipe import read_recipe
from nni_sparsevd.storage.packing import CODINGS
from nni_sparsevd.studies.reproduce.finished import open_finished
from nni_sparsevd.training import evaluate
from nni_sparsevd.training.environment import describe_environment


def measure(run: Path) -> dict[str, Any]:
    recipe, result = read_recipe(run / "recipe.toml"), read_json(run / "result.json")
    sets = data.load_data(recipe.data, recipe.data.image_size, recipe.seed)
    masked = (run / "masked.safetensors").read_bytes()
    row: dict[str, Any] = {
        "run": run.name,
        "model": recipe.model.name,
        "fewer_weights": result["weights"]["compression"],
        "dense_bytes": (run / "dense.safetensors").stat().st_size,
        "gzip_bytes": len(gzip.compress(masked, 9)),
        "xz_bytes": len(lzma.compress(masked, preset=9)),
        "error_percent": result["test"]["shrunk"]["error_percent"],
        "packed": {},
    }
    small = svd.load(run / "small.safetensors")
    # Gates alone say nothing about single weights.
    posterior = None if recipe.posterior.granularity == "gate" else open_finished(run).posterior
    codings = [coding for coding in CODINGS if coding != "posterior" or posterior is not None]
    with tempfile.TemporaryDirectory() as folder:
        for coding in codings:
            path = Path(folder) / f"{coding}.safetensors"
            svd.save(
                small,
                path,
                coding=coding,
                posterior=posterior if coding == "posterior" else None,
                measure=lambda given: evaluate(given, sets, sets.test).to_dict(),
            )
            error = svd.describe_file(path)["measured"]["error_percent"]
            row["packed"][coding] = {"bytes": path.stat().st_size, "error_percent": error}
    return row


def main(out: Path, runs: list[Path]) -> None:
    """Measure every run.

    Args:
        out: where the results go, as JSON
        runs: folders of finished runs
    """
    torch.set_num_threads(1)
    command = ["examples/benchmarks/packed_sizes.py", str(out), *map(str, runs)]
    write_json(out, {"environment": describe_environment(command, 0), "results": [measure(run) for run in runs]})


if __name__ == "__main__":
    auto_cli(main, as_positional=True)

"""Several processes: the same posterior on every rank, and the KL counted once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_sparsevd.files import load_tensors
from nni_sparsevd.recipe import Data, Finetune, Posterior, Recipe, Sparse, Stage, write
from nni_sparsevd.training import compress

WORKER = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from nni_sparsevd import recipe, training
from nni_sparsevd.files import save_tensors
room = sys.modules["nni_sparsevd.training.compress"]
def decide(way, model, decide=room._Way._decide):
    save_tensors(model.state_dict(), Path(sys.argv[2]) / f"rank{way.run.accelerator.process_index}.safetensors")
    return decide(way, model)
room._Way._decide = decide
training.compress(recipe.read(Path(sys.argv[1])), Path(sys.argv[2]) / "run", [])
"""


def full_batches(size: int) -> Recipe:
    """One step an epoch, so that two processes see together what one sees; and next to no noise."""
    return Recipe(
        data=Data(batch_size=size, limit=100, holdout=0.2),
        posterior=Posterior(init_log_sigma2=-30.0, granularity="gate"),
        dense=Stage(),
        sparse=Sparse(epochs=20, optimizer="sgd", learning_rate=0.05),
        finetune=Finetune(),
    )


def test_ranks_agree_and_count_the_kl_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone: dict[str, Tensor] = {}
    room = sys.modules["nni_sparsevd.training.compress"]
    decide = room._Way._decide

    def remember(way: Any, model: nn.Module) -> Any:
        alone.update({name: value.clone() for name, value in model.state_dict().items()})
        return decide(way, model)

    monkeypatch.setattr(room._Way, "_decide", remember)
    compress(full_batches(80), tmp_path / "alone", [])
    write(full_batches(40), tmp_path / "recipe.toml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "recipe.toml"), str(tmp_path)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    one, two = (load_tensors(tmp_path / f"rank{rank}.safetensors")[0] for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name, value in alone.items():
        if name.endswith("log_sigma2"):  # moved by the KL alone
            assert (value + 30).abs().min() > 0.05
            torch.testing.assert_close(one[name], value, rtol=0, atol=1e-3)
        else:
            torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-3)
    assert len([name for name in alone if name.endswith("log_sigma2")]) >= 2
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in rows] == list(range(1, 21))

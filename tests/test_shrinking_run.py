"""`compress` with `sparse.shrink_at`: the network gets smaller while it trains, and all that follows works on."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nni_sparsevd import cli, models, storage
from nni_sparsevd.convert import sparsify_
from nni_sparsevd.errors import FileFormatError, SettingError
from nni_sparsevd.files import load_tensors, read_json, read_rows, save_tensors
from nni_sparsevd.recipe import DataSettings, FinetuneStage, ModelSettings, Recipe, SparseStage, Stage, write_recipe
from nni_sparsevd.settings import MaskSettings, PosteriorSettings, make_settings
from nni_sparsevd.studies.reproduce.finished import open_finished
from nni_sparsevd.training import compress
from nni_sparsevd.training.network_files import SIZES, read_network_, write_network


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe(**changes: object) -> Recipe:
    """Gates on a residual network, of which about a third are removed before the last epoch."""
    parts = {
        "model": ModelSettings(name="resnet18", arguments={"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}),
        "data": DataSettings(batch_size=25, limit=1000, holdout=0.2),
        "posterior": PosteriorSettings(granularity="gate", init_log_sigma2=-2.0),
        "dense": Stage(epochs=2, learning_rate=5e-3),
        "sparse": SparseStage(epochs=6, learning_rate=3e-3, gate_rate=30.0, hold=0.5, shrink_at=3.0),
        "finetune": FinetuneStage(epochs=1),
        "masks": MaskSettings(structure="structured"),
        **changes,
    }
    return Recipe.model_validate(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the command line."""
    place = tmp_path_factory.mktemp("run")
    write_recipe(recipe(), place / "recipe.toml")
    assert cli.main(["compress", f"--recipe={place / 'recipe.toml'}", f"--out={place / 'run'}"]) == 0
    return place / "run"


def sizes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())


def test_channels_leave_while_it_trains(folder: Path) -> None:
    dense, posterior = (load_tensors(folder / f"{name}.safetensors")[0] for name in ("dense", "posterior"))
    plain = {name: value for name, value in posterior.items() if ".gate." not in name}
    assert plain.keys() == dense.keys() and sizes(plain) < 0.8 * sizes(dense)
    counts = [row["counts"] for row in read_json(folder / "log_alpha.json")["epochs"]]
    left = [sum(sum(row) for row in layers.values()) for layers in counts]
    assert left == sorted(left, reverse=True) and left[-1] < left[0]


def test_what_it_says_is_of_the_dense_network(folder: Path) -> None:
    """Not of what the last cut began with: weights in all, layers, channels of a group, compression."""
    made, dense = read_json(folder / "result.json"), load_tensors(folder / "dense.safetensors")[0]
    weights = {name: value for name, value in dense.items() if name.endswith("weight") and value.dim() > 1}
    assert made["weights"]["total"] == sizes(weights)
    assert {f"{row['name']}.weight": row["shape"] for row in made["layers"]} == {
        name: list(value.shape) for name, value in weights.items()
    }
    small = storage.load(folder / "small.safetensors")
    for group in made["plan"]:
        assert group["channels"] == len(dense[f"{group['name']}.weight"]), group
        assert group["channels"] - group["removed"] == len(small.get_submodule(group["name"]).weight), group
    assert made["check"]["ok"]
    last = read_rows(folder / "metrics.jsonl")[-1]
    assert last["compression"] == pytest.approx(made["weights"]["compression"])
    assert json.loads((folder / "curve.json").read_text())["compression"][-1] >= 1
    assert (folder / "report.html").exists()


def test_a_finished_run_is_read_again(folder: Path) -> None:
    """By `finished`, and by a run that decides anew on its posterior."""
    done = open_finished(folder)
    assert sizes(done.posterior.state_dict()) == sizes(load_tensors(folder / "posterior.safetensors")[0])
    start = SparseStage(epochs=0, shrink_at=3.0, checkpoint=folder / "posterior.safetensors")
    again = recipe(
        dense=Stage(), sparse=start, finetune=FinetuneStage(), masks=MaskSettings(structure="structured", threshold=1.0)
    )
    stricter = compress(again, folder.parent / "again", [])
    kept = sum(int(mask.sum()) for targets in stricter.masks.values() for mask in targets.values())
    assert kept < sum(int(mask.sum()) for targets in done.masks.values() for mask in targets.values())


def test_blocks_of_n_of_m_stay_whole(tmp_path: Path) -> None:
    """A layer that was left with six inputs could not keep two of every four."""
    posterior = PosteriorSettings(granularity="both", init_log_sigma2=-4.0)
    settings = recipe(
        model=ModelSettings(name="resnet18_small", arguments={"channels": [8, 8, 16, 16]}),
        posterior=posterior,
        dense=Stage(epochs=1, learning_rate=5e-3),
        finetune=FinetuneStage(),
        masks=MaskSettings(structure="n:m"),
    )
    made = compress(settings, tmp_path / "run", [])
    masks = {name: targets["weight"] for name, targets in made.masks.items() if targets["weight"].dim() > 1}
    del masks["conv1"]  # of one input
    widths = {mask.shape[1] for mask in masks.values()}
    # Of 8 and 16 inputs; how many of them are left depends on how a processor rounds.
    assert all(width % 4 == 0 for width in widths) and max(widths) < 16
    for mask in masks.values():
        kept_by_gates = mask[mask.flatten(1).any(1)]
        assert float(kept_by_gates.mean()) == 0.5


def test_sizes_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors, metadata = load_tensors(folder / "baked.safetensors")
    for name, header, said in (
        ("cut", metadata[SIZES][:-9], "its sizes are damaged"),
        ("other", json.dumps({"": {"no_such_size": 3}}), "no plain attribute"),
    ):
        save_tensors(tensors, tmp_path / f"{name}.safetensors", {SIZES: header})
        with pytest.raises(FileFormatError, match=rf"{name}\.safetensors: .*{said}"):
            read_network_(models.create_model(recipe().model, 10, 1, 8), tmp_path / f"{name}.safetensors")


def test_written_and_read_is_the_same_network(tmp_path: Path) -> None:
    """With its posteriors, its tied weights, and what is frozen."""
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6)) for _ in range(2))
    for model in (first, second):
        sparsify_(model, example_inputs=torch.zeros(2, 4), granularity="both")
        model[3].weight = model[2].weight
        model[0].bias.requires_grad_(False)
    write_network(first, tmp_path / "network.safetensors", resized=True)
    read_network_(second, tmp_path / "network.safetensors")
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert second[3].weight is second[2].weight and not second[0].bias.requires_grad


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sparse": {"shrink_at": 2.0}}, "sparse.shrink_at = 2 removes channels that the threshold, 3, would keep"),
        ({"sparse": {"shrink_at": 3.5}, "masks": {"threshold": 4.0}}, "the threshold, 4, would keep"),
        ({"sparse": {"shrink_at": 6.0}, "masks": {"ratio": 0.9}}, "the ratio would be one of what is left"),
        ({"sparse": {"shrink_at": 6.0}, "shard": True}, "does not go together with shard"),
        ({"sparse": {"shrink_at": 6.0, "snapshots": ["fc1"]}}, "does not go together with sparse.snapshots"),
        ({"sparse": {"shrink_at": -1.0}}, "sparse.shrink_at"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make_settings(Recipe, settings)

"""What the order does in which channels leave on the way to a budget.

Run: `python examples/benchmarks/budget_ranking.py OUT.json DATA --levels=[4,8]`

The rival `vd_gradual` of the league `photos_channels`: the pre-trained `tf_efficientnet_lite0` on Imagenette, photos of
96 pixels, scored on photos held out from training. Rows that OUT.json has are not trained again.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor

from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.measure import count_macs, count_parameters
from nni_sparsevd.nn import ChannelGate
from nni_sparsevd.regularize import removal
from nni_sparsevd.studies.bench import read_league
from nni_sparsevd.studies.bench.arena import Arena, prepare_arena
from nni_sparsevd.studies.bench.rivals.ours_channels import remove_gradually
from nni_sparsevd.training.environment import describe_environment


def power(exponent: float) -> Callable[[ChannelGate], Tensor]:
    """Rank by 1 / alpha to some power."""

    def count_worth(gate: ChannelGate) -> Tensor:
        return (-exponent * gate.log_alpha().detach()).exp()

    return count_worth


WAYS = {
    "worth": power(1.0),
    "worth^0.75": power(0.75),
    "worth^0.5": power(0.5),
    "worth / part left": removal.count_worth,
}
"""What a channel counts; over its cost it is its rank."""


def play(arena: Arena, way: str, level: float) -> dict[str, object]:
    """Remove and tune once; accuracies are on held-out photos, before and after tuning."""
    began = time.process_time()
    removal.count_worth = WAYS[way]
    stage = arena.league.dense.model_copy(update={"learning_rate": arena.league.rates[0], "hold": 0.0})
    pruned = remove_gradually(arena, stage, level)
    untuned = arena.score_holdout(pruned.model)
    arena.train(pruned.model, stage, pruned.steps, arena.steps)
    tuned = arena.score_holdout(pruned.model)
    return {
        "way": way,
        "level": level,
        "macs": count_macs(pruned.model, arena.example[:1]) / arena.dense_macs,
        "parameters": count_parameters(pruned.model),
        "untuned": untuned.accuracy,
        "held_out": tuned.accuracy,
        "held_out_loss": tuned.loss,
        "seconds": round(time.process_time() - began, 1),
    }


def main(
    out: Path,
    data: Path,
    levels: tuple[float, ...] = (4.0, 8.0),
    starts: Path = Path("runs/bench/photos_channels"),
) -> None:
    """Play every way at every level.

    Args:
        out: where the results go, as JSON.
        data: folder with imagenette/ and imagenet_pretrained/.
        levels: times fewer multiply-accumulates.
        starts: folder of the league, where its dense start is, or will be written.
    """
    torch.set_num_threads(1)
    rows = read_json(out)["rows"] if out.exists() else []
    arena = prepare_arena(read_league("photos_channels"), 0, data, starts)
    for way in WAYS:
        for level in levels:
            if any((row["way"], row["level"]) == (way, level) for row in rows):
                continue
            rows.append(play(arena, way, level))
            dense = arena.score_holdout(arena.start).accuracy
            write_json(out, {"environment": describe_environment(sys.argv, 0), "dense": dense, "rows": rows})
            print(rows[-1], flush=True)


if __name__ == "__main__":
    auto_cli(main)

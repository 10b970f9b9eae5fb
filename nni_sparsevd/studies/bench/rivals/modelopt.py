"""FastNAS, NVIDIA ModelOpt's pruner of channels, as its documentation uses it: search space, constraint, score."""

import contextlib
import io
from typing import Any

from torch import nn

from ....errors import SettingError, describe_error
from ....recipe import Stage
from ..arena import Arena
from .entry import Pruned, Rival, without_preparation

INSTALL = "pip install nvidia-modelopt 'torchprofile==0.0.4'"
"""ModelOpt 0.47 counts operations with a table that later versions of torchprofile lack."""
CALIBRATION_BATCHES = 20
"""Batches from which statistics of norms are taken anew, for each network that is scored."""


def search_widths(arena: Arena, stage: Stage, level: float) -> Pruned:
    """A rival that scores each layer at several widths on held-out images, and takes the best that fit together."""
    prune, settings = _open_modelopt()
    _set_divisor(settings, arena.league.round_to)

    def score(network: nn.Module) -> float:
        return arena.score_holdout(network).accuracy

    # It prints a table of every layer, and bars.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        small, _ = prune(
            arena.network(),
            mode=[("fastnas", settings)],
            constraints={"flops": f"{100 / level}%"},
            dummy_input=arena.example[:1],
            config={
                "data_loader": [arena.batch(step) for step in range(CALIBRATION_BATCHES)],
                "score_func": score,
                "checkpoint": None,
                "verbose": False,
            },
        )
    return Pruned(small, None, 0)


def _open_modelopt() -> tuple[Any, dict[str, Any]]:
    """ModelOpt's `prune`, and its settings of FastNAS as they come."""
    try:
        import modelopt.torch.prune as mtp
        import torchprofile  # noqa: F401  ModelOpt would miss it only when it counts
    except ImportError as error:
        raise SettingError(f"FastNAS needs NVIDIA ModelOpt: {INSTALL} ({describe_error(error)})") from None
    return mtp.prune, mtp.fastnas.FastNASConfig().model_dump()


def _set_divisor(settings: dict[str, Any], round_to: int) -> None:
    """Have what is left of every kind of layer be a multiple of `round_to`, in place; ModelOpt's own choice is 32."""
    for rules in settings.values():
        for rule in rules.values():
            for key in ("channel_divisor", "feature_divisor"):
                if rule is not None and key in rule:
                    rule[key] = round_to


RIVALS = {"modelopt_fastnas": Rival("FastNAS", "ModelOpt", without_preparation(search_widths))}

"""Sparse VD in a training of Hugging Face's Trainer: a callback."""

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import SettingError, SparseVDWarning
from ..files import load_tensors, save_tensors
from ..graph import Inputs
from ..regularize import Regularizer, SparseVDSettings, count_samples

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise SettingError(f"{error}: pip install 'nni_sparsevd[evaluators]'") from error

FILE = "sparsevd_variances.safetensors"
"""Beside the Trainer's own files of a checkpoint."""


class SparseVDCallback(TrainerCallback):
    """`Trainer(model, ..., callbacks=[SparseVDCallback(model)])`: `model` learns which of its weights are noise.

    Make it before the trainer; gates need `example_inputs`.  The Trainer's own optimizer stays with the weights.  Adds
    `sparsevd_kl` and `sparsevd_sparsity` to what is logged.  Afterwards `bake_`, `compute_masks` and `shrink` do with
    `model` what they do with any.

    The KL warms up, and the variances' rate falls to 0, over the Trainer's steps.  Raises `SettingError` where the
    number of samples is not known and `settings.n_train` does not say it.
    """

    def __init__(
        self, model: nn.Module, settings: SparseVDSettings | None = None, example_inputs: Inputs | None = None
    ) -> None:
        self._regularizer = Regularizer(model, settings, example_inputs)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = _checkpoint(args, state) / FILE
        if path.exists():
            self._regularizer.load_state_(load_tensors(path)[0])
        elif state.global_step:
            warnings.warn(f"{path} is not there: the variances' Adam begins anew", SparseVDWarning, stacklevel=2)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        progress = state.global_step / state.max_steps
        self._regularizer.regularize(progress, count_samples(kwargs["train_dataloader"]))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            found = {"sparsevd_kl": float(self._regularizer.kl()), "sparsevd_sparsity": self._regularizer.sparsity()}
            kwargs["logs"].update(found)
            state.log_history[-1].update(found)  # a copy, written down before callbacks are asked

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            save_tensors(self._regularizer.state(), _checkpoint(args, state) / FILE)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"

"""Sparse VD in a training of Hugging Face's Trainer: a callback."""

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import SettingError, SparseVDWarning
from ..files import load_tensors, save_tensors
from ..graph import Inputs
from ..regularize import Regularizer, SparseVDSettings, count_samples, read_loss_scale

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise SettingError(f"{error}: pip install 'nni_sparsevd[evaluators]'") from error

FILE = "sparsevd_variances.safetensors"
"""Name of our file in a checkpoint's folder, beside the Trainer's own files."""


class SparseVDCallback(TrainerCallback):
    """`Trainer(model, ..., callbacks=[SparseVDCallback(model)])`: `model` learns which of its weights are noise.

    Make the callback before the trainer: it gives the layers their posteriors. The Trainer's own optimizer stays with
    the weights; the KL's gradient is added before each of its steps, and the variances have an optimizer of their own.
    The KL warms up, and the learning rate of the variances falls to 0, over the Trainer's steps.

    What the Trainer logs of a training gains `sparsevd_kl` (in nats) and `sparsevd_sparsity` (the share of weights that
    would be removed). Its checkpoints hold the state of the variances' optimizer, and training resumes with it. A
    checkpoint outside of the Trainer's `output_dir` has to be named in `TrainingArguments(resume_from_checkpoint=...)`.
    Afterwards `bake_`, `compute_masks` and `shrink` do with `model` what they do with any variational network.

    Args:
        model: The network; changed in place.
        settings: How posteriors are made and trained; None: the defaults. Where `n_train` is missing, the Trainer's
            data loader is asked.
        example_inputs: What `model` is called with; needed where `settings.posterior.granularity` asks for gates.

    Raises:
        ModelError: No layer can have a posterior, `model` has posteriors already, or gates are asked for and
            `example_inputs` are missing.
        SettingError: In training: nobody knows the number of samples.
        FileFormatError: In training: the checkpoint to resume from is that of another network.
    """

    def __init__(
        self, model: nn.Module, settings: SparseVDSettings | None = None, example_inputs: Inputs | None = None
    ) -> None:
        self._regularizer = Regularizer(model, settings, example_inputs)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put back the state of the checkpoint that training resumes from."""
        if not state.global_step:
            return
        folders = [_checkpoint_folder(args, state)]
        if args.resume_from_checkpoint:
            folders.insert(0, Path(args.resume_from_checkpoint))
        for folder in folders:
            if (folder / FILE).exists():
                self._regularizer.load_state_(load_tensors(folder / FILE)[0])
                return
        # What is passed to `train` alone, no callback is told.
        warnings.warn(
            f"SparseVDCallback: no {FILE} in {' or '.join(map(str, folders))}, so the variances' optimizer starts "
            "afresh; if the checkpoint lies elsewhere, name its folder in "
            "TrainingArguments(resume_from_checkpoint=...), too",
            SparseVDWarning,
            stacklevel=2,
        )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the KL's gradient and move the variances."""
        progress = state.global_step / state.max_steps
        optimizer = kwargs["optimizer"]  # Accelerate's wrapper, which has the scaler
        loss_scale = read_loss_scale(optimizer.optimizer, optimizer.scaler)
        self._regularizer.regularize(progress, count_samples(kwargs["train_dataloader"]), loss_scale=loss_scale)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add KL and sparsity to what is logged of a training."""
        if "loss" not in kwargs["logs"]:  # an evaluation's, or the summary at the end
            return
        values = {"sparsevd_kl": float(self._regularizer.kl()), "sparsevd_sparsity": self._regularizer.sparsity()}
        kwargs["logs"].update(values)
        state.log_history[-1].update(values)  # the Trainer has made this copy before it asks its callbacks

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write our file into the folder of the checkpoint."""
        if state.is_world_process_zero:
            save_tensors(self._regularizer.state(), _checkpoint_folder(args, state) / FILE)


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder in which the Trainer keeps the checkpoint of the step at hand."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"

"""The recipe of `nni-sparsevd compress`: its parts, and the TOML or YAML file that holds it."""

import math
import tomllib
from collections.abc import Callable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tomli_w
import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from .errors import SettingError
from .files import write_bytes
from .settings import Argument, Fraction, MaskSettings, PosteriorSettings, Settings, make_settings

RECIPE_FILE = "recipe.toml"
"""The settings of a run, in its folder."""


class ModelSettings(Settings):
    """Which network, and where its weights come from."""

    name: str = "lenet_300_100"
    """Any timm name, or lenet_300_100, lenet5_caffe, vgg_like, resnet18_small (see `list-models`)."""
    arguments: dict[str, Argument] = {}  # noqa: RUF012  pydantic copies the default
    """Further arguments of `timm.create_model`."""
    pretrained: bool = False
    """Start from timm's pre-trained weights; a `checkpoint` takes their place."""
    checkpoint: Path | None = None
    """Start from this file of weights: .safetensors, or .pth of tensors (nothing else is unpickled). A classifier for
    other classes is made anew."""


class DataSettings(Settings):
    """Which data, read through `timm.data`."""

    name: str | None = None
    """digits (embedded), a timm data set such as torch/mnist or hfds/NAME, or empty for a folder or tar of images. Not
    set: a folder or tar where `train` is set, else digits."""
    train: Path | None = None
    """Root of the training data: a folder with a folder for each class, a tar of it, or a folder that holds train/ and
    val/ (or validation/, test/)."""
    test: Path | None = None
    """Root of the test data; not set: the root of the training data, of which the test split is taken."""
    train_split: str = "train"
    """Split to train on, of a data set that has splits by name."""
    test_split: str = "validation"
    """Split to test on, of a data set that has splits by name."""
    skip_bad: bool = False
    """Go on without photos that cannot be decoded, and count them in the report; otherwise they are an error that lists
    all of them."""
    holdout: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Part of the training data kept from training, to watch the training and to choose the threshold."""
    image_size: PositiveInt | None = None
    """Side of the square input; not set: that of the pre-training, the only one that the network takes, or that of the
    images."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, of pixels in [0, 1]; not set: that of the pre-training, or else of the training images."""
    std: tuple[PositiveFloat, ...] | None = None
    """Standard deviation of each channel, likewise."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "box", "hamming", "nearest"] | None = None
    """How images are resized; not set: as in the pre-training, or else bicubic."""
    crop_pct: Annotated[float, Gt(0), Le(1)] | None = None
    """Side of the middle crop, as a part of the shorter side of the image; not set: as in the pre-training, else 1."""
    augment: Literal["none", "crop_flip", "crop", "timm"] = "none"
    """crop: random crops after padding, with horizontal flips or without; timm: random resized crops and all that the
    next six settings say."""
    margin: PositiveInt | None = None
    """Largest shift of a random crop, in pixels; not set: an eighth of the side."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    """With augment=timm: area of the random resized crop, as a part of the image, from and to."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """With augment=timm: width of that crop to its height, from and to."""
    hflip: Annotated[float, Ge(0), Le(1)] = 0.5
    """With augment=timm: probability of a horizontal flip."""
    vflip: Annotated[float, Ge(0), Le(1)] = 0.0
    """With augment=timm: probability of a vertical flip."""
    color_jitter: NonNegativeFloat = 0.4
    """With augment=timm: how far brightness, contrast and saturation move; timm leaves it out where `aa` is set."""
    aa: str | None = None
    """With augment=timm: RandAugment, AutoAugment or AugMix in timm's words, e.g. rand-m9-mstd0.5."""
    re_prob: Annotated[float, Ge(0), Le(1)] = 0.0
    """Probability of erasing a random rectangle of an image."""
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What the erased rectangle holds: zeros, one random color, or noise in every pixel."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of mixup: pairs of images are blended, and their labels."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of cutmix: a rectangle of one image is put into another one."""
    smoothing: Fraction = 0.0
    """Label smoothing: the part of a label that is shared out among all classes."""
    batch_size: PositiveInt = 100
    """Images per step and process."""
    limit: PositiveInt | None = None
    """Use only this many training images."""
    random_labels: bool = False
    """Replace the labels of training and held-out images by labels drawn once at random (by `seed`): there is then
    nothing to learn."""
    workers: NonNegativeInt | None = None
    """Loader processes; 0 loads in the training process. Not set: one for each core where there are many photos."""

    @property
    def resolved_name(self) -> str:
        """The name, where a folder has the empty one."""
        if self.name is not None:
            return self.name
        return "digits" if self.train is None else ""

    def resolve_paths(self, folder: Path) -> "DataSettings":
        """These settings with relative paths taken from `folder`."""
        train = None if self.train is None else folder / self.train
        test = None if self.test is None else folder / self.test
        return self.model_copy(update={"train": train, "test": test})

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "DataSettings":
        if self.resolved_name == "digits" and (self.train or self.test):
            key = "train" if self.train else "test"
            raise ValueError(
                f"data.{key} = {self.train or self.test} is not used with the embedded digits: leave data.name out for "
                "a folder or tar of images, and set data.train"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"data.mixup and data.cutmix take pairs: data.batch_size = {self.batch_size} is odd")
        if self.augment != "timm":
            unused = [key for key in AUGMENTATION if key in self.model_fields_set and self._differs(key)]
            if unused:
                raise ValueError(f"data.{unused[0]} counts only with data.augment = 'timm', found {self.augment!r}")
        return self

    def _differs(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


AUGMENTATION = ("scale", "ratio", "hflip", "vflip", "color_jitter", "aa")
"""Settings of timm's augmentation of single photos."""


class Stage(Settings):
    """One stretch of optimization."""

    epochs: NonNegativeInt = 0
    """Length; 0 skips the stage."""
    optimizer: str = "adam"
    """Any name that `timm.optim` knows."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of the weights; variances of the posterior and gates never decay."""
    warmup: Fraction = 0.0
    """Part of the stage in which the rate rises linearly from a hundredth of the peak."""
    hold: Fraction = 0.0
    """Part of the stage at the peak rate, the warm-up included; after it the rate falls to 0."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the rate falls to 0: linearly, or as half a cosine."""
    layer_decay: Annotated[float, Gt(0), Lt(1)] | None = None
    """Learning rate of each layer, as a multiple of that of the layer behind it, in timm's order of layers; the last
    layer has `learning_rate`. Not set: all layers have it."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient of all parameters together; a longer one is scaled down. Not set: any length."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged for one step: a step sees that many times `data.batch_size` images."""
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    """Decay of a moving average of the network over the steps (timm's ModelEmaV3, warmed up). The average is what is
    validated, and what the stage ends with. Not set: the last weights."""


class SparseStage(Stage):
    """The variational stage: mean loss + kl_coefficient * KL / N."""

    epochs: NonNegativeInt = 20
    """Length; 0 skips the stage."""
    kl_coefficient: NonNegativeFloat = 1.0
    """Weight of the KL in units of 1/N; 1 is the evidence lower bound."""
    warmup_from: NonNegativeFloat = 0.0
    """Epoch until which the KL has weight 0."""
    warmup_to: NonNegativeFloat = 0.0
    """Epoch from which the KL has its full weight; between the two the weight rises linearly. From scratch, without
    warm-up, everything is removed at once."""
    gate_rate: PositiveFloat = 10.0
    """Learning rate of gates, as a multiple of that of the weights."""
    shrink_at: NonNegativeFloat | None = None
    """Log alpha from which channels leave the network while it trains, after every epoch: steps get cheaper, and what
    was removed cannot come back. Not set: all channels stay until the end."""
    checkpoint: Path | None = None
    """Start from this posterior.safetensors of another run with the same network and posterior: to train on, or, with
    0 epochs, to decide and fine-tune again."""
    snapshots: tuple[str, ...] = ()
    """Layers whose weights, as they would ship, are written after every epoch, for animations."""


class FinetuneStage(Stage):
    """The stage after the decision: what is removed stays zero."""

    variational: bool = False
    """Keep the posteriors of the weights that are left: their noise, and their KL at the full weight of the sparse
    stage."""


class TeacherSettings(ModelSettings):
    """A network whose outputs the training learns to give, beside the labels (distillation)."""

    name: str = ""
    """A network that teaches all stages; empty: the run's dense network teaches the stages after the dense one."""
    weight: Annotated[float, Ge(0), Le(1)] = 0.0
    """The teacher's part of the loss, the labels have the rest; 0 trains on the labels alone."""
    temperature: PositiveFloat = 2.0
    """What the logits of both networks are divided by; above 1 the teacher also says which wrong classes are near."""


BudgetKind = Literal["macs", "parameters", "latency"]
"""What a network costs."""
Part = Annotated[float, Gt(0), Lt(1)]
"""A part of a whole, neither nothing nor all of it."""


LADDER = (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09)
"""Levels that are tried where only a tolerance is set: each takes about three tenths of what the one before left."""
ALLOWED_LOSS = 0.01
"""Held-out accuracy that the network of a run may lose where no tolerance is set."""


class BudgetSettings(Settings):
    """What the network may cost at the end of the sparse stage. Channels leave it for good, a few at a time."""

    macs: Part | tuple[Part, ...] | None = None
    """The part of the dense network's multiply-accumulates that is left; several parts, e.g. [0.5,0.25], give a network
    each."""
    parameters: Part | tuple[Part, ...] | None = None
    """The part of the dense network's weights that is left, or several parts."""
    latency: Part | tuple[Part, ...] | None = None
    """The part of the dense network's time for one image that is left, measured on one thread, or several parts."""
    runtime: Literal["onnxruntime", "executorch", "litert", "pytorch"] = "onnxruntime"
    """Where `latency` is measured."""
    tolerance: Fraction | None = None
    """Held-out accuracy that the network of the run may lose against the dense one; not set: 0.01. Where only this is
    set, levels of multiply-accumulates are tried, ever smaller ones, until one loses more."""
    round_to: PositiveInt = 8
    """What is left of a group of channels is a multiple of this: runtimes compute 25 channels no faster than 32."""
    reached_at: Annotated[float, Gt(0), Le(1)] = 0.65
    """Part of a level's steps in the sparse stage after which it is reached; in the rest the network heals."""
    cuts: PositiveInt = 24
    """How often channels are removed on the way to each level, where there are steps enough."""

    @property
    def kind(self) -> BudgetKind | None:
        """What costs; None without a budget."""
        if self.searches:
            return "macs"
        kinds: tuple[BudgetKind, ...] = ("macs", "parameters", "latency")
        return next((kind for kind in kinds if getattr(self, kind) is not None), None)

    @property
    def searches(self) -> bool:
        """Whether the levels are only tried, to find the smallest that is accurate enough."""
        return self.tolerance is not None and self.macs is self.parameters is self.latency is None

    @property
    def allowed_loss(self) -> float:
        """Held-out accuracy that the network of the run may lose against the dense one."""
        return ALLOWED_LOSS if self.tolerance is None else self.tolerance

    @property
    def levels(self) -> tuple[float, ...]:
        """The parts of the cost that are left, from large to small; empty without a budget."""
        if self.searches:
            return LADDER
        if self.kind is None:
            return ()
        parts: float | tuple[float, ...] = getattr(self, self.kind)
        return tuple(sorted(parts, reverse=True)) if isinstance(parts, tuple) else (parts,)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "BudgetSettings":
        budgets = [f"budget.{kind}" for kind in ("macs", "parameters", "latency") if getattr(self, kind) is not None]
        if len(budgets) > 1:
            raise ValueError(f"{' and '.join(budgets)}: set one of them")
        if self.kind is None:
            return self
        # Folders and stages are called by the level as it is written with six digits.
        if not self.levels or len({f"{part:g}" for part in self.levels}) < len(self.levels):
            raise ValueError(f"budget.{self.kind}: give one part or several different ones, found {list(self.levels)}")
        return self


class Recipe(Settings):
    """Everything that `nni-sparsevd compress` does, in one file."""

    model: ModelSettings = ModelSettings()
    """Which network."""
    data: DataSettings = DataSettings()
    """Which data."""
    posterior: PosteriorSettings = PosteriorSettings()
    """What is learned."""
    dense: Stage = Stage()
    """Ordinary training before Sparse VD."""
    sparse: SparseStage = SparseStage()
    """Sparse VD."""
    finetune: FinetuneStage = FinetuneStage()
    """Training of the weights that are left, with fixed masks."""
    teacher: TeacherSettings = TeacherSettings()
    """Distillation."""
    budget: BudgetSettings = BudgetSettings()
    """What the network may cost, instead of a threshold."""
    masks: MaskSettings = MaskSettings()
    """The decision."""
    twin: bool = False
    """Train the dense network on for as long as the sparse stage and the fine-tuning take, at the end and with the same
    settings: a dense twin, against which the report says what the smaller network loses."""
    seed: int = 0
    """Seed of weights, noise, data order and hold-out."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; the KL stays in float32."""
    shard: bool = False
    """Split weights, gradients and the state of the optimizer among several processes (FSDP2), instead of giving each
    process all of them."""
    compile: str | None = None
    """Backend of `torch.compile` for the training steps, e.g. inductor, which needs a C++ compiler. A stage in which
    channels leave the network (`budget`, `sparse.shrink_at`) is not compiled. Not set: nothing is."""
    channels_last: bool = False
    """Lay training images out channels last: convolutions and pooling are then faster, most of all on a CPU."""
    checkpoint_minutes: PositiveFloat = 5.0
    """Minutes between checkpoints within an epoch; one is also written at the end of every epoch."""

    @model_validator(mode="before")
    @classmethod
    def _give_gates_to_a_budget(cls, values: object) -> object:
        """A budget counts whole channels, so the posteriors are gates where nothing else is asked for."""
        if not isinstance(values, dict):
            return values
        budget, posterior = values.get("budget"), values.get("posterior", {})
        if isinstance(budget, dict):
            budget = BudgetSettings.model_validate(budget)
        if budget is None or budget.kind is None:
            return values
        if isinstance(posterior, PosteriorSettings):
            posterior = posterior.model_dump(exclude_unset=True)
        return {**values, "posterior": {"granularity": "gate", **posterior}}

    @property
    def changes_sizes(self) -> bool:
        """Whether channels leave the network while it trains."""
        return self.sparse.shrink_at is not None or self.budget.kind is not None

    def changes_sizes_by(self, stage: str) -> bool:
        """Whether the network may have other sizes at the end of a stage than the recipe gives it."""
        return self.changes_sizes and stage.startswith(("sparse", "finetune"))

    @property
    def resolved_threshold(self) -> float | Literal["held_out"]:
        """The threshold of the decision: that of the masks where it is set, else that of the posterior.

        Infinity with a budget: what it leaves in multiples of `budget.round_to` stays.
        """
        if self.budget.kind is not None:
            return math.inf
        return self.posterior.threshold if self.masks.threshold is None else self.masks.threshold

    @model_validator(mode="after")
    def _refuse_averages_and_compilation_where_they_cannot_be(self) -> "Recipe":
        averaged = [name for name in ("dense", "sparse", "finetune") if getattr(self, name).ema is not None]
        if averaged and self.shard:
            raise ValueError(f"{averaged[0]}.ema does not go together with shard: the average is one of whole networks")
        if self.compile is not None and self.shard:
            raise ValueError("compile does not go together with shard")
        if self.sparse.ema is not None and self.changes_sizes:
            other = "sparse.shrink_at" if self.budget.kind is None else f"budget.{self.budget.kind}"
            raise ValueError(f"sparse.ema does not go together with {other}: the sizes of the network change")
        return self

    @model_validator(mode="after")
    def _refuse_blocks_of_gates(self) -> "Recipe":
        if self.posterior.granularity == "gate" and self.masks.structure == "n:m":
            raise ValueError(
                "masks.structure = 'n:m' decides about weights, and posterior.granularity = 'gate' learns about "
                "channels alone: take 'weight' or 'both'"
            )
        return self

    @model_validator(mode="after")
    def _refuse_scaled_shards(self) -> "Recipe":
        if self.shard and self.precision == "fp16":
            raise ValueError(
                "shard with precision = 'fp16': the loss scaler of fp16 needs whole gradients; take 'bf16' or 'no'"
            )
        return self

    @model_validator(mode="after")
    def _check_shrinking_while_training(self) -> "Recipe":
        shrink_at, threshold = self.sparse.shrink_at, self.resolved_threshold
        if shrink_at is None:
            return self
        if isinstance(threshold, float) and shrink_at < threshold:
            raise ValueError(
                f"sparse.shrink_at = {shrink_at:g} removes channels that the threshold, {threshold:g}, would keep"
            )
        if self.shard or self.sparse.snapshots:
            other = "shard" if self.shard else "sparse.snapshots"
            raise ValueError(f"sparse.shrink_at does not go together with {other}: the sizes of the network change")
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> "Recipe":
        if self.budget.kind is None:
            return self
        conflicts = {
            f"posterior.granularity = '{self.posterior.granularity}'": self.posterior.granularity != "gate",
            "sparse.shrink_at": self.sparse.shrink_at is not None,
            "masks.ratio": self.masks.ratio is not None,
            "masks.threshold": self.masks.threshold is not None,
            "sparse.epochs = 0": self.sparse.epochs == 0,
            "sparse.kl_coefficient = 0": self.sparse.kl_coefficient == 0,
            "sparse.snapshots": bool(self.sparse.snapshots),
            "shard": self.shard,
            "precision = 'fp16'": self.precision == "fp16",
        }
        refused = [setting for setting, conflict in conflicts.items() if conflict]
        if refused:
            raise ValueError(
                f"budget.{self.budget.kind} removes whole channels while gates learn: it does not go together with "
                f"{', '.join(refused)}"
            )
        return self

    @model_validator(mode="after")
    def _check_variational_finetuning(self) -> "Recipe":
        # Fine-tuning removes the noise of single weights, so each weight needs a variance of its own.
        if self.finetune.variational and self.posterior.variance == "channel":
            raise ValueError(
                "finetune.variational removes the noise of single weights: it needs posterior.variance = 'weight'"
            )
        return self


S = TypeVar("S", bound=Settings)


def list_bundled_settings(folder: Traversable) -> list[str]:
    """List the names of the TOML files in a folder of this package, sorted."""
    names = [path.name for path in folder.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def read_bundled_settings(folder: Traversable, kind: type[S], name: str) -> S:
    """Read settings of one kind from a TOML file that comes with this package.

    Args:
        folder: The folder of the package that holds the files.
        kind: The class of the settings.
        name: Name of the file, without ".toml".

    Returns:
        The settings.

    Raises:
        SettingError: The folder has no such file, or the file does not hold valid settings of this kind.
    """
    names = list_bundled_settings(folder)
    if name not in names:
        raise SettingError(f"no {kind.__name__.lower()} is named {name!r}; there are {', '.join(names)}")
    return make_settings(kind, tomllib.loads((folder / f"{name}.toml").read_text()))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a file; keys that it does not hold take their defaults.

    Args:
        path: A .toml, .yaml or .yml file.

    Returns:
        The recipe.

    Raises:
        SettingError: The file is missing, has another suffix or cannot be parsed, or a key in it is unknown or has a
            wrong value. The message names the file and each such key.
    """
    parsers: dict[str, Callable[[str], object]] = {
        ".toml": tomllib.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
    }
    if path.suffix not in parsers:
        raise SettingError(f"{path}: a recipe is a .toml, .yaml or .yml file")
    try:
        values = parsers[path.suffix](path.read_text())
    except FileNotFoundError:
        raise SettingError(f"{path}: no such recipe") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not readable as {path.suffix[1:]}: {error}") from None
    if not isinstance(values, dict):
        raise SettingError(f"{path}: a recipe is a table of settings, found {type(values).__name__}")
    try:
        return make_settings(Recipe, values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write all settings as TOML; `read_recipe` returns an equal recipe.

    Args:
        recipe: The recipe.
        path: The file to write, whole or not at all.

    Raises:
        FileFormatError: The file cannot be written.
    """
    values = recipe.model_dump(mode="json", exclude_none=True)
    write_bytes(path, tomli_w.dumps(values).encode())

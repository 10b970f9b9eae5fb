"""Settings: one frozen, validated object that is also the TOML or YAML file and the flags of the command line."""

import tomllib
from collections.abc import Callable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tomli_w
import yaml
from annotated_types import Ge, Gt, Lt
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from .errors import SettingError
from .files import write_bytes
from .posterior import DEFAULT_THRESHOLD, Estimator, Prior, Variance

Fraction = Annotated[float, Ge(0), Lt(1)]
Argument = int | float | str | bool | list[int]


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


class PosteriorSettings(Settings):
    """What is learnt about each weight or channel: the argument of `sparsify_`."""

    prior: Prior = "log_uniform"
    """Log-uniform with the paper's KL (eq. 14), with the exact KL, or empirical Bayes (ARD)."""
    estimator: Estimator = "local"
    """How noise enters: local reparameterisation, its two cheaper variants, or one weight sample a batch."""
    estimators: dict[str, Estimator] = {}
    """Name, pattern or type -> estimator of that layer, e.g. the cheap one for convolutions: {Conv2d: weight}."""
    variance: Variance = "weight"
    """A sigma^2 for each weight, or one for all weights of an output channel: then training takes the memory of dense
    training, and local reparameterisation nearly its time."""
    granularity: Literal["weight", "gate", "both"] = "weight"
    """A posterior per weight, one per coupled channel (a gate), or both."""
    init_log_sigma2: float = -10.0
    """Where every log sigma^2 starts."""
    threshold: NonNegativeFloat = DEFAULT_THRESHOLD
    """A weight or channel whose log alpha reaches this is removed."""
    include: tuple[str, ...] = ()
    """Module names, shell patterns of names, or type names to convert; empty means all."""
    exclude: tuple[str, ...] = ()
    """The same, to leave alone."""
    kl_weights: dict[str, NonNegativeFloat] = {}
    """Name, pattern or type -> factor on that layer's KL, e.g. to press harder on costly layers."""


class MaskSettings(Settings):
    """How log alpha becomes masks: the argument of `compute_masks`."""

    structure: Literal["unstructured", "structured", "n:m"] = "unstructured"
    """Single weights, whole coupled channels, or N of every M weights along the input axis."""
    threshold: NonNegativeFloat | Literal["held_out"] | None = None
    """Remove at this log alpha; nothing: what the layers were given; held_out: chosen on data kept from training."""
    ratio: Fraction | None = None
    """Remove this fraction, the least relevant first, instead of using the threshold."""
    scope: Literal["layer", "global"] = "global"
    """Whether a ratio holds in every layer or over all of them together."""
    keep: PositiveInt = 2
    """N of N:M: weights kept in a block."""
    block: PositiveInt = 4
    """M of N:M: weights in a block."""
    allow_empty: bool = False
    """Accept masks that remove a whole layer, and training that removes everything (random labels)."""
    tolerance: NonNegativeFloat = 0.002
    """With threshold=held_out: accuracy given up, at most, against the best threshold on the curve."""


class ModelSettings(Settings):
    """Which network, and where its weights come from."""

    name: str = "lenet_300_100"
    """Any timm name, or lenet_300_100, lenet5_caffe, vgg_like, resnet18_small (see `list-models`)."""
    arguments: dict[str, Argument] = {}
    """Further arguments of `timm.create_model`."""
    pretrained: bool = False
    """Start from timm's pre-trained weights."""
    checkpoint: Path | None = None
    """Start from this .safetensors file (plain weights; pickled files are refused)."""


class DataSettings(Settings):
    """Which data, read through `timm.data`."""

    name: str = "digits"
    """digits (embedded), a timm data set such as torch/mnist, or empty for a folder or tar of images."""
    train: Path | None = None
    """Root of the training data: a folder, an image folder or a tar."""
    test: Path | None = None
    """Root of the test data; nothing: the same root, test split."""
    holdout: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Part of the training data kept from training, to watch it and to choose the threshold."""
    image_size: PositiveInt | None = None
    """Side of the square input; nothing: that of the network's default or of the data."""
    augment: Literal["none", "crop_flip", "crop"] = "none"
    """Random crops, with or without horizontal flips."""
    margin: PositiveInt | None = None
    """Pixels by which crops move, at most; nothing: an eighth of the side."""
    batch_size: PositiveInt = 100
    """Images a step and process."""
    limit: PositiveInt | None = None
    """Use only this many training images."""
    random_labels: bool = False
    """Give training and held-out images labels drawn at random, once (by `seed`): there is nothing to learn then."""
    workers: NonNegativeInt = 0
    """Loader processes; 0 loads in the training process."""

    def resolve_paths(self, folder: Path) -> "DataSettings":
        """Take the paths from `folder`."""
        roots = {"train": self.train, "test": self.test}
        return self.model_copy(update={key: None if root is None else folder / root for key, root in roots.items()})


class Stage(Settings):
    """One stretch of optimisation."""

    epochs: NonNegativeInt = 0
    """Length; 0 skips the stage."""
    optimizer: str = "adam"
    """Any name that `timm.optim` knows."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of the weights; never of the posterior's variances or of gates."""
    hold: Fraction = 0.0
    """Part of the stage at the peak rate; from there it falls linearly to 0."""


class SparseStage(Stage):
    """The variational stage: mean loss + kl_coefficient * KL / N."""

    epochs: NonNegativeInt = 20
    """Length; 0 skips the stage."""
    kl_coefficient: NonNegativeFloat = 1.0
    """Weight of the KL in units of 1/N; 1 is the evidence lower bound."""
    warmup_from: NonNegativeFloat = 0.0
    """Epoch until which the KL's weight is 0."""
    warmup_to: NonNegativeFloat = 0.0
    """Epoch from which it is full; linear between. From scratch, without warm-up, everything dies at once."""
    gate_rate: PositiveFloat = 10.0
    """Learning rate of gates, as a multiple of the weights'."""
    shrink_at: NonNegativeFloat | None = None
    """Log alpha from which channels leave the network while it trains, after every epoch: steps get cheaper, and what
    has gone cannot come back. Nothing: all stay until the end."""
    checkpoint: Path | None = None
    """Start from this posterior.safetensors of another run with the same network and posterior: to train on, or, with
    0 epochs, to decide and fine-tune again."""
    snapshots: tuple[str, ...] = ()
    """Layers whose weights, as they would ship, are written down after every epoch: for pictures that move."""


class FinetuneStage(Stage):
    """The stage after the decision: what is removed stays zero."""

    variational: bool = False
    """Keep the posteriors of the survivors: their noise, and their KL at the sparse stage's full weight."""


class Recipe(Settings):
    """Everything that `nni-sparsevd compress` does, in one file."""

    model: ModelSettings = ModelSettings()
    """Which network."""
    data: DataSettings = DataSettings()
    """Which data."""
    posterior: PosteriorSettings = PosteriorSettings()
    """What is learnt."""
    dense: Stage = Stage()
    """Ordinary training before Sparse VD."""
    sparse: SparseStage = SparseStage()
    """Sparse VD."""
    finetune: FinetuneStage = FinetuneStage()
    """Training of the survivors at fixed masks."""
    masks: MaskSettings = MaskSettings()
    """The decision."""
    seed: int = 0
    """Seed of weights, noise, data order and hold-out."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; the KL stays in float32."""
    shard: bool = False
    """With several processes: weights, gradients and the optimizer's state split among them (FSDP2), not one of each in
    each."""
    channels_last: bool = False
    """Lay training images out channels last: convolutions and pooling are then faster, most of all on a CPU."""
    checkpoint_minutes: PositiveFloat = 5.0
    """A checkpoint is written at every epoch's end and this often within one."""

    @model_validator(mode="after")
    def _parts_are_not_scaled(self) -> "Recipe":
        if self.shard and self.precision == "fp16":
            raise ValueError(
                "shard with precision = 'fp16': its loss scaler needs whole gradients; take 'bf16' or 'no'"
            )
        return self

    @model_validator(mode="after")
    def _shrinking_keeps_what_the_decision_keeps(self) -> "Recipe":
        limit, at = self.masks.threshold, self.sparse.shrink_at
        decided = self.posterior.threshold if limit is None else limit
        if at is None:
            return self
        if isinstance(decided, float) and at < decided:
            raise ValueError(
                f"sparse.shrink_at = {at:g} takes channels away that the threshold, {decided:g}, would keep"
            )
        if self.shard or self.sparse.snapshots:
            other = "shard" if self.shard else "sparse.snapshots"
            raise ValueError(f"sparse.shrink_at does not go together with {other}: the sizes of the network change")
        return self

    @model_validator(mode="after")
    def _survivors_have_noise_of_their_own(self) -> "Recipe":
        if self.finetune.variational and self.posterior.variance == "channel":
            raise ValueError(
                "finetune.variational takes the noise of single weights away: it needs posterior.variance = 'weight'"
            )
        return self


def describe_validation_error(error: ValidationError) -> str:
    """One line a problem: the key as it is written in the file, what is wrong, what was found."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        # what does not go together is said by a rule of ours, which names the keys
        wrong = f"{key}: {problem['msg']} (found {problem['input']!r})"
        lines.append(wrong if key else problem["msg"].removeprefix("Value error, "))
    return "\n".join(lines)


S = TypeVar("S", bound=Settings)


def make_settings(kind: type[S], values: dict[str, object]) -> S:
    """Validate `values` as settings of `kind`; raises `SettingError` naming each bad key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        raise SettingError(f"{describe_validation_error(error)}\n{kind.__name__} has the keys: {known}") from None


def list_bundled_settings(folder: Traversable) -> list[str]:
    """Names of the settings that a folder of this package holds, a TOML file each."""
    return sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))


def read_bundled_settings(folder: Traversable, kind: type[S], name: str) -> S:
    """Read one of them; raises `SettingError` where there is none of that name, or it is no `kind`."""
    if name not in list_bundled_settings(folder):
        what = kind.__name__.lower()
        raise SettingError(f"no {what} is named {name!r}; there are {', '.join(list_bundled_settings(folder))}")
    return make_settings(kind, tomllib.loads((folder / f"{name}.toml").read_text()))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a .toml, .yaml or .yml file; raises `SettingError` naming the file and each bad key."""
    readers: dict[str, Callable[[str], object]] = {
        ".toml": tomllib.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
    }
    if path.suffix not in readers:
        raise SettingError(f"{path}: a recipe is a .toml, .yaml or .yml file")
    try:
        values = readers[path.suffix](path.read_text())
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
    """Write all settings as TOML; `read_recipe` gives back an equal recipe."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    write_bytes(path, tomli_w.dumps(values).encode())

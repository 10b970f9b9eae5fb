"""Settings: frozen, validated objects that are also tables of a TOML or YAML file and flags of the command line.

The docstring below a field is its only description: documentation, table of settings and help of the flags show it.
"""

import difflib
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_args

from annotated_types import Ge, Lt
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, ValidationError, model_validator

from .errors import SettingError
from .posterior import DEFAULT_THRESHOLD, PRIOR_LOG_ALPHA, Estimator, GateFamily, Prior, Variance

Fraction = Annotated[float, Ge(0), Lt(1)]
"""A number from 0 to just below 1."""
UNKNOWN = "extra_forbidden"
"""What pydantic calls a key that settings do not have."""
Argument = int | float | str | bool | list[int]
"""A value that the constructor of a network takes."""

S = TypeVar("S", bound="Settings")


if TYPE_CHECKING:
    _Model = BaseModel  # a call of ours takes any keyword, and mypy would no longer compare them with the fields
else:

    class _ModelType(type(BaseModel)):
        """The class of our models as classes: a call of one raises our error, and not pydantic's."""

        # Why not an `__init__`: pydantic calls that for tables in tables, too, and would lose the keys above them.
        def __call__(cls, **values: object) -> "Settings":
            return make_settings(cls, values)

    class _Model(BaseModel, metaclass=_ModelType):
        """A pydantic model whose constructor raises SettingErrors."""


class Settings(_Model):
    """Base of all settings: immutable, and an unknown key or a wrong value is a SettingError."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


class PosteriorSettings(Settings):
    """What is learned about each weight or channel: the settings of `sparsify_`.

    Example:
        ```python
        import nni_sparsevd as svd
        from torch import nn

        settings = svd.PosteriorSettings(estimator="weight", exclude=("2",))
        model = svd.sparsify_(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), settings)
        assert model[0].settings == settings and type(model[2]) is nn.Linear
        ```
    """

    prior: Prior = "log_uniform"
    """The prior: log-uniform with the paper's KL (eq. 14), log-uniform with the exact KL, or empirical Bayes (ARD)."""
    estimator: Estimator = "local"
    """How noise enters: local reparameterization, its two cheaper variants, or one sample of the weights per batch."""
    estimators: dict[str, Estimator] = {}
    """Name, pattern or type -> estimator of these layers, e.g. the cheap one for convolutions: {Conv2d: weight}."""
    variance: Variance = "weight"
    """One sigma^2 for each weight, or one for all weights of an output channel: training then takes the memory of dense
    training, and local reparameterization nearly its time."""
    granularity: Literal["weight", "gate", "both"] = "weight"
    """One posterior per weight, one per coupled channel (a gate), or both."""
    gate: GateFamily = "gaussian"
    """The posterior of a gate: gaussian, under `prior`, or log_normal on (0, 1], under a log-uniform prior (structured
    Bayesian pruning). A `threshold` of 0 is a signal-to-noise ratio of 1."""
    init_log_sigma2: float = -10.0
    """Initial value of every log sigma^2."""
    threshold: NonNegativeFloat = DEFAULT_THRESHOLD
    """A weight or channel is removed when its log alpha reaches this."""
    include: tuple[str, ...] = ()
    """Layers to convert, by module name, shell pattern of names, or type; empty: all layers."""
    exclude: tuple[str, ...] = ()
    """Layers to leave as they are, by module name, shell pattern of names, or type."""
    kl_weights: dict[str, NonNegativeFloat] = {}
    """Name, pattern or type -> factor on the KL of these layers, e.g. above 1 for layers that are costly to run."""

    @model_validator(mode="after")
    def _refuse_thresholds_of_other_gates(self) -> "PosteriorSettings":
        if self.gate == "log_normal" and self.granularity != "weight" and self.threshold >= PRIOR_LOG_ALPHA:
            raise ValueError(
                f"posterior.threshold = {self.threshold:g} keeps log-normal gates that are nothing but noise, with a "
                f"log alpha of {PRIOR_LOG_ALPHA:.1f}. Set posterior.threshold = 0, a signal-to-noise ratio of 1"
            )
        return self


class MaskSettings(Settings):
    """How log alpha becomes masks: the settings of `compute_masks`.

    Example:
        ```python
        import nni_sparsevd as svd
        from torch import nn

        model = svd.sparsify_(nn.Sequential(nn.Linear(8, 4)))
        masks = svd.compute_masks(model, svd.MaskSettings(ratio=0.5))
        assert masks["0"]["weight"].sum() == 16
        ```
    """

    structure: Literal["unstructured", "structured", "n:m"] = "unstructured"
    """What is removed: single weights, whole coupled channels, or all but N of every M weights along the input axis."""
    threshold: NonNegativeFloat | Literal["held_out", "evidence"] | None = None
    """Log alpha from which weights or channels are removed; not set: the threshold of each layer; held_out: the
    threshold is chosen on data kept from training; evidence: a removal must not lower the model evidence."""
    ratio: Fraction | None = None
    """Remove this fraction, the least relevant first, instead of using the threshold."""
    criterion: Literal["log_alpha", "opd"] = "log_alpha"
    """What a ratio ranks channels by: log alpha, or opd, posterior precision times squared mean, summed over the
    channel's weights. Single weights and gates have the same order by both."""
    scope: Literal["layer", "global"] = "global"
    """Whether the ratio holds in every layer, or over all layers together."""
    keep: PositiveInt = 2
    """N of N:M: weights kept in a block."""
    block: PositiveInt = 4
    """M of N:M: weights in a block."""
    remember_norms: bool = False
    """Let channels go that a norm mixes with others, such as the width of a transformer: the norm of the shrunk network
    then remembers what it has lost."""
    allow_empty: bool = False
    """Accept masks that remove a whole layer, and training that removes everything (random labels)."""
    tolerance: NonNegativeFloat = 0.002
    """With threshold=held_out: the largest loss of accuracy against the best threshold on the curve."""

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "MaskSettings":
        said = [f"threshold = {self.threshold!r}"] if isinstance(self.threshold, str) else []
        said += [f"ratio = {self.ratio:g}"] if self.ratio is not None else []
        said += ["structure = 'n:m'"] if self.structure == "n:m" else []
        if len(said) > 1:
            raise ValueError(f"masks.{said[0]} and {said[1]} both say how much goes: leave one of them out")
        if self.structure == "n:m" and self.keep > self.block:
            raise ValueError(f"masks.keep: {self.keep} of every {self.block} weights cannot be kept")
        if self.criterion == "opd" and self.ratio is None and self.structure != "n:m":
            raise ValueError("masks.criterion = 'opd' ranks, and has no threshold: set masks.ratio")
        return self


def describe_validation_error(error: ValidationError) -> str:
    """Describe each problem on a line of its own: the key as the file spells it, what is wrong, and what was found."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if key:
            wrong = "there is no such key" if problem["type"] == UNKNOWN else problem["msg"]
            lines.append(f"{key}: {wrong} (found {problem['input']!r})")
        else:
            # A problem without a key comes from one of our own validators, whose message names the keys itself.
            lines.append(problem["msg"].removeprefix("Value error, "))
    return "\n".join(lines)


def make_settings(kind: type[S], values: dict[str, object]) -> S:
    """Validate values as settings of one kind.

    Args:
        kind: The class of the settings.
        values: Key -> value; keys that are missing take their defaults.

    Returns:
        The settings, frozen.

    Raises:
        SettingError: A key is unknown or its value is wrong. The message has one line for each such key.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SettingError("\n".join([describe_validation_error(error), *_suggest_keys(kind, error)])) from None


def _suggest_keys(kind: type[Settings], error: ValidationError) -> list[str]:
    """For each table with an unknown key: which key was meant, if one is alike, and which there are."""
    suggestions: dict[str, list[str]] = {}
    for problem in error.errors():
        *path, unknown = (str(part) for part in problem["loc"] or ("",))
        table = _table_at(kind, path)
        if problem["type"] != UNKNOWN or table is None:
            continue
        title = ".".join(path) or kind.__name__
        lines = suggestions.setdefault(title, [f"{title} has the keys: {', '.join(table.model_fields)}"])
        alike = difflib.get_close_matches(unknown, table.model_fields, n=1)
        lines[:0] = [f"did you mean {'.'.join([*path, name])}?" for name in alike]
    return [line for lines in suggestions.values() for line in lines]


def _table_at(kind: type[Settings], path: list[str]) -> type[Settings] | None:
    """The settings that stand in settings of one kind under a path of keys; None where other values stand there."""
    for key in path:
        field = kind.model_fields.get(key)
        tables = [field.annotation, *get_args(field.annotation)] if field is not None else []  # `A | None` holds A
        kinds = [table for table in tables if isinstance(table, type) and issubclass(table, Settings)]
        if not kinds:
            return None
        kind = kinds[0]
    return kind


def choose_settings(function: str, kind: type[S], settings: S | None, keywords: dict[str, object]) -> S:
    """Choose the settings of a call that takes an object or keywords.

    Args:
        function: Name of the function that is called.
        kind: The class of the settings.
        settings: The object, or None.
        keywords: Key -> value.

    Returns:
        `settings`, or the settings that the keywords give.

    Raises:
        SettingError: Both are given, or a keyword is unknown or its value wrong.
    """
    if settings is None:
        return make_settings(kind, keywords)
    if keywords:
        found = ", ".join(keywords)
        raise SettingError(f"{function}: give either a {kind.__name__} or keywords, not both (found {found})")
    return settings

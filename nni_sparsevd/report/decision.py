"""What decided about the weights and channels of a run: what its pictures of log alpha show, and say."""

from dataclasses import dataclass
from typing import Any

SETTINGS_OF_A_BUDGET = {"macs", "parameters", "latency", "tolerance"}
"""Keys of the recipe's table `budget`, each of which sets one."""


@dataclass(frozen=True)
class Decision:
    """What decided about a run.

    Attributes:
        threshold: Log alpha from which things were removed; None where something else decided.
        sentence: What decided, in words.
    """

    threshold: float | None
    sentence: str


def find_decision(recipe: dict[str, Any], curve: dict[str, Any] | None) -> Decision:
    """Find what decided.

    Args:
        recipe: The content of recipe.toml, which holds all settings that are set.
        curve: The content of curve.json; None without such a file.

    Returns:
        The decision.
    """
    masks = recipe.get("masks", {})
    if not SETTINGS_OF_A_BUDGET.isdisjoint(recipe.get("budget", {})):
        return Decision(None, "channels left until the budget was met")
    if masks.get("structure") == "n:m":
        return Decision(None, f"of every {masks['block']} weights the {masks['keep']} with the lowest were kept")
    if "ratio" in masks:
        return Decision(None, f"masks.ratio = {masks['ratio']:g} decided, not a threshold")
    if curve is None:
        return Decision(None, "noise gathers on the right")
    if curve["chosen"] == "evidence":
        # About a channel it decides by the sum over the weights: there is no line to draw.
        return Decision(None, "the evidence decided, not a threshold; that of a channel is the sum over its weights")
    return Decision(curve["chosen"], "kept left of the threshold, noise right of it")

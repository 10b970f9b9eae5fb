"""The dense twin: the dense network trained on for as long as the run, so that the comparison is like with like."""

from ..recipe import Recipe, Stage

TWIN_STAGES = ("twin_sparse", "twin_finetune", "twin_quantize")
"""The twin's counterparts of the stages that come after the dense one, in order."""


def list_twin_stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of the twin: length, optimizer and schedule of the run's own, without posteriors and removal.

    Args:
        recipe: The recipe of the run.

    Returns:
        Name -> stage, in order, of those that have epochs; empty where the recipe asks for no twin.
    """
    if not recipe.twin:
        return {}
    stages = {}
    counterparts = (recipe.sparse, recipe.finetune.of_twin(), recipe.quantize)
    for name, counterpart in zip(TWIN_STAGES, counterparts, strict=True):
        is_left_out = name == "twin_quantize" and not recipe.quantize.aware
        if counterpart.epochs and not is_left_out:
            stages[name] = Stage(**counterpart.model_dump(include=set(Stage.model_fields)))
    return stages

"""The network of a recipe: built for its data, with the weights that the recipe names."""

from torch import nn

from ..preprocessing import Requirements
from ..recipe import ModelSettings
from ..settings import Argument
from .building import build_model
from .paper_networks import OWN_MODELS
from .requirements import takes_image_size
from .weights import find_head, load_weights_, read_weights, replace_other_head_, start_new_head_


def create_model(settings: ModelSettings, num_classes: int, in_chans: int, image_size: int) -> nn.Module:
    """Build the network of a recipe for its data.

    Args:
        settings: Which network, and where its weights come from.
        num_classes: Classes of the data.
        in_chans: Channels of the images.
        image_size: Side of the images; only networks that are built for one size are told.

    Returns:
        The network.

    Raises:
        ModelError: The network cannot be built, or the weights of the checkpoint do not fit it.
        FileFormatError: The checkpoint cannot be read.
    """
    arguments: dict[str, Argument] = {"num_classes": num_classes, "in_chans": in_chans}
    takes_any_size = {"lenet_300_100", "lenet5_caffe"}  # timm cannot know that their `img_size` is free
    if settings.name in takes_any_size or takes_image_size(settings.name):
        arguments["img_size"] = image_size
    # A checkpoint takes the place of timm's weights: they are not downloaded to be overwritten.
    downloads = settings.pretrained and settings.checkpoint is None
    model = build_model(settings.name, arguments | settings.arguments, downloads)
    if downloads and model.pretrained_cfg["num_classes"] != num_classes:  # type: ignore[index]
        start_new_head_(model)  # timm has left out the classifier of other classes
    if settings.checkpoint is not None:
        tensors, _ = read_weights(settings.checkpoint)
        load_weights_(model, replace_other_head_(model, tensors, settings.checkpoint), settings.checkpoint)
    return model


def check_checkpoint(settings: ModelSettings, image_size: int | None, requirements: Requirements) -> None:
    """Refuse a checkpoint of another network, before anything costly is done; nothing without a checkpoint.

    Args:
        settings: Which network, and the checkpoint.
        image_size: Side of the images, where it is known.
        requirements: From `find_requirements`, which has read the checkpoint for them.

    Raises:
        ModelError: The network cannot be built, or the weights are not its own.
        FileFormatError: The checkpoint cannot be read.
    """
    if settings.checkpoint is None:
        return
    tensors, _ = read_weights(settings.checkpoint)
    # Sizes that only the data tell are left out of the comparison: here the names count, and most of the shapes.
    size = image_size or requirements.image_size or requirements.usual_size or 32
    untouched = settings.model_copy(update={"checkpoint": None, "pretrained": False})
    model = create_model(untouched, 2, requirements.in_chans or 3, size)
    own = model.state_dict()
    fitting = dict(tensors)
    for name in set(find_head(model)) & set(tensors):
        fitting[name] = own[name]
    if settings.name in OWN_MODELS:
        # How many inputs their layers have is known when the images are.
        for name in set(own) & set(tensors):
            if tensors[name].shape[:1] == own[name].shape[:1]:
                fitting[name] = own[name]
    load_weights_(model, fitting, settings.checkpoint)

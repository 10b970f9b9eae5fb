"""`predict`: the class of each photo, by a small network and the preprocessing that it was trained with."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from .command import Command, add_level


def add_arguments(parser: ArgumentParser) -> None:
    """Add the network and the photos."""
    parser.add_argument("run", type=Path, help="run folder of compress, or what nni_sparsevd.load opens")
    parser.add_argument("photos", type=Path, nargs="+", help="photos")
    add_level(parser)


def run(arguments: Namespace, command_line: list[str]) -> None:
    """Print the most probable class of each photo, with its probability."""
    from ..prediction import predict_photos

    for prediction in predict_photos(arguments.run, arguments.photos, level=arguments.level):
        print(prediction)


PREDICT = Command(
    name="predict",
    summary="name the class of photos with the small network of a run",
    description="Name the class of photos, and its probability, with the small network of a run or any file of it.",
    add_arguments=add_arguments,
    run=run,
)

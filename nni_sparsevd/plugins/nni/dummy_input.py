"""NNI's `dummy_input`, as this package reads example inputs."""

from typing import Any

from ...graph import CallArguments, as_arguments


def read_dummy_input(dummy_input: Any) -> CallArguments:
    """Read the input that a network is traced with.

    Args:
        dummy_input: What the network is called with.  A list holds the arguments by position, as everywhere in NNI;
            everything else is read as `example_inputs` are elsewhere in this package.

    Returns:
        The arguments.
    """
    return as_arguments(tuple(dummy_input) if type(dummy_input) is list else dummy_input)

"""Assertions with a message that also work outside pytest and under `python -O`."""


def check_that(condition: bool, message: str) -> None:
    """Raise an `AssertionError` with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)

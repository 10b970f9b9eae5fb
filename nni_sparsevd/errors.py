"""What goes wrong, by kind.  Every message names the module, key or file, what was found, and what to do."""


class SparseVDError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingError(SparseVDError, ValueError):
    """A setting, flag, recipe key or argument is unknown, has the wrong type or is out of range."""


class ModelError(SparseVDError):
    """A network cannot be built, or has nothing in it that the call could work on."""


class DataError(SparseVDError):
    """A data set is missing, empty or not what the network expects."""


class MaskError(SparseVDError, ValueError):
    """A mask names no module, has the wrong shape, or would leave a layer empty."""


class TraceError(SparseVDError):
    """A network could not be traced, so nothing can be said about its channels."""


class ShrinkError(SparseVDError):
    """A shrunk network does not compute what the masked one does."""


class TrainingError(SparseVDError):
    """Training diverged, collapsed, or was asked to go on from something that does not fit."""


class FileFormatError(SparseVDError):
    """A file is truncated, altered, of another format, or of a format that this package refuses to read."""


def describe_error(error: Exception) -> str:
    """First line of what somebody else's code raised, the next too after a colon; its kind, where it says nothing."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


def summarize_error(error: Exception) -> str:
    """Kind and first line of what somebody else's code raised: for a row that has to say it."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


class SparseVDWarning(UserWarning):
    """Something was done that is probably not what was meant."""

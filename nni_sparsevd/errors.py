"""Our errors, by kind.  Every message names the module, key or file, says what was found, and what to do."""


class SparseVDError(Exception):
    """Base of every error that this package raises on purpose.

    Example:
        ```python
        import nni_sparsevd as svd
        from torch import nn

        try:
            svd.kl(nn.Linear(2, 2))
        except svd.SparseVDError as error:
            print(error)  # Linear has no posterior; call sparsify_ first
        ```
    """


class SettingError(SparseVDError, ValueError):
    """A setting, flag, recipe key or argument is unknown, has the wrong type or is out of range."""


class ModelError(SparseVDError):
    """A network cannot be built, or it has nothing that the call could work on."""


class DataError(SparseVDError):
    """A data set is missing, empty or not what the network expects."""


class MaskError(SparseVDError, ValueError):
    """A mask names no module, has the wrong shape, or would leave a layer empty."""


class TraceError(SparseVDError):
    """A network cannot be traced, so nothing can be said about its channels."""


class ShrinkError(SparseVDError):
    """A shrunk network does not compute what the masked one does, or a plan was made for another network."""


class TrainingError(SparseVDError):
    """Training diverged or collapsed, or was asked to continue from files that do not fit."""


class FileFormatError(SparseVDError):
    """A file is truncated, altered, of another format, or of a format that this package refuses to read."""


def describe_error(error: Exception) -> str:
    """Describe an error of another library in one line.

    Args:
        error: The error.

    Returns:
        The first line of its message, with the second line where the first ends in a colon; the name of its class where
        it has no message.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    if lines[0].endswith(":") and len(lines) > 1:
        return f"{lines[0]} {lines[1].strip()}"
    return lines[0]


def summarize_error(error: Exception) -> str:
    """Summarize an error of another library for a table: the name of its class and the first line of its message."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


class SparseVDWarning(UserWarning):
    """The package does something that the caller probably did not mean."""

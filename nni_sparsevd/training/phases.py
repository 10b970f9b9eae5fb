"""Progress outside of the training loop, while something is read, traced or measured."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def show_phase(words: str, *, shown: bool = True) -> Iterator[None]:
    """While entered, show a spinner, the words and the seconds in a terminal; print the words as a line elsewhere.

    Args:
        words: What is under way.
        shown: Whether this process shows anything.
    """
    console = Console()
    if not shown:
        yield
    elif not console.is_terminal:
        console.print(f"{words} ...", highlight=False, soft_wrap=True)
        yield
    else:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(words, total=None)
            yield

"""What is under way besides training: reading, tracing, measuring. Something moves, or a line says what it is."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def show_phase(words: str, *, shown: bool = True) -> Iterator[None]:
    """While entered, a terminal shows a spinner, the words and the seconds; elsewhere the words are a line.

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

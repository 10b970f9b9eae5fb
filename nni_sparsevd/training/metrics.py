"""What a run tells: metrics.jsonl, TensorBoard, and a progress bar or, away from a terminal, a line an epoch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ..errors import FileFormatError
from ..files import read_rows, write_bytes


class Metrics:
    """Appends rows; a resumed run first drops the rows past the place from which it goes on."""

    def __init__(self, folder: Path, console: Console, keep: dict[str, int], write: bool = True) -> None:
        """`keep`: last epoch to keep of each stage; rows of other stages go.  Without `write` nothing is told."""
        self.path = folder / "metrics.jsonl"
        self.console = console
        self._board = None
        if write:
            rows = [row for row in read_rows(self.path) if row["epoch"] <= keep.get(row["stage"], -1)]
            write_bytes(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())
            self._board = SummaryWriter(str(folder / "tensorboard"))
        self._progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[news]}"),
            console=console,
            disable=not (write and console.is_terminal),
        )

    def __enter__(self) -> "Metrics":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()

    @contextmanager
    def stage(self, name: str, steps: int, done: int) -> Iterator[TaskID]:
        """Show a bar for one stage."""
        bar = self._progress.add_task(name, total=steps, completed=done, news="")
        yield bar
        self._progress.refresh()

    def step(self, bar: TaskID, news: str | None = None) -> None:
        """Go one step further."""
        self._progress.advance(bar)
        if news is not None:
            self._progress.update(bar, news=news)

    def epoch(self, row: dict[str, Any]) -> None:
        """Record a row, to file and TensorBoard, and say it; raises `FileFormatError` where they cannot be written."""
        if self._board is None:
            return
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
            for key, value in row.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{row['stage']}/{key}", value, row["step"])
        except OSError as error:
            raise FileFormatError(f"{self.path}: cannot be written: {error.strerror}; --resume goes on") from error
        self.console.print(
            f"{row['stage']:9} epoch {row['epoch']:3}  loss {row['loss']:.4f}  kl {row['kl']:.4g}  "
            f"accuracy {100 * row['accuracy']:.2f} %  sparsity {100 * row['sparsity']:.2f} %  "
            f"compression {row['compression']:.1f}x  {row['seconds']:.0f} s",
            highlight=False,
            soft_wrap=True,
        )

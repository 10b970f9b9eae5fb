"""The record of a run: metrics.jsonl, TensorBoard, and a progress bar or, away from a terminal, one line per epoch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ..errors import FileFormatError
from ..files import read_rows, write_bytes


@final
class Metrics:
    """Records one row per epoch; a resumed run first drops the rows of epochs that it will train again."""

    def __init__(self, folder: Path, console: Console, keep: Mapping[str, int], write: bool = True) -> None:
        """Open the record in `folder`.

        Args:
            folder: The run folder.
            console: Where progress is shown.
            keep: Stage -> last epoch whose row stays; rows of other stages are dropped.
            write: Whether this process records and shows anything.
        """
        self.path = folder / "metrics.jsonl"
        self.console = console
        self._board = None
        if write:
            # Rows beyond the checkpoint are of steps that a resumed run takes again.
            rows = [row for row in read_rows(self.path) if row["epoch"] <= keep.get(row["stage"], -1)]
            write_bytes(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())
            self._board = SummaryWriter(str(folder / "tensorboard"))
        self._progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
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
    def show_stage(self, name: str, steps: int, done: int) -> Iterator[TaskID]:
        """Show a bar for a stage of `steps` steps, of which some are `done`; gives the handle of the bar."""
        bar = self._progress.add_task(name, total=steps, completed=done, status="")
        yield bar
        self._progress.refresh()

    @contextmanager
    def show_phase(self, words: str) -> Iterator[None]:
        """Show that something is under way between the stages: a bar that has no end, or a line."""
        if self._progress.disable:
            if self._board is not None:
                self.console.print(f"{words} ...", highlight=False, soft_wrap=True)
            yield
            return
        bar = self._progress.add_task(words, total=None, status="")
        try:
            yield
        finally:
            self._progress.remove_task(bar)

    def advance(self, bar: TaskID, status: str | None = None) -> None:
        """Move a bar one step further, and show `status` behind it; None leaves the text that is there."""
        self._progress.advance(bar)
        if status is not None:
            self._progress.update(bar, status=status)

    def record(self, row: dict[str, Any]) -> None:
        """Write the row of an epoch to the file and to TensorBoard, and show it.

        Raises:
            FileFormatError: The row cannot be written.
        """
        if self._board is None:
            return
        # Appended, not rewritten: a kill can only cut the last line, which `read_rows` passes over.
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

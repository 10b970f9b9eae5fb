"""What breaks a run, and what is left of it.  Linux; the tests of a full disk need root.

Run: `python examples/benchmarks/faults.py OUT.json`

One recipe on the embedded digits: dense, sparse, threshold, fine-tuning, with a checkpoint every 60 ms.  A run is
broken off at a random moment, again and again until it is through; then all that it left is compared, bit by bit,
with what a run left that nothing happened to.  After each blow every file in the folder must be whole.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from nni_sparsevd import training
from nni_sparsevd.errors import SparseVDError
from nni_sparsevd.files import PARTIAL_SUFFIX, load_tensors, read_json, read_rows, write_json
from nni_sparsevd.recipe import DataSettings, FinetuneStage, Recipe, SparseStage, Stage
from nni_sparsevd.settings import MaskSettings
from nni_sparsevd.training import loop
from nni_sparsevd.training.environment import describe_environment

RECIPE = Recipe(
    data=DataSettings(batch_size=50),
    dense=Stage(epochs=1),
    sparse=SparseStage(epochs=2, kl_coefficient=0.1, warmup_to=1.0),
    finetune=FinetuneStage(epochs=2),
    masks=MaskSettings(threshold="held_out", tolerance=0.02),
    checkpoint_minutes=0.001,
)
STEPS = 125
DONE, OURS, OTHERS = 0, 3, 4
"""Exit codes of a run: it is through; it ended with an error of ours; with somebody else's."""
STOPPED, HUNG = 5, 6
"""It was told to stop, and did; it did not end by itself."""
ENDINGS = {
    DONE: "done", OURS: "our error", OTHERS: "another error", STOPPED: "stopped", HUNG: "hung",
    -signal.SIGKILL: "killed", -signal.SIGTERM: "terminated",
}  # fmt: skip
Harm = Callable[[], None]
Dice = random.Random


def run(folder: Path, harm: Harm = lambda: None, *, ranks: int = 1) -> list[int]:
    """Start or resume the run in processes of its own; returns their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os._exit(_in_child(folder, harm, rank, ranks, port))
        children.append(child)
    return children


def _in_child(folder: Path, harm: Harm, rank: int, ranks: int, port: int) -> int:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="1")
    torch.set_num_threads(1)
    try:
        harm()
        training.compress(RECIPE, folder, [], resume=(folder / "recipe.toml").exists())
    except SparseVDError:
        return OURS
    except training.Interrupted:
        return STOPPED
    except BaseException:
        return OTHERS
    return DONE


def ended(child: int, patience: float = 600.0) -> int:
    """Exit code, or minus the signal that killed it."""
    late = time.monotonic() + patience
    while time.monotonic() < late:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG


def torn(folder: Path) -> int:
    """Files that cannot be read whole; what is still being written has no name yet."""
    count = 0
    for path in folder.glob("*"):
        try:
            if path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".jsonl":
                read_rows(path)
        except SparseVDError:
            count += 1
    return count


def left(folder: Path) -> dict[str, object]:
    """All that a run leaves, less the times in it."""
    found: dict[str, object] = {}
    for path in folder.glob("*.safetensors"):
        tensors, metadata = load_tensors(path)
        found[path.name] = {name: value.numpy().tobytes() for name, value in tensors.items()}, metadata
    found |= {name: read_json(folder / name) for name in ("curve.json", "log_alpha.json")}
    rows = read_rows(folder / "metrics.jsonl")
    found["rows"] = [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]
    found["unfinished"] = [path.name for path in folder.glob(f".*{PARTIAL_SUFFIX}")]
    return found


class Count:
    """What came of one kind of blow."""

    def __init__(self) -> None:
        self.blows = self.torn = self.runs = self.equal = 0
        self.endings: dict[str, int] = {}

    def blow(self, folder: Path, code: int) -> None:
        """A run that was broken off."""
        self.blows, self.torn = self.blows + 1, self.torn + torn(folder)
        name = ENDINGS.get(code, f"exit code {code}")
        self.endings[name] = self.endings.get(name, 0) + 1

    def through(self, folder: Path, whole: dict[str, object]) -> None:
        """A run that has come to its end, whatever had happened to it."""
        self.runs, self.equal = self.runs + 1, self.equal + (left(folder) == whole)


# Each kind of blow starts the run in the folder or resumes it, harms it, and returns how it ended.


def killed(folder: Path, dice: Dice) -> int:
    """SIGKILL at any moment of the process's life."""
    (child,) = run(folder)
    time.sleep(dice.uniform(0.02, 2.0))
    os.kill(child, signal.SIGKILL)  # no harm to one that has ended: its parent still has to hear of it
    return ended(child)


def killed_writing(folder: Path, dice: Dice) -> int:
    """SIGKILL when a file has been written and is not in its place yet."""
    at = dice.randint(2, 20)
    return ended(*run(folder, lambda: on_call(os, "replace", at, lambda *_: os.kill(os.getpid(), signal.SIGKILL))))


def spoilt(folder: Path, dice: Dice) -> int:
    """NaN in all images of one step."""
    at = dice.randint(1, STEPS)

    def spoil(images: Tensor, model: nn.Module, *, channels_last: bool) -> Tensor:
        return images * float("nan")

    return ended(*run(folder, lambda: on_call(loop, "lay_out", at, spoil)))


def jumping(folder: Path, dice: Dice) -> int:
    """The clock on the wall, up to a day wrong, differently at every look."""

    def harm() -> None:
        real = time.time
        time.time = lambda: real() + dice.uniform(-86400, 86400)

    return ended(*run(folder, harm))


def widowed(folder: Path, dice: Dice) -> int:
    """SIGKILL to one of two processes; the other has to end by itself."""
    children = run(folder, ranks=2)
    victim = dice.randrange(2)
    time.sleep(dice.uniform(0.5, 6.0))
    os.kill(children[victim], signal.SIGKILL)
    codes = [ended(children[victim]), ended(children[1 - victim], patience=60.0)]
    return codes[1] if codes != [DONE, DONE] else DONE


def filled(folder: Path, dice: Dice) -> int:
    """A disk of a few megabytes, of another size at every attempt."""
    remount(folder.parent, f"size={dice.randint(200, 6000)}k")
    code = ended(*run(folder))
    remount(folder.parent, "size=64m")
    return code


def read_only(folder: Path, dice: Dice) -> int:
    """A disk that is read-only at every other attempt; at the rest the run is told to stop on its way."""
    denied = dice.random() < 0.5
    remount(folder.parent, "ro" if denied else "rw")
    (child,) = run(folder)
    if not denied:
        time.sleep(dice.uniform(0.5, 2.0))
        os.kill(child, signal.SIGTERM)
    code = ended(child)
    remount(folder.parent, "rw")
    return code


def on_call(room: Any, name: str, at: int, instead: Callable[..., Any]) -> None:
    """Have the `at`th call of a function do something else."""
    real, seen = getattr(room, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        seen += 1
        return (instead if seen == at else real)(*arguments, **named)

    setattr(room, name, counted)


def remount(place: Path, option: str) -> None:
    """Change a mounted disk; one that holds more than a smaller size keeps its own."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], capture_output=True, check=False)


@contextlib.contextmanager
def disk(place: Path) -> Iterator[None]:
    """A disk in memory at `place`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@dataclass(frozen=True)
class Kind:
    """A kind of blow."""

    name: str
    attempt: Callable[[Path, Dice], int]
    blows: int
    ranks: int = 1
    on_a_disk: bool = False


KINDS = (
    Kind("kill -9 at any moment", killed, 100),
    Kind("kill -9 between writing a file and renaming it", killed_writing, 30),
    Kind("NaN in a batch", spoilt, 30),
    Kind("a full disk", filled, 30, on_a_disk=True),
    Kind("a read-only disk", read_only, 20, on_a_disk=True),
    Kind("kill -9 of one of two ranks", widowed, 15, ranks=2),
    Kind("a wall clock that jumps by hours", jumping, 5),
)


def struck(kind: Kind, seed: int) -> dict[str, object]:
    """Break runs off until there were enough blows, and let each come to its end."""
    dice, found = Dice(seed), Count()
    with tempfile.TemporaryDirectory() as room, contextlib.ExitStack() as stack:
        if kind.on_a_disk:
            stack.enter_context(disk(Path(room)))
        unharmed = [ended(child) for child in run(Path(room) / "whole", ranks=kind.ranks)]
        assert unharmed == [DONE] * kind.ranks, unharmed
        whole, folder = left(Path(room) / "whole"), Path(room) / "run"
        shutil.rmtree(Path(room) / "whole")
        while found.blows < kind.blows or folder.exists():
            rests = found.blows >= kind.blows
            code = max(map(ended, run(folder, ranks=kind.ranks))) if rests else kind.attempt(folder, dice)
            if code != DONE:
                found.blow(folder, code)
                continue
            found.through(folder, whole)
            shutil.rmtree(folder)
            if found.runs >= kind.blows:
                break
    return {"kind": kind.name, **vars(found)}


def main(out: Path, seed: int = 0, only: str = "") -> None:
    """Strike every kind of blow.

    Args:
        out: where the counts go, as JSON.
        seed: of the moments.
        only: kinds whose names hold this.
    """
    torch.set_num_threads(1)
    rows = []
    for kind in KINDS:
        if only in kind.name:
            rows.append(struck(kind, seed))
            print(rows[-1], flush=True)
            write_json(out, {"environment": describe_environment(sys.argv, seed), "results": rows})


if __name__ == "__main__":
    auto_cli(main)

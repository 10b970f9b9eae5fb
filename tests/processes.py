"""Processes for tests that start within milliseconds: forked from a server that has imported everything once.

A fresh interpreter takes five seconds or more to import PyTorch, timm and the rest, and two of them side by side take
twice that on two cores. In all other respects these processes are like any other: they have their own environment and
memory, they can be killed, and they have an exit code. They leave without tearing the interpreter down.

Tests that look at what is imported need a fresh interpreter instead.
"""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

PRELOADED = [
    "nni_sparsevd.cli.compress",
    "nni_sparsevd.report",
    "nni_sparsevd.results",
    "nni_sparsevd.studies.bench.trial",
    "nni_sparsevd.training",
    "sklearn.datasets",
    "pytest",
    "hypothesis",
    "timm",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
]
"""What the server imports. The imports of these modules start no thread, which a fork would lose."""
SECONDS = 240
"""What a process may take."""

Target = Callable[..., int | None]


def start_server() -> None:
    """Start the server, where it does not run; the first to start it decides what it imports."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


class Child:
    """A process that calls a function of a test; what the function returns is the exit code, with 0 for None."""

    def __init__(self, target: Target, *arguments: object, environment: dict[str, str] | None = None) -> None:
        """Start the process.

        Args:
            target: A function at the top level of a module, which the process imports.
            arguments: What the function is called with; anything that can be pickled.
            environment: Added to the environment of this process.
        """
        start_server()
        handle, name = tempfile.mkstemp(suffix=".txt")
        os.close(handle)
        self._output = Path(name)
        variables = {**os.environ, **(environment or {})}
        context = multiprocessing.get_context("forkserver")
        self._process: BaseProcess = context.Process(target=_call, args=(target, arguments, variables, name))
        self._process.start()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = SECONDS) -> tuple[int, str]:
        """Wait for the end and return the exit code, negative for a signal, and all that was printed."""
        self._process.join(seconds)
        code = self._process.exitcode
        self.kill()
        output = self._output.read_text()
        self._output.unlink()
        if code is None:
            raise TimeoutError(f"a process of a test took more than {seconds} s; it printed:\n{output}")
        return code, output

    def kill(self) -> None:
        """End it at once; nothing happens where it has ended."""
        self._process.kill()
        self._process.join()


def _call(target: Target, arguments: tuple[object, ...], environment: dict[str, str], output: str) -> None:
    """What the new process does."""
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(handle, stream.fileno())
    # A shell tells what it runs in the background to ignore Ctrl-C, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))


def run_ranks(count: int, target: Target, *arguments: object) -> None:
    """Call `target` in `count` processes at once, each with the environment that torchrun would give it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(count):
        environment = {
            "ACCELERATE_USE_CPU": "1",
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
        }
        ranks.append(Child(_call_as_rank, target, *arguments, environment=environment))
    try:
        ends = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:  # those that wait for a rank that has failed
            rank.kill()
    assert [code for code, _ in ends] == [0] * count, "\n".join(output for _, output in ends)


def _call_as_rank(target: Target, *arguments: object) -> int | None:
    code = target(*arguments)
    if dist.is_initialized():
        dist.barrier()  # the connections of a process that leaves break, and others may still need them
    return code

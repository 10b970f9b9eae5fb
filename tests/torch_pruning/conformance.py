"""`python tests/torch_pruning/conformance.py FILE` runs the whole table, network by network, and writes it as JSON."""

import sys
from pathlib import Path

import torch
from table_of_pruners import NETWORKS, ROWS, outcome

from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.training.environment import environment


def main(path: Path) -> None:
    """What the file has already is not done again."""
    done = read_json(path)["networks"] if path.exists() else {}
    for name in NETWORKS:
        if name not in done:
            done[name] = {row: outcome(row, name) for row in ROWS}
            command = ["tests/torch_pruning/conformance.py", str(path)]
            write_json(path, {"environment": environment(command, 0), "networks": done})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

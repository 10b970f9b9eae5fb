"""`python tests/torch_pruning/write_table_of_pruners.py FILE` runs the whole table and writes it as JSON."""

import sys
from pathlib import Path

import torch
from table_of_pruners import NETWORKS, ROWS, outcome

from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.training.environment import describe_environment


def main(path: Path) -> None:
    """Rows that the file has already are not done again."""
    done = read_json(path)["networks"] if path.exists() else {}
    command = ["tests/torch_pruning/write_table_of_pruners.py", str(path)]
    for name in NETWORKS:
        found = done.setdefault(name, {})
        for row in ROWS:
            if row not in found:
                found[row] = outcome(row, name)
                done[name] = {one: found[one] for one in ROWS if one in found}
                write_json(path, {"environment": describe_environment(command, 0), "networks": done})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

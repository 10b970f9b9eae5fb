"""`python tests/torch_pruning/write_table_of_pruners.py FILE` runs the whole table and writes it as JSON."""

import sys
from pathlib import Path

import torch
from table_of_pruners import NETWORKS, ROWS, outcome

from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.training.environment import describe_environment


def main(path: Path) -> None:
    """Run the rows that the file does not have yet, and write the file after each."""
    networks = read_json(path)["networks"] if path.exists() else {}
    command = ["tests/torch_pruning/write_table_of_pruners.py", str(path)]
    for name in NETWORKS:
        outcomes = networks.setdefault(name, {})
        for row in ROWS:
            if row in outcomes:
                continue
            outcomes[row] = outcome(row, name)
            # In the order of the table, whatever was there before.
            networks[name] = {key: outcomes[key] for key in ROWS if key in outcomes}
            write_json(path, {"environment": describe_environment(command, 0), "networks": networks})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

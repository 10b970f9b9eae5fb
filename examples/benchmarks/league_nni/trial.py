"""One rival of a league as a trial of NNI: `python trial.py LEAGUE OUT [--data DIR] [--rival NAME]`."""

import sys
from pathlib import Path

import nni
from jsonargparse import auto_cli

from nni_sparsevd.cli import main as command
from nni_sparsevd.files import read_json
from nni_sparsevd.studies import bench


def main(league: str, out: Path, data: Path = Path("data"), rival: str = "") -> int:
    """Play all levels and seeds of the rival that NNI hands out; report its accuracy on held-out images.

    Args:
        league: name of the league
        out: folder for the rows, which all machines see
        data: folder that holds MNIST/raw and cifar10/*.tar
        rival: who plays where NNI hands out nobody
    """
    name = (nni.get_next_parameter() or {}).get("rival", rival)
    code = command(["bench", league, f"--out={out}", f"--data={data}", f"--rivals=[{name}]"])
    rows = read_json(out / league / f"{league}.json")["rows"] if code == 0 else []
    chosen = bench.read_league(league)
    scores = [row["held_out"] for row in rows if row["rival"] == name and row["level"] == chosen.sweep_level]
    nni.report_final_result(max(scores, default=0.0))
    return code


if __name__ == "__main__":
    sys.exit(auto_cli(main))

"""A league as an experiment of NNI, one rival a trial: `python experiment.py LEAGUE OUT [--data DIR]`."""

import shlex
import sys
from pathlib import Path

from jsonargparse import auto_cli
from nni.experiment import Experiment, ExperimentConfig

from nni_sparsevd.studies import bench

HERE = Path(__file__).parent


def main(
    league: str,
    out: Path,
    data: Path = Path("data"),
    rivals: list[str] | None = None,
    config: Path = HERE / "config.yml",
    python: str = sys.executable,
    port: int = 8080,
) -> int:
    """Run until every rival has played.

    Args:
        league: name of the league
        out: folder for the rows, which all machines see
        data: folder that holds MNIST/raw and cifar10/*.tar
        rivals: only these; nothing: everyone
        config: settings of the experiment, most of all the machines (trainingService)
        python: interpreter on the machines
        port: of NNI's web page
    """
    names = list(bench.rivals_of(bench.read_league(league).model_copy(update={"rivals": tuple(rivals or ())})))
    chosen = ExperimentConfig.load(str(config))
    chosen.trial_code_directory = HERE
    where = f"{shlex.quote(str(out.resolve()))} --data={shlex.quote(str(data.resolve()))}"
    chosen.trial_command = f"{shlex.quote(python)} trial.py {league} {where}"
    chosen.search_space = {"rival": {"_type": "choice", "_value": names}}
    chosen.max_trial_number = len(names)
    return 0 if Experiment(chosen).run(port) else 1


if __name__ == "__main__":
    sys.exit(auto_cli(main))

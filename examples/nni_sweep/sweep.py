"""A search over Sparse VD's settings by NNI: `python sweep.py --out DIR`; the README beside this says more."""

import os
import shlex
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import report
import yaml
from experiment import run, stop_orphans
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from nni_sparsevd.errors import SettingError, SparseVDError
from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.training.environment import describe_environment

SPACE = {
    "learning_rate": {"_type": "loguniform", "_value": [1e-3, 3e-2]},
    "kl_coefficient": {"_type": "loguniform", "_value": [0.1, 3.0]},
    "warmup": {"_type": "uniform", "_value": [0.0, 0.8]},
    "posterior.estimator": {"_type": "choice", "_value": ["local", "weight"]},
    "posterior.threshold": {"_type": "choice", "_value": [1.0, 3.0]},
}
COMPLAINTS = (OSError, ValueError, TypeError, AttributeError, AssertionError, yaml.YAMLError)
"""What NNI's configuration classes raise."""


def configuration(chosen: Namespace, done: int) -> Any:
    """NNI's configuration of the trials that are left.

    A tuner of NNI that starts again with its seed proposes the same settings again, so the seed moves on.
    """
    from nni.experiment.config import AlgorithmConfig, ExperimentConfig, LocalConfig

    here, arguments = chosen.service is None, ["--epochs", str(chosen.epochs), "--seed", str(chosen.seed)]
    if chosen.data is not None:
        arguments += ["--data", str(chosen.data.resolve() if here else chosen.data)]
    try:
        config = ExperimentConfig(training_service=LocalConfig()) if here else ExperimentConfig.load(chosen.service)
        config.trial_command = shlex.join([sys.executable if here else "python3", "trial.py", *arguments])
        config.trial_code_directory = Path(__file__).resolve().parent
        config.experiment_working_directory = chosen.out.resolve() / "nni" / "experiments"
        config.trial_concurrency, config.max_trial_number = chosen.concurrency, chosen.trials - done
        config.search_space = SPACE
        tuner = {"optimize_mode": "maximize", "seed": chosen.seed + done, "tpe_args": {"n_startup_jobs": 6}}
        config.tuner = AlgorithmConfig(name="TPE", class_args=tuner)
        config.validate()
    except COMPLAINTS as error:
        raise SettingError(f"--service {chosen.service}: {error}") from None
    return config


def run_sweep(chosen: Namespace, command: list[str]) -> None:
    """Run the trials that are left, then write table and picture."""
    file = chosen.out / "results.json"
    stored = {"data": chosen.data and str(chosen.data), "epochs": chosen.epochs, "seed": chosen.seed}
    if chosen.resume and not file.exists():
        raise SettingError(f"--resume: {chosen.out} holds no sweep (it has no results.json)")
    if file.exists() and not chosen.resume:
        raise SettingError(f"--out: {chosen.out} holds a sweep; --resume goes on with it")
    if chosen.data is not None and chosen.service is None and not (chosen.data / "MNIST" / "raw").is_dir():
        raise SettingError(f"--data: {chosen.data} holds no MNIST/raw")
    start = {
        "settings": stored,
        "space": SPACE,
        "environment": describe_environment(command, chosen.seed),
        "trials": [],
    }
    results = read_json(file) if chosen.resume else start
    for key in ("settings", "space"):
        if results[key] != start[key]:
            raise SettingError(f"--resume: the sweep in {chosen.out} has the {key} {results[key]}, not {start[key]}")
    home = chosen.out.resolve() / "nni"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.update(HOME=str(home), NNI_CONFIG_DIR=str(home / "config"))
    if chosen.resume:
        stop_orphans(results, chosen.out)
    if chosen.trials > len(results["trials"]):
        config = configuration(chosen, len(results["trials"]))
        for port in (chosen.port, chosen.port + 1):  # NNI takes two, except with the local service
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    raise SettingError(f"--port: {port} is in use; NNI needs {chosen.port} and the next one")
        write_json(file, results)
        try:
            run(config, chosen.port, results, chosen.out)
        finally:
            report.write(results, chosen.out)
    else:
        report.write(results, chosen.out)


def main(arguments: list[str] | None = None) -> int:
    """0 done, 1 failed with a message, 2 bad usage, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(prog="sweep.py", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--trials", type=PositiveInt, default=16, help="in all, with those that a resumed sweep has")
    parser.add_argument("--concurrency", type=PositiveInt, default=2, help="trials at a time")
    parser.add_argument("--data", type=Path, help="folder that holds MNIST/raw; without it, scikit-learn's digits")
    parser.add_argument("--epochs", type=PositiveInt, default=20, help="of dense training; see trial.py")
    parser.add_argument("--seed", type=int, default=0, help="of the trials and the tuner")
    parser.add_argument("--service", type=Path, help="YAML of NNI with a trainingService other than this machine")
    parser.add_argument("--port", type=PositiveInt, default=8080, help="of NNI's web page")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in --out")
    try:
        run_sweep(parser.parse_args(given), ["sweep.py", *given])
    except (ArgumentError, SettingError) as error:
        print(f"sweep.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (SparseVDError, OSError) as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sweep.py: interrupted; --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: NNI's manager must be stopped, too
    sys.exit(main())

"""What is asked of NNI: run an experiment, gather what its trials report, stop what a kill has left behind.

NNI is imported in functions: it writes below the HOME that it finds when it is imported.
"""

import functools
import time
from pathlib import Path
from typing import Any

from report import Results, best

from nni_sparsevd.errors import TrainingError
from nni_sparsevd.files import write_json


def collect(experiment: Any, results: Results, out: Path) -> int:
    """Add what has finished to the results, written if there is something new; returns how many trials failed."""
    jobs, known = experiment.list_trial_jobs(), {row["trial"] for row in results["trials"]}
    rows = [
        {"trial": f"{experiment.id}/{job.trialJobId}", **job.finalMetricData[0].data}
        for job in jobs
        if job.status == "SUCCEEDED" and job.finalMetricData
    ]
    new = [row for row in rows if row["trial"] not in known]
    if new:
        results["trials"] += new
        write_json(out / "results.json", results)
        print(f"{len(results['trials'])} trials done, best score {best(results)[0]['default']:.2f}", flush=True)
    return sum(job.status == "FAILED" for job in jobs)


def stop_orphans(results: Results, out: Path) -> None:
    """NNI's manager survives the kill of who started it, and goes on: keep what it has got, then stop it."""
    import psutil
    from nni.experiment import Experiment
    from nni.tools.nnictl.config_utils import Experiments

    for name, row in Experiments().get_all_experiments().items():
        if psutil.pid_exists(row["pid"]) and name in " ".join(psutil.Process(row["pid"]).cmdline()):
            orphan = Experiment.connect(row["port"])
            collect(orphan, results, out)
            orphan.stop()


def run(config: Any, port: int, results: Results, out: Path) -> None:
    """Run one experiment of NNI to its end, or to Ctrl-C.

    Not `Experiment.resume`: its tuner proposes again what it proposed first, and learns from parameters that NNI has
    noted down for the wrong one of two trials.  A new experiment that imports what the trials say does neither.
    """
    from nni.experiment import Experiment, launcher, rest

    launcher._check_rest_server = functools.partial(launcher._check_rest_server, retry=60)  # 3 s are too few
    experiment, failed = Experiment(config), 0
    try:
        experiment.start(port)
        known = [{"parameter": row["parameters"], "value": row["default"]} for row in results["trials"]]
        while (status := experiment.get_status()) != "ERROR" and not experiment.list_trial_jobs():
            time.sleep(0.2)  # the next request is never answered if the tuner has not made its first proposal
        rest.post(port, "/experiment/import-data", known)
        while status not in ("DONE", "STOPPED", "ERROR"):
            time.sleep(1)
            status = experiment.get_status()
            failed = collect(experiment, results, out)
    except OSError as error:  # a connection that is refused, too
        raise TrainingError(f"NNI's manager does not answer ({error}); see {out}/nni; --resume goes on") from None
    finally:
        experiment.stop()
    if failed or status == "ERROR":
        raise TrainingError(f"{failed} trials failed, see {out}/nni/experiments/{experiment.id}; --resume runs as many")

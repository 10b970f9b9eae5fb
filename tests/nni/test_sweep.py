"""The example of a sweep by NNI: one trial, the search space, the errors, an interrupted sweep that goes on."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nni_sparsevd.errors import SettingError
from nni_sparsevd.plugins.nni import SparseVDSettings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "nni_sweep"
sys.path.insert(0, str(EXAMPLE))

import report  # noqa: E402
import sweep  # noqa: E402
import trial  # noqa: E402


def canned():
    return json.loads((ROOT / "docs" / "results" / "nni_sweep.json").read_text())


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """NNI writes its configuration somewhere when it loads one, and `sweep` changes the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_trial_runs_without_nni(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trial.py", "--epochs", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLE / "trial.py"), run_name="__main__")
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["kept"] < 64 * 300 + 300 * 100 + 100 * 10 and result["parameters"] == {}


def test_trial_repeats_itself():
    first, second = (trial.run({"learning_rate": 0.01}, None, 2, 3) for _ in range(2))
    assert first.pop("seconds") and second.pop("seconds")
    assert first == second


def test_score_prefers_compression_until_it_costs_accuracy():
    assert trial.score(100, 2.0, 2.0) > trial.score(10, 1.0, 2.0)
    assert trial.score(100, 4.5, 2.0) < trial.score(10, 2.0, 2.0)


@pytest.mark.parametrize("key", sweep.SPACE)
def test_settings_accept_the_whole_space(key):
    for value in sweep.SPACE[key]["_value"]:
        found = trial.settings({key: value}, n_train=10)
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
    assert trial.settings({}) == SparseVDSettings()


def test_settings_refuse_what_sparse_vd_does_not_have():
    with pytest.raises(SettingError, match=r"posterior\.estimators"):
        trial.settings({"posterior.estimators": "local"})


def test_table_and_picture(tmp_path):
    results = canned()
    report.write(results, tmp_path)
    scores = [float(line.split("|")[1]) for line in (tmp_path / "table.md").read_text().splitlines()[2:]]
    assert len(scores) == len(results["trials"]) and scores == sorted(scores, reverse=True)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_published_results_name_no_folder_of_a_person():
    text = json.dumps(canned())
    assert not any(folder in text for folder in ("/home", "/root", "/work", "/tmp"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--flag"], "--flag"),
        (["--trials", "0"], "trials"),
        (["--resume"], "holds no sweep"),
        (["--data", "nowhere"], "nowhere"),
        (["--service", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_usage_is_one_line(arguments, said, tmp_path, own_home, capsys):
    assert sweep.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_port_in_use(tmp_path, own_home, capsys):
    with socket.create_server(("localhost", 0)) as busy:
        assert sweep.main(["--out", str(tmp_path / "out"), "--port", str(busy.getsockname()[1])]) == 2
    assert "is in use" in capsys.readouterr().err


def test_sweep_is_not_overwritten(tmp_path, own_home, capsys):
    (tmp_path / "results.json").write_text(json.dumps(canned()))
    assert sweep.main(["--out", str(tmp_path)]) == 2
    assert sweep.main(["--out", str(tmp_path), "--resume", "--seed", "7"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "--resume goes on" in first and "'seed': 7" in second


REMOTE = """
trainingService:
  platform: remote
  machineList: [{host: gpu.example.org, user: me, password: secret}]
nniManagerIp: 192.0.2.1
"""
KUBERNETES = """
trainingService:
  platform: frameworkcontroller
  serviceAccountName: nni
  storage: {storageType: nfs, server: nfs.example.org, path: /exported}
  taskRoles:
  - {name: trial, dockerImage: me/nni-sparsevd, taskNumber: 1, command: python3 trial.py, gpuNumber: 0, cpuNumber: 1,
     memorySize: 4 gb, frameworkAttemptCompletionPolicy: {minFailedTaskCount: 1, minSucceedTaskCount: 1}}
nniManagerIp: 192.0.2.1
"""


@pytest.mark.parametrize(
    ("service", "platform"), [(REMOTE, "remote"), (KUBERNETES, "frameworkcontroller")], ids=["remote", "kubernetes"]
)
def test_other_training_services_take_one_setting(service, platform, tmp_path, own_home, monkeypatch):
    (tmp_path / "service.yaml").write_text(service)
    seen = []
    monkeypatch.setattr(sweep, "run", lambda config, *rest: seen.append(config.json()))
    assert sweep.main(["--out", str(tmp_path / "out"), "--service", str(tmp_path / "service.yaml")]) == 0
    assert seen[0]["trainingService"]["platform"] == platform
    assert seen[0]["trialCommand"].startswith("python3 trial.py")


def manager_starts():
    try:
        import nni_node

        subprocess.run([Path(nni_node.__path__[0], "node"), "--version"], check=True, capture_output=True)
    except (ImportError, OSError, subprocess.CalledProcessError):
        return False
    return True


@pytest.mark.skipif(not manager_starts(), reason="NNI's manager, a Node.js program, cannot start here")
def test_interrupted_sweep_goes_on(tmp_path, port):
    command = [sys.executable, EXAMPLE / "sweep.py", "--out", tmp_path, "--port", str(port)]
    command += ["--trials", "2", "--concurrency", "1", "--epochs", "1"]

    def trials():
        file = tmp_path / "results.json"
        return json.loads(file.read_text())["trials"] if file.exists() else []

    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as running:
        while not trials() and running.poll() is None:
            time.sleep(0.2)
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 130
    before = trials()
    assert len(before) == 1
    subprocess.run([*command, "--resume"], check=True)
    assert trials()[:1] == before and len(trials()) == 2
    assert trials()[0]["parameters"] != trials()[1]["parameters"]
    assert (tmp_path / "table.md").exists() and (tmp_path / "picture.png").exists()

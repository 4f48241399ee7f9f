"""The command line as a person, a script and a scheduler meet it."""
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy_assist import PredictionLog
from deploy_assist.cli import cli, run, tutorial

program = Path(sys.executable).with_name("deploy-assist")
training = """
from sklearn.linear_model import LogisticRegression
import pandas as pd

X = pd.DataFrame({"dose": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0] * 5, "age": [30, 41, 52, 63, 35, 46, 57, 68] * 5})
y = pd.Series([0, 0, 0, 1, 0, 1, 1, 1] * 5)

def as_dict():
    print("training")
    return dict(model=LogisticRegression().fit(X, y), X=X, y=y, name="doses")

def as_tuple(): return LogisticRegression().fit(X, y), X, y
def as_release():
    from deploy_assist import prepare
    return prepare(**as_dict())
def as_list(): return [1, 2]
def misspelt(): return as_dict() | {"X_tset": X}
def broken(): return 1 / 0
def slow():
    import time
    time.sleep(60)
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    "A folder with a user's train.py, and what an earlier test imported forgotten."
    (tmp_path / "train.py").write_text(training)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "train", raising=False)
    yield tmp_path
    sys.modules.pop("train", None)


@contextmanager
def up(*words, end=signal.SIGTERM):
    "A command that stays up: what it printed as JSON; afterwards it is told to end, and must do so with 0."
    process = subprocess.Popen([program, *map(str, words), "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)
        process.send_signal(end)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), err
    finally:
        if process.poll() is None: process.kill(); process.communicate()


def ask(url, body=None, headers=None):
    "(status, JSON) of a request."
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer: return answer.status, json.load(answer)
    except urllib.error.HTTPError as e: return e.code, json.load(e)


# --- help, errors, exit codes

def test_help_is_quick():
    "In CPU seconds, which other work on the machine does not stretch."
    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "Commands:" in done.stdout and not done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert min(once() for _ in range(3)) < 0.5


leaves = [f"{name} {leaf}".strip() for name, found in sorted(cli.commands.items()) for leaf in getattr(found, "commands", [""])]


@pytest.mark.parametrize("name", leaves)
def test_every_command_explains_itself(sh, name):
    code, out, err = sh(*name.split(), "--help")
    assert (code, err) == (0, "") and "Example" in out and f"deploy-assist {name}" in out and "--json" in out


def test_the_promised_commands_are_there():
    assert set(cli.commands) >= {
        "quickstart",
        "prepare",
        "check",
        "register",
        "promote",
        "rollback",
        "history",
        "serve",
        "demo",
        "report",
        "lab",
        "doctor",
        "key",
    }


@pytest.mark.parametrize(
    "line",
    [
        "srve",
        "serve",
        "serve a b",
        "serve a --port x",
        "promote patients",
        "report",
        "--nope",
        "prepare nowhere:f --out b",
        "prepare train --out b",
        "prepare train:nope --out b",
        "report --current train.py",
        "serve a --log x --no-log",
    ],
)
def test_wrong_use_is_2_and_one_line(sh, train, line):
    code, out, err = sh(*line.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("deploy-assist") and "Traceback" not in err


@pytest.mark.parametrize(
    "line, said",
    [
        ("serve no_such_folder", "BundleError"),
        ("check no_such_folder", "BundleError"),
        ("register no_such_folder", "BundleError"),
        ("history nobody", "RegistryError"),
        ("serve models:/nobody@champion", "RegistryError"),
        ("promote nobody --reason x", "RegistryError"),
        ("rollback nobody --reason x", "RegistryError"),
        ("prepare train:broken --out b", "ZeroDivisionError"),
        ("prepare train:as_list --out b", "expected a dictionary"),
        ("prepare train:misspelt --out b", "X_tset"),
    ],
)
def test_failure_is_1_and_one_line(sh, train, line, said):
    code, out, err = sh(*line.split())
    assert (code, out) == (1, "") and said in err, err
    assert len([text for text in err.splitlines() if text != "training"]) == 1, err


def test_ctrl_c_is_130(train):
    process = subprocess.Popen(
        [program, "prepare", "train:slow", "--out", "b"], stderr=subprocess.PIPE, text=True, cwd=train
    )
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].strip() == "deploy-assist prepare: interrupted"
    assert process.returncode == 130


def test_an_unforeseen_error_shows_where_when_asked(train, monkeypatch):
    monkeypatch.setenv("DEPLOY_ASSIST_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError): run(["prepare", "train:broken", "--out", "b"])


# --- from a function to a version

@pytest.mark.parametrize("function, name", [("as_dict", "doses"), ("as_tuple", "train"), ("as_release", "doses")])
def test_prepare_takes_what_the_function_returns(sh, train, function, name):
    code, out, err = sh("prepare", f"train:{function}", "--out", "bundle", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["name"], said["columns"]) == (name, ["dose", "age"]) and Path("bundle/bundle.json").exists()
    assert "training" not in out  # what the user's function prints is not the answer


def test_the_same_function_gives_the_same_bundle(sh, train):
    first, second = (json.loads(sh("prepare", "train:as_dict", "--out", out, "--json")[1]) for out in "ab")
    assert first["hash"] == second["hash"]
    assert json.loads(sh("prepare", "train:as_dict", "--name", "other", "--out", "c", "--json")[1])["name"] == "other"


def test_register_promote_rollback_history(sh, bundle):
    assert json.loads(sh("register", bundle, "--json")[1]) | {"run_id": 0} == dict(
        name="patients", version="1", uri="models:/patients/1", alias="challenger", run_id=0)
    code, out, err = sh("promote", "patients", "--reason", "first release")
    assert code == 0, err
    assert sh("register", bundle)[0] == 0
    code, out, err = sh("promote", "patients", "2", "--reason", "newer", "--json")
    assert (code, json.loads(out)["alias"]) == (0, "champion"), err
    assert json.loads(sh("rollback", "patients", "--reason", "slow answers", "--json")[1])["version"] == "1"
    rows = json.loads(sh("history", "patients", "--json")[1])
    champion = [(row["action"], row["version"], row["reason"]) for row in rows if row["alias"] == "champion"]
    assert champion == [("promote", "1", "first release"), ("promote", "2", "newer"), ("rollback", "1", "slow answers")]
    assert "slow answers" in sh("history", "patients")[1]
    now = json.loads(sh("history", "patients", "--at", "now", "--json")[1])
    assert now["version"] == rows[-1]["version"] and now["reason"] == "slow answers"
    assert "rollback by" in sh("history", "patients", "--at", "now")[1]
    assert "nothing was in production" in sh("history", "patients", "--at", "2020-01-01")[1]


def test_check_says_what_it_found(sh, bundle, tmp_path):
    bundle = shutil.copytree(bundle, tmp_path / "bundle")  # what was found is written into it
    code, out, err = sh("check", bundle, "--only", "artefact.types,data", "--json")
    said = json.loads(out)
    assert code == 0 and said["passed"] and {"artefact.types"} < {result["name"] for result in said["results"]}, err
    assert "artefact.types" in sh("check", bundle, "--only", "artefact.types")[1]
    code, out, err = sh("check", bundle, "--only", "data,privacy", "--budget", "0", "--json")
    assert code == 1 and {r["status"] for r in json.loads(out)["results"]} == {"skip"}, err
    assert sh("check", bundle, "--only", "no.such.check")[0] == 1


# --- servers

@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_serve_until_told_to_stop(bundle, patients, free_port, end):
    rows = patients.schema.rows(patients.X_test.head(3))
    with up("serve", bundle, "--port", free_port, end=end) as said:
        assert said["url"] == f"http://127.0.0.1:{free_port}"
        status, answer = ask(f"{said['url']}/predict", {"rows": rows})
        assert status == 200 and answer["predictions"] == patients.predict(patients.X_test.head(3)).tolist()
    with pytest.raises(OSError): urllib.request.urlopen(said["url"], timeout=5)
    with PredictionLog() as log: assert log.count("patients") + log.pending() == 3


def test_serve_with_a_key_and_without_a_log(bundle, patients, home):
    Path("key.txt").write_text("a-long-enough-key\n")
    rows = patients.schema.rows(patients.X_test.head(1))
    with up("serve", bundle, "--port", 0, "--key-file", "key.txt", "--no-log") as said:
        assert ask(f"{said['url']}/predict", rows)[0] == 401
        assert ask(f"{said['url']}/predict", rows, {"Authorization": "Bearer a-long-enough-key"})[0] == 200
    assert not list(home.rglob("*.db"))


def test_a_key_is_needed_where_others_can_reach(sh, bundle):
    code, out, err = sh("serve", bundle, "--host", "0.0.0.0", "--port", 0)
    assert (code, out) == (1, "") and "key" in err


def test_demo_until_told_to_stop(bundle):
    with up("demo", bundle, "--port", 0, end=signal.SIGINT) as said:
        with urllib.request.urlopen(said["url"], timeout=60) as page: assert "gradio" in page.read().decode().lower()
    with pytest.raises(OSError): urllib.request.urlopen(said["url"], timeout=5)


# --- reports

def test_report_on_two_files(sh, patients):
    X, moved = patients.X_test, patients.X_test.assign(bmi=patients.X_test.bmi + 12, age=patients.X_test.age + 20)
    frames = dict(baseline=patients.baseline[list(X)], same=X, moved=moved)
    for name, frame in frames.items(): frame.to_csv(f"{name}.csv", index=False)
    code, out, err = sh("report", "--baseline", "baseline.csv", "--current", "same.csv", "--out", "same", "--json")
    assert (code, json.loads(out)["action"]) == (0, "keep"), err
    code, out, err = sh("report", "--baseline", "baseline.csv", "--current", "moved.csv", "--out", "moved", "--json")
    said = json.loads(out)
    assert code in (10, 20) and {"bmi", "age"} <= {finding["column"] for finding in said["findings"]}, err
    assert all(Path(file).exists() for file in said["files"].values())


# --- the installation

def test_the_tutorial_is_not_overwritten(tmp_path):
    notebook = tutorial(tmp_path / "new")
    notebook.write_text("mine")
    assert tutorial(tmp_path / "new").read_text() == "mine"


def test_the_tutorial_runs(tmp_path):
    notebook = tutorial(tmp_path)
    line = [
        sys.executable,
        "-m",
        "papermill",
        notebook,
        tmp_path / "done.ipynb",
        "--cwd",
        tmp_path,
        "--no-progress-bar",
    ]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONWARNINGS": "ignore"}
    )
    assert done.returncode == 0, done.stderr[-3000:]

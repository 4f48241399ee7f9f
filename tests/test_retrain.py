"""Retraining as it happens: a log with labels, a kernel, a registry; and all that goes wrong, which leaves the champion alone."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from deploy_assist import ConfigError, PredictionLog, history, prepare, promote, register
from deploy_assist.cli import run as command
from deploy_assist.predictions import Batch, uuid7s
from deploy_assist.registry import current_version, versions
from deploy_assist.retrain import RetrainError, content_keys, retrain, set_aside

program = Path(sys.executable).with_name("deploy-assist")


def people(n: int, seed: int, slope: float = 0.06) -> tuple[pd.DataFrame, pd.Series]:
    "Made-up patients; `slope` is what blood pressure means for being ill."
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"age": rng.integers(30, 90, n), "bp": rng.normal(120, 15, n).round(1), "sex": rng.choice(["f", "m"], n)})
    z = 0.05 * (X.age - 60) + slope * (X.bp - 120)
    return X, pd.Series((rng.random(n) < 1 / (1 + np.exp(-z))).astype(int), name="ill")


def fitted(X: pd.DataFrame, y: pd.Series):
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = make_column_transformer((StandardScaler(), ["age", "bp"]), (OneHotEncoder(handle_unknown="ignore"), ["sex"]))
    return make_pipeline(columns, LogisticRegression()).fit(X, y)


def log_of(release, X: pd.DataFrame, y, days: float = 30) -> None:
    "Predictions of the last `days`, with what turned out to be true."
    ids, now = uuid7s(len(X)), datetime.now(UTC).timestamp()
    with PredictionLog() as log:
        log.append(Batch(model=release.name, schema=release.schema, columns={c: X[c].tolist() for c in X}, ids=ids, version="1",
                         predictions=release.predict(X).tolist(), probabilities=release.predict_proba(X).tolist(),
                         time=[now - days * 86400 * (1 - i / len(X)) for i in range(len(X))]))
        log.flush()
        if y is not None: log.labels(release.name, pd.DataFrame({"prediction_id": ids, "label": y}))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A folder with two registered champions whose world has turned: `ward`, to be retrained, and `bad`, for what goes wrong."
    folder = tmp_path_factory.mktemp("retrain")
    with pytest.MonkeyPatch.context() as patch:
        _inside(folder, patch)
        X, y = people(800, 0)
        release = prepare(fitted(X[:500], y[:500]), X[:500], y[:500], name="ward", X_test=X[500:], y_test=y[500:], onnx=False)
        new, truth = people(700, 1, slope=-0.06)
        pd.concat([X.assign(ill=y)[:500], new.assign(ill=truth)[:100]]).to_parquet(folder / "old.parquet")
        for name in ("ward", "bad"):
            named = replace(release, name=name)
            promote(name, register(named), reason="first release")
            log_of(named, new, truth)
    return folder


def _inside(folder: Path, patch) -> None:
    patch.chdir(folder)
    patch.setenv("DEPLOY_ASSIST_HOME", str(folder / "home"))
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(autouse=True)
def inside(world, home, monkeypatch):
    _inside(world, monkeypatch)
    return world


def notebook(path: Path, *cells: str, parameters: str = 'window: str = ""\nout: str = ""', tags=("parameters",)) -> Path:
    "A training notebook."
    made = [nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)}), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def at_rest(name: str = "bad") -> None:
    "Nothing was registered, and nothing is left of the run."
    assert current_version(name) == "1" and len(versions(name)) == 1
    assert not list(Path("retrains").glob(".run-*"))


def test_it_works_out_of_the_box_and_asks(capsys):
    "The notebook that --init wrote, unchanged, beats a champion whose world has turned."
    assert command(["retrain", "ward", "--init"]) == 0
    assert "['age', 'bp', 'sex']" in Path("retrain-ward.ipynb").read_text()
    assert command(["retrain", "ward", "--init"]) == 2 and "is there already" in capsys.readouterr().err
    capsys.readouterr()
    code, told = command(["retrain", "ward", "--json"]), json.loads(capsys.readouterr().out)
    assert code == 20, told
    assert (told["decision"], told["champion"], told["challenger"]) == ("ready", "1", "2")
    assert all(c["is_met"] for c in told["conditions"]) and len(told["conditions"]) == 7
    assert told["difference"]["metric"] == "roc_auc" and told["difference"]["low"] > 0.1
    assert told["rows"]["held_out"] + told["rows"]["trained"] == told["rows"]["matured"] == 700
    assert current_version("ward") == "1" and versions("ward")["checks_passed"].iloc[0]
    page, kept = Path(told["html"]).read_text(), json.loads(Path(told["json"]).read_text())
    assert told["promote"].replace("'", "&#39;") in page and "<script" not in page and len(page) < 30_000
    assert kept["decision"] == "ready" and "held-out rows" in kept["reason"]
    ran = nbformat.read(told["notebook"], 4)
    assert all(c.execution_count for c in ran.cells if c.cell_type == "code") and "_Done" not in str(ran)
    exec(told["promote"], {"promote": promote})
    assert current_version("ward") == "2"
    lines = history("ward").iloc[-2:]
    assert list(lines["action"]) == ["retrain", "promote"] and list(lines["version"]) == ["2", "2"]
    assert "waits for a person" in lines["reason"].iloc[0] and "700" not in lines["reason"].iloc[0]
    assert command(["retrain", "ward", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["decision"] == "rejected" and not again["html"] and not again["conditions"][0]["is_met"]


def test_what_is_held_out_is_not_given(tmp_path):
    "The notebook's two files hold no row that the comparison will use. Then a cell fails, and the sentence says which and why."
    asks = 'window: str = ""\ndata: str = ""\nout: str = ""\nlabel: str = "ill"\nkeep: str = ""'
    cells = "import shutil\nfor path in (window, data): shutil.copy(path, keep)", "1 / 0"
    told = retrain("bad", notebook=notebook(tmp_path / "keep.ipynb", *cells, parameters=asks), data="old.parquet",
                   parameters={"keep": str(tmp_path)})
    new, old = (pd.read_parquet(tmp_path / name) for name in ("window.parquet", "data.parquet"))
    keys = content_keys(people(700, 1)[0])
    held = set(keys[set_aside(keys, 0.3)])
    for frame in (new, old):
        assert list(frame) == ["age", "bp", "sex", "ill"] and len(frame) > 300
        assert not held & set(content_keys(frame[["age", "bp", "sex"]]))
    assert (len(new), len(old)) == (told.rows["trained"], told.rows["old"])
    assert told.rows["held_out"] == set_aside(keys, 0.3).sum() > 150
    assert told.decision == "failed" and "ZeroDivisionError" in told.reason and "cell 4" in told.reason, str(told)
    assert told.reason in history("bad")["reason"].iloc[-1] and json.loads(told.json.read_text())["reason"] == told.reason
    assert told.notebook.is_file() and told.html.is_file()
    at_rest()


def test_a_bundle_that_is_not_the_models_leaves_the_champion(tmp_path, bundle, patients):
    "None, one of another model, and one that today's callers could not call."
    copy = "import shutil\nshutil.copytree({!r}, out)".format
    other = replace(patients, name="bad").save(tmp_path / "other")
    for cell, decision, said in (("window", "failed", "ended without a bundle"),
                                 (copy(str(bundle)), "failed", "bundle of 'patients', expected 'bad'"),
                                 (copy(str(other)), "rejected", "s1: column none -> needed")):
        told = retrain("bad", notebook=notebook(tmp_path / "train.ipynb", cell), out=tmp_path / "out")
        assert (told.decision, told.challenger, told.promote_line) == (decision, None, "") and said in told.reason, str(told)
        assert said in history("bad")["reason"].iloc[-1]
    at_rest()


@pytest.mark.parametrize(["parameters", "tags", "given", "said"], [
    ('window: str = ""', (), {}, "no cell tagged 'parameters'"),
    ('window: str = ""', ("parameters",), {}, "expected also out"),
    ('window: int = 3\nout: str = ""', ("parameters",), {}, "parameter 'window': got"),
    ('window: str = ""\nout: str = ""\nC: float = 1.0', ("parameters",), {"C": "much"}, "'C': got 'much' (str), expected float"),
    ('window: str = ""\nout: str = ""', ("parameters",), {"depth": 3}, "parameter 'depth'"),
    ('window: str = ""\nout: str = ""', ("parameters",), {"out": "here"}, "parameters: 'out'"),
])
def test_a_notebook_that_cannot_be_one_is_not_run(tmp_path, parameters, tags, given, said):
    with pytest.raises(ConfigError) as e:
        retrain("bad", notebook=notebook(tmp_path / "n.ipynb", parameters=parameters, tags=tags), parameters=given)
    assert said in str(e.value)
    at_rest()


def test_wrong_use_is_2(tmp_path, capsys):
    pd.DataFrame({"age": [1]}).to_csv("no_label.csv")
    (tmp_path / "broken.ipynb").write_text("{")
    for line, said in {"bad --margin -1": "margin: got -1.0", "bad --data no_label.csv": "expected also the label 'label'",
                       f"bad --notebook {tmp_path}/broken.ipynb": "cannot be read as a notebook",
                       "bad --policy maybe": "'maybe' is not one of",
                       "bad --metric f2": "metric: got 'f2'", "bad --window long": "got 'long'"}.items():
        assert command(["retrain", *line.split()]) == 2, line
        assert said in capsys.readouterr().err
    assert command(["retrain", "nobody"]) == 1 and "there is no model 'nobody'" in capsys.readouterr().err
    at_rest()


def test_too_little_to_learn_from_is_refused_with_a_reason():
    "No labels, too few, or of one class only: nothing runs, and the history says why, once."
    from deploy_assist.release import load_release
    from deploy_assist.registry import resolve

    bad = load_release(resolve("models:/bad@champion").folder)
    X, _ = people(300, 5)
    for name, label, said in (("unlabelled", None, "0 labelled rows"), ("one-class", [1] * 300, "held out (0: 0, 1:")):
        named = replace(bad, name=name)
        promote(name, register(named), reason="first")
        log_of(named, X, label)
        told = [retrain(name), retrain(name)]
        assert [t.decision for t in told] == ["rejected"] * 2 and said in told[0].reason and told[0].html is None
        assert list(history(name)["action"]) == ["register", "promote", "retrain"]
    told = retrain("bad", min_labels=5000)
    assert told.decision == "rejected" and "700 labelled rows, 5,000 needed" in str(told)
    told = retrain("bad", until=datetime.now(UTC) - timedelta(days=200))
    assert told.decision == "rejected" and told.rows["logged"] == 0


def test_two_at_once_and_killed_half_way(tmp_path):
    "The second is told; of a killed one nothing is registered, its kernel ends, and the next one runs clean."
    cell = "import os, time, pathlib\npathlib.Path('started').write_text(str(os.getpid()))\ntime.sleep(120)"
    slow = notebook(tmp_path / "slow.ipynb", cell)
    first = subprocess.Popen([program, "retrain", "bad", "--notebook", slow], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists() and first.poll() is None and time.monotonic() < until: time.sleep(0.1)
    assert first.poll() is None, first.stderr.read()
    with pytest.raises(RetrainError, match=f"being retrained by process {first.pid} since"): retrain("bad")
    kernel = int((tmp_path / "started").read_text())
    first.send_signal(signal.SIGKILL)
    first.communicate()
    until = time.monotonic() + 30
    while Path(f"/proc/{kernel}").exists() and time.monotonic() < until: time.sleep(0.2)
    assert not Path(f"/proc/{kernel}").exists()
    assert len(versions("bad")) == 1
    left, = Path("retrains").glob(".run-*")
    os.utime(left, (0, 0))
    assert retrain("bad", notebook=notebook(tmp_path / "next.ipynb", "raise SystemExit(1)")).decision == "failed"
    at_rest()

"""Retraining as it happens: a log with labels, a kernel, a registry; and all that goes wrong, which leaves the champion alone."""
import getpass
import json
import os
import shlex
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from markupsafe import escape
from waiting import until

from deploy_assist import ConfigError, PredictionLog, check, history, load_release, prepare, promote, register
from deploy_assist.cli import run as command
from deploy_assist.predictions import Batch, uuid7s
from deploy_assist.registry import current_version, resolve, retrains, versions, waiting
from deploy_assist.report import Monitor, _mark_retrained, _with_about, past_reports
from deploy_assist.retrain import RetrainError, _decide, _left_behind, _Run, content_keys, prepare_like, retrain, set_aside
from deploy_assist.schedule import run_due, schedule


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


def log_of(release, X: pd.DataFrame, y, days: float = 30, ago: float = 0) -> None:
    "Predictions of `days`, which ended `ago` days ago, with what turned out to be true."
    ids, now = uuid7s(len(X)), datetime.now(UTC).timestamp() - ago * 86400
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


def test_the_schedule_retrains_when_the_report_says_so_and_asks(capsys, tmp_path):
    """A report says retrain; the notebook that --init wrote, unchanged, beats a champion whose world has turned; a person is
    told, looks, and promotes. Both are processes of their own, started by the schedule."""
    assert command(["retrain", "ward", "--init"]) == 0
    assert "['age', 'bp', 'sex']" in Path("retrain-ward.ipynb").read_text()
    assert command(["retrain", "ward", "--init"]) == 2 and "is there already" in capsys.readouterr().err
    told = tmp_path / "told"
    s = schedule("ward", cron="0 6 * * *", window="32d", on="retrain", alerts=f"command:sh -c 'cat >> {told}; echo >> {told}'")
    reported, retrained = run_due(s.next)
    assert [(r["state"], r["action"], r["exit_code"]) for r in (reported, retrained)] == \
        [("done", "retrain", 20), ("done", "ready", 20)], (reported["error"], retrained["error"])
    page = Path(reported["report"])
    assert page.parent == Path("reports").absolute() and page.is_file() and page.with_suffix(".json").is_file()
    first, then = map(json.loads, told.read_text().splitlines())
    assert (first["facts"]["verdict"], first["facts"]["report"]) == ("retrain", str(page))
    assert (then["facts"]["decision"], then["facts"]["challenger"]) == ("ready", "2")
    assert "deploy-assist promote ward 2 --reason" in then["text"] and retrained["report"] in then["text"]
    assert run_due(s.next) == [] and len(told.read_text().splitlines()) == 2
    page = Path(retrained["report"])
    made = json.loads(page.with_suffix(".json").read_text())
    assert (made["decision"], made["champion"], made["challenger"]) == ("ready", "1", "2")
    assert all(c["is_met"] for c in made["conditions"]) and len(made["conditions"]) == 7
    assert made["difference"]["metric"] == "roc_auc" and made["difference"]["low"] > 0.1
    assert made["rows"]["held_out"] + made["rows"]["trained"] == made["rows"]["matured"] == 700
    assert current_version("ward") == "1" and versions("ward")["checks_passed"].iloc[0]
    shown = page.read_text()
    assert made["promote"].replace("'", "&#39;") in shown and "<script" not in shown and len(shown) < 30_000
    ran = nbformat.read(made["notebook"], 4)
    assert all(c.execution_count for c in ran.cells if c.cell_type == "code") and "_Done" not in str(ran)
    capsys.readouterr()
    assert command(["retrain", "ward", "--json"]) == 0  # the next verdict asks again: too early, and version 2 waits all the same
    again = json.loads(capsys.readouterr().out)
    assert again["decision"] == "rejected" and not again["html"] and not again["conditions"][0]["is_met"]
    assert command(["history", "ward"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("version 2 waits for a person: ")
    assert escape(line) in shown, "the page, the history and the next report name one command"
    monitor = Monitor("ward", pd.DataFrame(), pd.DataFrame(), about={"version": "1"})
    waits = _with_about(monitor, Path("reports"), datetime.now(UTC), None, None).about["waiting"]
    assert (waits["version"], waits["command"]) == ("2", line) and waits["reason"].endswith("held-out rows")
    assert command(shlex.split(line)[1:]) == 0
    assert current_version("ward") == "2" and waiting("ward") is None
    lines = history("ward").iloc[-3:]
    assert list(lines["action"]) == ["retrain", "retrain", "promote"] and list(lines["version"]) == ["2", None, "2"]
    assert "waits for a person" in lines["reason"].iloc[0] and "700" not in lines["reason"].iloc[0]
    assert (lines["who"].iloc[2], lines["reason"].iloc[2]) == (getpass.getuser(), shlex.split(line)[-1])
    assert "retrained: roc_auc 0." in line and "held-out rows" in line
    assert command(["schedule", "runs"]) == 0 and "ward (retrain)" in capsys.readouterr().out
    # the next report's cool-down counts from this one
    monitor = Monitor("ward", pd.DataFrame(), pd.DataFrame(), about={"version": "2"})
    assert [d.get("retrained") for d in _mark_retrained(list(past_reports(Path("reports"), "ward")), monitor)] == [True]


def test_what_is_held_out_is_not_given(tmp_path):
    "The notebook's two files hold no row that the comparison will use. Then a cell fails, and the sentence says which and why."
    asks = 'window: str = ""\ndata: str = ""\nout: str = ""\nlabel: str = "label"\nkeep: str = ""'
    cells = "import shutil\nfor path in (window, data): shutil.copy(path, keep)", "1 / 0"
    told = retrain("bad", notebook=notebook(tmp_path / "keep.ipynb", *cells, parameters=asks), data="old.parquet",
                   parameters={"keep": str(tmp_path), "label": "ill"})
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


def test_a_bundle_that_is_not_the_models_leaves_the_champion(tmp_path):
    "None, the champion's own, one of another model, and one that today's callers could not call."
    found = resolve("models:/bad@champion")
    run = _Run("bad", load_release(found.folder), "1", {}, None, None, 0.0)
    for folder, said in ((tmp_path / "none", "ended without a bundle"), (found.folder, "the champion's own bundle"),
                         (resolve("models:/ward/1").folder, "bundle of 'ward', expected 'bad'")):
        with pytest.raises(RetrainError, match=said): _left_behind(Path(folder), run)
    X, y = people(300, 3)
    prepare(fitted(X, y), X.assign(ward="a"), y, name="bad", onnx=False).save(tmp_path / "other")
    cell = f"import shutil\nshutil.copytree({str(tmp_path / 'other')!r}, out)"
    told = retrain("bad", notebook=notebook(tmp_path / "train.ipynb", cell), out=tmp_path / "out", policy="auto")
    said = "ward: column none -> needed"
    assert (told.decision, told.challenger, told.promote_line) == ("rejected", None, "") and said in told.reason, str(told)
    assert said in history("bad")["reason"].iloc[-1]
    at_rest()


def test_the_policy_promotes_what_is_better(tmp_path):
    "All conditions are met and the policy says auto; meanwhile another version came, and the person's word counts."
    release = load_release(resolve("models:/bad@champion").folder)
    auto = replace(release, name="auto")
    promote("auto", register(auto), reason="first")
    X, y = people(300, 4)
    challenger = prepare_like(auto, fitted(X, y), X, y, onnx=False)
    now = datetime.now(UTC)
    def run(champion):
        made = _Run("auto", auto, champion, dict(policy="auto"), now - timedelta(days=7), now, 0.0, rows=dict(trained=300))
        made.add("better than the champion", True, "+0.1")
        return made
    told = _decide(run("1"), challenger, None, [], tmp_path)
    assert (told.decision, told.challenger, current_version("auto"), told.promote_line) == ("promoted", "2", "2", "")
    assert list(history("auto")["action"])[-3:] == ["register", "promote", "retrain"]
    assert "promoted by policy" in history("auto")["reason"].iloc[-1] and retrains("auto")[-1].facts["decision"] == "promoted"
    told = _decide(run("1"), challenger, None, retrains("auto"), tmp_path)
    assert told.decision == "failed" and "the champion was changed" in told.reason and current_version("auto") == "2"


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
    bad = load_release(resolve("models:/bad@champion").folder)
    X, _ = people(300, 5)
    for label, ago, said in ((None, 300, "0 labelled rows"), ([1] * 300, 600, "held out (0: 0, 1:")):
        log_of(bad, X, label, ago=ago)
        before = len(history("bad"))
        told = [retrain("bad", until=datetime.now(UTC) - timedelta(days=ago - 1), cooldown="1000d") for _ in "12"]
        assert [t.decision for t in told] == ["rejected"] * 2 and said in told[0].reason and told[0].html is None
        assert told[0].rows["logged"] == 300 and list(history("bad")["action"])[before:] == ["retrain"]
    told = retrain("bad", min_labels=5000)
    assert told.decision == "rejected" and "700 labelled rows, 5,000 needed" in str(told)
    told = retrain("bad", until=datetime.now(UTC) - timedelta(days=200))
    assert told.decision == "rejected" and told.rows["logged"] == 0


def test_two_at_once_and_killed_half_way(tmp_path):
    "The second is told; of a killed one nothing is registered, its kernel ends, and the next one runs clean."
    cell = "import os, time, pathlib\npathlib.Path('started').write_text(str(os.getpid()))\ntime.sleep(120)"
    slow, started = notebook(tmp_path / "slow.ipynb", cell), tmp_path / "started"
    first = os.fork()  # a process that has imported everything already
    if not first:
        with suppress(BaseException): retrain("bad", notebook=slow)
        os._exit(1)
    try:
        kernel = int(until(lambda: started.exists() and started.read_text(), "the kernel", 60))
        with pytest.raises(RetrainError, match=f"being retrained by process {first} since"): retrain("bad")
    finally: os.kill(first, signal.SIGKILL); os.waitpid(first, 0)
    until(lambda: not Path(f"/proc/{kernel}").exists(), "the kernel to end with its retrain")
    assert len(versions("bad")) == 1
    left, = Path("retrains").glob(".run-*")
    os.utime(left, (0, 0))
    assert retrain("bad", notebook=notebook(tmp_path / "next.ipynb", "raise SystemExit(1)")).decision == "failed"
    at_rest()


def wrong_for_the_old(X, y):
    "A model that learnt the new world, and for those above 77 the opposite of it."
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["sex"]), (StandardScaler(), ["age", "bp"]))
    model = make_pipeline(columns, PolynomialFeatures(3), LogisticRegression(C=100, max_iter=5000))
    return model.fit(X, y.where(X.age <= 77, (X.bp > 120).astype(int)))


def test_worse_for_some_and_red_checks_are_no_promotion_whatever_the_policy(world, tmp_path, monkeypatch):
    "The gate is asked about the bundle's size only; all of its checks run where the schedule retrains."
    gate = sys.modules[check.__module__]
    monkeypatch.setattr(gate, "CHECKS", {name: gate.CHECKS[name] for name in ("artefact.size", "artefact.types")})
    champion = load_release(resolve("models:/bad@champion").folder)
    X, y = people(700, 1, slope=-0.06)
    known = ~set_aside(content_keys(X), 0.3)
    model, too_small = wrong_for_the_old(X[known], y[known]), {"limits": {"bundle_mb": 0.001}}
    prepare_like(champion, model, X[known], y[known], onnx=False, settings=too_small).save(tmp_path / "made")
    cell = f"import shutil\nshutil.copytree({str(tmp_path / 'made')!r}, out)"
    told = retrain("bad", notebook=notebook(tmp_path / "train.ipynb", cell), policy="auto")
    unmet = {c.name: c.evidence for c in told.conditions if not c.is_met}
    assert (told.decision, told.challenger, told.policy) == ("rejected", "2", "auto"), str(told)
    assert set(unmet) == {"no slice is worse", "the checks pass"} and "age above" in unmet["no slice is worse"], str(told)
    assert told.difference.low > 0 and "failed: artefact.size" in unmet["the checks pass"]
    assert "promote(" in told.promote_line and current_version("bad") == "1"
    assert not versions("bad")["checks_passed"].iloc[0] and "rejected" in history("bad")["reason"].iloc[-1]

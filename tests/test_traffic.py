"""Which version answers: followed on real folders and on a real MLflow registry in SQLite; on a server, see test_registry.py."""
import copy
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from waiting import until

from deploy_assist.errors import BundleError, ConfigError, RegistryError
from deploy_assist.predictions import PredictionLog
from deploy_assist.registry import history, production_at, promote, record_refusal, rollback
from deploy_assist.release import dump_model
from deploy_assist.traffic import Traffic, diff, sticky_of

@pytest.fixture(scope="module")
def three(patients):
    "Three releases of one model that answer the same row differently."
    def softer(by):
        model = copy.deepcopy(patients.model)
        model[-1].coef_ = model[-1].coef_ * by
        return refitted(patients, model)
    return [patients, softer(0.2), softer(0.04)]


@pytest.fixture(scope="module")
def iris():
    "A release with another schema, and its data."
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    from deploy_assist import prepare
    X, y = load_iris(return_X_y=True, as_frame=True)
    return prepare(LogisticRegression(max_iter=2000).fit(X, y), X, y, name="iris"), X, y


@pytest.fixture(scope="module")
def row(patients): return patients.schema.example()[0]


def refitted(release, model):
    "A release with another model and no engines but the model itself; much quicker than `prepare`."
    return replace(release, model=model, artefact=dump_model(model), parts={})


@pytest.fixture(scope="module")
def saved(three, tmp_path_factory):
    "Their folders, and one whose model answers NaN. Copy them."
    place = tmp_path_factory.mktemp("saved")
    folders = [Path(release.save(place / f"{i + 1}")) for i, release in enumerate(three)]
    broken = copy.deepcopy(three[0].model)
    broken[-1].coef_ = broken[-1].coef_ * np.nan
    return [*folders, Path(refitted(three[0], broken).save(place / "nan"))]


@pytest.fixture
def folder(saved, tmp_path):
    "A folder that holds the first release."
    shutil.copytree(saved[0], tmp_path / "served")
    return tmp_path / "served"


@pytest.fixture
def follow():
    "Makes a Traffic that is closed at the end; by itself it looks once an hour, so that a test says when."
    made = []

    def make(*args, **options):
        made.append(Traffic(*args, **dict(poll_s=3600) | options))
        return made[-1]

    yield make
    for traffic in made: traffic.close()


@pytest.fixture(scope="module")
def store(saved, tmp_path_factory):
    "A registry in SQLite with three versions; each test takes aliases of its own."
    from deploy_assist import registry
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    with registry._talk(uri, create=True) as (client, _):
        registry._ensure_model(client, uri, "patients")
        for folder in saved[:3]: client.create_model_version("patients", str(folder))
    return uri


@pytest.fixture
def registry(store, monkeypatch):
    "The same as everybody's default."
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return store


def put(source, folder):
    "Replace a folder by renames."
    fresh = folder.with_name(folder.name + ".new")
    shutil.copytree(source, fresh)
    if folder.exists(): folder.rename(folder.with_name(f"{folder.name}.{time.monotonic_ns()}"))
    fresh.rename(folder)


# --- folders

def test_a_folder_replaced_by_rename_under_load(row, three, saved, folder, tmp_path):
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db", home=tmp_path)
    answers, wrong, done = [], [], threading.Event()
    expected = {r.hash[:12]: r.predict_proba(pd.DataFrame([row])).tolist()[0] for r in three}

    def ask():
        while not done.wait(0.005):  # hundreds a second, and the candidate's trial has a core too
            try: answers.append(traffic.pick(b"").predict([row]))
            except Exception as e: wrong.append(repr(e))

    with Traffic(folder, log, poll_s=0.05) as traffic:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for t in threads: t.start()
        try:
            for i in (1, 2, 0):
                put(saved[i], folder)
                until(lambda want=three[i].hash[:12]: traffic.champion.version == want, f"an answer of version {i + 1}")
        finally:
            done.set()
            for t in threads: t.join(20)
        assert not wrong and traffic.problem is None
    assert np.allclose([a["probabilities"][0] for a in answers], [expected[a["model"]["version"]] for a in answers])
    assert {a["model"]["version"] for a in answers} == {*expected} and len(answers) > 100
    log.flush(20)
    logged = log.window("patients").set_index("prediction_id").version
    assert logged.to_dict() == {a["prediction_ids"][0]: a["model"]["version"] for a in answers}
    log.close()


@pytest.mark.parametrize("first", ["bundle.json", "model.skops"])
def test_a_folder_overwritten_file_by_file_is_taken_when_whole(three, saved, folder, follow, first):
    traffic = follow(folder)
    traffic.sources["champion"].pause_s = 0.02
    names = sorted(os.listdir(saved[1]), key=lambda name: name != first)
    for name in names[:-1]:
        if (saved[1] / name).is_file(): shutil.copy(saved[1] / name, folder / name)
        traffic.poll()
        if traffic.champion.version == three[0].hash[:12]: continue
        whole = json.loads((saved[1] / "bundle.json").read_text())["files"]
        assert all((folder / n).read_bytes() == (saved[1] / n).read_bytes() for n in whole)
    shutil.copy(saved[1] / names[-1], folder / names[-1])
    traffic.poll()
    assert (traffic.champion.version, traffic.problem, traffic.note) == (three[1].hash[:12], None, None)


def test_while_somebody_writes_nothing_is_tried(saved, folder, follow):
    traffic, stop = follow(folder), threading.Event()
    before, traffic.sources["champion"].pause_s = traffic.champion, 0.05

    def write():
        put(saved[1], folder)
        while not stop.wait(0.02): (folder / "requirements.txt").write_text(f"# {time.monotonic()}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: (folder / "requirements.txt").read_text().startswith("#"), "somebody to write")
        traffic.poll()
        assert traffic.champion is before and "somebody is writing" in traffic.note and traffic.problem is None
    finally: stop.set(), writer.join()
    traffic.poll()
    assert traffic.champion is before and "requirements.txt: was changed" in traffic.problem


def test_what_fails_its_own_example_never_answers(three, saved, folder, follow, capfd):
    traffic = follow(folder)
    before = traffic.champion
    put(saved[3], folder)
    traffic.poll(), traffic.poll()
    assert traffic.champion is before and "answers its own example with NaN" in traffic.problem
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [s["level"] for s in said] == ["error"], "it is tried once"
    assert traffic.info()["problem"] == traffic.problem
    put(saved[1], folder), traffic.poll()
    assert traffic.champion.version == three[1].hash[:12] and traffic.problem is None
    with pytest.raises(Exception, match="NaN"): Traffic(saved[3])
    with pytest.raises(BundleError, match="without bundle.json"): Traffic(folder / "nowhere")


def test_reload_loads_what_did_not_change(folder, follow):
    traffic = follow(folder)
    before = traffic.champion
    traffic.poll()
    assert traffic.champion is before
    traffic.reload()
    until(lambda: traffic.champion is not before, "a load")
    assert traffic.champion.version == before.version and traffic.info()["previous"] is None


def test_another_schema_is_allowed(iris, folder, follow, tmp_path):
    traffic = follow(folder)
    put(iris[0].save(tmp_path / "iris"), folder), traffic.poll()
    assert traffic.champion.name == "iris" and traffic.champion.predict(traffic.champion.schema.example())["predictions"]


# --- canary and shadow

def test_a_canary_is_sticky_and_takes_its_share(row, three, saved, folder, follow):
    traffic = follow(folder, challenger=saved[1], share=0.1)
    until(lambda: traffic.challenger, "the challenger")
    rows = [row | dict(bmi=20 + i / 200, age=i % 80) for i in range(4000)]
    picked = [traffic.pick(sticky_of([r])).version for r in rows]
    assert picked == [traffic.pick(sticky_of([dict(sorted(r.items())) | dict(age=float(r["age"]))])).version for r in rows]
    assert 0.08 < picked.count(three[1].hash[:12]) / 4000 < 0.12
    assert len({traffic.pick(sticky_of([r], "ward B")) for r in rows}) == 1, "who names itself meets one version"
    again = follow(folder, challenger=saved[1], share=0.2)
    until(lambda: again.challenger, "the challenger")
    more = [again.pick(sticky_of([r])).version for r in rows]
    assert all(b == a for a, b in zip(picked, more) if a == three[1].hash[:12]), "who met it goes on meeting it"
    for wrong in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="share"): Traffic(folder, share=wrong)


def test_a_shadow_is_logged_and_bounded(row, three, saved, folder, follow, tmp_path):
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db", home=tmp_path)
    traffic = follow(folder, log, challenger=saved[1], shadow=True)
    until(lambda: traffic.challenger, "the challenger")
    traffic.shadow.most_rows = 100
    assert {traffic.pick(str(i).encode()) for i in range(100)} == {traffic.champion}
    traffic.mirror([row] * 101), traffic.mirror([row] * 3), traffic.mirror([row | dict(bmi="much")])
    traffic.close(), log.flush(20)
    told = traffic.info()["shadow"]
    assert (told["predicted"], told["errors"], told["dropped"], told["waiting"]) == (3, 1, 101, 0) and "bmi" in told["last_error"]
    assert log.window("patients", source="shadow").version.tolist() == [three[1].hash[:12]] * 3 and log.count("patients") == 3
    log.close()


# --- the registry

FOLLOWER = """
import json, sys, time
from deploy_assist.traffic import Traffic
traffic, seen = Traffic(sys.argv[1], poll_s=0.1), None
while True:
    now = (traffic.champion.version, traffic.problem, traffic.note)
    if now != seen: print(json.dumps([*now, "mlflow" in sys.modules]), flush=True)
    seen = now
    time.sleep(0.02)
"""


def test_an_alias_is_followed_without_mlflow(registry):
    promote("patients", 1, alias="followed", reason="first")
    process = subprocess.Popen([sys.executable, "-c", FOLLOWER, "models:/patients@followed"], stdout=subprocess.PIPE, text=True)
    try:
        assert json.loads(process.stdout.readline()) == ["1", None, None, False]
        for move, version in ((promote, 2), (promote, 3), (rollback, 2), (rollback, 1)):
            move("patients", *([version] if move is promote else []), alias="followed", reason="on")
            assert json.loads(process.stdout.readline()) == [str(version), None, None, False]
    finally: process.kill(), process.communicate()


def test_a_rollback_needs_no_load(row, registry, follow, monkeypatch, tmp_path):
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db", home=tmp_path)
    promote("patients", 1, alias="instant", reason="first")
    traffic = follow("models:/patients@instant", log)
    first = traffic.champion
    promote("patients", 2, alias="instant", reason="second"), traffic.poll()
    second = traffic.champion
    monkeypatch.setattr("deploy_assist.traffic.load", lambda *a: pytest.fail("was loaded"))
    rollback("patients", alias="instant", reason="worse"), traffic.poll()
    assert traffic.champion is first and traffic.info()["previous"]["version"] == "2"
    promote("patients", 2, alias="instant", reason="better after all"), traffic.poll()
    assert traffic.champion is second
    for predictor in (first, second): predictor.predict([row])
    log.flush(20)
    assert log.window("patients")[["version", "alias"]].values.tolist() == [["1", "instant"], ["2", "instant"]]
    log.close()


def test_a_challenger_that_is_promoted_is_loaded_already(registry, follow, monkeypatch):
    promote("patients", 1, alias="top", reason="first")
    traffic = follow("models:/patients@top", challenger="models:/patients@next", share=1.0)
    traffic.poll()
    assert traffic.challenger is None and traffic.note is None, "there need not be one"
    promote("patients", 2, alias="next", reason="trained"), traffic.poll()
    assert (traffic.pick(b"").version, traffic.pick(b"").alias, traffic.info()["share"]) == ("2", "next", 1.0)
    monkeypatch.setattr("deploy_assist.traffic.load", lambda *a: pytest.fail("was loaded"))
    promote("patients", 2, alias="top", reason="good"), traffic.poll()
    assert (traffic.champion.version, traffic.champion.alias, traffic.challenger) == ("2", "top", None)
    rollback("patients", alias="top", reason="not good"), traffic.poll()
    assert (traffic.champion.version, traffic.challenger.version) == ("1", "2")


def test_history_says_what_was_refused_and_why(registry, folder, follow):
    from deploy_assist.registry import _client
    bad = str(_client(registry).create_model_version("patients", str(folder)).version)
    spoilt = folder / "model.skops"
    spoilt.write_bytes(spoilt.read_bytes()[:-50])
    promote("patients", 1, alias="careful", reason="first")
    traffic = follow("models:/patients@careful")
    promote("patients", bad, alias="careful", reason="newer"), traffic.poll()
    assert traffic.champion.version == "1" and "was changed" in traffic.problem
    def refused(): return [r for r in history("patients", alias="careful").to_dict("records") if r["action"] == "refused"]
    until(refused, "the history to say it", 60)
    [told] = refused()
    assert not record_refusal("patients", bad, alias="careful", reason="the same"), "of many that say so one is enough"
    assert (told["version"], told["previous"]) == (bad, "1") and "model.skops: was changed" in told["reason"]
    assert told["who"].startswith("endpoint on ") and production_at("patients", alias="careful").version == bad
    assert rollback("patients", alias="careful", reason="it does not load").version == "1"
    traffic.poll()
    assert traffic.problem is None


def test_several_write_the_record_at_once(registry):
    promote("patients", 1, alias="busy", reason="first"), promote("patients", 2, alias="busy", reason="second")
    said, errors = [], []

    def refuse():
        try: said.append(record_refusal("patients", "2", alias="busy", reason="does not load", serving="1", who="an endpoint"))
        except RegistryError as e: errors.append(e)

    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for t in threads: t.start()
    promote("patients", 3, alias="busy", reason="third")
    for t in threads: t.join(60)
    told = history("patients", alias="busy")
    moves = told[told.action != "refused"]
    assert not errors and moves.version.tolist() == ["1", "2", "3"] and set(told.state) == {"done"}
    assert said.count(True) == (told.action == "refused").sum() >= 1, "once, or once more after the move"


def test_a_registry_that_is_away_changes_nothing(registry, store, follow, tmp_path):
    promote("patients", 1, alias="steady", reason="first")
    traffic, file = follow("models:/patients@steady"), Path(store.removeprefix("sqlite:///"))
    before = traffic.champion
    os.rename(file, tmp_path / "away")
    try:
        traffic.poll()
        assert traffic.champion is before and "version 1 goes on answering" in traffic.note and traffic.problem is None
        for _ in range(8): traffic.poll()
        traffic.poll_s = 2.0
        assert 20 < traffic._pause() < 40, "it looks less often, and goes on looking"
        late = follow("models:/patients@steady")  # started meanwhile, say after a crash
        assert late.champion.version == "1" and "known from last time" in late.note
        with pytest.raises(RegistryError): Traffic("models:/patients@never-seen")
    finally: os.rename(tmp_path / "away", file)
    promote("patients", 2, alias="steady", reason="second")
    for t in (traffic, late): t.poll()
    assert [(t.champion.version, t.note) for t in (traffic, late)] == [("2", None)] * 2


def test_a_pinned_version_stays(registry, three, follow, tmp_path):
    traffic = follow("models:/patients/2", poll_s=0.01)
    assert traffic.champion.version == "2" and traffic._pause() is None and traffic.champion.alias is None
    assert traffic.info()["source"] == "models:/patients/2"
    kept = three[1].save(tmp_path / three[1].hash[:16])  # as serve(release) keeps it
    assert follow(kept)._pause() is None and follow(kept).champion.version == three[1].hash[:12]


# --- diff

def test_diff_replays_the_log(row, three, saved, tmp_path, registry):
    log, rows = PredictionLog(f"sqlite:///{tmp_path}/log.db", home=tmp_path), [row | dict(bmi=20 + i / 10) for i in range(200)]
    with Traffic(saved[0], log, poll_s=3600) as traffic:
        traffic.champion.predict(rows)
        traffic.champion.predict([row], source="demo"), traffic.champion.predict([row], source="shadow")
    log.flush(20)
    found = diff("models:/patients/1", "models:/patients/3", log)
    scores = [r.predict_proba(pd.DataFrame(rows))[:, 1] for r in (three[0], three[2])]
    assert (found.rows, found.champion, found.challenger) == (200, "patients 1", "patients 3")
    assert np.isclose(found.difference["mean"], np.mean(scores[1] - scores[0]))
    assert found.changed == int(((scores[0] > 0.5) != (scores[1] > 0.5)).sum()) == sum(m["rows"] for m in found.moves) > 0
    assert [one["row"].keys() for one in found.largest] == [row.keys()] * 10 and found.segments[0]["column"] == "bmi"
    assert json.loads(json.dumps(found.to_dict()))["share"] == found.share
    line = ["diff", "models:/patients/1", "models:/patients/3", "--log", log.url]
    from deploy_assist.cli import run
    assert run([*line, "--json"]) == 0 == run(line)
    log.close()


def test_diff_of_other_kinds(row, iris, saved, tmp_path):
    from sklearn.linear_model import LinearRegression, LogisticRegression

    from deploy_assist import prepare
    a, X, y = iris
    b = refitted(a, LogisticRegression(C=0.001, max_iter=2000).fit(X, y))
    found = diff(a, b, rows=X)
    assert found.rows == 150 and found.changed == (a.predict(X) != b.predict(X)).sum() and found.segments
    X, z = X.drop(columns="sepal width (cm)"), X["sepal width (cm)"]
    c = prepare(LinearRegression().fit(X, z), X, z, name="width")
    d = refitted(c, LinearRegression(fit_intercept=False).fit(X, z))
    found = diff(c, d, rows=X)
    assert np.isclose(found.difference["mean_abs"], np.abs(d.predict(X) - c.predict(X)).mean()) and found.changed == 150
    found = diff(saved[0], saved[1], rows=[row, row | dict(age=None), row | dict(bmi="x")])
    assert (found.rows, found.refused["champion"]) == (1, 2) and "age" in found.refused["why"]["champion"]
    with pytest.raises(ConfigError, match="the same kind of answer"): diff(c, saved[0], rows=X)
    empty = PredictionLog(f"sqlite:///{tmp_path}/empty.db", home=tmp_path)
    with pytest.raises(ConfigError, match="no requests of 'patients'"): diff(saved[0], saved[1], empty)
    empty.close()

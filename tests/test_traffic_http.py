"""Versions change over real HTTP, under load: no request fails, and each logged row names the version that answered it."""
import copy
import http.client
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from waiting import own_module, until

from deploy_assist import PredictionLog, history, prepare, promote, register, rollback, serve
from deploy_assist.registry import _client
from deploy_assist.release import dump_model


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    "Version k answers k * a: two in a registry, the first in production."
    home = tmp_path_factory.mktemp("versions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        patch.setenv("DEPLOY_ASSIST_HOME", str(home / "home"))
        X = pd.DataFrame(dict(a=np.arange(60.0)))
        for k in (1, 2): register(prepare(LinearRegression().fit(X, k * X.a), X, k * X.a, name="times"))
        promote("times", "1", reason="the first")
        yield home


@pytest.fixture(autouse=True)
def same_registry(registered, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered}/mlflow.db")
    monkeypatch.setenv("DEPLOY_ASSIST_HOME", str(registered / "home"))


def asked(endpoint, a, connection=None, **headers) -> dict:
    "What was said to {a}, over a connection that may be kept."
    here = connection or http.client.HTTPConnection("127.0.0.1", int(endpoint.url.rsplit(":", 1)[1]), timeout=30)
    try:
        here.request("POST", "/predict", json.dumps({"a": a}), {"Content-Type": "application/json"} | headers)
        answer = here.getresponse()
        said = json.loads(answer.read())
        assert answer.status == 200, said
        return said
    finally:
        if connection is None: here.close()


def settled(url, home, n):
    "The log's window, once it holds n rows."
    with PredictionLog(url, home=home) as log:
        until(lambda: len(log.window("times")) >= n, "the rows to be in the log")
        return log.window("times").set_index("prediction_id")


def test_a_promotion_and_a_rollback_under_load_fail_no_request(tmp_path):
    url, heard, failed, stop = f"sqlite:///{tmp_path}/log.db", {}, [], threading.Event()
    with serve("models:/times@champion", log=url, home=tmp_path, poll_s=0.3) as endpoint:
        def load(k):
            connection = http.client.HTTPConnection("127.0.0.1", int(endpoint.url.rsplit(":", 1)[1]), timeout=30)
            while not stop.is_set():
                try: said = asked(endpoint, 3.0, connection)
                except Exception as e: failed.append(repr(e)); break
                heard[said["prediction_ids"][0]] = said["model"]["version"], said["predictions"][0]
            connection.close()
        threads = [threading.Thread(target=load, args=(k,)) for k in range(6)]
        for thread in threads: thread.start()
        try:
            for version in ("2", "1"):
                if version == "2": promote("times", "2", reason="newer")
                else: rollback("times", reason="back")
                until(lambda version=version: asked(endpoint, 1.0)["model"]["version"] == version, f"version {version}")
                time.sleep(0.2)
        finally:
            stop.set()
            for thread in threads: thread.join(30)
    assert not failed and {v for v, _ in heard.values()} == {"1", "2"}
    assert all(round(answer, 6) == 3 * int(version) for version, answer in heard.values())
    rows = settled(url, tmp_path, len(heard)).loc[list(heard)]
    assert rows["version"].tolist() == [v for v, _ in heard.values()] and set(rows["alias"]) == {"champion"}
    assert np.allclose(rows["prediction"], rows["version"].astype(int) * rows["a"])


def test_a_canary_gets_its_share_and_a_row_keeps_its_version(tmp_path):
    url, options = f"sqlite:///{tmp_path}/log.db", dict(challenger="models:/times/2", share=0.5)
    with serve("models:/times/1", log=url, home=tmp_path, **options) as endpoint:
        version = lambda a, **more: asked(endpoint, a, **more)["model"]["version"]
        until(lambda: json.load(urlopen(f"{endpoint.url}/version"))["traffic"]["challenger"], "the challenger")
        found = [version(float(a)) for a in range(40)]
        assert {"1", "2"} == set(found) and [version(float(a)) for a in range(40)] == found
        by_key = [{version(float(a), **{"X-Canary-Key": f"caller {k}"}) for a in range(5)} for k in range(12)]
        assert all(len(versions) == 1 for versions in by_key) and {v for versions in by_key for v in versions} == {"1", "2"}
    rows = settled(url, tmp_path, 140)
    assert np.allclose(rows["prediction"], rows["version"].astype(int) * rows["a"]) and set(rows["source"]) == {"api"}


def test_a_shadow_answers_nobody_and_is_in_the_log(tmp_path):
    url, options = f"sqlite:///{tmp_path}/log.db", dict(challenger="models:/times/2", shadow=True)
    with serve("models:/times/1", log=url, home=tmp_path, **options) as endpoint:
        until(lambda: json.load(urlopen(f"{endpoint.url}/version"))["traffic"]["challenger"], "the challenger")
        assert {asked(endpoint, float(a))["model"]["version"] for a in range(30)} == {"1"}
    rows = settled(url, tmp_path, 60)
    assert {(s, v) for s, v in zip(rows["source"], rows["version"])} == {("api", "1"), ("shadow", "2")}
    assert sorted(rows.loc[rows["source"] == "shadow", "a"]) == [float(a) for a in range(30)]


# --- candidates that must not answer


def noted(endpoint, *words) -> str:
    "Readiness is 200 all the time; its note, once it says all these words."
    def said():
        with urlopen(f"{endpoint.url}/health/ready", timeout=30) as answer: note = json.load(answer).get("note", "")
        return all(word in note for word in words) and note
    return until(said, f"readiness to say {words}")


def test_a_refused_candidate_is_named_in_readiness_and_the_old_version_answers_on(tmp_path):
    X, folder = pd.DataFrame(dict(a=np.arange(60.0))), tmp_path / "served"
    release = prepare(LinearRegression().fit(X, X.a), X, X.a, name="times")
    nan = copy.deepcopy(release.model)
    nan.coef_ = nan.coef_ * np.nan
    good = release.save(tmp_path / "good")
    bad = replace(release, model=nan, artefact=dump_model(nan), parts={}).save(tmp_path / "bad")
    shutil.copytree(good, folder)
    with serve(folder, log=False, home=tmp_path, poll_s=0.2) as endpoint:
        for words, source in ((("schema.json", "was changed"), good), (("answers its own example with NaN",), bad)):
            shutil.rmtree(folder)
            shutil.copytree(source, folder)
            if source is good: (folder / "schema.json").write_text("{}")
            endpoint.reload()
            note = noted(endpoint, "was refused", f"version {release.hash[:12]} goes on answering", *words)
            assert str(tmp_path) not in note, "who asks for readiness needs no key"
            said = asked(endpoint, 3.0)
            assert (said["model"]["version"], round(said["predictions"][0], 6)) == (release.hash[:12], 3)


def test_a_candidate_that_ends_the_process_is_refused_like_any_other(tmp_path):
    switch = tmp_path / "leave"  # `prepare` would refuse a module that ends every process
    leaves = f"import os\n\nif os.path.exists({str(switch)!r}): os._exit(7)\n\n\ndef same(X): return X\n"
    X = pd.DataFrame(dict(a=np.arange(60.0)))
    with own_module(tmp_path, "leaves_at_import", leaves) as module:
        model = make_pipeline(FunctionTransformer(module.same), LinearRegression()).fit(X, X.a)
        mine = dict(modules=[Path(module.__file__)], trusted=["leaves_at_import.same"], onnx=False)
        folder = prepare(model, X, X.a, name="times", **mine).save(tmp_path / "leaves")
    switch.touch()
    bad = str(_client(os.environ["MLFLOW_TRACKING_URI"]).create_model_version("times", str(folder)).version)
    promote("times", "1", alias="tried", reason="the first")
    with serve("models:/times@tried", log=False, home=tmp_path, poll_s=0.2) as endpoint:
        promote("times", bad, alias="tried", reason="newer")
        noted(endpoint, f"version {bad} of models:/times@tried was refused", "ends the process that loads it (exit status 7)")
        assert asked(endpoint, 3.0)["model"]["version"] == "1" and endpoint.is_running

        def told(): return [e["reason"] for e in history("times", alias="tried").to_dict("records") if e["action"] == "refused"]
        assert "exit status 7" in until(told, "the history to say it", 60)[0]

"""Versions change over real HTTP, under load: no request fails, and each logged row names the version that answered it."""
import http.client
import json
import threading
import time
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from deploy_assist import PredictionLog, prepare, promote, register, rollback, serve


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


def until(happens, what, seconds=30):
    end = time.monotonic() + seconds
    while not (got := happens()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return got


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

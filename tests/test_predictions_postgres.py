"""The prediction log in PostgreSQL: the same answers, and a server that stops and comes back."""
import threading
import time
from datetime import UTC, datetime

import pandas as pd
import pytest
from logwriter import schema as risk
from postgres import programs, running_server
from test_predictions import acknowledged, batch, kill_when, many_columns, names_and_types, profiles_are_erased
from test_predictions import two_at_once, writer

from deploy_assist.errors import LogError
from deploy_assist.predictions import PredictionLog


@pytest.fixture
def url(postgres, request):
    "A database of its own for each test."
    import psycopg
    name = f"t{abs(hash(request.node.name))}"
    with psycopg.connect(postgres.replace("+psycopg", ""), autocommit=True) as c: c.execute(f"create database {name}")
    return postgres.rsplit("/", 1)[0] + "/" + name


def test_names_and_types(url): names_and_types(url)


def test_a_very_wide_model(url): many_columns(url, 1500)


def test_two_processes_start_on_a_new_database_at_once(tmp_path, url): two_at_once(tmp_path, url)


def test_nothing_acknowledged_is_lost_by_kill_9_and_nothing_is_there_twice(tmp_path, url):
    for i in range(2):
        two = [writer(tmp_path, url, f"acks{i}{j}", rows=1 + 2 * j) for j in range(2)]
        for j, p in enumerate(two): kill_when(p, lambda i=i, j=j: len(acknowledged(tmp_path, f"acks{i}{j}")) > 500)
    acks = [a for i in range(2) for j in range(2) for a in acknowledged(tmp_path, f"acks{i}{j}")]
    log = PredictionLog(url)
    w = log.window("risk")
    assert len(acks) > 1000 and set(acks) <= set(w.prediction_id) and w.prediction_id.is_unique and log.pending() == 0
    log.close()


def test_labels_feedback_export_erasure_and_retention(tmp_path, url):
    log = PredictionLog(url, interval_s=60)
    a, b, c, d = log.append(batch(4, subjects=["a", "b", "c", "a"]))
    log.feedback(a, label=1, time=2000.0)
    log.feedback(a, label=0, time=1000.0)
    log.feedback(b, correct=True, comment="it's so")
    log.request(route="/predict", status=200, model="risk")
    assert log.labels("risk", pd.DataFrame(dict(prediction_id=[c, d, "x"], label=[1, 0, 1]))) == dict(rows=3, matched=2)
    w = log.window("risk", since="1h").set_index("prediction_id")
    assert w.label.to_dict() == {a: 1, b: 1, c: 1, d: 0} and str(w.label.dtype) == "Int64"
    assert (
        len(log.window("risk", until="1h")) == 0
        and len(log.requests("risk", since="1h")) == 1
        and log.models().rows[0] == 4
    )
    assert len(log.feedbacks("risk")) == 3 and log.find(b)["label"] == 1
    file, = log.export(tmp_path / "old")
    assert log.export(tmp_path / "old") == [file] and len(pd.read_parquet(tmp_path / "old")) == 4
    receipt = log.delete(subject="a")
    assert (receipt.predictions, receipt.labels, receipt.feedback, receipt.exported) == (2, 2, 2, 2)
    assert set(log.window("risk").prediction_id) == {b, c} and set(pd.read_parquet(tmp_path / "old").subject) == {
        "b",
        "c",
    }
    assert log.purge(before=datetime(2100, 1, 1, tzinfo=UTC)) == dict(predictions=2, labels=2, feedback=1, requests=1)
    assert log.count("risk") == 0 and len(log.window("risk")) == 0
    log.close()


@pytest.mark.skipif(programs() is None, reason="no PostgreSQL: apt-get install postgresql")
def test_erasing_drops_the_profiles_of_the_hours(tmp_path, url): profiles_are_erased(tmp_path, url)


def test_the_server_stops_under_load_and_comes_back(tmp_path):
    with running_server() as server:
        log = PredictionLog(server.url, home=tmp_path / "home", interval_s=0.1)
        acks, slow, stop = [], [], threading.Event()

        def load():
            while not stop.is_set():
                t = time.perf_counter()
                acks.extend(log.append(batch(1, schema=risk)))
                slow.append(time.perf_counter() - t)
                time.sleep(0.001)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            until = time.monotonic() + 20
            while not log.drained and time.monotonic() < until: time.sleep(0.05)
            assert log.drained and not log.health().reason
            server.stop("immediate")
            before, until = len(acks), time.monotonic() + 20
            while not log.health().reason and time.monotonic() < until: time.sleep(0.05)
            time.sleep(1)
            health = log.health()
            assert health.ok and "rows wait in the spool" in health.reason and len(acks) > before
            with pytest.raises(LogError): log.count("risk")
            server.start()
            until = time.monotonic() + 30
            while log.health().reason and time.monotonic() < until: time.sleep(0.05)
            assert not log.health().reason
        finally:
            stop.set()
            thread.join()
        w = log.window("risk")
        assert set(w.prediction_id) == set(acks) and w.prediction_id.is_unique and log.pending() == 0
        assert sorted(slow)[len(slow) // 2] < 0.005
        log.close()

"""A week of a log in the log's own database: hours add up, in a process that never profiled them too."""
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from deploy_assist.predictions import Batch, PredictionLog
from deploy_assist.schema import Column, Schema
from deploy_assist.verdict import baseline_profile, compare
from deploy_assist.windows import profile_of, profile_rows


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite": return f"sqlite:///{tmp_path}/log.db"
    server, name = request.getfixturevalue("postgres"), f"w{abs(hash(request.node.name))}"
    import psycopg
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as c: c.execute(f"create database {name}")
    return server.rsplit("/", 1)[0] + "/" + name


def test_days_are_the_sum_of_their_hours(tmp_path, monkeypatch, url):
    rng = np.random.default_rng(3)
    n, start = 2000, datetime(2026, 3, 28, tzinfo=UTC)  # the night in which Europe's clocks change lies inside
    d = pd.DataFrame(dict(age=rng.integers(18, 90, n), city=rng.choice(["Köln", "Łódź"], n)))
    base = baseline_profile(d.assign(prediction=d.age // 50), prediction="prediction")
    schema = Schema((Column("age", "integer"), Column("city", "category", categories=("Köln", "Łódź"))), classes=(0, 1))
    with PredictionLog(url, home=tmp_path) as log:
        log.append(Batch(model="risk", schema=schema, columns=dict(age=d.age.tolist(), city=d.city.tolist()),
                         predictions=(d.age // 50).tolist(), time=(start.timestamp() + np.arange(n) * 86.4).tolist()))
        log.flush()
        profile_of(log, "risk", baseline=base, now=start + timedelta(days=9))
    with PredictionLog(url, home=tmp_path) as log:  # another reader, who may not read rows
        rows = log.window("risk")
        def refuse(*a, **k): raise AssertionError("rows were read")
        monkeypatch.setattr(PredictionLog, "window", refuse)
        days = [profile_of(log, "risk", start + timedelta(days=i), start + timedelta(days=i + 1), baseline=base)
                for i in range(2)]
        both = profile_of(log, "risk", start, start + timedelta(days=2), baseline=base)
    whole = profile_rows(rows, base)
    for p in (days[0] + days[1], both):
        assert p.rows == n and (p["age"].counts == whole["age"].counts).all() and p["city"].counts == whole["city"].counts
        assert np.isclose(p["age"].m2, whole["age"].m2, rtol=1e-9) and p["prediction"].counts == whole["prediction"].counts
    assert compare(base, both).action == "keep"


def test_erasing_a_person_drops_the_hours_that_tell_of_them(tmp_path, url):
    rng = np.random.default_rng(4)
    n, start = 300, datetime(2026, 3, 2, tzinfo=UTC)
    d = pd.DataFrame(dict(age=rng.integers(18, 90, n)))
    base = baseline_profile(d.assign(prediction=d.age // 50), prediction="prediction")
    batch = Batch(model="risk", schema=Schema((Column("age", "integer"),), classes=(0, 1)), columns=dict(age=d.age.tolist()),
                  predictions=(d.age // 50).tolist(), time=(start.timestamp() + np.arange(n) * 60.).tolist(),
                  subjects=["Łucja" if i in (10, 290) else f"p{i}" for i in range(n)])  # in the first hour and the fifth
    with PredictionLog(url, home=tmp_path) as log:
        log.append(batch)
        log.flush()
        said = dict(baseline=base, now=start + timedelta(days=1))
        assert profile_of(log, "risk", **said).rows == n
        receipt = log.delete(subject="Łucja")
        assert (receipt.predictions, receipt.profiles) == (2, 2)
        read = []
        monkey = PredictionLog.window
        try:
            PredictionLog.window = lambda self, name, a, b: (read.append(a.hour), monkey(self, name, a, b))[1]
            p = profile_of(log, "risk", **said)
        finally: PredictionLog.window = monkey
        rows = log.window("risk")
        assert read == [0, 4] and p.rows == n - 2 == len(rows)  # the others were kept
        assert (p["age"].counts == profile_rows(rows, base)["age"].counts).all()

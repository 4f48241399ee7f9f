"""A week of a log in the log's own database: hours add up, in a process that never profiled them too."""
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from deploy_assist.predictions import Batch, PredictionLog
from deploy_assist.schema import Column, Schema
from deploy_assist.verdict import baseline_profile, compare
from deploy_assist.windows import profile_of, profile_rows


def test_days_are_the_sum_of_their_hours(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    n, start = 2000, datetime(2026, 3, 28, tzinfo=UTC)  # the night in which Europe's clocks change lies inside
    d = pd.DataFrame(dict(age=rng.integers(18, 90, n), city=rng.choice(["Köln", "Łódź"], n)))
    base = baseline_profile(d.assign(prediction=d.age // 50), prediction="prediction")
    schema = Schema((Column("age", "integer"), Column("city", "category", categories=("Köln", "Łódź"))), classes=(0, 1))
    url = f"sqlite:///{tmp_path}/log.db"
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

"""Long windows do not cry wolf where the baseline is small, and a retrain needs its conditions."""
import numpy as np
import pandas as pd
import pytest

from deploy_assist.verdict import compare


def test_rare_names_of_a_long_tail_are_no_alarm():
    rng = np.random.default_rng(11)
    draw = lambda n: pd.DataFrame(dict(city=[f"c{k}" for k in np.minimum(rng.zipf(1.4, n), 3000)]))
    for _ in range(3): assert compare(draw(5000), draw(50_000)).action == "keep"


def test_a_hair_beyond_the_outer_value_is_no_alarm():
    rng = np.random.default_rng(12)
    x = lambda n: rng.choice([-.0446, .0507], n)
    assert compare(pd.DataFrame(dict(a=x(5000))), pd.DataFrame(dict(a=x(50_000) + .001))).action == "keep"


def test_values_of_mixed_types_are_no_alarm():
    rng = np.random.default_rng(13)
    draw = lambda n: pd.DataFrame(dict(m=pd.Series(rng.choice(np.array([1, "1", True, None], dtype=object), n), dtype=object)))
    for _ in range(5): assert compare(draw(1000), draw(500)).action == "keep"


@pytest.mark.parametrize("history, action", [((), "retrain"), (({"retrained": True},), "watch")])
def test_a_retrain_waits_for_the_cool_down(history, action):
    rng = np.random.default_rng(14)
    d = pd.DataFrame(dict(x=rng.normal(size=1500), y=rng.integers(0, 2, 1500)))
    good = d.assign(p=np.where(rng.random(1500) < .9, d.y, 1 - d.y))
    bad = d.assign(p=np.where(rng.random(1500) < .6, d.y, 1 - d.y))
    v = compare(good, bad, prediction="p", label="y", history=history)
    if history: v = compare(good, bad, prediction="p", label="y", history=history, thresholds=dict(cooldown=3))
    assert v.action == action
    assert {c["name"]: c["met"] for c in v.conditions}["the cool-down is over"] == (not history)

"""Long windows do not cry wolf where the baseline is small, and a retrain needs its conditions."""
import numpy as np
import pandas as pd
import pytest

from deploy_assist.errors import ConfigError, SchemaError
from deploy_assist.report import Monitor
from deploy_assist.verdict import baseline_profile, compare


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


def answers(rng, n, right=.9, **more):
    y = rng.integers(0, 2, n)
    return pd.DataFrame(dict(x=rng.normal(size=n), y=y, p=np.where(rng.random(n) < right, y, 1 - y), **more))


ASK = dict(prediction="p", label="y")


def test_the_sentence_of_a_retrain_is_the_loss_though_a_column_moved_more():
    rng = np.random.default_rng(15)
    v = compare(answers(rng, 3000), answers(rng, 1000, .75).assign(x=lambda d: d.x + 1.5), **ASK)
    assert v.action == "retrain" and v.findings[0].column == "x" and v.summary.startswith("quality fell: accuracy")
    assert all(str(v).count(f.message) == 1 for f in v.findings)


def test_nothing_is_met_by_nothing():
    rng = np.random.default_rng(16)
    base = answers(rng, 1000)
    met = {c["name"]: c["met"] for c in compare(base, answers(rng, 300), **ASK).conditions}
    assert met["seen in enough windows"] is False and met["the feed is clean"]
    for known in (base, baseline_profile(base, **ASK)):
        v = compare(known, base[:0], **ASK)
        assert v.action == "cannot tell" and "changed" not in str(v)
    m = Monitor("m", base, base[:0], dict(prediction="p", label="y"))
    assert "no proof here" in str(m.findings()) and "tolerance in" not in str(m.findings())


def test_numbers_are_written_out():
    rng = np.random.default_rng(17)
    def houses(n, noise):
        v = rng.normal(9e5, 2e5, n)
        return pd.DataFrame(dict(v=v, p=v, y=v + rng.normal(0, noise, n)))
    v = compare(houses(2000, 2e4), houses(800, 5e4).assign(v=lambda d: d.v + 3e5), **ASK)
    said = f"{v} {[c['evidence'] for c in v.conditions]}"
    assert "mae" in said and "," in said and "e+" not in said


def test_quality_is_compared_at_the_season_of_the_window():
    "At weekends the model has always been worse: a weekend is no reason to retrain, a worse weekend is."
    rng = np.random.default_rng(18)
    def log(start, days, weekend):
        at = pd.date_range(start, periods=days * 144, freq="10min", tz="UTC")
        far = at.day_of_week >= 5
        return answers(rng, len(at), np.where(far, weekend, .95), time=at).assign(x=lambda d: d.x + 2 * far)
    base = log("2026-01-05", 56, .7)
    v = compare(base, log("2026-03-07", 2, .7), time="time", **ASK)
    assert v.action == "keep" and "weekdays" in v.notes[0], v
    assert v.quality["before"]["accuracy"]["value"] == pytest.approx(.7, abs=.03)
    assert compare(base, log("2026-03-07", 2, .5), time="time", **ASK).action == "retrain"


def test_labels_that_came_first_do_not_count():
    "Bad news comes quickly: of the last days only wrong predictions are labelled. Rows come in any order, some without a time."
    rng = np.random.default_rng(19)
    week = answers(rng, 1400, time=pd.date_range("2026-03-02", periods=1400, freq="7min", tz="UTC"))
    young = week.time >= pd.Timestamp("2026-03-06", tz="UTC")
    week["y"] = week.y.where(~young | (week.y != week.p)).astype(float)
    week.loc[week.index % 50 == 0, "time"] = pd.NaT
    week = week.sample(frac=1, random_state=0)
    v = compare(answers(rng, 3000), week, time="time", **ASK)
    assert v.action == "keep" and v.quality["waiting"] > 40 and v.rows["labelled"] < 830
    assert v.quality["matured_until"].startswith("2026-03-06") and "do not count yet" in v.notes[-1]
    assert compare(answers(rng, 3000), week, **ASK).action == "retrain"  # without times nobody can know
    part = Monitor("m", answers(rng, 3000), week, dict(time="time", **ASK))
    assert f"{v.rows['labelled']:,}" in str(part.quality())


@pytest.mark.parametrize("odd, words", [
    ([1 + 2j, 3j] * 100, "complex"),
    (pd.Series(["a", "b\ud800"] * 100, dtype=object), "expected Unicode"),
])
def test_what_cannot_be_stored_is_refused_by_name(odd, words):
    base = pd.DataFrame(dict(x=np.arange(200.) % 7, k=["a", "b"] * 100))
    for b, c in ((base.assign(k=odd), base), (base, base.assign(k=odd))):
        with pytest.raises(SchemaError, match=f"column 'k'.*{words}"): compare(b, c)


def test_columns_of_lists_are_watched_for_gaps_alone():
    base = pd.DataFrame(dict(x=np.arange(200.) % 7, p=[0, 1] * 100))
    base["k"], base["many"] = [[1, 2], {"a": 1}] * 100, [np.arange(3)] * 200
    m = Monitor("m", base, base.assign(k=[None, [7]] * 100), dict(prediction="p"))
    assert [(f.cause, f.column) for f in m.verdict.findings] == [("missing", "k")]
    assert "k" in str(m.data_quality()) and "many" in str(m.inputs_section()) and "k" in str(m.findings())


def test_a_score_that_moved_is_no_worse_model_where_labels_show_that_quality_holds():
    rng = np.random.default_rng(20)
    def scored(n, squeeze=1.0):
        y = rng.integers(0, 2, n)
        return pd.DataFrame(dict(x=rng.normal(size=n), y=y, s=3 + squeeze * (y + rng.normal(0, .3, n))))
    ask = dict(score="s", label="y")
    v = compare(scored(5000), scored(20_000, .8), **ask)
    assert v.action == "keep" and next(d.ks for d in v.outputs if d.column == "s") > .1
    v = compare(scored(5000), scored(20_000, .8).assign(y=None), **ask)
    assert [f.cause for f in v.findings] == ["labels"]  # without labels it has to be looked at


def test_a_retrain_needs_a_loss_whose_whole_interval_is_beyond_the_tolerance():
    rng = np.random.default_rng(21)
    base = answers(rng, 5000)
    small, sure = (compare(base, answers(rng, n, .85), **ASK) for n in (600, 20_000))
    assert [f.cause for f in small.findings] == ["model"] == [f.cause for f in sure.findings]
    assert (small.action, sure.action) == ("watch", "retrain")
    assert small.conditions[0]["met"] is False and "0.02 is borne" in small.conditions[0]["evidence"]


def logged(rng, start, days, weekend=.7, moved=0.0):
    "At weekends other people come, of whom the model knows less."
    at = pd.date_range(start, periods=days * 144, freq="10min", tz="UTC")
    far = at.day_of_week >= 5
    return answers(rng, len(at), np.where(far, weekend, .95), time=at).assign(x=lambda d: d.x + 2 * far + moved)


def test_a_stored_baseline_is_matched_to_the_season_by_the_logs_earlier_weeks():
    "The training data has no times. A weekend is no drift and no loss; a worse one, one that moved, and drift that lasts are."
    rng = np.random.default_rng(22)
    train = logged(rng, "2025-06-02", 28).drop(columns="time").sample(frac=1, random_state=0)
    weeks, weekend = logged(rng, "2026-01-05", 42), "2026-02-21"
    for base in (train, baseline_profile(train, **ASK)):
        ask = dict(time="time", **ASK)
        assert compare(base, logged(rng, weekend, 2), **ask).action == "retrain", "by itself a weekend looks changed"
        v = compare(base, logged(rng, weekend, 2), season=weeks, **ask)
        assert v.action == "keep" and "weekdays, by 6,048 earlier rows" in v.notes[0], v
        assert v.quality["before"]["accuracy"]["value"] == pytest.approx(.7, abs=.03)
        assert compare(base, logged(rng, weekend, 2, .5), season=weeks, **ask).action == "retrain"
        moved = logged(rng, weekend, 2, moved=1)
        for log in (weeks, logged(rng, "2026-01-05", 42, moved=1)):
            assert [f.column for f in compare(base, moved, season=log, **ask).findings] == ["x"]


def test_stale_data_cannot_tell():
    rng = np.random.default_rng(23)
    base, days = answers(rng, 1000), lambda n: answers(rng, n * 144, time=pd.date_range("2026-03-02", periods=n * 144,
                                                                                         freq="10min", tz="UTC"))
    week = pd.Timestamp("2026-03-02", tz="UTC"), pd.Timestamp("2026-03-09", tz="UTC")
    ask = dict(time="time", window=week, **ASK)
    fresh = lambda v: [c for c in v.conditions if c["name"] == "the data are fresh"][0]
    v = compare(base, days(7), **ask)
    assert v.action == "keep" and fresh(v)["met"]
    v = compare(base, days(2), **ask)
    assert v.action == "cannot tell" and "no row came in the last 72% of the window" in v.summary and not fresh(v)["met"]
    assert v.rows["quiet"] == pytest.approx(.715, abs=.001) and "still arrive" in v.advice
    usual = [dict(rows=dict(quiet=.7), findings=[])]
    assert compare(base, days(2), history=usual, **ask).action == "keep"         # one batch a week is usual here
    assert compare(base, days(2), thresholds=dict(stale=.8), **ask).action == "keep"
    assert compare(base, days(2).assign(x=np.nan), **ask).action == "watch"      # what is found is said all the same
    assert compare(base, days(2), time="time", **ASK).action == "keep"           # without a window nobody can know
    old = answers(rng, 1000, time=pd.date_range("2022-03-01", periods=1000, freq="h", tz="UTC"))
    for b in (old, baseline_profile(old, time="time", **ASK)):
        v = compare(b, days(7).assign(y=None), **ask)
        assert v.action == "cannot tell" and "1,420 days before the window" in v.summary and "newer baseline" in v.advice
        assert compare(b, days(7), **ask).action == "keep", "labels measure the model itself"


ODD = {  # what a stranger may give: change of the window (or of the question) -> what is said
    "answers are True and 1": (lambda c: c.assign(p=c.p.astype(bool)), {}, "keep"),
    "labels are true or missing": (lambda c: c.assign(y=pd.array([*map(bool, c.y[:-1]), None], dtype="boolean")), {}, "keep"),
    "a flag came as 0 and 1": (lambda c: c.assign(f=c.f.astype(int)), {}, "keep"),
    "labels in other words": (lambda c: c.assign(y=c.y.map({0: "no", 1: "yes"})), {}, "never seen in the baseline"),
    "all infinite": (lambda c: c.assign(x=np.inf), {}, "x is infinite in 100% of the rows"),
    "beyond all numbers": (lambda c: c.assign(x=c.x * 1e300), {}, "x is infinite in 100% of the rows"),
    "times that are none": (lambda c: c.assign(t="soon"), dict(time="t"), "t holds no times that can be read"),
    "labels are lists": (lambda c: c.assign(y=[[1]] * len(c)), {}, "column 'y': got lists or dicts as label"),
    "a label that is nowhere": (lambda c: c, dict(label="truth"), "label: got 'truth', expected one of the columns"),
    "columns instead of a name": (lambda c: c, dict(label=["y"]), "label: got list"),
    "a limit that is no number": (lambda c: c, dict(thresholds=dict(ks=float("nan"))), "expected a number, 0 or more"),
    "limits in a list": (lambda c: c, dict(thresholds=[.1]), "expected names with numbers"),
    "weights in a list": (lambda c: c, dict(weights=[.5, .5]), "weights: got list"),
    "a window in words": (lambda c: c, dict(window=("monday", "sunday")), "window: got"),
    "a season that is no frame": (lambda c: c, dict(season=[1]), "season: got list"),
    "no column": (lambda c: c[[]], dict(baseline=pd.DataFrame(index=range(500)), label=None, prediction=None), "no value to"),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_frames_get_an_answer(what):
    rng = np.random.default_rng(24)
    base, now = (answers(rng, n).assign(f=rng.random(n) < .4) for n in (1000, 300))
    change, more, words = ODD[what]
    ask = ASK | more
    try: v = compare(ask.pop("baseline", base), change(now), **ask)
    except (ConfigError, SchemaError) as e: said = str(e)
    else: said = f"{v} {' '.join(v.notes)}"
    assert words in said

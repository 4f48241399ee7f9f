"""Does monitoring cry wolf, does it sleep, and how fast is it? Windows with and without drift on unlike tables.

    python benchmarks/bench_monitoring.py                 # everything: about ten minutes on two processors
    python benchmarks/bench_monitoring.py --rows 500 --repeat 20 --seed 100
    python benchmarks/bench_monitoring.py --speed         # only the clock
    python benchmarks/bench_monitoring.py --quick         # fewer windows, a smaller file
    python benchmarks/bench_monitoring.py --peers evidently=/PATH/bin/python nannyml=/PATH/bin/python --rows 500 --repeat 1

With --peers, Evidently and NannyML judge the same windows, on all tables and scenarios, instead of the goals. Each needs an
environment of its own (python -m venv PATH; PATH/bin/pip install evidently 'pandas<3'), whose interpreter is named.

Exit code 1 when a goal is missed; each is printed beside what was measured.

Every window is drawn from a printed seed. False alarm: a window in which nothing changed, judged other than `keep`.
J: mean detection over the real drifts minus mean false alarm over the nuisances (no change, trivial change, benign season).
"""
import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from deploy_assist.profile import profile
from deploy_assist.quality import losses, metrics, outcome, wilson
from deploy_assist.verdict import compare

# --------------------------------------------------------------------------------------------------------------- tables


def _sigmoid(z): return 1 / (1 + np.exp(-z))


def shop(rng, n):
    "Skewed money, names with a long tail, text ids, gaps, a clock; yes or no."
    d = pd.DataFrame(
        dict(
            amount=rng.lognormal(3, 1.2, n),
            basket=rng.poisson(3, n),
            discount=np.where(rng.random(n) < 0.7, 0.0, rng.random(n).round(2)),
            age=rng.normal(42, 14, n).clip(18, 95).round(),
            member=rng.random(n) < 0.4,
            channel=rng.choice(["web", "app", "store", "phone"], n, p=[0.5, 0.3, 0.17, 0.03]),
            city=np.array([f"c{k}" for k in np.minimum(rng.zipf(1.4, n), 3000)]),
            coupon=pd.Series(rng.choice(["A", "B", "C", None], n, p=[0.2, 0.15, 0.05, 0.6]), dtype=object),
            order_id=[f"o-{k:08d}" for k in rng.integers(0, 10**8, n)],
            joined=pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 1500, n), unit="D"),
        )
    )
    d["visits"] = (d.basket * 2 + rng.poisson(2, n)).astype(float).where(rng.random(n) > .06)
    p = _sigmoid(.8 * np.log(d.amount) - 3 + .05 * (d.age - 42) + 1.0 * d.member + .7 * (d.channel == "app"))
    d["y"] = np.where(rng.random(n) < p, "returns", "stays")
    return d


def sensor(rng, n):
    "Heavy tails, ties, a constant, zeros; a number to predict."
    load = rng.standard_t(3, n)
    d = pd.DataFrame(
        dict(
            load=load * 12 + 300,
            temp=20 + 4 * load / (1 + np.abs(load)) + rng.normal(0, 3, n),
            vib=np.abs(rng.standard_t(2, n)) * 0.01,
            step=rng.choice([0, 50, 100, 150, 200, 400], n, p=[0.3, 0.2, 0.2, 0.15, 0.1, 0.05]),
            flow=np.where(rng.random(n) < 0.35, 0, rng.gamma(2, 5, n)),
            pressure=rng.normal(1013, 8, n).round(1),
            rpm=rng.normal(1500, 60, n).round(-1),
            firmware=3,
            site=rng.choice(list("ABCDEFGH"), n, p=[0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.04, 0.01]),
            alarm=rng.random(n) < 0.02,
        )
    )
    d["y"] = .02 * d.load + .3 * d.temp + .05 * d.flow + rng.normal(0, 1.5, n)
    return d


def claims(rng, n):
    "Mostly names and flags, some rare; three classes."
    d = pd.DataFrame({f"flag{i}": rng.random(n) < p for i, p in enumerate((.5, .2, .05, .8))})
    for i, k in enumerate((2, 3, 5, 9, 30)):
        w = rng.dirichlet(np.ones(k) * 3) if False else 1 / np.arange(1, k + 1)
        d[f"cat{i}"] = rng.choice([f"v{j}" for j in range(k)], n, p=w / w.sum())
    d["grade"] = rng.choice([1, 2, 3, 4, 5], n, p=[.1, .2, .4, .2, .1])
    d["cost"] = rng.pareto(2.5, n) * 1000
    d["days"] = rng.geometric(.1, n)
    z = 1.2 * d.flag0 + .8 * (d.cat1 == "v1") + .3 * d.grade + .15 * np.log1p(d.cost) + rng.logistic(0, .6, n)
    d["y"] = np.digitize(z, [1.8, 3.0])
    return d


def wide(rng, n):
    "Thirty correlated numbers; labels of 0 and 1."
    f = rng.normal(size=(n, 5))
    L = np.random.default_rng(7).normal(size=(5, 30)) * .7
    X = f @ L + rng.normal(size=(n, 30))
    d = pd.DataFrame(X, columns=[f"x{i:02d}" for i in range(30)])
    d["y"] = (rng.random(n) < _sigmoid(X[:, :6].sum(1) * .5 - .5)).astype(int)
    return d


def messy(rng, n):
    "All that upsets a monitor: sparse flags, heavy ties, ids, a clock, mixed types, dates, constants, a column without a value."
    start = int(rng.integers(0, 10**6))
    d = pd.DataFrame(
        dict(
            money=np.exp(rng.normal(4, 2, n)).round(2),
            ties=np.minimum(rng.negative_binomial(1, .2, n), 60),
            user_id=rng.integers(0, 10**9, n),
            ticks=np.arange(start, start + n),
            mixed=pd.Series(rng.choice(np.array([1, "1", "two", 3.5, True, None], dtype=object), n), dtype=object),
            weight=pd.Series(rng.normal(70, 12, n)).where(rng.random(n) > .3),
            whole=pd.array(rng.integers(0, 8, n), dtype="Int64"),
            born=pd.Series(pd.Timestamp("1950-01-01") + pd.to_timedelta(rng.integers(0, 20_000, n), unit="D")).dt.date,
            always="same",
            seven=7.0,
            nothing=np.nan,
            tail=[f"z{k}" for k in np.minimum(rng.zipf(1.2, n), 10**6)],
            level=pd.Categorical(rng.choice(list("lmh"), n, p=[.6, .3, .1]), list("lmh"), ordered=True),
        )
        | {f"rare{i}": (rng.random(n) < q).astype(int) for i, q in enumerate((.001, .01, .03, .1))}
    )
    z = np.log(d.money) - 4 + (d.level == "h") * 1.5 + d.whole.astype(float) * .2 - .7
    d["y"] = np.where(rng.random(n) < _sigmoid(z), "yes", "no")
    return d


def hundred(rng, n):
    "A hundred columns: counts, flags and numbers of one decimal; a number to predict."
    d = pd.DataFrame(
        {f"n{i}": rng.normal(i, 3, n).round(1) for i in range(40)}
        | {f"k{i}": rng.poisson(.3 + i / 10, n) for i in range(40)}
        | {f"b{i}": rng.random(n) < (i + 1) / 40 for i in range(20)}
    )
    d["y"] = d.n0 + .5 * d.n1 + .8 * d.k20 + rng.normal(0, 1, n)
    return d


def _real(load):
    b = load(as_frame=True)
    return b.frame.rename(columns={"target": "y"}).assign(y=lambda d: d.y)


REAL = dict(
    cancer=datasets.load_breast_cancer,
    diabetes=datasets.load_diabetes,
    wine=datasets.load_wine,
    iris=datasets.load_iris,
)
MADE = dict(shop=shop, sensor=sensor, claims=claims, wide=wide, messy=messy, hundred=hundred)


class Table:
    "Draws rows, knows a model for them."

    def __init__(self, name, seed):
        self.name, rng = name, np.random.default_rng([seed, 17])
        self.pool = _real(REAL[name]) if name in REAL else None
        train = self.pool if name in REAL else MADE[name](rng, 4000)
        if name in REAL:  # the model learns on a third of the rows, the windows come from the rest
            at = rng.permutation(len(train))
            train, self.pool = train.iloc[at[: len(at) // 3]], self.pool.iloc[at[len(at) // 3:]].reset_index(drop=True)
        X, y = train.drop(columns="y"), train.y
        self.numeric = {c for c in X if pd.api.types.is_numeric_dtype(X[c])}
        self.inputs = [c for c in X if c not in ("order_id", "joined", "user_id", "ticks", "tail", "born", "nothing")]
        num = make_column_selector(dtype_include=["number", "bool"])
        from sklearn.impute import SimpleImputer
        pre = make_column_transformer(
            (make_pipeline(SimpleImputer(), StandardScaler()), num),
            (
                OneHotEncoder(handle_unknown="ignore", max_categories=20),
                make_column_selector(dtype_include=[object, "string", "category"]),
            ),
        )
        self.task = "regression" if y.dtype.kind == "f" else "classification"
        model = (
            Ridge()
            if self.task == "regression"
            else LogisticRegression(max_iter=300)
            if name != "iris"
            else RandomForestClassifier(30, random_state=0)
        )
        self.model = make_pipeline(pre, model).fit(self._clean(X), y)

    def _clean(self, X):
        X = X[self.inputs].copy()
        for c in X:
            if c not in self.numeric: X[c] = X[c].astype(object).where(X[c].notna(), "none").astype(str)
            else: X[c] = pd.to_numeric(X[c]).astype(float).replace([np.inf, -np.inf], np.nan)
        return X

    def draw(self, rng, n):
        if self.pool is not None: return self.pool.iloc[rng.integers(0, len(self.pool), n)].reset_index(drop=True)
        return MADE[self.name](rng, n)

    def score(self, d):
        X = self._clean(d.drop(columns="y"))
        d = d.copy()
        if self.task == "regression": return d.assign(pred=self.model.predict(X))
        P = self.model.predict_proba(X)
        d["pred"] = self.model.classes_[P.argmax(1)]
        d["score"] = P[:, -1] if P.shape[1] == 2 else P.max(1)
        return d


# ------------------------------------------------------------------------------------------------------------ scenarios

def _num(d, rng, spread=8, positive=False, heavy=False):
    c = [
        k
        for k in d
        if k not in ("y", "latency_ms", "ticks", "user_id")
        and pd.api.types.is_numeric_dtype(d[k])
        and d[k].dtype != bool
        and d[k].nunique() >= spread
        and (not positive or d[k].min() > 0)
    ]
    c = c or [
        k
        for k in d
        if k not in ("y", "latency_ms", "ticks", "user_id")
        and pd.api.types.is_numeric_dtype(d[k])
        and d[k].dtype != bool
        and d[k].nunique() >= spread
    ]
    return c[rng.integers(len(c))]


def _cat(d, rng, most=50):
    c = [
        k
        for k in d
        if k not in ("y", "order_id")
        and not pd.api.types.is_numeric_dtype(d[k])
        and not pd.api.types.is_datetime64_any_dtype(d[k])
        and d[k].nunique() <= most
    ]
    c += [k for k in d if k != "y" and d[k].dtype == bool]
    return c[rng.integers(len(c))] if c else None


def _put(d, k, v):
    d = d.copy()
    d[k] = v
    return d


def _some(rng, n, share): return rng.random(n) < share


def missing(d, rng, share=None):
    held = [k for k in d.columns.drop(["y", "latency_ms"]) if d[k].notna().any()]
    k = held[rng.integers(len(held))]
    return _put(
        d,
        k,
        d[k].astype(object).where(~_some(rng, len(d), share or rng.uniform(0.08, 0.3)), None)
        if d[k].dtype.kind not in "f"
        else d[k].where(~_some(rng, len(d), share or rng.uniform(0.08, 0.3))),
    ), k


def unit_all(d, rng): k = _num(d, rng); return _put(d, k, d[k] * 1000), k
def unit_some(d, rng):
    k = _num(d, rng)
    m = _some(rng, len(d), rng.uniform(0.03, 0.2))
    return _put(d, k, np.where(m, d[k] * 1000, d[k])), k


def unit_down(d, rng):
    k = _num(d, rng, positive=True)
    m = _some(rng, len(d), rng.uniform(0.1, 0.3))
    return _put(d, k, np.where(m, d[k] / 1000, d[k])), k


def unit_hundred(d, rng): k = _num(d, rng, positive=True); return _put(d, k, d[k] * 100), k
def stuck(d, rng): k = _num(d, rng); return _put(d, k, d[k].dropna().iloc[0]), k


def stuck_part(d, rng):
    k = _num(d, rng, 30)
    v = d[k].to_numpy(float).copy()
    a = int(len(v) * rng.uniform(.4, .75))
    v[a:] = d[k].dropna().median() if rng.random() < .5 else d[k].dropna().iloc[0]
    return _put(d, k, v), k


def unseen(d, rng):
    k = _cat(d, rng)
    if k is None or d[k].dtype == bool:
        k = next(
            (
                c
                for c in d
                if d[c].dtype == object or str(d[c].dtype).startswith("str") and c not in ("order_id", "city", "y")
            ),
            None,
        )
    if k is None or k == "order_id": return None
    return _put(d, k, d[k].astype(object).where(~_some(rng, len(d), rng.uniform(.03, .12)), "brand new")), k


def beyond(d, rng):
    k = _num(d, rng)
    hi, lo = d.attrs["base"][k].max(), d.attrs["base"][k].min()
    m = _some(rng, len(d), rng.uniform(.02, .08))
    return _put(d, k, np.where(m, hi + (hi - lo) * rng.uniform(.3, 1.5, len(d)), d[k].astype(float))), k


def sentinel(d, rng):
    k = _num(d, rng)
    return _put(d, k, np.where(_some(rng, len(d), rng.uniform(0.03, 0.15)), -9999, d[k])), k


def shift(d, rng, by=.4):
    k = _num(d, rng)
    x = d[k].astype(float)
    return _put(d, k, x + by * (x.clip(*x.quantile([.02, .98])).std()) * rng.choice([-1, 1])), k


def shift_far(d, rng): return shift(d, rng, 1.0)
def wider(d, rng, by=1.6):
    k = _num(d, rng, 15)
    x = d[k].astype(float)
    return _put(d, k, x.median() + (x - x.median()) * by), k


def narrower(d, rng): return wider(d, rng, .55)


def bimodal(d, rng):
    k = _num(d, rng, 15)
    x = d[k].astype(float)
    sd = x.clip(*x.quantile([.02, .98])).std()
    return _put(d, k, x.mean() + sd * (np.where(rng.random(len(d)) < .5, -.9, .9) + .44 * (x - x.mean()) / sd)), k


def skewed(d, rng):
    "Ranks squeezed towards the lower end."
    k = _num(d, rng, 15)
    x = d[k].astype(float)
    z = x.rank(method="first") / (x.notna().sum() + 1)
    return _put(d, k, pd.Series(np.quantile(x.dropna(), (z**1.7).fillna(.5)), index=d.index).where(x.notna())), k


def mix(d, rng):
    k = _cat(d, rng)
    if k is None: return None
    v = d[k].dropna().value_counts(normalize=True)
    at = v.index[rng.integers(min(3, len(v)))]
    return _mixed(d, lambda e: e[k] == at, rng, .2), k


def _mixed(d, hit, rng, more):
    "Fresh rows in which the share of those that `hit` moves by `more`."
    n, big = len(d), d.attrs["draw"](6 * len(d))
    h = hit(big).to_numpy(bool)
    if not h.any() or h.all(): return None
    s = h.mean()
    to = s + more if s + more < .95 else s - more
    yes = rng.random(n) < to
    out = np.where(
        yes,
        rng.choice(np.flatnonzero(h), n, replace=h.sum() < n),
        rng.choice(np.flatnonzero(~h), n, replace=(~h).sum() < n),
    )
    return big.iloc[out].reset_index(drop=True).assign(latency_ms=d.latency_ms.to_numpy())


def correlation(d, rng):
    num = [c for c in d if c != "y" and d[c].dtype.kind in "if" and d[c].nunique() >= 8]
    if len(num) < 2: return None
    R = d[num].corr("spearman").abs().to_numpy().copy()
    np.fill_diagonal(R, 0)
    i, j = np.unravel_index(np.argsort(-R, axis=None)[2 * rng.integers(min(3, len(num) - 1))], R.shape)
    if R[i, j] < .3: i, j = np.unravel_index(R.argmax(), R.shape)
    if R[i, j] < .3: return None
    return _put(d, num[i], d[num[i]].to_numpy()[rng.permutation(len(d))]), num[i]


def small_moves(d, rng):
    d = d.copy()
    num = [c for c in d if c != "y" and d[c].dtype.kind in "if" and d[c].nunique() >= 15]
    if len(num) < 4: return None
    for k in num: x = d[k].astype(float); d[k] = x + rng.choice([-1, 1]) * .17 * x.clip(*x.quantile([.02, .98])).std()
    return d, None


def label_shift(d, rng):
    cut = d.y.quantile(.6) if d.y.dtype.kind == "f" else sorted(d.y.unique())[rng.integers(d.y.nunique())]
    return _mixed(d, (lambda e: e.y > cut) if d.y.dtype.kind == "f" else (lambda e: e.y == cut), rng, .22), "y"


def concept(d, rng, share=.3):
    if d.y.dtype.kind == "f":
        return _put(
            d, "y", np.where(_some(rng, len(d), share + 0.1), d.y + 1.2 * d.y.std() * rng.choice([-1, 1]), d.y)
        ), "y"
    v = d.y.to_numpy().copy()
    m = _some(rng, len(d), share)
    c = np.array(sorted(d.y.unique()))
    v[m] = c[(np.searchsorted(c, v[m]) + rng.integers(1, len(c), m.sum())) % len(c)]
    return _put(d, "y", v), "y"


def concept_region(d, rng):
    "The meaning changed for one half of one column."
    k = _num(d, rng, 5)
    far = (d[k] > d[k].median()).to_numpy()
    if d.y.dtype.kind == "f": return _put(d, "y", np.where(far, d.y - 1.0 * d.y.std(), d.y)), "y"
    e, _ = concept(d, rng, .5)
    return _put(d, "y", np.where(far, e.y, d.y)), "y"


def slow(d, rng): return _put(d, "latency_ms", d.latency_ms * rng.uniform(1.5, 3)), None
def gone(d, rng):
    k = list(d.columns.drop(["y", "latency_ms"], errors="ignore"))[rng.integers(len(d.columns) - 2)]
    return d.drop(columns=k), k


def same(d, rng): return d, None
def _narrow(x):
    "A spread that a long tail does not blow up: what is trivial in it is trivial for the bulk of the rows."
    x = x.astype(float)
    return min(x.clip(*x.quantile([.02, .98])).std(), (x.quantile(.75) - x.quantile(.25)) / 1.349 or np.inf)


def trivial_shift(d, rng):
    k = _num(d, rng)
    return _put(d, k, d[k] + .05 * _narrow(d[k]) * rng.choice([-1, 1])), k


def trivial_all(d, rng):
    d = d.copy()
    for k in [c for c in d if c != "y" and d[c].dtype.kind in "f" and c != "latency_ms"]:
        d[k] = d[k] + 0.02 * _narrow(d[k])
    return d, None


def trivial_mix(d, rng):
    k = _cat(d, rng)
    if k is None: return trivial_shift(d, rng)
    at = d[k].dropna().value_counts().index[0]
    return _mixed(d, lambda e: e[k] == at, rng, .012), k


QUIET = dict(same=same)
NUISANCE = dict(same=same, trivial_shift=trivial_shift, trivial_all=trivial_all, trivial_mix=trivial_mix,
                season=None, season_log=None)
REALLY = dict(
    missing=(missing, {"missing"}),
    gone=(gone, {"missing"}),
    unit_all=(unit_all, {"unit"}),
    unit_some=(unit_some, {"unit"}),
    unit_down=(unit_down, {"unit"}),
    unit_hundred=(unit_hundred, {"unit"}),
    stuck=(stuck, {"stuck"}),
    stuck_part=(stuck_part, {"stuck"}),
    unseen=(unseen, {"unseen"}),
    beyond=(beyond, {"range"}),
    sentinel=(sentinel, {"range"}),
    shift=(shift, {"population"}),
    shift_far=(shift_far, {"population"}),
    wider=(wider, {"population"}),
    narrower=(narrower, {"population"}),
    bimodal=(bimodal, {"population"}),
    skewed=(skewed, {"population"}),
    mix=(mix, {"population"}),
    correlation=(correlation, {"joint"}),
    small_moves=(small_moves, {"joint", "population"}),
    label_shift=(label_shift, {"labels"}),
    concept=(concept, {"model"}),
    concept_region=(concept_region, {"model"}),
    slow=(slow, {"service"}),
)


def season_pair(t, rng, n, m):
    "Eight weeks with a weekly rhythm, then a window of a few days."
    def make(n, start, days):
        at = pd.Timestamp(start, tz="UTC") + pd.to_timedelta(np.sort(rng.uniform(0, days * 86400, n)), unit="s")
        d = t.draw(rng, max(3 * n, 40_000))
        week = (at.day_of_week >= 5)
        num = [c for c in d if c != "y" and d[c].dtype.kind in "if" and d[c].nunique() >= 15][:4]
        r = d[num].rank(pct=True).mean(axis=1).to_numpy()
        order = np.argsort(r + rng.normal(0, .25, len(r)))      # weekends draw from the upper part
        hi, pick = rng.permutation(order[len(order) // 2:])[:week.sum()], np.empty(n, int)
        pick[week], pick[~week] = hi, rng.permutation(np.setdiff1d(order, hi))[:n - len(hi)]  # no row twice
        d = d.iloc[pick].reset_index(drop=True).assign(time=at, latency_ms=rng.lognormal(2, .4, n))
        return d.assign(ticks=np.arange(n) + d.ticks.min()) if "ticks" in d else d  # a counter goes on with the time
    first, days = [("2026-03-02", 7), ("2026-03-07", 2), ("2026-03-03", 3), ("2026-03-06", 3)][rng.integers(4)]
    return make(n, "2026-01-05", 56), make(m, first, days)


def pair(t, scenario, rng, n, m):
    """Baseline and window of one trial, scored by the model, and rows of the log before the window; None where the scenario does
    not fit the table. `season_log`: the baseline has no times, as the training data that lies with a model; the log has."""
    if scenario == "season": b, c = season_pair(t, rng, n, m)
    elif scenario == "season_log":
        log, c = season_pair(t, rng, n, m)
        b = log.sample(frac=1, random_state=0, ignore_index=True).drop(columns="time")  # as drawn at any time of these weeks
        return t.score(b), t.score(c), t.score(log)
    else:
        b = t.draw(rng, n).assign(latency_ms=rng.lognormal(2, .4, n))
        c = t.draw(rng, m).assign(latency_ms=rng.lognormal(2, .4, m))
        f = NUISANCE.get(scenario) or REALLY[scenario][0]
        c.attrs |= dict(base=b, draw=lambda n: t.draw(rng, n))
        r = f(c, rng)
        if r is None or r[0] is None: return None
        c = r[0]
    b = t.score(b)
    miss = [k for k in t.inputs if k not in c]
    full = (
        c if not miss else c.assign(**{k: b[k].sample(len(c), replace=True, random_state=0).to_numpy() for k in miss})
    )
    c = t.score(full).drop(columns=miss)
    b.attrs, c.attrs = {}, {}
    return b, c, None


class Peer:
    "A peer in a process of its own; see peers.py."
    def __init__(self, name, python):
        self.folder = tempfile.TemporaryDirectory()
        here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers.py")
        quiet = "OMP_NUM_THREADS OPENBLAS_NUM_THREADS DO_NOT_TRACK NML_DISABLE_USAGE_LOGGING".split()
        env = os.environ | dict.fromkeys(quiet, "1")
        env.pop("PYTHONPATH", None)
        self.process = subprocess.Popen([python, "-W", "ignore", here, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env=env)
        self.versions = json.loads(self.process.stdout.readline())

    def says(self, b, c):
        "Peer's judge -> (does it alarm, CPU seconds). A column that is gone stops it, which is counted as seen."
        cols = [k for k in b if k != "time" and b[k].notna().any() and (k not in c or c[k].notna().any())]
        path = os.path.join(self.folder.name, "pair.pickle")
        with open(path, "wb") as f: pickle.dump({k: _plain(d[[k for k in cols if k in d]]) for k, d in
                                                 (("baseline", b), ("window", c))}, f)
        print(path, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def _plain(d):
    "Columns as plain values: float64, datetimes, or texts with None where missing."
    def column(s):
        if s.dtype.kind in "iuf" or str(s.dtype).startswith(("Int", "Float")):
            return "number", s.to_numpy(float, na_value=np.nan).tobytes()
        if s.dtype.kind == "M": return "time", s.to_numpy("M8[us]").tobytes()
        return "text", [None if gone else str(v) for v, gone in zip(s, s.isna())]
    return {k: column(d[k]) for k in d}


def beside(r):
    "Ours and theirs on the same windows: detection of real drifts, false alarms over all nuisances and over each kind, J."
    theirs = sorted({k for row in r.peers for k in row if k not in ("error", "gone")})
    stopped = r.peers.map(lambda row: row.get("error")).dropna()
    def column(k, i, gone):
        return pd.Series([float(row[k][i]) if k in row else gone if "gone" in row else np.nan for row in r.peers], r.index)
    said = {"deploy_assist": (r.alarm.astype(float), r.s)} | {k: (column(k, 0, 1.0), column(k, 1, np.nan)) for k in theirs}
    of = f"{', '.join(r.table.unique())}; {r.scenario.nunique()} scenarios"
    print(f"\n{len(r):,} windows of {of}; each judged by all:", flush=True)
    print(f"  {'':30s}{'J':>7s}{'detected':>10s}{'nuisance':>10s}{'same':>7s}{'trivial':>9s}{'season':>8s}{'CPU ms':>9s}")
    for name, (alarm, used) in said.items():
        per = alarm.groupby(r.scenario).mean()
        det, far = per[per.index.isin(REALLY)].mean(), per[per.index.isin(NUISANCE)].mean()
        same, season = per.get("same", np.nan), per[per.index.str.startswith("season")].mean()
        trivial = per[per.index.str.startswith("trivial")].mean()
        print(f"  {name:30s}{det - far:7.3f}{det:10.3f}{far:10.3f}{same:7.3f}{trivial:9.3f}{season:8.3f}{used.mean() * 1e3:9.0f}")
    if len(stopped): print(f"  {len(stopped)} windows that a peer could not judge, such as: {stopped.iloc[0]}")


def run(tables, scenarios, n, m, repeat, seed, verbose=False, labels=True, peers=()):
    "Judge `repeat` windows of each scenario on each table; the tables are shared out to the processors."
    ask = [([t], scenarios, n, m, repeat, seed, verbose, labels, peers) for t in tables]
    with ProcessPoolExecutor(min(len(tables), os.cpu_count() or 1)) as pool:
        parts = []
        for part in pool.map(judge, *zip(*ask)):
            parts.append(part)
            if peers: beside(part)  # a table of a hundred columns takes Evidently a quarter of an hour: see what is there
    return pd.concat(parts, ignore_index=True)


def judge(tables, scenarios, n, m, repeat, seed, verbose, labels, peers):
    warnings.filterwarnings("ignore")
    out, others = [], [Peer(*p) for p in peers]
    for name in tables:
        t = Table(name, seed)
        for sc in scenarios:
            for r in range(repeat):
                rng = np.random.default_rng([seed, r, hash_of(name), hash_of(sc)])
                got = pair(t, sc, rng, n, m)
                if got is None: continue
                b, c, log = got
                if not labels and sc not in ("concept", "concept_region", "label_shift"):
                    c = c.drop(columns="y").assign(y=None)
                t0 = time.process_time()
                v = compare(
                    b,
                    c,
                    prediction="pred",
                    score="score" if "score" in b else None,
                    label="y",
                    time="time" if "time" in c else None,
                    season=log,
                )
                used = time.process_time() - t0
                want = REALLY[sc][1] if sc in REALLY else set()
                causes = [f.cause for f in v.findings]
                out.append(
                    dict(
                        table=name,
                        scenario=sc,
                        alarm=v.action != "keep",
                        action=v.action,
                        first=causes[:1] and causes[0] in want,
                        named=bool(want & set(causes)),
                        causes=",".join(f"{f.cause}:{f.column}" for f in v.findings[:4]),
                        s=used,
                        peers=asked(others, b, c),
                    )
                )
                if verbose and (
                    sc in NUISANCE and v.action != "keep" or sc in REALLY and not (causes and causes[0] in want)
                ):
                    print(
                        f"  {name:9s}{sc:15s}{r:4d} {v.action:8s} "
                        f"{[(f.cause, f.column, round(f.effect, 3), float(f'{f.p_value:.1e}')) for f in v.findings[:3]]}",
                        flush=True,
                    )
    for p in others: p.close()
    return pd.DataFrame(out)


def asked(peers, b, c):
    "All that the peers say of a window."
    if any(k not in c for k in b if k != "time"): return dict(gone=True)
    return {k: v for p in peers for k, v in p.says(b, c).items()}


def hash_of(s): return sum(ord(c) * 31**i for i, c in enumerate(s)) % 2**31


def show(r, title):
    bad = r[r.scenario.isin(REALLY)]
    quiet = r[r.scenario.isin(NUISANCE)]
    det, far = bad.groupby("scenario").alarm.mean(), quiet.groupby("scenario").alarm.mean()
    hit = bad[bad.alarm]
    print(f"\n{title}")
    print(
        pd.DataFrame(
            dict(
                detected=det, named=hit.groupby("scenario").named.mean(), first=hit.groupby("scenario")["first"].mean()
            )
        )
        .round(2)
        .to_string()
    )
    print(quiet.pivot_table(index="scenario", columns="table", values="alarm", aggfunc="mean").round(3).to_string())
    if len(det) and len(far):
        print(
            f"J = {det.mean():.3f} - {far.mean():.3f} = {det.mean() - far.mean():.3f}   named "
            f"{hit.named.mean():.1%}, first {hit['first'].mean():.1%}   {r.s.mean() * 1e3:.0f} CPU ms a window"
        )
        soft = quiet[quiet.scenario != "same"]
        print(f"nuisance: {wilson_text(int(soft.alarm.sum()), len(soft))}")
        return det.mean() - far.mean(), hit.named.mean(), soft.alarm.mean()


def wilson_text(k, n):
    low, high = wilson(k, n)
    return f"{k} of {n} ({k / max(n, 1):.1%}, {low:.1%} to {high:.1%})"


def cries(tables, baseline, rows, repeat, seed, verbose=False):
    "So many windows a table in which nothing changed; share of all that alarm."
    r = run(tables, ["same"], baseline, rows, repeat, seed + 1, verbose)
    for name, g in r.groupby("table"):
        print(f"  {name:10s} {wilson_text(int(g.alarm.sum()), len(g))}")
    print(f"  nothing changed, baseline {baseline:,}, window {rows:,}: {wilson_text(int(r.alarm.sum()), len(r))}")
    return r


GOALS = []


def goal(name, value, limit, least=False):
    "Print a goal beside what was measured."
    met = value >= limit if least else value <= limit
    GOALS.append((met, f"{'met   ' if met else 'MISSED'} {name}: {value:.3f}, goal {'>=' if least else '<='} {limit}"))
    print(GOALS[-1][1], flush=True)


# --------------------------------------------------------------------------------------------------------------- speed

def speed(rows=1_000_000):
    rng = np.random.default_rng(0)
    make = lambda n: pd.DataFrame(
        {f"x{i}": rng.normal(i, 1 + i, n) for i in range(24)}
        | {f"c{i}": pd.Categorical.from_codes(rng.integers(0, 5, n), list("abcde")) for i in range(6)}
    )
    b, c = make(5000), make(rows)
    base = profile(b)
    best = defaultdict(lambda: 9e9)
    s = rng.random(rows)
    q = pd.DataFrame(dict(y=(rng.random(rows) < s).astype(int), p=(s > .5).astype(int), s=s))
    a = outcome(q[:5000], "y", "p", "s", task="binary", classes=("0", "1"))
    for _ in range(3):
        t = time.process_time(); v = compare(base, c); best["drift"] = min(best["drift"], time.process_time() - t)
        t = time.process_time()
        o = outcome(q, "y", "p", "s", task="binary", classes=("0", "1"))
        metrics(o)
        losses(a, o)
        best["quality"] = min(best["quality"], time.process_time() - t)
    print(
        f"drift and summary, {rows:,} rows x 30 columns, stored baseline: {best['drift']:.2f} CPU s "
        f"({v.action}); quality: {best['quality']:.2f} CPU s"
    )
    goal(f"drift and summary, {rows:,} x 30, CPU s", best["drift"], .5)
    goal(f"quality, {rows:,} rows, CPU s", best["quality"], .15)
    return dict(best)


READ = """
import resource, sys, time
import pandas as pd
from deploy_assist.profile import profile
from deploy_assist.windows import profile_parquet
base = profile(pd.read_parquet(sys.argv[1] + "/base.parquet"))
t = time.process_time()
p = profile_parquet(sys.argv[2], base)
print(time.process_time() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, int(p.rows))
"""


def parquet(many=10_000_000):
    "Rows from Parquet: memory, and whether cost grows with the rows. Each size in a process of its own."
    import pyarrow as pa
    import pyarrow.parquet as pq
    rng = np.random.default_rng(1)
    make = lambda n: pd.DataFrame({f"x{i}": rng.normal(i, 1, n) for i in range(8)}
                                  | {f"c{i}": rng.choice(list("abc"), n) for i in range(2)})
    with tempfile.TemporaryDirectory() as folder:
        make(5000).to_parquet(f"{folder}/base.parquet")
        part, used = pa.Table.from_pandas(make(500_000)), {}
        for n in (many // 10, many):
            path = f"{folder}/{n}.parquet"
            with pq.ParquetWriter(path, part.schema) as w:
                for k in range(0, n, 500_000): w.write_table(part.slice(0, min(500_000, n - k)))
            out = subprocess.run([sys.executable, "-c", READ, folder, path], capture_output=True, text=True,
                                 check=True).stdout.split()
            used[n] = float(out[0])
            print(f"{n:,} rows x 10 columns from Parquet: {float(out[0]):.2f} CPU s, {float(out[1]):.2f} GB")
            os.unlink(path)
        goal(f"GB of memory for {many:,} rows from Parquet", float(out[1]), 2)
        goal("cost of ten times the rows (linear: 10)", used[many] / used[many // 10], 12)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--rows", type=int, nargs="*", default=[500, 50_000])
    a.add_argument("--baseline", type=int, default=5000)
    a.add_argument("--repeat", type=int, default=4)
    a.add_argument("--seed", type=int, default=97_531)
    a.add_argument("--quiet", type=int, default=40, help="so many short windows a table in which nothing changed; a fifth of it long")  # noqa: E501
    a.add_argument("--tables", nargs="*", default=[*REAL, *MADE])
    a.add_argument("--scenarios", nargs="*", default=[*NUISANCE, *REALLY])
    a.add_argument("--no-labels", action="store_true")
    a.add_argument("--speed", action="store_true")
    a.add_argument("--peers", nargs="+", metavar="NAME=PYTHON", default=[],
                   help="evidently=PYTHON, nannyml=PYTHON: the same windows judged by these, instead of the goals")
    a.add_argument("--quick", action="store_true")
    a.add_argument("-v", action="store_true")
    x = a.parse_args()
    warnings.filterwarnings("ignore")
    x.peers = [tuple(p.split("=", 1)) for p in x.peers]
    if any(len(p) < 2 or p[0] not in ("evidently", "nannyml") for p in x.peers): a.error("--peers: expected evidently=PYTHON")
    for p in x.peers:
        peer = Peer(*p)
        peer.close()
        print("peer:", ", ".join(f"{k} {v}" for k, v in peer.versions.items()))
    if x.quick: x.rows, x.repeat, x.quiet = [k for k in x.rows if k <= 5000] or x.rows, 1, min(x.quiet, 8)
    for m in [] if x.speed else x.rows:
        print(f"seed {x.seed}, baseline {x.baseline:,} rows, window {m:,} rows")
        long = m > 5000
        r = run(x.tables, x.scenarios, x.baseline, m, max(1, x.repeat // 4) if long else x.repeat, x.seed, x.v,
                not x.no_labels, x.peers)
        got = show(r, f"windows of {m:,} rows")
        if x.peers: beside(r); continue
        if got:
            goal(f"J with {m:,} rows", got[0], .95 if long else .75, least=True)
            goal(f"right cause named, share of detections, {m:,} rows", got[1], .9, least=True)
            goal(f"nuisance alarms (trivial, benign season), {m:,} rows", got[2], .05)
        if x.quiet:
            r = [cries(x.tables, x.baseline, m, max(1, x.quiet // 5) if long else x.quiet, x.seed, x.v)]
            if not long: r.append(cries(x.tables, 200, m, max(1, x.quiet // 4), x.seed + 7, x.v))
            goal(f"false alarms, nothing changed, {m:,} rows", pd.concat(r).alarm.mean(), .02)
    if x.peers: return
    if x.speed or not (x.scenarios != [*NUISANCE, *REALLY]):
        speed()
        parquet(1_000_000 if x.quick else 10_000_000)
    print(f"\nseed {x.seed}; goals beside what was measured:")
    for _, line in GOALS: print(f"  {line}")
    sys.exit(0 if all(met for met, _ in GOALS) else 1)


if __name__ == "__main__": main()

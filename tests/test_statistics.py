"""Our numbers are those of scipy and scikit-learn, on fixed data: 1e-9 where exact, 1e-3 where binned."""
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy import spatial, stats
from sklearn import metrics as sk

from deploy_assist.drift import LIMITS, beyond_p, bins_for, chi2, combine, compare_numbers, joint_suspects, js_distance
from deploy_assist.drift import ks_statistic, psi, to_shares, two_proportions, wasserstein
from deploy_assist.profile import _features, _matrix, numbers, profile
from deploy_assist.quality import auc, estimate, metrics, outcome, wilson
from deploy_assist.verdict import compare

rng = np.random.default_rng(20261125)
SAMPLES = dict(
    normal=(rng.normal(0, 1, 4000), rng.normal(.3, 1.2, 3000)),
    money=(rng.lognormal(3, 1, 4000), rng.lognormal(3.2, 1, 3000)),
    counts=(rng.poisson(3, 4000).astype(float), rng.poisson(4, 3000).astype(float)),
    flags=((rng.random(4000) < .1).astype(float), (rng.random(3000) < .2).astype(float)),
)


@pytest.mark.parametrize("name", SAMPLES)
def test_exact_distances_are_scipys(name):
    a, b = SAMPLES[name]
    assert ks_statistic(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-9)
    assert wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
def test_binned_distances_are_scipys(name):
    a, b = SAMPLES[name]
    base = numbers(a)
    d = compare_numbers("x", base, numbers(b, base.grid))
    assert d.ks == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-3)
    assert d.ks_p == pytest.approx(stats.kstwobign.sf(np.sqrt(4000 * 3000 / 7000) * d.ks), rel=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
def test_shares_distances(name):
    a, b = SAMPLES[name]
    edges = bins_for(a)
    p, q = to_shares(a, edges), to_shares(b, edges)
    assert js_distance(p, q) == pytest.approx(spatial.distance.jensenshannon(p, q, base=2), abs=1e-9)
    pc, qc = np.maximum(p, 1e-4), np.maximum(q, 1e-4)
    assert psi(p, q) == pytest.approx(np.sum((qc - pc) * np.log(qc / pc)), abs=1e-12)
    assert len(p) == (10 if len(np.unique(a)) > 20 else len(np.unique(a)))  # deciles, or value by value


def test_a_constant_baseline_does_not_hide_a_change():
    edges = bins_for(np.full(500, 7.0))
    assert psi(to_shares(np.full(500, 7.0), edges), to_shares(np.full(500, 8.0), edges)) > 5
    v = compare(pd.DataFrame(dict(k=[7.0] * 500)), pd.DataFrame(dict(k=[7.0] * 250 + [9.0] * 250)))
    assert v.action == "watch" and v.findings[0].column == "k"


def test_chi2_without_yates():
    table = np.array([[120, 40, 60], [90, 70, 75]])
    ours, want = chi2(*table), stats.chi2_contingency(table, correction=False)
    assert ours[:2] == pytest.approx((want.statistic, want.pvalue), rel=1e-9)
    assert ours[2] == pytest.approx(stats.contingency.association(table, "cramer"), rel=1e-9)
    two = np.array([[50, 70], [80, 40]])
    assert chi2(*two)[1] == pytest.approx(stats.chi2_contingency(two, correction=False).pvalue, rel=1e-9)


def test_two_proportions():
    z2 = stats.chi2_contingency([[60, 940], [90, 910]], correction=False).pvalue
    assert two_proportions(60, 1000, 90, 1000) == pytest.approx(z2, rel=1e-9)
    exact = two_proportions(1, 40, 4, 40)
    one_sided = [stats.fisher_exact([[1, 39], [4, 36]], alternative=s).pvalue for s in ("less", "greater")]
    assert exact == pytest.approx(min(1, 2 * min(one_sided)), rel=1e-9)


def test_moments_and_order_do_not_matter():
    a, b = SAMPLES["money"]
    whole = numbers(np.r_[a, b])
    assert (whole.mean, whole.sd) == pytest.approx((np.r_[a, b].mean(), np.r_[a, b].std()), rel=1e-9)
    frame = pd.DataFrame(dict(x=np.r_[a, b]))
    base = profile(frame)
    parts = profile(frame[:2500], like=base) + profile(frame[2500:], like=base)
    assert (parts["x"].counts == base["x"].counts).all() and parts["x"].m2 == pytest.approx(base["x"].m2, rel=1e-9)


def test_quality_is_scikit_learns():
    r = np.random.default_rng(5)
    s = r.random(2000)
    d = pd.DataFrame(dict(y=(r.random(2000) < s).astype(int), p=(s > .5).astype(int), s=s))
    m = metrics(outcome(d, "y", "p", "s", task="binary", classes=("0", "1")))
    want = dict(accuracy=sk.accuracy_score(d.y, d.p),
                balanced_accuracy=sk.balanced_accuracy_score(d.y, d.p), f1=sk.f1_score(d.y, d.p),
                roc_auc=sk.roc_auc_score(d.y, s), brier=sk.brier_score_loss(d.y, s), log_loss=sk.log_loss(d.y, s))
    for k, v in want.items(): assert m[k].value == pytest.approx(v, abs=1e-9), k
    assert all(x.low <= x.value <= x.high for x in m.values() if np.isfinite(x.low))


@pytest.mark.parametrize("k, n", [(17, 60), (0, 12), (12, 12), (1, 100_000)])
def test_wilson_is_scipys(k, n):
    ci = stats.binomtest(k, n).proportion_ci(.95, "wilson")
    assert wilson(k, n) == pytest.approx((ci.low, ci.high), abs=1e-9)


@pytest.mark.parametrize("digits", [8, 1])  # without ties, and with many
def test_delong_is_the_direct_computation(digits):
    "DeLong, DeLong and Clarke-Pearson (1988): the placements of every pair, one by one."
    r = np.random.default_rng(7)
    y = r.random(400) < .3
    s = np.round(r.normal(0, 1, 400) + y, digits)
    pairs = (s[y][:, None] > s[~y]) + (s[y][:, None] == s[~y]) / 2
    v10, v01 = pairs.mean(1), pairs.mean(0)
    value, se = auc(y.astype(int), s)
    assert value == pytest.approx(sk.roc_auc_score(y, s), abs=1e-9) == pytest.approx(pairs.mean(), abs=1e-9)
    assert se == pytest.approx(np.sqrt(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01)), abs=1e-9)


def test_delong_on_bins():
    r = np.random.default_rng(8)
    y = r.random(60_000) < .3
    s = r.normal(0, 1, 60_000) + y
    assert auc(y.astype(int), s)[0] == pytest.approx(sk.roc_auc_score(y, s), abs=1e-3)


def test_the_estimate_without_labels_is_its_expectation():
    "Calibrated scores say how often they are right: in closed form, for another mix of scores than the baseline's."
    level = np.arange(.05, 1, .1)
    held = pd.DataFrame(dict(s=np.repeat(level, 100), y=np.concatenate([np.arange(100) < round(100 * v) for v in level]) * 1))
    held["p"] = (held.s > .5) * 1
    n = np.arange(1, 11) * 7
    new = pd.DataFrame(dict(s=np.repeat(level, n), p=np.repeat(level > .5, n) * 1))
    got = estimate(outcome(held, "y", "p", "s"), new, "p", "s")
    pos, neg = n * level, n * (1 - level)
    pairs = (level[:, None] > level) + (level[:, None] == level) / 2
    assert got["accuracy"] == pytest.approx((n * np.maximum(level, 1 - level)).sum() / n.sum(), abs=1e-9)
    assert got["roc_auc"] == pytest.approx(pos @ pairs @ neg / pos.sum() / neg.sum(), abs=1e-9)


def test_the_estimated_error_is_its_expectation():
    "Each tenth of the predictions has its own error; a window that holds other tenths has their mean."
    p = np.repeat(np.arange(10.), 100)
    held = pd.DataFrame(dict(p=p, y=p + (1 + p) * np.where(np.arange(1000) % 2, 1, -1)))
    n = np.arange(1, 11) * 5
    got = estimate(outcome(held, "y", "p", task="regression"), pd.DataFrame(dict(p=np.repeat(np.arange(10.), n))), "p")
    assert got == pytest.approx(dict(mae=(n * np.arange(1, 11)).sum() / n.sum()), abs=1e-9)


def test_hotelling_is_computed_from_the_rows():
    r = np.random.default_rng(9)
    f = r.normal(size=(1500, 1))
    frame = pd.DataFrame(r.normal(size=(1500, 5)) + f, columns=list("abcde"))
    base = profile(frame[:1000])
    cur = profile(frame[1000:] + .1, like=base)
    x, y = (_matrix(part, base, _features(base), slice(None)) for part in (frame[:1000], frame[1000:] + .1))
    n, m, q = len(x), len(y), 5
    S = ((n - 1) * np.cov(x.T) + (m - 1) * np.cov(y.T)) / (n + m - 2)
    sd = np.sqrt(np.diag(S))
    d = (y.mean(0) - x.mean(0)) / sd
    t2 = n * m / (n + m) * d @ np.linalg.solve(S / np.outer(sd, sd) + .02 * np.eye(q), d)
    want = stats.f.sf(t2 * (n + m - q - 1) / ((n + m - 2) * q), q, n + m - q - 1)
    assert 1e-9 < want < .05 and joint_suspects(base.joint, cur.joint, LIMITS)[0].p == pytest.approx(want, rel=1e-9)


def test_extremes_and_combined_evidence():
    assert beyond_p(3, 40, 10) == pytest.approx(comb(10, 3) / comb(50, 3), rel=1e-9)  # the three largest of 50 are among the ten
    p = np.array([.01, .2, .7])
    assert combine(p) == pytest.approx(stats.cauchy.sf(np.tan((.5 - p) * np.pi).mean()), rel=1e-9)
    same = SAMPLES["normal"][0]
    d = ks_statistic(same[:2000], same[2000:])
    base = numbers(same[:2000])
    p = compare_numbers("x", base, numbers(same[2000:], base.grid)).ks_p
    assert p == pytest.approx(stats.ks_2samp(same[:2000], same[2000:], method="exact").pvalue, abs=.03) and d < .05


def test_regression_is_scikit_learns():
    r = np.random.default_rng(6)
    y = r.normal(0, 2, 500)
    d = pd.DataFrame(dict(y=y, p=y + r.normal(0, 1, 500)))
    m = metrics(outcome(d, "y", "p", None, task="regression"))
    want = dict(mae=sk.mean_absolute_error(d.y, d.p), rmse=np.sqrt(sk.mean_squared_error(d.y, d.p)), r2=sk.r2_score(d.y, d.p))
    for k, v in want.items(): assert m[k].value == pytest.approx(v, abs=1e-9), k

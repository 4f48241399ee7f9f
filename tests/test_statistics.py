"""Our numbers are those of scipy and scikit-learn, on fixed data: 1e-9 where exact, 1e-3 where binned."""
import numpy as np
import pandas as pd
import pytest
from scipy import spatial, stats
from sklearn import metrics as sk

from deploy_assist.drift import bins_for, chi2, compare_numbers, js_distance, ks_statistic
from deploy_assist.drift import psi, to_shares, two_proportions, wasserstein
from deploy_assist.profile import numbers, profile
from deploy_assist.quality import metrics, outcome, wilson
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
    binned = ("roc_auc",)
    for k, v in want.items(): assert m[k].value == pytest.approx(v, abs=1e-3 if k in binned else 1e-9), k
    assert all(x.low <= x.value <= x.high for x in m.values() if np.isfinite(x.low))


def test_wilson_is_scipys():
    ci = stats.binomtest(17, 60).proportion_ci(.95, "wilson")
    assert wilson(17, 60) == pytest.approx((ci.low, ci.high), abs=1e-9)


def test_regression_is_scikit_learns():
    r = np.random.default_rng(6)
    y = r.normal(0, 2, 500)
    d = pd.DataFrame(dict(y=y, p=y + r.normal(0, 1, 500)))
    m = metrics(outcome(d, "y", "p", None, task="regression"))
    want = dict(mae=sk.mean_absolute_error(d.y, d.p), rmse=np.sqrt(sk.mean_squared_error(d.y, d.p)), r2=sk.r2_score(d.y, d.p))
    for k, v in want.items(): assert m[k].value == pytest.approx(v, abs=1e-9), k

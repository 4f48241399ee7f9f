"""Reports that do not end well: a dead kernel, a cell that fails, a timeout, kill -9, a full disk, no database, no rows.

And long windows: what is counted from stored hours or batches says what the rows say."""
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import nbformat
import numpy as np
import pandas as pd
import pytest
from waiting import until

from deploy_assist import DeployAssistError, PredictionLog, register, report
from deploy_assist.cli import run
from deploy_assist.errors import ConfigError, LogError, ReportError
from deploy_assist.predictions import Batch
from deploy_assist.release import COUNTED, Release, pack_profile
from deploy_assist.report import Monitor, check_parameters, read_run, write_run
from deploy_assist.schema import Schema
from deploy_assist.verdict import baseline_profile

module = importlib.import_module("deploy_assist.report")
rng = np.random.default_rng(0)
BEFORE = pd.DataFrame({"dose": rng.normal(5, 1, 400), "ward": rng.choice(["a", "b"], 400)})


def template(path, *cells):
    "A notebook of one's own in place of monitoring.ipynb."
    first = nbformat.v4.new_code_cell('folder: str = "."\nrun: str = ""', metadata={"tags": ["parameters"]})
    heading = nbformat.v4.new_markdown_cell("## Work")
    rest = [nbformat.v4.new_code_cell(source) for source in cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[first, heading, *rest], metadata={"kernelspec": kernel}), path)
    return path


def left(out) -> list[str]: return sorted(path.name for path in out.iterdir() if not path.name.endswith(".failed.ipynb"))


@pytest.mark.parametrize("cell, timeout_s, said", [
    ("1 / 0", 60, r"cell 4 \(Work\): ZeroDivisionError: division by zero"),
    ("import os; os._exit(9)", 60, r"in or just before (cell 4 \(Work\)|the end): the kernel died"),
    ("import time; time.sleep(60)", 4, r"took longer than 4 seconds and was stopped"),
    ("'a last cell that is not the sentinel'", 60, "without its sentinel"),
])
def test_a_run_that_did_not_end_well_is_not_believed(tmp_path, cell, timeout_s, said):
    out, mine = tmp_path / "reports", template(tmp_path / "mine.ipynb", cell)
    with pytest.raises(ReportError, match=said):
        report((BEFORE, BEFORE), name="doses", out=out, template=mine, timeout_s=timeout_s)
    assert left(out) == []


def test_a_killed_report_leaves_nothing_half_written(tmp_path):
    "kill -9 in the middle: no page, no JSON; the kernel goes too, and the next run sweeps."
    out = tmp_path / "reports"
    mine = template(tmp_path / "mine.ipynb", "open('here', 'w').close()\nimport time; time.sleep(60)")
    BEFORE.to_parquet(tmp_path / "before.parquet")
    code = (f"from deploy_assist import report; import pandas as pd; b = pd.read_parquet('before.parquet')\n"
            f"report((b, b), name='doses', out={str(out)!r}, template={str(mine)!r})")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: until(lambda: [*tmp_path.rglob("here")], "the cell runs", 60)
    finally: process.send_signal(signal.SIGKILL)
    process.wait()
    assert not [*out.glob("*.json"), *out.glob("*.html"), *out.glob("*.ipynb")] and [*out.glob(".run-*")]
    time.sleep(1.1)  # what is younger than a second may be a run that is just starting
    done = report((BEFORE, BEFORE), name="doses", out=out)
    assert done.verdict.action == "keep" and not [*out.glob(".run-*")]
    assert json.loads(done.json.read_text())["action"] == "keep"


def test_a_disk_that_is_full_is_said_before_and_during(tmp_path):
    "A tmpfs below the floor is refused; one that a cell fills up leaves no report behind."
    if os.geteuid(): pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    fill = f"open({str(disk / 'fat')!r}, 'wb').write(bytes(40 << 20))"
    for size, said, cell in (("8m", "at least 20 MB", "1"), ("24m", "No space left|could not be written", fill)):
        disk.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
            pytest.skip("this container may not mount a tmpfs")
        try:
            with pytest.raises(ReportError, match=said):
                report((BEFORE, BEFORE), name="doses", out=disk / "reports", template=template(tmp_path / "mine.ipynb", cell))
            assert not (disk / "reports").exists() or left(disk / "reports") == []
        finally: subprocess.run(["umount", disk], check=True)


def test_a_database_away_says_which_and_an_empty_window_cannot_be_told(patients, free_port, tmp_path, capsys):
    "No request ever came: a report all the same, and exit code 10, as for watch."
    register(patients)
    with pytest.raises(LogError, match="database"):
        report("patients", baseline="1", log=f"postgresql+psycopg://someone@127.0.0.1:{free_port}/log", out=tmp_path / "reports")
    assert left(tmp_path / "reports") == []
    with PredictionLog() as log: assert log.count("patients") == 0
    code = run(["report", "patients", "--baseline", "1", "--window", "7d", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 10 and said["action"] == "cannot tell", said


@pytest.mark.parametrize("what, words", [
    (dict(source="nobody-registered-this"), "register a model first"),
    (dict(source=(BEFORE, [1, 2])), "got list"),
    (dict(source=(BEFORE, BEFORE), label="truth"), "truth"),
    (dict(source=(BEFORE, BEFORE), timezone="Mars/Olympus"), "expected a name such as"),
    (dict(source=(BEFORE, BEFORE), parameters={"shown": "three"}), "expected int"),
    (dict(source=(BEFORE, BEFORE), thresholds={"ks": "much"}), "threshold 'ks': got 'much', expected a number"),
    (dict(source=None), "got nothing to report on"),
])
def test_wrong_use_is_a_sentence(what, words, tmp_path):
    with pytest.raises(DeployAssistError, match=words): report(out=tmp_path / "reports", **what)


def test_a_template_without_a_kernel_says_so(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "mine.ipynb")
    with pytest.raises(ConfigError, match="does not say its kernel"): check_parameters(tmp_path / "mine.ipynb", {})
    (tmp_path / "mine.ipynb").write_text("no notebook")
    with pytest.raises(ConfigError, match="cannot be read as a notebook"): check_parameters(tmp_path / "mine.ipynb", {})


# --- odd windows: no kernel is needed to see what the page says

def cases(n, worse=False):
    "Doses, a score and what turned out to be true; with `worse` the score says nothing of it."
    d = pd.DataFrame({"dose": rng.normal(5, 1, n), "ward": rng.choice(["a", "b"], n)})
    s = 1 / (1 + np.exp(-2 * (d.dose - 5)))
    y = rng.random(n) < (rng.permutation(s) if worse else s)
    return d.assign(score=s, pred=(s > .5).astype(int), ill=y.astype(int))


ROLES = dict(prediction="pred", score="score", label="ill")
WINDOW = cases(400)
ODD = {
    "empty": (WINDOW[:0], "cannot tell", "The window holds no row"),
    "one row": (WINDOW[:1], "cannot tell", "1 rows are too few to judge"),
    "all missing": (WINDOW.assign(dose=np.nan, ward=None), "watch", "is missing in 100% of the rows"),
    "a column gone": (WINDOW.drop(columns="dose"), "watch", "the column is gone"),
    "one class": (WINDOW[WINDOW.ill == 1], "watch", "dose moved"),
    "no labels": (WINDOW.assign(ill=None), "keep", "No label has come for this window"),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_windows_have_their_page(what):
    window, action, words = ODD[what]
    m = Monitor("doses", cases(1000), window, ROLES)
    sections = ("verdict_line", "trust", "tiles", "findings", "service", "data_quality", "inputs_section", "predictions",
                "quality", "feedback", "decision", "appendix")
    page = {name: getattr(m, name)() for name in sections}
    assert m.verdict.action == action and any(words in text for text in page.values()), m.verdict
    if action == "cannot tell": assert "Nothing changed" not in "".join(page.values())


def test_times_are_those_of_the_zone_on_the_day_the_clocks_change():
    "A week that ends after Europe's summer time began: a value is missing from noon of that Sunday on, by Berlin's clock."
    t = pd.Series(pd.date_range("2026-03-23", "2026-03-30", 400, tz="Europe/Berlin", inclusive="left"))
    late = t >= pd.Timestamp("2026-03-29 12:00", tz="Europe/Berlin")
    now = WINDOW[["dose", "ward"]].iloc[:len(t)].assign(time=t, dose=WINDOW.dose.where(~late))
    about = dict(timezone="Europe/Berlin", since=t.iloc[0].isoformat(), until="2026-03-29T22:00:00+00:00",
                 created="2026-03-30T01:00:00+00:00")
    m = Monitor("doses", cases(1000)[["dose", "ward"]], now, dict(time="time"), about=about)
    assert "2026-03-23 00:00 to 2026-03-30 00:00" in m.trust() and "report made 2026-03-30 03:00" in m.trust()
    assert "Europe/Berlin" in m.trust() and "6.96 days" in m.trust(), "that week is an hour shorter"
    assert "about 2026-03-29 10:05" in m.findings(), "the last twelfth of 167 hours"


# --- long windows

START = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    "A release and 3,000 answers of two days in its log: doses higher than before, labels for half, what people said of three."
    home, d = tmp_path_factory.mktemp("week"), cases(3000)
    inputs = d.assign(dose=d.dose + .4)[["dose", "ward"]]
    schema = Schema.learn(inputs, classes=(0, 1))
    before = cases(1500).rename(columns=dict(pred="prediction", ill="label"))
    release = Release("doses", None, schema, before, {}, settings={"reports": {"timezone": "Asia/Tokyo"}})
    with PredictionLog(f"sqlite:///{home}/log.db", home=home) as log:
        t = START.timestamp() + np.arange(3000) * 57.6
        ids = []
        for source, at in (("api", slice(0, 2800)), ("demo", slice(2800, 3000))):
            s = d.score[at].to_numpy()
            given = {c: inputs[c][at].tolist() for c in inputs}
            ids += log.append(Batch(model="doses", schema=schema, columns=given, source=source, predictions=d.pred[at].tolist(),
                                    probabilities=np.c_[1 - s, s].tolist(), time=t[at].tolist()))
        for i in range(0, 1400): log.feedback(ids[i], label=int(d.ill[i]), time=t[i] + 60)
        for i, right in ((1500, True), (1501, True), (1502, False)): log.feedback(ids[i], correct=right, time=t[i] + 60)
        log.feedback("somebody-elses", correct=True, time=t[1500])
        log.flush(30)
        yield release, log


def seen(release, log, **limits) -> Monitor:
    "What a report on two days looks at."
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items(): patch.setattr(module, name, value)
        return module._from_log(release, "champion", log, START, START + timedelta(days=2), START + timedelta(days=3))


def alike(a: Monitor, b: Monitor) -> None:
    "Two verdicts on one window: every measure of every input, the findings on them, the word."
    for x, y in zip(a.verdict.columns, b.verdict.columns, strict=True):
        assert x.column == y.column and x.p == pytest.approx(y.p, abs=1e-9)
        for k in ("ks", "psi", "js", "w1", "tv", "v"):
            assert getattr(x, k) == pytest.approx(getattr(y, k), abs=1e-9), (x.column, k)
    found = [[(f.cause, f.column, round(f.effect, 9)) for f in m.verdict.findings if f.column in m.inputs] for m in (a, b)]
    assert found[0] == found[1] and found[0] and a.verdict.action == b.verdict.action and a.rows == b.rows


def test_stored_hours_say_what_the_rows_say(week, tmp_path, monkeypatch):
    whole = seen(*week)
    assert whole.counted is None and whole.rows == 2800, "the demo is not traffic"
    first = seen(*week, MOST_ROWS=900, LONG_ROWS=2000)
    assert 500 < len(first.current) < 1200 and first.rows == 2800
    alike(whole, first)
    read, window = [], PredictionLog.window
    def counted(self, *a, every=1, columns=None, **k):
        read.append((every, columns))
        return window(self, *a, every=every, columns=columns, **k)
    monkeypatch.setattr(PredictionLog, "window", counted)
    again = seen(*week, MOST_ROWS=900, LONG_ROWS=2000)
    assert read == [(4, None), (1, ())], "no input that was counted is read again: a quarter of the rows, and all answers"
    write_run(again, tmp_path)
    alike(whole, read_run(tmp_path))
    for m in (first, again): same_quality(whole, m)
    assert "all counted" in again.trust() and "2,800" in again.trust() and "1,403 of 2,800 rows" in again.trust()


@pytest.mark.parametrize("limits", [{}, dict(MOST_ROWS=900, LONG_ROWS=2000)], ids=["rows", "hours"])
def test_what_a_sampled_baseline_leaves_out_is_known_by_its_profile(week, tmp_path, limits):
    release, log = week
    counted = pack_profile(baseline_profile(release.baseline[["dose", "ward"]], schema=release.schema))
    part = replace(release, baseline=release.baseline[::3], parts={COUNTED: counted})
    whole, known = seen(release, log, **limits), seen(part, log, **limits)
    alike(whole, known)
    assert known.verdict.rows["baseline"] == 1500 and "1,500 rows" in known.trust() and "500 drawn" in known.trust()
    write_run(known, tmp_path)
    alike(whole, read_run(tmp_path))
    other = replace(part, schema=part.schema.edit("ward", policy="drop"))
    assert seen(other, log, **limits).counted_before is None, "a profile of other columns than those that are watched"


def test_feedback_of_a_log_is_linked(week):
    "1,400 labels, and three judgements, which tell the label too; one of a prediction that nobody knows is not the model's."
    said = seen(*week).feedback()
    assert "1,403 of 1,403" in said and "67%" in said and "3 judgements" in said and "1,403 of 2,800" in said, said


def test_the_models_own_time_zone_is_used(week):
    m = module._with_about(seen(*week), week[1].home, START, None, None)
    assert m.zone == "Asia/Tokyo" and "2026-03-02 09:00 to 2026-03-04 09:00" in m.trust()
    assert module._with_about(m, week[1].home, START, "UTC", None).zone == "UTC"
    with pytest.raises(ConfigError, match="Mars"):
        module._with_about(replace(m, about=m.about | dict(timezone="Mars")), week[1].home, START, None, None)


def test_a_long_file_is_counted_in_batches(tmp_path, monkeypatch):
    base, now = cases(1000), cases(4000)
    now = now.assign(dose=now.dose.where(rng.random(4000) < .9) + .5, ward=now.ward.where(now.ward != "a", "c"))
    for name, d in (("base", base), ("now", now)): d.to_parquet(tmp_path / f"{name}.parquet")
    def judged(): return module._from_frames(tmp_path / "base.parquet", tmp_path / "now.parquet", "doses", ROLES)
    whole = judged()
    monkeypatch.setattr(module, "MOST_ROWS", 1000)
    monkeypatch.setattr(module, "LONG_ROWS", 3000)
    part = judged()
    assert len(part.current) in (1000, 1001) and part.rows == 4000
    alike(whole, part)
    same_quality(whole, part)
    (tmp_path / "now.parquet").write_bytes((tmp_path / "now.parquet").read_bytes()[:-2000])
    with pytest.raises(ConfigError, match="now.parquet cannot be read"): judged()


def test_exit_codes_of_the_command(tmp_path, capsys, monkeypatch):
    "20: act, 2: wrong use, 1: broken. (0 and 10 are in test_cli.py.)"
    monkeypatch.chdir(tmp_path)
    cases(1500).to_csv("before.csv", index=False)
    cases(1500, worse=True).to_csv("worse.csv", index=False)
    files = ["report", "--baseline", "before.csv", "--current", "worse.csv"]
    assert run([*files, "--label", "ill", "--prediction", "pred", "--score", "score", "--json"]) == 20
    said = json.loads(capsys.readouterr().out)
    assert said["action"] == "retrain" and (tmp_path / said["files"]["html"]).is_file()
    assert run([*files, "--label", "nothing"]) == 2 and run(["report"]) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run([*files, "--out", str(blocked / "reports")]) == 1


def test_a_long_csv_is_read_in_blocks(tmp_path, monkeypatch):
    "A file of several blocks says what the whole file says, and so do one that is packed and one that turns out to be short."
    base, now = cases(1000), cases(4000)
    now = now.assign(dose=now.dose.where(rng.random(4000) < .9) + .5, ward=now.ward.where(now.ward != "a", "c"),
                     at=[f"2026-03-0{1 + i // 500}T0{i % 9}:00:00Z" for i in range(4000)])
    base.to_csv(tmp_path / "base.csv", index=False)
    for name in ("now.csv", "now.csv.gz"): now.to_csv(tmp_path / name, index=False)
    def judged(name): return module._from_frames(tmp_path / "base.csv", tmp_path / name, "doses", ROLES | dict(time="at"))
    whole = judged("now.csv")
    monkeypatch.setattr(module, "MOST_ROWS", 1000)
    monkeypatch.setattr(module, "LONG_ROWS", 3000)
    read_csv = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *a, **k: read_csv(*a, **k | (dict(chunksize=700) if "chunksize" in k else {})))
    for name in ("now.csv", "now.csv.gz"):
        part = judged(name)
        assert 500 <= len(part.current) <= 1001 and part.rows == 4000
        alike(whole, part)
        same_quality(whole, part)
        assert (part.since, part.until) == (whole.since, whole.until)
    monkeypatch.setattr(module, "LONG_ROWS", 4000)
    assert judged("now.csv").counted is None and len(judged("now.csv").current) == 4000
    (tmp_path / "now.csv").write_text((tmp_path / "now.csv").read_text() + "1,2,3,4,5,6,7,8,9\n")
    with pytest.raises(ConfigError, match="now.csv cannot be read"): judged("now.csv")


def same_quality(a: Monitor, b: Monitor) -> None:
    "All metrics, of all rows, with their intervals, and what is read off them."
    for k, m in a.verdict.quality["after"].items():
        assert [*m.values()] == pytest.approx([*b.verdict.quality["after"][k].values()], abs=1e-9, nan_ok=True), k
    assert a.verdict.rows["labelled"] == b.verdict.rows["labelled"] and b.answers is not None
    assert module._confusion(a) == module._confusion(b) and module._calibrated(a) == module._calibrated(b)


def test_labels_that_wait_are_counted_and_dated():
    t = pd.Series(pd.date_range("2026-03-02", periods=400, freq="25min", tz="UTC"))
    came = (t < pd.Timestamp("2026-03-05", tz="UTC")) | (rng.random(400) < .1)
    about = dict(since=t.iloc[0].isoformat(), until="2026-03-09T00:00:00+00:00", created="2026-03-09T00:00:00+00:00")
    usual = cases(1000).assign(time=pd.Timestamp("2026-01-05", tz="UTC"), ill=lambda d: d.ill.where(rng.random(1000) < .8))
    def page(early):
        d = WINDOW.assign(time=t, ill=WINDOW.ill.where(came & (t > early)).astype(float))
        m = Monitor("doses", usual, d, ROLES | dict(time="time"), about=about)
        return m, m.tiles(), m.quality()
    m, tiles, quality = page(pd.Timestamp("2026-03-01", tz="UTC"))
    k = m.verdict.quality["waiting"]
    assert 5 < k < 60 and f"{k} newer labels wait" in tiles and f"{k} newer labels wait" in quality
    assert "all count from about 2026-03-12 22:15" in tiles  # four days until Thursday's had come; the newest row is Sunday's
    m, tiles, quality = page(pd.Timestamp("2026-03-05", tz="UTC"))
    assert m.verdict.quality["after"] == {} and "newer labels wait" in tiles and "Quality was not measured" in quality
    assert "no label" not in tiles


def test_what_a_prediction_may_move_is_compared_with_what_it_did():
    "Nothing changed: of a KS of 0.05 chance explains all."
    m = Monitor("doses", cases(1000), cases(300), ROLES)
    d = next(d for d in m.verdict.outputs if d.column == "score")
    assert d.ks_net < d.ks and f"limit: KS 0.08 beyond chance, now {module.number(d.ks_net)}" in m.tiles()


def test_a_weekend_is_compared_with_the_logs_weekends(tmp_path, monkeypatch):
    "The training rows that lie with a model have no times; the log of the weeks before tells what a weekend is like."
    monkeypatch.setattr(sys.modules[__name__], "rng", np.random.default_rng(32))  # whichever tests ran before
    t = pd.date_range("2026-02-02", "2026-03-02", freq="10min", tz="UTC", inclusive="left")
    d = cases(len(t))
    d["dose"] += 1.5 * (t.day_of_week >= 5)
    mixed = d.sample(2000, random_state=0, ignore_index=True)
    inputs = ["dose", "ward"]
    schema = Schema.learn(mixed[inputs], classes=(0, 1))
    release = Release("weekly", None, schema, mixed.rename(columns=dict(pred="prediction", ill="label")), {}, settings={})
    with PredictionLog(f"sqlite:///{tmp_path}/log.db", home=tmp_path) as log:
        log.append(Batch(model="weekly", schema=schema, columns={c: d[c].tolist() for c in inputs}, predictions=d.pred.tolist(),
                         probabilities=np.c_[1 - d.score, d.score].tolist(), time=(t.as_unit("ns").asi8 / 1e9).tolist()))
        log.flush(30)
        start = datetime(2026, 2, 28, tzinfo=UTC)  # a Saturday
        m = module._from_log(release, "champion", log, start, start + timedelta(days=2), start + timedelta(days=3))
    plain = replace(m, season=None).verdict
    assert plain.action == "watch" and plain.findings[0].column == "dose"
    write_run(m, tmp_path)
    assert m.verdict.action == "keep" == read_run(tmp_path).verdict.action and len(m.season) == 3 * 7 * 144
    assert "weekdays, by 3,024 earlier rows" in m.trust()

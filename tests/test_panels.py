"""The panels on a real registry and a real log, by pressing their buttons (in JupyterLab: test_wizard_browser)."""
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape

import pandas as pd
import pytest
import sqlalchemy as sa

from deploy_assist import PredictionLog, RegistryError, history, monitor_panel, promote, register, registry_panel
from deploy_assist.panels import Call, quality_of, runs_html, schedules_html, trends
from deploy_assist.predictions import Batch, Request
from deploy_assist.registry import record_checks, record_retrain
from deploy_assist.schedule import Schedule, _engine, _schedules, list_schedules, schedule
from deploy_assist.schema import Column, Schema
from deploy_assist.widgets import Facts, side_by_side


def text(widget) -> str:
    "What a person reads in a widget and what is in it."
    own = getattr(widget, "description", "")
    if type(widget).__name__ == "HTML":  # a span has no space around it, other elements do
        own = unescape(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<style.*?</style>|</?span[^>]*>", "", widget.value)))
    return " ".join(" ".join([own, *(text(child) for child in getattr(widget, "children", ()))]).split())


def fill(section, **values) -> None:
    for name, value in values.items(): section.parts[name].value = value


@pytest.fixture(scope="module")
def shelf(patients, tmp_path_factory):
    "A registry with two versions of `patients`, the first of which is in production."
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    few = replace(patients, metrics={k: v | {"value": v["value"] - .2} for k, v in patients.metrics.items()},
                  requirements=("numpy==1.0", *patients.requirements[1:]))
    promote("patients", register(patients, uri=uri), reason="first release", who="ana", uri=uri)
    register(few, uri=uri)
    return folder


@pytest.fixture
def panel(shelf, tmp_path, monkeypatch):
    "A panel on a copy of that registry."
    shutil.copy(shelf / "mlflow.db", tmp_path / "mlflow.db")
    return registry_panel("patients")


# --- the registry

def test_what_is_there(panel):
    said = text(panel.widget)
    for words in ("champion: version 1; challenger: version 2", "0.2 worse", "the intervals", "changed", "another bundle",
                  "Schema, version 1", "first release", "ana", "There is no version to go back to", "checks not run"):
        assert words in said, words
    assert "numpy" in said and "1.0" in said  # the package that differs, and those that do not are left out
    assert "scipy" not in said
    panel.choice.children[0].value = False
    assert "Tick two or more versions" in text(panel.compared)


def test_promote_and_roll_back(panel):
    fill(panel.promoting, reason='recall "up" on ward B')
    line = r'promote("patients", 2, reason="recall \"up\" on ward B", expected=1)'
    assert line in text(panel.promoting.code)
    panel.promoting.go.click()
    assert "patients@champion is version 2 now" in text(panel.promoting.box) and panel.shelf.at("champion") == "2"
    assert panel.calls[-1].line == line and panel.promoting.parts["reason"].value == ""
    assert panel.rolling.go.description == "Roll back to version 1" and not panel.rolling.go.disabled
    panel.rolling.go.click()
    assert "a reason is needed" in text(panel.rolling.box) and panel.shelf.at("champion") == "2"
    fill(panel.rolling, reason="errors on ward C")
    panel.rolling.go.click()
    assert panel.shelf.at("champion") == "1" and "patients@champion is version 1 now" in text(panel.rolling.box)
    last = history("patients").iloc[-1]
    assert (last.action, last.reason) == ("rollback", "errors on ward C") and "errors on ward C" in text(panel.past)
    ran = text(panel.ran)
    assert "What ran here" in ran and line in ran and 'rollback("patients", reason="errors on ward C", expected=2)' in ran


def test_what_ran_can_be_run_again(panel):
    fill(panel.promoting, reason="better")
    code = panel.promoting.call().code
    exec(code, {})
    assert history("patients").iloc[-1].reason == "better"
    panel.refresh()
    assert "champion: version 2" in text(panel.head)


def test_failed_checks_are_a_sentence_and_a_way_on(panel):
    failed = dict(passed=False, results=[dict(name="leakage", status="fail"), dict(name="size", status="pass")])
    record_checks("patients", 2, failed)
    panel.refresh()
    panel.promoting.go.click()
    assert "a reason is needed" in text(panel.promoting.said) and not panel.promoting.more.children
    fill(panel.promoting, reason="better")
    panel.promoting.go.click()
    said = text(panel.promoting.box)
    assert "Version 2 was not promoted: it failed its checks (leakage)" in said
    assert "deploy-assist check models:/patients/2" in said
    assert panel.shelf.at("champion") == "1"
    panel.anyway.click()
    assert "a reason is needed" in text(panel.promoting.said) and panel.shelf.at("champion") == "1"
    panel.although.value = "the ward has no other"
    panel.anyway.click()
    last = history("patients").iloc[-1]
    assert (last.version, last.reason, last.checks_passed) == ("2", "the ward has no other", False)
    assert "failed, promoted although" in text(panel.past) and not panel.promoting.more.children


def test_another_person_was_quicker(panel, patients):
    register(replace(patients, metrics={}))
    fill(panel.promoting, reason="mine", version="2")
    promote("patients", 3, reason="urgent", who="ben")
    panel.promoting.go.click()
    said = text(panel.promoting.box)
    assert "Meanwhile ben made version 3 the champion" in said and "urgent" in said and panel.shelf.at("champion") == "3"
    assert panel.promoting.parts["reason"].value == "mine" and "expected=3" in text(panel.promoting.code) and not panel.calls
    panel.promoting.go.click()
    assert panel.shelf.at("champion") == "2"
    promote("patients", 1, reason="back", who="ben")
    fill(panel.rolling, reason="mine too")
    panel.rolling.go.click()
    assert "Meanwhile ben made version 1" in text(panel.rolling.box) and history("patients").iloc[-1].who == "ben"


def test_two_panels_at_once(panel):
    other = registry_panel("patients")
    for p in (panel, other): fill(p.promoting, reason="at once")
    with ThreadPoolExecutor(2) as pool: list(pool.map(lambda p: p.promoting.go.click(), (panel, other)))
    assert (history("patients").action == "promote").sum() == 2  # the first release, and one of the two
    assert sorted(bool(p.calls) for p in (panel, other)) == [False, True]


def test_registry_away_unknown_and_foreign(panel, tmp_path):
    import mlflow
    with pytest.raises(RegistryError, match="no model 'nobody'"): registry_panel("nobody")
    mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").create_model_version("patients", str(tmp_path))
    panel.refresh()
    panel.choice.children[0].value = True
    assert re.search("version 3 .*(does not have|not a model|cannot be)", text(panel.compared))
    assert "accuracy" in text(panel.compared)  # the others are still compared
    (tmp_path / "mlflow.db").rename(tmp_path / "gone.db")
    panel.refresh()
    assert "there is no registry" in text(panel.news) and "champion: version 1" in text(panel.head)


def test_a_retrain_waits_for_a_person(panel):
    told = dict(version="2", champion="1", facts=dict(decision="ready"))
    record_retrain("patients", reason="trained on 900 rows; waits for a person", **told)
    panel.refresh()
    assert "waits for a person" in text(panel.promoting.note) and "900 rows" in panel.promoting.parts["reason"].value
    monitor = monitor_panel("patients")
    assert "waits for a person" in text(monitor.news) and 'registry_panel("patients")' in text(monitor.news)
    fill(panel.promoting, reason="")
    panel.refresh()
    assert panel.promoting.parts["reason"].value == ""  # offered once
    fill(panel.promoting, reason="looked at, right")
    panel.promoting.go.click()
    assert panel.shelf.at("champion") == "2" and not panel.promoting.note.value and "compared with 1" in text(panel.past)


def test_static_twin(panel):
    bundle = panel._repr_mimebundle_()
    assert "first release" in bundle["text/plain"] and "challenger" in bundle["text/plain"] and "<" not in bundle["text/plain"]
    assert "<table>" in bundle["text/html"] and "first release" in bundle["text/html"] and "script" not in bundle["text/html"]
    assert "deploy-assist lab" in repr(panel)


def test_what_people_write_is_text_and_not_html(panel):
    fill(panel.promoting, reason="<img src=x onerror=alert(1)> Ünïcode 漢字")
    panel.promoting.go.click()
    assert "<img" not in panel.past.value + panel.ran.value + panel.summary()[0] and "漢字" in panel.past.value


def test_many_versions_and_hard_cases_side_by_side():
    a = Facts("1", "a", {"mae": dict(value=float("nan")), "r2": {}}, Schema((Column("x", "float"),)), {}, None)
    b = Facts("2", "b", {"mae": dict(value=1.0), "auc": dict(value=.5)}, Schema((Column("y", "float"),)), {"<b>": "1"}, 10)
    said = side_by_side([a, b, replace(a, version="3")])
    assert "&lt;b&gt;" in said and "broken" in said and said.count("<th scope='col'>Version") >= 3


# --- the monitor

@pytest.fixture(scope="module")
def watched(shelf, patients, tmp_path_factory):
    "A log of three weeks of `patients`."
    folder = tmp_path_factory.mktemp("log")
    log = PredictionLog(f"sqlite:///{folder}/predictions.db", home=folder)
    X, now = patients.X_test, datetime.now(UTC)
    for day in range(21):
        rows = X.sample(40, random_state=day, replace=True)
        at = (now - timedelta(days=day, hours=1)).timestamp()
        batch = Batch(model="patients", version="1", alias="champion", schema=patients.schema, time=at, latency_ms=3.0,
                      predictions=patients.predict(rows).tolist(), columns=rows.to_dict("list"))
        asked = dict(time=at, route="/predict", status=200, latency_ms=3.0 + day, rows=40, model="patients")
        log.append(batch, Request(id=f"r{day}", **asked))
    log.drain()
    log.close()
    return folder / "predictions.db"


@pytest.fixture
def monitor(panel, watched, tmp_path, monkeypatch):
    "A monitor on a copy of that log."
    shutil.copy(watched, tmp_path / "predictions.db")
    monkeypatch.setenv("DEPLOY_ASSIST_LOG_URL", f"sqlite:///{tmp_path}/predictions.db")
    return monitor_panel("patients")


def test_from_nothing_to_a_report_that_is_read(monitor, tmp_path):
    said = text(monitor.widget)
    assert "no reports yet" in said and monitor.open.disabled
    assert 'report("patients", window="7d")' in text(monitor.running.code)
    began = time.perf_counter()
    monitor.running.go.click()
    assert time.perf_counter() - began < 1 and monitor.running.go.disabled and "Cancel" in text(monitor.running.box)
    monitor.running.go.click()  # a second press while it runs starts no second one
    monitor.wait()
    assert len(monitor.reports) == 1 and monitor.calls == [Call("report", ("patients",), dict(window="7d"))]
    assert monitor.reports[0]["action"] in text(monitor.running.said) and "Cancel" not in text(monitor.running.box)
    assert "280 rows" in text(monitor.tiles) and " ms" in text(monitor.tiles)
    monitor.open_report()
    assert "<iframe sandbox=" in monitor.shown.value and "Close" in text(monitor.reading)
    monitor.close_report()
    assert not monitor.shown.value
    page, plain = monitor.summary()
    assert f"reports/{monitor.reports[0]['file']}.html" in page and monitor.reports[0]["action"] in plain
    (tmp_path / "reports" / f"{monitor.reports[0]['file']}.html").unlink()
    monitor.open_report()
    assert "cannot be read" in text(monitor.shown)


def test_cancel_and_errors_leave_the_panel_usable(monitor, tmp_path):
    monitor.running.go.click()
    time.sleep(.3)
    monitor.stop.click()
    monitor.wait(20)
    assert "Cancelled" in text(monitor.running.said) and not monitor.reports and not monitor.calls
    assert not monitor.running.go.disabled
    assert not list((tmp_path / "reports").glob(".run-*"))
    fill(monitor.running, window="a week")
    monitor.running.go.click()
    monitor.wait()
    assert "window: got 'a week'" in text(monitor.running.said) or "a week" in text(monitor.running.said)
    assert "press 'Run now' once more" in text(monitor.running.said) and not monitor.running.go.disabled


def test_retrain_without_labels_says_what_is_missing(monitor):
    assert "Not retrained yet" in text(monitor.training.box)
    monitor.training.go.click()
    monitor.wait()
    assert "rejected" in text(monitor.training.said) and "labelled" in text(monitor.training.said)
    assert "rejected" in text(monitor.training.note) and monitor.calls[-1].line == 'retrain("patients")'


def test_schedule_run_due_and_remove(monitor):
    assert "No report is scheduled" in text(monitor.adding.box)
    fill(monitor.adding, cron="every day")
    monitor.adding.go.click()
    assert "every day" in text(monitor.adding.said) and not list_schedules() and not monitor.calls
    fill(monitor.adding, cron="0 6 * * *", timezone="Europe/Berlin")
    monitor.adding.go.click()
    made, = list_schedules()
    assert (made.cron, made.timezone, made.window) == ("0 6 * * *", "Europe/Berlin", "7d")
    assert made.id in text(monitor.adding.note)
    monitor.due.click()
    monitor.wait()
    assert "Nothing was due" in text(monitor.adding.said) and "Nothing of the schedule ran yet" in text(monitor.ledger)
    assert [call.verb for call in monitor.calls] == ["schedule", "run_due"]
    monitor.remove.click()
    assert not list_schedules() and "No report is scheduled" in text(monitor.adding.box)


def test_what_is_due_is_run(monitor):
    "A program of one's own in place of the report; it is as if it had been scheduled two days ago."
    watch = ["sh", "-c", 'echo \'{"action": "watch"}\' > "$0/v.json"; exit 10', "{out}"]
    schedule("patients", cron="0 6 * * *", command=watch)
    with _engine().begin() as c: c.execute(sa.update(_schedules).values(created=datetime.now(UTC) - timedelta(days=2)))
    monitor.refresh()
    assert "missing" in text(monitor.adding.note)
    monitor.due.click()
    monitor.wait()
    assert "1 run made." in text(monitor.adding.said) and "exit code 10" in text(monitor.ledger)
    assert "watch" in text(monitor.ledger) and "there, due" in text(monitor.adding.note)
    monitor.due.click()
    monitor.wait()
    assert "Nothing was due" in text(monitor.adding.said) and [call.verb for call in monitor.calls] == ["run_due"] * 2


def test_runs_that_ended_well_badly_and_never():
    made = Schedule("s1", "patients", "0 6 * * *", created=datetime(2026, 3, 1, tzinfo=UTC))
    now = datetime(2026, 3, 3, 12, tzinfo=UTC)
    start, end = made.slot(datetime(2026, 3, 3, 6, tzinfo=UTC))
    told = dict(window_start=start, window_end=end, ended=now, attempt=1, schedule="s1")
    done, broken = (told | dict(state="done", action="watch", exit_code=10, error=None),
                    told | dict(state="broken", action=None, exit_code=1, error="<killed>", attempt=3))
    said = runs_html(pd.DataFrame([done, broken]))
    for words in ("watch", "exit code 10", "&lt;killed&gt;", "attempt 3", "broken"): assert words in said, words
    assert "there, due 2026-03-03 06:00" in schedules_html([made], pd.DataFrame([done]), now)
    assert "missing, due 2026-03-03 06:00 UTC: broken" in schedules_html([made], pd.DataFrame([broken]), now)
    assert "missing, due 2026-03-03 06:00 UTC: not begun" in schedules_html([made], pd.DataFrame(), now)
    assert "none was due yet" in schedules_html([made], pd.DataFrame(), datetime(2026, 3, 1, 1, tzinfo=UTC))


def test_tiles_of_old_and_odd_reports():
    nothing = {"report": {"rows": None}, "quality": {"after": {"mae": {"value": None}}}, "service": {"p95_ms": 4.0}}
    odd = [{}, nothing,
           {"report": {"rows": 7}, "quality": {"after": {"mae": {"value": 2.5}}}, "service": {}, "findings": [{"column": None}]}]
    assert [t[1] for t in trends(odd)] == ["7 rows", "0", "2.500", "none"]
    assert quality_of(odd[1]) is None and trends([]) == [] and [t[1] for t in trends(odd[:2])][-1] == "4.0 ms"

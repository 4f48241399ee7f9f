"Schedules as they fail: killed, late, twice at once, out of time, out of disk, on the days on which the clock changes."
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from deploy_assist.cli import run as command_line
from deploy_assist.errors import ConfigError, LogError
from deploy_assist.predictions import Batch, PredictionLog, uuid7
from deploy_assist.schedule import Cron, _engine, _runs, list_schedules, remove, run_due, run_window, runs, schedule
from deploy_assist.schema import Column, Schema

minute = timedelta(minutes=1)


def word(action="keep", code=0, before=""):
    "A run that says `action`, after the shell text `before`."
    return ["sh", "-c", f'{before}\necho \'{{"action": "{action}"}}\' > "$0/v.json"; exit {code}', "{out}"]


@pytest.fixture(params=["sqlite", "postgresql"])
def log(request, tmp_path):
    if request.param == "sqlite": yield f"sqlite:///{tmp_path}/log.db"; return
    url = request.getfixturevalue("postgres")
    yield url
    with _engine(url).begin() as c:
        for table in ("report_runs", "report_schedules", "alert_outbox"): c.execute(sa.text(f"DROP TABLE {table}"))


def test_schedulers_at_once_run_each_window_once(log, tmp_path):
    command = word(before=f"echo {{since}} >> {tmp_path}/ran; sleep 0.1")
    s = schedule("m", cron="0 * * * *", log=log, catch_up="all", command=command)
    now = (s.next + timedelta(hours=6)).isoformat()
    code = f"from deploy_assist.schedule import run_due; print(len(run_due({now!r}, log={log!r})))"
    ps = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(p.communicate(timeout=60)[0]) for p in ps]
    ran = (tmp_path / "ran").read_text().split()
    assert sum(counts) == len(ran) == len(set(ran)) == 7 and (runs("m", log=log)["state"] == "done").all()


def test_a_killed_scheduler_is_replaced(log, tmp_path):
    command = word(before=f"echo $$ >> {tmp_path}/pids; [ -e {tmp_path}/go ] || sleep 60")
    s = schedule("m", cron="0 6 * * *", log=log, command=command)
    now, pids = s.next, tmp_path / "pids"
    code = f"from deploy_assist.schedule import run_due; run_due({now.isoformat()!r}, log={log!r})"
    first = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 30
    while not (pids.exists() and pids.read_text().strip()) and time.monotonic() < until: time.sleep(0.05)
    assert run_due(now, log=log) == []  # the lease is held
    first.send_signal(signal.SIGKILL)
    first.wait()
    child = int(pids.read_text().split()[0])
    while Path(f"/proc/{child}").exists() and time.monotonic() < until: time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()  # the run ended with its scheduler
    (tmp_path / "go").touch()
    assert run_due(now, log=log) == []
    with _engine(log).begin() as c: c.execute(sa.update(_runs).values(lease_until=datetime.now(UTC) - minute))  # a minute later
    again, = run_due(now, log=log)
    assert (again["state"], again["attempt"]) == ("done", 2)


@pytest.mark.parametrize("before, said, code", [
    ("kill -9 $$", "killed by SIGKILL", 1), ("sleep 30", "longer than 0.5 seconds", 1), ("exit 2", "ended with 2", 2),
    ("exit 0", "left no JSON", 1), ("echo x > /dev/full || exit 1", "I/O error", 1),
    ("head -c 900m /dev/zero | tail >/dev/null || exit 1", "head", 1)])
def test_a_failed_run_is_broken_and_tried_again(tmp_path, before, said, code):
    s = schedule("m", cron="0 6 * * *", command=word(before=before), timeout_s=0.5 if "sleep" in before else 30, memory_mb=200)
    run, = run_due(s.next)
    assert run["state"] == "broken" and said in run["error"] and run["exit_code"] == code
    assert not list((tmp_path / "reports").glob("*")) + list((tmp_path / "reports").glob(".s*"))
    assert run_due(s.next) == []
    schedule("m", cron="0 6 * * *", command=word())
    again = run_due(s.next + 2 * minute)
    assert [r["state"] for r in again] == (["done"] if code == 1 else [])


def test_a_full_disk_starts_nothing(tmp_path):
    (tmp_path / "deploy.toml").write_text("[reports]\nleast_free_mb = 1e9\n")
    s = schedule("m", cron="0 6 * * *", command=word(before=f"touch {tmp_path}/ran"))
    run, = run_due(s.next)
    assert "MB of free disk" in run["error"] and not (tmp_path / "ran").exists()


def test_the_oldest_reports_go_and_the_newest_stays(tmp_path):
    (tmp_path / "deploy.toml").write_text("[reports]\nkeep = 2\nkeep_days = 1e5\n")
    s = schedule("m", cron="0 * * * *", command=word(before='echo page > "$0/v.html"'), catch_up="all")
    assert len(run_due(s.next + timedelta(hours=4))) == 5
    left = sorted(p.name for p in (tmp_path / "reports").iterdir())
    newest = [f"m-{t:%Y%m%dT%H%M%S}Z" for t in (s.next + timedelta(hours=h) for h in (2, 3))]
    assert left == ["index.html", *(f"{at}.{ending}" for at in newest for ending in ("html", "json"))]
    listed = (tmp_path / "reports" / "index.html").read_text()
    assert f"{newest[-1][:-1]}" in listed and f"m-{s.next:%Y%m%dT%H%M%S}" not in listed, "it lists what is still there"


def test_a_database_away_says_so():
    with pytest.raises(LogError, match="is it up"): run_due(log="postgresql://nobody@127.0.0.1:1/x")


@pytest.mark.parametrize("late", [1, 5])
def test_missed_windows(late):
    s = schedule("m", cron="30 2 * * *", timezone="Europe/Berlin", command=word())
    now = s.next + timedelta(days=late)
    assert len(run_due(now)) == 1 and run_due(now) == []
    assert run_due(now - timedelta(days=30)) == []  # the clock was put back
    assert len(run_due(now + timedelta(days=1, hours=2))) == 1


def test_windows_join_over_the_days_on_which_the_clock_changes():
    cron = Cron("30 2 * * *", "Europe/Berlin")
    for first in (datetime(2026, 3, 26, tzinfo=UTC), datetime(2026, 10, 22, tzinfo=UTC)):
        times = [first]
        for _ in range(6): times.append(cron.after(times[-1]))
        assert [cron.before(b) for b in times[2:]] == times[1:-1]
        assert len({t.astimezone(cron.zone).date() for t in times[1:]}) == 6


@pytest.fixture(params=["sqlite", "postgresql"])
def logged(request, tmp_path):
    "A log with one prediction an hour ago, and its id."
    url = f"sqlite:///{tmp_path}/log.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    schema, id, model = Schema((Column("age", "integer"),), classes=(0, 1)), uuid7(), f"late-{request.param}"
    with PredictionLog(url) as log:
        log.append(Batch(ids=[id], time=time.time() - 3600, model=model, version="1", source="api", columns={"age": [40]},
                         predictions=[1], probabilities=[[.2, .8]], latency_ms=1.0, schema=schema))
        log.flush()
        yield log, id, model


def test_a_late_label_reopens_its_window(logged):
    import pandas as pd
    log, id, model = logged
    s = schedule(model, cron="0 6 * * *", window="30d", command=word(), log=log)
    first, = run_due(s.next, log=log)
    assert run_due(s.next, log=log) == []
    log.labels(model, pd.DataFrame({"prediction_id": [id], "label": [1]}))
    again, = run_due(s.next + timedelta(hours=1), log=log)
    assert again["window_start"] == first["window_start"] and len(runs(model, log=log)) == 1
    assert run_due(s.next + timedelta(hours=2), log=log) == []


def test_a_second_schedule_of_a_model_has_a_folder_of_its_own(tmp_path):
    a, b = schedule("m", cron="0 6 * * *"), schedule("m", cron="0 6 * * MON")
    assert a.place == tmp_path / "reports" and b.place == tmp_path / "reports" / b.id and len(list_schedules()) == 2
    remove(a.id)
    assert [s.id for s in list_schedules()] == [b.id]
    with pytest.raises(ConfigError, match="expected one of"): remove(a.id)


@pytest.mark.parametrize("wrong", [dict(cron="* * *"), dict(cron=6), dict(timezone="Mars"), dict(window="week"), dict(window=7),
                                   dict(catch_up="some"), dict(on="drift"), dict(target="nomad"), dict(timeout_s=0),
                                   dict(timeout_s=float("nan")), dict(memory_mb="1"), dict(alerts=["ftp://x"]),
                                   dict(command="ls")])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"): schedule("m", **{"cron": "0 6 * * *"} | wrong)
    assert list_schedules() == []


def test_names_and_times_are_safe():
    with pytest.raises(ConfigError): schedule("../m", cron="0 6 * * *")
    with pytest.raises(ConfigError, match="without a zone"): run_due(datetime(2030, 1, 1))
    s = schedule("Größe 日本", cron="0 6 * * *", command=word())
    assert Path(run_due(s.next)[0]["report"]).is_file()


def test_one_window_by_hand(tmp_path):
    s = schedule("m", cron="0 6 * * *", command=word("watch", 10))
    t = s.times.before(datetime.now(UTC) - timedelta(days=2))
    assert run_window("m", t)["action"] == run_window(s.id, t)["action"] == "watch" and len(runs("m")) == 1
    with pytest.raises(ConfigError, match="at which no window starts"): run_window("m", t + minute)


def test_the_texts_for_other_clocks(tmp_path, monkeypatch):
    yaml = pytest.importorskip("yaml")
    odd = tmp_path / "100% mine"
    odd.mkdir()
    monkeypatch.chdir(odd)
    texts = {t: schedule("m", cron="0 6 * * *", target=t) for t in ("cron", "systemd", "github", "airflow", "k8s")}
    line = texts["cron"].strip()
    assert line.split()[:5] == ["*/5", "*", "*", "*", "*"] and "%" not in line.replace(r"\%", "")
    done = subprocess.run(["sh", "-c", line.split(None, 5)[5].replace(r"\%", "%")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    compile(texts["airflow"], "dag.py", "exec")
    job = yaml.safe_load(texts["k8s"])
    assert job["kind"] == "CronJob" and job["spec"]["concurrencyPolicy"] == "Forbid"
    steps = yaml.safe_load(texts["github"])["jobs"]["due"]["steps"]
    script = next(s["run"] for s in steps if "schedule run" in s.get("run", ""))
    for code, wanted in ((0, 0), (10, 0), (20, 0), (1, 1), (2, 1)):
        line = script.replace("deploy-assist schedule run --due", f"(exit {code})")
        assert subprocess.run(["sh", "-c", line]).returncode == wanted
    service, timer = texts["systemd"].split("# /etc/systemd/system/deploy-assist.timer\n")
    (tmp_path / "deploy-assist.service").write_text(service)
    (tmp_path / "deploy-assist.timer").write_text(timer)
    if Path("/usr/bin/systemd-analyze").exists():
        units = map(str, tmp_path.glob("deploy-assist.*"))
        said = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True,
                              env=os.environ | {"SYSTEMD_LOG_LEVEL": "warning"})
        assert "deploy-assist" not in said.stderr, said.stderr


def test_the_command_line(capfd, tmp_path):
    def sh(*words):
        capfd.readouterr()
        return command_line([*words]), *capfd.readouterr()
    (tmp_path / "watch.sh").write_text("echo '{\"action\": \"watch\"}' > $1/v.json; exit 10")
    code, out, _ = sh("schedule", "add", "m", "--cron", "0 6 * * *", "--alert", "command:true --token secret", "--json",
                      "--command", "sh watch.sh {out}")
    made = json.loads(out)
    assert code == 0 and made["next"] and "secret" not in out
    assert sh("schedule", "run", "--due")[:2] == (0, "nothing is due\n")
    t = list_schedules()[0].times.before(datetime.now(UTC) - timedelta(days=2)).isoformat()
    code, out, _ = sh("schedule", "run", "m", "--window-start", t, "--json")
    assert code == 10 and json.loads(out)[0]["state"] == "done", out
    assert json.loads(sh("schedule", "runs", "--json")[1])[0]["action"] == "watch"
    assert "secret" not in sh("schedule", "list")[1] and made["id"] in sh("schedule", "list")[1]
    assert sh("schedule", "run")[0] == 2 and sh("schedule", "add", "m", "--cron", "x")[0] == 1
    assert sh("schedule", "remove", made["id"])[0] == 0


def test_a_real_report(patients, tmp_path):
    "The child is `deploy-assist report`; nothing was logged, so it cannot tell."
    from deploy_assist import register
    register(patients, alias="champion")
    s = schedule("patients", cron="0 6 * * MON", window="7d", alerts=f"command:tee {tmp_path}/told")
    done, = run_due(s.next)
    assert (done["state"], done["action"], done["exit_code"]) == ("done", "cannot tell", 10), done["error"]
    page = Path(done["report"])
    assert page.parent == tmp_path / "reports" and page.is_file() and page.with_suffix(".json").is_file()
    assert json.loads((tmp_path / "told").read_text())["facts"]["report"] == str(page)

"Schedules as they fail: killed, late, twice at once, out of time, out of disk, on the days on which the clock changes."
import ast
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import postgres as own_postgres
import pytest
import sqlalchemy as sa
from waiting import until

from deploy_assist.cli import run as command_line
from deploy_assist.errors import ConfigError, LogError
from deploy_assist.predictions import Batch, PredictionLog, uuid7
from deploy_assist.schedule import Cron, _engine, _runs, _schedules, list_schedules, remove, run_due, run_window, runs
from deploy_assist.schedule import schedule, start
from deploy_assist.schema import Column, Schema

minute = timedelta(minutes=1)
fork = multiprocessing.get_context("fork")  # processes that have imported everything already
program = Path(sys.executable).with_name("deploy-assist")


def word(action="keep", code=0, before=""):
    "A run that says `action`, after the shell text `before`."
    return ["sh", "-c", f'{before}\necho \'{{"action": "{action}"}}\' > "$0/v.json"; exit {code}', "{out}"]


def begun(at, log=None):
    "All schedules are as old as that."
    with _engine(log).begin() as c: c.execute(sa.update(_schedules).values(created=at))


def is_gone(pid): return not Path(f"/proc/{pid}").exists()


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
    now, counts = s.next + timedelta(hours=6), fork.SimpleQueue()
    ps = [fork.Process(target=lambda: counts.put(len(run_due(now, log=log)))) for _ in range(2)]
    for p in ps: p.start()
    for p in ps: p.join(60)
    ran = (tmp_path / "ran").read_text().split()
    assert counts.get() + counts.get() == len(ran) == len(set(ran)) == 7 and (runs("m", log=log)["state"] == "done").all()


def test_a_killed_scheduler_is_replaced(log, tmp_path):
    command = word(before=f"echo $$ >> {tmp_path}/pids; [ -e {tmp_path}/go ] || sleep 60")
    s = schedule("m", cron="0 6 * * *", log=log, command=command)
    now, pids = s.next, tmp_path / "pids"
    first = fork.Process(target=run_due, args=(now,), kwargs=dict(log=log))
    first.start()
    until(lambda: pids.exists() and pids.read_text().strip(), "the run")
    assert run_due(now, log=log) == []  # the lease is held
    first.kill()
    first.join()
    until(lambda: is_gone(int(pids.read_text().split()[0])), "the run to end with its scheduler")
    (tmp_path / "go").touch()
    assert run_due(now, log=log) == []
    ends = datetime.now(UTC) + (-minute if "sqlite" in log else timedelta(days=1))  # a minute later, or the clock was put back
    with _engine(log).begin() as c: c.execute(sa.update(_runs).values(lease_until=ends))
    again, = run_due(now, log=log)
    assert (again["state"], again["attempt"]) == ("done", 2)


@pytest.mark.parametrize("before, said, code", [
    ("kill -9 $$", "killed by SIGKILL", 1), ("sleep 30", "longer than 0.5 seconds", 1), ("exit 2", "ended with 2", 2),
    ("exit 0", "left no JSON", 1), ("echo x > /dev/full || exit 1", "I/O error", 1),
    ("head -c 900m /dev/zero | tail >/dev/null || exit 1",
                                               "address space was limited to 200 MB", 1)])
def test_a_failed_run_is_broken_and_tried_again(tmp_path, before, said, code):
    s = schedule("m", cron="0 6 * * *", command=word(before=before), timeout_s=0.5 if "sleep" in before else 30, memory_mb=200)
    run, = run_due(s.next)
    assert run["state"] == "broken" and said in run["error"] and run["exit_code"] == code
    assert not list((tmp_path / "reports").glob("*")) + list((tmp_path / "reports").glob(".s*"))
    assert run_due(s.next) == []
    schedule("m", cron="0 6 * * *", command=word())
    again = run_due(s.next + 2 * minute)
    assert [r["state"] for r in again] == (["done"] if code == 1 else [])


@pytest.mark.parametrize("size, floor, said, has_run", [("8m", 50, "of free disk, expected at least 50 MB", False),
                                                        ("24m", 10, "No space left", True)])
def test_a_full_disk(tmp_path, size, floor, said, has_run):
    "A tmpfs below the floor starts nothing; one that the run fills up keeps nothing of it."
    if os.geteuid(): pytest.skip("mounting a small tmpfs needs root")
    (tmp_path / "deploy.toml").write_text(f"[reports]\nleast_free_mb = {floor}\n")
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        fill = f'touch {tmp_path}/ran; head -c 40m /dev/zero > "$0/v.html" || exit 1'
        s = schedule("m", cron="0 6 * * *", command=word(before=fill), out=disk / "reports")
        run, = run_due(s.next)
        assert run["state"] == "broken" and said in run["error"] and (tmp_path / "ran").exists() == has_run
        assert [*s.place.iterdir()] == []
    finally: subprocess.run(["umount", disk], check=True)


def test_a_wrong_deploy_toml_breaks_its_own_runs_only(tmp_path, monkeypatch):
    schedule("good", cron="0 6 * * *", command=word())
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    (tmp_path / "other" / "deploy.toml").write_text('[reports]\nkeep = "all"\n')
    s = schedule("bad", cron="0 6 * * *", command=word())
    ran = {r["name"]: r for r in run_due(s.next)}
    assert ran["good"]["state"] == "done" and "keep: got 'all', expected a number" in ran["bad"]["error"]


@pytest.mark.parametrize("limit", ["keep = 2\nkeep_days = 1e5", "keep_days = 0.1", "keep_mb = 1.5"])
def test_the_oldest_reports_go_and_the_newest_stays(tmp_path, limit):
    (tmp_path / "deploy.toml").write_text(f"[reports]\n{limit}\n")
    page = 'head -c 700000 /dev/zero > "$0/v.html"'
    s = schedule("m", cron="0 * * * *", command=word(before=page), catch_up="all")
    (decided := tmp_path / "retrains").mkdir()
    for t in (s.next + timedelta(hours=h) for h in range(-1, 4)):
        (decided / f"m-{t:%Y%m%dT%H%M%S}_000007Z.html").write_bytes(bytes(700_000))
        for name in (f"m-{t:%Y%m%dT%H%M%S}_000007Z.json", f"m-b-{t:%Y%m%dT%H%M%S}Z.json"): (decided / name).touch()
    assert len(run_due(s.next + timedelta(hours=4))) == 5
    left = sorted(p.name for p in (tmp_path / "reports").iterdir())
    newest = [f"m-{t:%Y%m%dT%H%M%S}Z" for t in (s.next + timedelta(hours=h) for h in (2, 3))]
    kept = [f"{at[:-1]}_000007Z.{ending}" for at in newest for ending in ("html", "json")]
    assert sorted(p.name for p in decided.glob("m-2*")) == kept, "what retrains decided is kept by the same rule"
    assert len(list(decided.glob("m-b-*"))) == 5, "another model's is its own schedule's business"
    assert left == ["index.html", *(f"{at}.{ending}" for at in newest for ending in ("html", "json"))]
    listed = (tmp_path / "reports" / "index.html").read_text()
    assert f"{newest[-1][:-1]}" in listed and f"m-{s.next:%Y%m%dT%H%M%S}" not in listed, "it lists what is still there"


def test_what_cannot_be_removed_stops_nothing_else_and_the_json_goes_last(tmp_path):
    (tmp_path / "deploy.toml").write_text("[reports]\nkeep = 1\n")
    s = schedule("m", cron="0 * * * *", command=word(before='echo page > "$0/v.html"'), catch_up="all")
    reports, (first, second) = s.place, (f"m-{s.next - timedelta(hours=h):%Y%m%dT%H%M%S}Z" for h in (9, 8))
    (reports / f"{first}.html" / "mine").mkdir(parents=True)  # a folder in the place of a page
    for name in (f"{first}.json", f"{first}.ipynb", f"{second}.json", f"{second}.html"): (reports / name).touch()
    assert len(run_due(s.next)) == 1
    left = {p.name for p in reports.iterdir()}
    assert {f"{first}.html", f"{first}.json"} <= left and f"{first}.ipynb" not in left and not any(second in n for n in left)


def test_a_database_lost_in_the_middle_of_a_run(tmp_path):
    "PostgreSQL stops while the run reads from it: a broken run, tried again when it is back, and no half a report."
    if not own_postgres.programs(): pytest.skip("no PostgreSQL: apt-get install postgresql")
    reads = ("import pathlib, psycopg, sys; c = psycopg.connect(sys.argv[1]); pathlib.Path('going').touch()\n"
             "pathlib.Path(sys.argv[2], 'v.html').touch(); c.execute('select pg_sleep(60)')")
    with own_postgres.running_server() as server:
        url = server.url
        command = [sys.executable, "-c", reads, url.replace("+psycopg", ""), "{out}"]
        s = schedule("m", cron="0 6 * * *", log=url, command=command)
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(run_due, s.next, log=url)
            until((tmp_path / "going").exists, "the run reads")
            server.stop()
            with pytest.raises(LogError, match="is it up"): run_due(s.next, log=url)
            server.start()
            run, = going.result(60)
        assert run["state"] == "broken" and run["exit_code"] == 1 and "connection" in run["error"]
        assert [*s.place.iterdir()] == []
        schedule("m", cron="0 6 * * *", log=url, command=word())
        again, = run_due(s.next + 2 * minute, log=url)
        assert (again["state"], again["attempt"]) == ("done", 2) and Path(again["report"]).is_file()


def test_start_until_it_is_told_to_end(tmp_path, capfd):
    "A process that gives back what it runs at SIGTERM; another that runs it, until Ctrl-C; a thread, until its event."
    slow = word(before=f"echo $$ >> {tmp_path}/pids; [ -e {tmp_path}/go ] || sleep 60")
    schedule("m", cron="0 0 1 1 *", command=slow)
    begun(datetime.now(UTC) - timedelta(days=400))  # so one is due
    state = lambda: runs("m")["state"].tolist()
    first = subprocess.Popen([program, "schedule", "start", "--json"], stdout=subprocess.PIPE, text=True)
    assert json.loads(first.stdout.readline()) == {"schedules": 1, "pid": first.pid}
    until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().strip(), "the run")
    first.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=60) == ("", None) and first.returncode == 0
    assert is_gone(int((tmp_path / "pids").read_text().split()[0])) and state() == ["queued"]
    (tmp_path / "go").touch()
    second = subprocess.Popen([sys.executable, "-c", "from deploy_assist.schedule import start; start(); print('ended')"],
                              stdout=subprocess.PIPE, text=True)
    until(lambda: state() == ["done"], "the run")
    second.send_signal(signal.SIGINT)
    assert second.communicate(timeout=60) == ("ended\n", None) and second.returncode == 0
    assert runs("m")["attempt"].tolist() == [1]
    stop = threading.Event()
    third = threading.Thread(target=start, kwargs=dict(stop=stop.is_set))
    third.start()
    stop.set()
    third.join(60)
    assert not third.is_alive() and "Traceback" not in capfd.readouterr().err


def test_a_database_away_says_so():
    with pytest.raises(LogError, match="is it up"): run_due(log="postgresql://nobody@127.0.0.1:1/x")


@pytest.mark.parametrize("late", [1, 5])
def test_missed_windows(late):
    s = schedule("m", cron="30 2 * * *", timezone="Europe/Berlin", command=word())
    now = s.next + timedelta(days=late)
    assert len(run_due(now)) == 1 and run_due(now) == []
    assert run_due(now - timedelta(days=30)) == []  # the clock was put back
    assert len(run_due(now + timedelta(days=1, hours=2))) == 1


@pytest.mark.parametrize("month, hours", [(3, 23), (10, 25)])
def test_runs_over_the_days_on_which_the_clock_changes(month, hours):
    "In Berlin a day of 23 hours and one of 25: every hour is in one window, and none in two."
    schedule("m", cron="30 2 * * *", timezone="Europe/Berlin", command=word(), catch_up="all")
    begun(datetime(2026, month, 24, tzinfo=UTC))
    assert len(run_due(datetime(2026, month, 28, tzinfo=UTC))) == 4
    assert len(run_due(datetime(2026, month, 31, tzinfo=UTC))) == 3
    ran = runs("m").sort_values("window_start")
    assert (ran["state"] == "done").all() and ran["window_start"].tolist()[1:] == ran["window_end"].tolist()[:-1]
    lengths = ((ran["window_end"] - ran["window_start"]).dt.total_seconds() / 3600).tolist()
    odd = [23.5, 23.5] if hours == 23 else [25]  # 02:30 is skipped: that window ends at 03:00, and the next one makes up for it
    assert sorted(h for h in lengths if h != 24) == odd and len(lengths) == 7


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
                                   dict(command="ls"), dict(command=5), dict(alerts=5), dict(out=5), dict(window="0s"),
                                   dict(timezone=None), dict(cron="0 0 31 4,6 *")])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"): schedule("m", **{"cron": "0 6 * * *"} | wrong)
    assert list_schedules() == []


def test_names_and_times_are_safe():
    with pytest.raises(ConfigError): schedule("../m", cron="0 6 * * *")
    with pytest.raises(ConfigError, match="without a zone"): run_due(datetime(2030, 1, 1))
    with pytest.raises(ConfigError, match="limit: got 0"): runs(limit=0)
    s = schedule("Größe 日本", cron="0 6 * * *", command=word())
    assert Path(run_due(s.next)[0]["report"]).is_file()


def test_one_window_by_hand(tmp_path):
    s = schedule("m", cron="0 6 * * *", command=word("watch", 10))
    t = s.times.before(datetime.now(UTC) - timedelta(days=2))
    assert run_window("m", t)["action"] == run_window(s.id, t)["action"] == "watch" and len(runs("m")) == 1
    with pytest.raises(ConfigError, match="at which no window starts"): run_window("m", t + minute)


def test_the_texts_for_other_clocks(tmp_path, monkeypatch):
    yaml = pytest.importorskip("yaml")
    for folder in ("two\nlines", odd := tmp_path / '100% "mine" $HOME\'s \\'): (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "two\nlines")
    with pytest.raises(ConfigError, match="fits in a line"): schedule("m", cron="0 6 * * *", target="cron")
    monkeypatch.chdir(odd)
    texts = {t: schedule("m", cron="0 6 * * *", target=t) for t in ("cron", "systemd", "github", "airflow", "k8s")}
    line = texts["cron"].strip()
    assert line.split()[:5] == ["*/5", "*", "*", "*", "*"] and "%" not in line.replace(r"\%", "")
    done = subprocess.run(["sh", "-c", line.split(None, 5)[5].replace(r"\%", "%")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    from apscheduler.triggers.cron import CronTrigger
    of_k8s, of_github = yaml.safe_load(texts["k8s"])["spec"]["schedule"], yaml.safe_load(texts["github"])[True]["schedule"]
    for clock in (line, of_k8s, of_github[0]["cron"]):
        CronTrigger.from_crontab(" ".join(clock.split()[:5]))  # or ValueError
    called = {c.func.id: {k.arg: k.value for k in c.keywords} for c in ast.walk(ast.parse(texts["airflow"]))
              if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
    task = {k: ast.literal_eval(v) for k, v in called["BashOperator"].items()}
    assert (task["cwd"], called["DAG"]["catchup"].value) == (str(odd), False)
    ran = subprocess.run(["bash", "-c", task["bash_command"]], cwd=task["cwd"], env=os.environ | task["env"], capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, b"")
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
    assert f"WorkingDirectory={str(odd).replace('%', '%%')}/\n" in service
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
    wrong = ("run",), ("add", "m", "--cron", "x"), ("run", "m", "--window-start", "2026-01-01T00:01Z"), ("remove", "nothing")
    assert [sh("schedule", *words)[0] for words in wrong] == [2] * 4
    assert sh("schedule", "remove", made["id"])[0] == 0
    code, out, _ = sh("schedule", "add", "mm", "--cron", "0 6 * * *", "--window", "7d")  # nobody registered that yet
    assert code == 0 and "note: 'mm' has no champion in the registry (there is no registry yet" in out
    assert "  7d  next" in sh("schedule", "list")[1]

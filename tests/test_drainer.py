"""The log's drainer as a process: end to end, its parent killed, itself killed, the database away."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from postgres import programs
from test_predictions import acknowledged, batch, kill_when

from deploy_assist.predictions import Drainer, PredictionLog, Request

here = Path(__file__).parent


@pytest.fixture
def url(tmp_path): return f"sqlite:///{tmp_path}/log.db"


def until(ready, timeout=20):
    "Wait until `ready()`; its last value."
    end = time.monotonic() + timeout
    while not (got := ready()) and time.monotonic() < end: time.sleep(0.02)
    return got


def is_gone(pid): return not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def end_to_end(url, home):
    "Rows, requests and feedback of a log that only appends reach the database; health knows; then the drainer ends."
    with Drainer(url, home, interval_s=0.05) as drainer:
        log = PredictionLog(url, home=home, drains=False, interval_s=0.05)
        ids = [i for _ in range(30) for i in log.append(batch(7), Request(id=f"r{_}", time=1.0, route="/predict", status=200))]
        log.feedback(ids[0], label=1)
        assert log.flush(20) and log.pending() == 0 and log._db is None
        assert until(lambda: log.health().drained == 210), log.health()
        assert log.health().ok and not log.health().reason and not log.health().broken
        log.append(batch(3))  # moved while the log is closed
        log.close()
    assert drainer.process.returncode == 0 and drainer.restarts == 0
    assert not list(log.spool.folder.iterdir())
    with PredictionLog(url, home=home) as log:
        w = log.window("risk")
        assert set(ids) < set(w.prediction_id) and len(w) == 213 and w.prediction_id.is_unique
        assert len(log.requests()) == 30 and len(log.feedbacks()) == 1


def test_end_to_end(url, tmp_path): end_to_end(url, tmp_path / "home")


@pytest.mark.skipif(programs() is None, reason="no PostgreSQL: apt-get install postgresql")
def test_end_to_end_in_postgres(postgres, tmp_path):
    import psycopg
    with psycopg.connect(postgres.replace("+psycopg", ""), autocommit=True) as c: c.execute("create database drained")
    end_to_end(postgres.rsplit("/", 1)[0] + "/drained", tmp_path / "home")


def test_appending_imports_no_arrow(url, tmp_path):
    code = (
        "import sys; from logwriter import schema; from deploy_assist.predictions import *\n"
        f"with Drainer({url!r}, 'home') as drainer, PredictionLog({url!r}, home='home', drains=False) as log:\n"
        "    log.append(Batch(model='risk', schema=schema, columns=dict(age=[1], bmi=[2.], sex=['f']), predictions=[1]))\n"
        "    assert log.flush(20) and log.health().ok\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'pyarrow', 'pandas', 'polars', 'adbc_driver_manager'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {
        "PYTHONPATH": f"{here}:{here.parent}"}, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_the_parent_killed_takes_its_drainer_along_and_nothing_is_lost(url, tmp_path):
    p = subprocess.Popen(
        [sys.executable, str(here / "logwriter.py"), url, str(tmp_path / "home"), str(tmp_path / "acks"), "apart=1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    drainer = int(p.stdout.readline())
    kill_when(p, lambda: len(acknowledged(tmp_path, "acks")) > 500)
    assert until(lambda: is_gone(drainer)), "the drainer outlived its parent"
    acks = acknowledged(tmp_path, "acks")
    folder, = (tmp_path / "home" / "spool").iterdir()
    assert not list(folder.glob("*.spool")), "the drainer left rows behind"
    with PredictionLog(url, home=tmp_path / "home") as log:
        w = log.window("risk")
        assert set(acks) <= set(w.prediction_id) and w.prediction_id.is_unique and len(w) - len(acks) <= 1


def test_a_drainer_that_dies_is_noticed_and_started_again(url, tmp_path):
    drainer = Drainer(url, tmp_path / "home", interval_s=0.05)
    drainer.process = drainer.start_one()  # nobody watches yet
    log = PredictionLog(url, home=tmp_path / "home", drains=False, interval_s=0.05)
    log.append(batch(3))
    assert log.flush(20)
    drainer.process.send_signal(signal.SIGKILL); drainer.process.wait()
    said, = log.spool.folder.glob("*.drainer")
    os.utime(said, (1, 1))  # as if it had been silent for long
    ids = log.append(batch(2))
    assert until(lambda: "no drainer runs" in log.health().reason, 5) and log.health().ok
    assert not log.flush(0.2)
    with drainer:
        drainer.process.send_signal(signal.SIGKILL)
        assert until(lambda: drainer.restarts == 1 and drainer.is_running)
        assert log.flush(20) and until(lambda: not log.health().reason, 5)
    log.close()
    with PredictionLog(url, home=tmp_path / "home") as log: assert set(ids) < set(log.window("risk").prediction_id)


def test_health_tells_of_a_database_that_is_away(tmp_path):
    folder = tmp_path / "disk"
    folder.write_text("not a folder: the database cannot be opened")
    url = f"sqlite:///{folder}/log.db"
    with Drainer(url, tmp_path / "home", interval_s=0.05), \
         PredictionLog(url, home=tmp_path / "home", drains=False, interval_s=0.02) as log:
        ids = log.append(batch(10))
        assert until(lambda: "rows wait in the spool: database of the log" in log.health().reason), log.health()
        assert str(tmp_path) not in log.health().reason  # which anyone may read
        for _ in range(20): ids += log.append(batch(1)); time.sleep(0.03)
        assert log.health().ok and len(log.spool.segments()) == 1  # not a file each time it looked
        folder.unlink()
        assert log.flush(20) and until(lambda: not log.health().reason, 5)
        assert log.count("risk") == len(ids) and log.pending() == 0


def test_two_drainers_on_one_folder(url, tmp_path):
    with Drainer(url, tmp_path / "home", interval_s=0.02), Drainer(url, tmp_path / "home", interval_s=0.02), \
         PredictionLog(url, home=tmp_path / "home", drains=False, interval_s=0.02) as log:
        ids = [i for _ in range(200) for i in (log.append(batch(5)), time.sleep(0.002))[0]]
        assert log.flush(20) and until(lambda: log.health().drained == 1000), log.health()
        assert set(log.window("risk").prediction_id) == set(ids) and log.count("risk") == 1000

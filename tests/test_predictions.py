"""The prediction log where it is hard: killed processes, damaged files, a database that is away, a full disk, two at once."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deploy_assist.errors import ConfigError, LogError
from deploy_assist.predictions import OURS, Batch, PredictionLog, Request, uuid7
from deploy_assist.schema import Column, Schema

here = Path(__file__).parent
risk = Schema(
    (Column("age", "integer", nullable=True), Column("bmi", "float"), Column("sex", "category", categories=("f", "m"))),
    classes=(0, 1),
)


def batch(n=1, model="risk", schema=risk, **more):
    columns = dict(age=list(range(n)), bmi=[i / 4 for i in range(n)], sex=["f", "m"] * (n // 2) + ["f"] * (n % 2))
    return Batch(**{**dict(model=model, schema=schema, version="1", alias="champion", columns=columns, latency_ms=1.0,
                           predictions=[i % 2 for i in range(n)], probabilities=[[.75, .25]] * n), **more})


def writer(tmp_path, url, acks, **options):
    "A process that logs until it ends or is killed."
    command = [
        sys.executable,
        here / "logwriter.py",
        url,
        tmp_path / "home",
        tmp_path / acks,
        *(f"{k}={v}" for k, v in options.items()),
    ]
    return subprocess.Popen(
        list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def acknowledged(tmp_path, acks):
    path = tmp_path / acks
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line.strip() for line in lines if line.endswith("\n") and not line.startswith("{")]


def kill_when(process, ready, timeout=20):
    "Kill -9 once `ready()`."
    until = time.monotonic() + timeout
    while not ready() and time.monotonic() < until and process.poll() is None: time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode == -9


@pytest.fixture
def url(tmp_path): return f"sqlite:///{tmp_path}/log.db"


# --- killed

def test_nothing_acknowledged_is_lost_by_kill_9_and_nothing_is_there_twice(tmp_path, url):
    for i in range(3):
        two = [writer(tmp_path, url, f"acks{i}{j}", rows=1 + 2 * j) for j in range(2)]
        for j, p in enumerate(two):
            kill_when(p, lambda i=i, j=j: len(acknowledged(tmp_path, f"acks{i}{j}")) > 300 * (i + 1))
    acks = [a for i in range(3) for j in range(2) for a in acknowledged(tmp_path, f"acks{i}{j}")]
    log = PredictionLog(url)
    w = log.window("risk")
    assert len(acks) > 1000 and set(acks) <= set(w.prediction_id)
    assert w.prediction_id.is_unique and len(w) == log.count("risk") and log.pending() == 0
    assert len(w) - len(acks) <= 6 * 3  # at most what each process was about to acknowledge
    # a record that the kill cut in two was never acknowledged: named, and nothing else is broken
    assert all(b.reason.startswith("torn") for b in log.broken), log.broken


def test_a_live_process_keeps_its_spool_and_a_dead_one_leaves_it(tmp_path, url):
    p = writer(tmp_path, url, "acks", n=50, interval_s=60.0, hold=60)
    assert p.stdout.readline() == "held\n"
    log = PredictionLog(url)
    before = log.count("risk")
    assert log.pending() + before == 50
    kill_when(p, lambda: True)
    assert log.count("risk") == 50 and log.pending() == 0


def test_who_knows_only_the_url_finds_the_spool(tmp_path, url, monkeypatch):
    p = writer(tmp_path, url, "acks", n=5, interval_s=0.1, hold=60)  # its drainer enters its folder in the database
    p.stdout.readline()
    there = PredictionLog(url, home=tmp_path / "elsewhere")
    until = time.monotonic() + 10
    while there.count("risk") < 5 and time.monotonic() < until: time.sleep(0.05)
    kill_when(p, lambda: True)
    PredictionLog(url, interval_s=60).spool.folder.mkdir(parents=True, exist_ok=True)
    log = PredictionLog(url, home=tmp_path / "home")
    data = log.append(batch(7))
    log.spool._next((None, None))  # as if this process had died
    assert there.count("risk") == 12 and set(data) <= set(there.window("risk").prediction_id)


def test_a_torn_last_record_is_named_and_the_rest_is_read(url):
    log = PredictionLog(url, interval_s=60)
    log.append(batch(3)); log.append(batch(2))
    path = log.spool.path
    log.spool._next((None, None))
    os.truncate(path, path.stat().st_size - 5)
    assert log.count("risk") == 3
    b, = log.broken
    assert b.file == str(path) and b.reason.startswith("torn") and log.health().broken == 1
    assert not path.exists()


def test_a_damaged_record_is_named_and_the_file_is_kept(url):
    log = PredictionLog(url, interval_s=60)
    for i in range(5): log.append(batch(1, version=str(i)))
    path = log.spool.path
    log.spool._next((None, None))
    data = bytearray(path.read_bytes())
    at = [i for i in range(len(data)) if data.startswith(b"\xf1DA\n", i)][3]  # the layout comes first
    data[at + 40] ^= 0xff
    path.write_bytes(data)
    assert list(log.window("risk").version) == ["0", "1", "3", "4"]
    b, = log.broken
    assert (b.file, b.offset) == (str(path), at) and "damaged" in b.reason
    assert path.with_suffix(".bad").exists() and log.count("risk") == 4
    log.purge(before=datetime(2100, 1, 1, tzinfo=UTC))
    assert not path.with_suffix(".bad").exists()


def test_a_damaged_layout_is_found_in_the_catalogue(url):
    log = PredictionLog(url, interval_s=60)
    log.append(batch(1)); assert log.count("risk") == 1
    log.append(batch(2))
    path = log.spool.path
    log.spool._next((None, None))
    data = bytearray(path.read_bytes()); data[60] ^= 0xff; path.write_bytes(data)
    assert log.count("risk") == 3 and len(log.broken) == 1


def test_a_file_of_rubbish_stops_nothing(url):
    log = PredictionLog(url, interval_s=60)
    log.append(batch(2))
    (log.spool.folder / "0-1-x.spool").write_bytes(os.urandom(5000))
    (log.spool.folder / "0-2-x.spool").write_bytes(b"")
    assert log.count("risk") == 2 and len(log.broken) == 1


def test_draining_the_same_segment_twice_adds_nothing(url):
    log = PredictionLog(url, interval_s=60)
    log.append(batch(20), Request(id="r1", time=time.time(), route="/predict", status=200))
    log.feedback(uuid7(), label=1)
    path = log.spool.path
    log.spool._next((None, None))
    data = path.read_bytes()
    assert log.count("risk") == 20
    path.write_bytes(data)  # as after a crash between the database's commit and the removal
    assert log.count("risk") == 20 and len(log.requests()) == 1 and len(log.feedbacks()) == 1


def test_a_forked_child_writes_its_own_segment(url):
    log = PredictionLog(url, interval_s=60)
    log.append(batch(3))
    pid = os.fork()
    if not pid:
        try: log.append(batch(4)); os._exit(0)
        finally: os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    log.append(batch(5))
    assert log.count("risk") == 12


def test_a_log_that_nobody_has_any_more_lets_go_of_its_spool(url):
    PredictionLog(url, interval_s=60).append(batch(3))
    gc.collect()
    assert PredictionLog(url).count("risk") == 3


# --- several at once

def test_two_processes_start_on_a_new_database_at_once(tmp_path, url):
    two_at_once(tmp_path, url)


def two_at_once(tmp_path, url):
    two = [writer(tmp_path, url, f"acks{j}", n=200, rows=3, pause_s=0.002) for j in range(2)]
    log = PredictionLog(url)
    while any(p.poll() is None for p in two): log.count("risk"); time.sleep(0.02)
    for p in two: assert p.wait() == 0, p.communicate()
    acks = {a for j in range(2) for a in acknowledged(tmp_path, f"acks{j}")}
    assert log.count("risk") == 1200 and acks == set(log.window("risk").prediction_id)
    log.close()


# --- the database is away

def test_the_database_away_and_back(tmp_path):
    folder = tmp_path / "disk"
    folder.write_text("not a folder: the database cannot be opened")
    log = PredictionLog(f"sqlite:///{folder}/log.db", interval_s=0.05, spool_max_mb=0.2)
    ids = log.append(batch(10))
    until = time.monotonic() + 5
    while not log.health().reason and time.monotonic() < until: time.sleep(0.02)
    health = log.health()
    assert health.ok and "rows wait in the spool" in health.reason
    with pytest.raises(LogError): log.window("risk")
    with pytest.raises(LogError, match="of 0.2 MB"):
        for _ in range(10_000): ids += log.append(batch(10))
    assert not log.health().ok and "spool_max_mb" in log.health().reason and log.pending() == len(ids)
    folder.unlink()
    assert log.flush(20) and log.health().ok and not log.health().reason
    assert set(log.window("risk").prediction_id) == set(ids) and log.pending() == 0
    log.close()


def test_appending_does_not_wait_for_a_locked_database(tmp_path, url):
    log = PredictionLog(url, interval_s=0.01)
    log.append(batch()); log.flush()
    code = (
        f"import sqlite3, sys\nc = sqlite3.connect({str(tmp_path / 'log.db')!r}, isolation_level=None)\n"
        f"c.execute('begin exclusive')\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline() == "locked\n"
        took = []
        for _ in range(200):
            t = time.perf_counter(); log.append(batch()); took.append(time.perf_counter() - t)
            time.sleep(0.002)
        assert sorted(took)[100] < 0.002 and log.pending() >= 190
        p.stdin.close()
    assert log.count("risk") == 201
    log.close()


def test_a_full_disk(tmp_path, url):
    disk = tmp_path / "small"
    disk.mkdir()
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("cannot mount a small tmpfs here (needs root)")
    try:
        log = PredictionLog(f"sqlite:///{disk}/log.db", home=disk / "home", interval_s=0.05)
        ids = log.append(batch(10)); assert log.flush()
        ballast = disk / "ballast"
        with pytest.raises(LogError, match="No space left"):
            for _ in range(5000):
                ids += log.append(batch(100))
                if len(ids) == 1010: ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - 100_000))
        assert not log.health().ok and "No space left" in log.health().reason
        with pytest.raises(LogError): log.append(batch(2000))
        ballast.unlink()
        until = time.monotonic() + 10
        while not log.health().ok and time.monotonic() < until: time.sleep(0.05)  # without a request
        assert log.health().ok
        ids += log.append(batch(10))
        assert log.flush(20)
        w = log.window("risk")
        assert set(w.prediction_id) == set(ids) and w.prediction_id.is_unique and not log.broken
        log.close()
    finally: subprocess.run(["umount", "-l", str(disk)], check=True)


def test_power_safe(url):
    log = PredictionLog(url, durability="power")
    ids = log.append(batch(3))
    assert list(log.window("risk").prediction_id.sort_values()) == sorted(ids)
    log.close()
    with pytest.raises(LogError, match="closed"): log.append(batch())
    with pytest.raises(ConfigError, match="'process' or 'power'"): PredictionLog(url, durability="yes")


# --- names and types

def test_any_column_names_and_types_come_back(url): names_and_types(url)


def names_and_types(url):
    columns = (
        Column("age", "integer", nullable=True),
        Column("Age", "float"),
        Column('sel ect "x"; --', "boolean", nullable=True),
        Column("年齢", "category", categories=(1, 2)),
        Column("mixed", "category", categories=(1, "a")),
        Column("time", "text"),
        Column("label", "float"),
        Column("input_label", "float"),
        Column("day", "date"),
        Column("ü" * 80, "float"),
        Column("wall", "datetime", dtype="datetime64[us]"),
        Column("zoned", "datetime", dtype="datetime64[us, UTC]"),
        Column("list", "list", size=2),
        Column("p_0", "float"),
        Column("rest", "string"),
        Column("rowid", "integer"),
    )
    schema, t = Schema(columns, classes=("a", "b", "c")), datetime(2026, 1, 2, 3, 4, 5, 678901)
    given = {
        "age": [2**60 + 1, None],
        "Age": [1, float("nan")],
        'sel ect "x"; --': [True, None],
        "年齢": [1, 2],
        "mixed": ["a", 1],
        "time": ["it's \0", ""],
        "label": [0.5, 0.25],
        "input_label": [1.0, 2.0],
        "day": [date(2026, 1, 1), None],
        "ü" * 80: [1.0, 2.0],
        "wall": [t, t],
        "zoned": [t.replace(tzinfo=UTC), None],
        "list": [[1.0, 2.0], None],
        "p_0": [1.0, 2.0],
        "rest": ["x", "😀"],
        "rowid": np.array([7, 8]),
    }
    log = PredictionLog(url, interval_s=60)
    name = "we ird/näme's \"x\""
    ids = log.append(
        Batch(
            model=name,
            schema=schema,
            columns=given,
            predictions=np.array(["a", "c"]),
            latency_ms=2.0,
            probabilities=np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]),
            time=[t.replace(tzinfo=UTC).timestamp(), time.time()],
        )
    )
    w = log.window(name, probabilities=True)
    assert list(w)[:10] == list(OURS)
    assert list(w)[10:] == [
        "age",
        "Age",
        'sel ect "x"; --',
        "年齢",
        "mixed",
        "input_time",
        "input_input_label",
        "input_label",
        "day",
        "ü" * 80,
        "wall",
        "zoned",
        "list",
        "p_0",
        "rest",
        "rowid",
        "p_a",
        "p_b",
        "p_c",
    ]
    assert list(w.prediction_id) == ids and w.time[0] == pd.Timestamp(t, tz="UTC") and str(w.time.dt.tz) == "UTC"
    assert w.age[0] == 2**60 + 1 and w.age[1] is pd.NA and str(w.age.dtype) == "Int64" and str(w.rowid.dtype) == "int64"
    assert (
        np.isnan(w.Age[1])
        and list(w["年齢"]) == [1, 2]
        and list(w.mixed) == ["a", 1]
        and w.input_time[0] == "it's \ufffd"
    )
    assert (
        list(w.input_input_label) == [0.5, 0.25]
        and w.day[0] == pd.Timestamp("2026-01-01")
        and w.wall[1] == pd.Timestamp(t)
    )
    assert (
        w.zoned[0] == pd.Timestamp(t, tz="UTC")
        and w.list[0] == [1, 2]
        and w["list"][1] is None
        and w["rest"][1] == "😀"
    )
    assert (
        list(w.prediction) == ["a", "c"]
        and list(w.score) == [0.7, 0.7]
        and list(w.p_b) == [0.2, 0.2]
        and (w.model == name).all()
    )
    log.feedback(ids[0], label="b"); log.feedback(ids[1], correct=True)
    assert list(log.window(name).label) == ["b", "c"]
    assert log.find(ids[0])["age"] == 2**60 + 1 and log.find("nobody") is None
    assert not log.broken, log.broken
    log.close()


@pytest.mark.parametrize("n", [200, 900])
def test_many_columns(url, n): many_columns(url, n)


def many_columns(url, n):
    schema = Schema(
        tuple(Column(f"column {i}", "integer" if i % 3 == 0 else "float", nullable=True) for i in range(n)),
        task="regression",
    )
    log = PredictionLog(url, interval_s=60)
    log.append(
        Batch(
            model="wide",
            schema=schema,
            columns={f"column {i}": [i, None, i + 0.5 if i % 3 else 0] for i in range(n)},
            predictions=[0.5, 1, 2],
        )
    )
    w = log.window("wide")
    assert list(w)[10:] == [f"column {i}" for i in range(n)] and list(w.iloc[0, 10:]) == list(range(n))
    assert w.iloc[1, 10:].isna().all() and w[f"column {n - 1}"].isna().sum() == 1 and not log.broken
    assert list(log.window("wide", columns=["column 5", f"column {n - 2}"]))[10:] == ["column 5", f"column {n - 2}"]
    log.close()


def test_a_new_schema_opens_a_new_table_and_the_window_spans_both(url):
    log = PredictionLog(url, interval_s=60)
    log.append(batch(2, version="1"))
    wider = Schema((*risk.columns, Column("pulse", "float")), classes=(0, 1))
    log.append(
        Batch(
            model="risk",
            schema=wider,
            version="2",
            columns=dict(age=[1], bmi=[2.0], sex=["m"], pulse=[61.0]),
            predictions=[1],
        )
    )
    log.append(batch(1, version="1"))
    w = log.window("risk")
    assert list(w.version) == ["1", "1", "2", "1"] and w.time.is_monotonic_increasing and w.pulse.notna().sum() == 1
    assert len(log.models()) == 2 and log.count("risk") == 4 and log.models().rows.tolist() == [3, 1]


@pytest.mark.parametrize(
    "task, classes, predictions, label, dtype",
    [
        ("regression", None, [1.5, 2.5], 3, "float64"),
        ("classification", ("no", "yes"), ["yes", "no"], "yes", "str"),
        ("classification", (True, False), [True, False], True, "boolean"),
        ("classification", (1, "a"), [1, "a"], "a", "object"),
        ("classification", (0.0, 1.0), [0.0, 1.0], 1.0, "float64"),
        ("multioutput-regression", None, [[1.0, 2.0], [3.0, 4.0]], [1.0, 3.0], "object"),
        ("multioutput-classification", ((0, 1), ("a", "b")), [[0, "b"], [1, "a"]], [1, "b"], "object"),
        ("clustering", None, [3, 0], 2, "Int64"),
        ("anomaly", None, [-1, 1], -1, "Int64"),
    ],
)
def test_predictions_and_labels_of_every_task(url, task, classes, predictions, label, dtype):
    schema = Schema((Column("x", "float"),), task=task, classes=classes)
    log = PredictionLog(url, interval_s=60)
    ids = log.append(Batch(model="m", schema=schema, columns=dict(x=[1., 2.]), predictions=predictions))
    assert log.window("m").label.isna().all()
    log.feedback(ids[0], label=label)
    w = log.window("m")
    assert list(w.prediction) == predictions and w.label[0] == label and w.label.isna().tolist() == [False, True]
    assert str(w.label.dtype) == dtype and not log.broken


def test_a_value_that_does_not_fit_is_named_and_its_row_kept(url):
    log = PredictionLog(url, interval_s=60)
    log.append(batch(1)); log.append(batch(2, columns=dict(age=["old", 2**70], bmi=[1., 2.], sex=["\ud800", "m"])))
    w = log.window("risk")
    assert len(w) == 3 and w.age.isna().sum() == 2 and list(w.bmi) == [0, 1, 2]
    assert {b.reason[:12] for b in log.broken} == {"column 'age'"} and len(log.broken) == 2


def test_parts_of_unequal_length_are_refused(url):
    log = PredictionLog(url)
    with pytest.raises(LogError, match="1 values in column 'bmi' for 2 predictions"):
        log.append(batch(2, columns=dict(age=[1, 2], bmi=[1.], sex=["f", "m"])))
    with pytest.raises(LogError, match="3 ids for 2"): log.append(batch(2, ids=["a", "b", "c"]))
    assert log.append(batch(0)) == [] and log.count("risk") == 0


def test_a_long_batch_is_cut_and_comes_back_whole(url):
    log = PredictionLog(url, interval_s=60)
    n = 12_345
    frame = pd.DataFrame(dict(age=np.arange(n), bmi=np.arange(n) / 4, sex=["f"] * n))
    ids = log.append(
        batch(n, columns={c: frame[c] for c in frame}, predictions=np.zeros(n, int), probabilities=np.full((n, 2), 0.5))
    )
    w = log.window("risk").set_index("prediction_id").loc[ids]
    assert list(w.age) == list(range(n)) and ids == sorted(ids) and log.pending() == 0


# --- privacy

def everything_in(folder) -> bytes:
    return b"".join(p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and p.name != "acks")


def test_a_dropped_or_hashed_value_is_never_written(tmp_path, url):
    schema = Schema(
        (
            Column("age", "integer"),
            Column("name", "string", policy="drop"),
            Column("mail", "string", policy="hash", nullable=True),
        ),
        classes=(0, 1),
    )
    log = PredictionLog(url, interval_s=60)
    rows = dict(age=[1, 2, 3], name=["Ada Lovelace"] * 3, mail=["ada@example.org", "ada@example.org", None])
    log.append(Batch(model="m", schema=schema, columns=rows, predictions=[0, 1, 0]))
    assert b"Ada Lovelace" not in everything_in(tmp_path) and b"ada@example" not in everything_in(tmp_path)
    w = log.window("m")
    assert b"Ada Lovelace" not in everything_in(tmp_path) and b"ada@example" not in everything_in(tmp_path)
    assert "name" not in w and w.mail[0] == w.mail[1] and pd.isna(w.mail[2]) and len(w.mail[0]) == 32
    assert oct((tmp_path / "home" / "hash.key").stat().st_mode)[-3:] == "600"
    assert log.delete("m", where={"mail": "ada@example.org"}).predictions == 2 and log.count("m") == 1


def test_erasing_a_subject_reaches_every_place(tmp_path, url):
    p = writer(tmp_path, url, "acks", n=100_000, pause_s=0.001)
    log = PredictionLog(url)
    until = time.monotonic() + 20
    while log.count("risk") < 50 and time.monotonic() < until: time.sleep(0.02)
    assert not log.export(tmp_path / "old", since="1h", until="59m")
    log.export(tmp_path / "old")
    pid = log.window("risk").prediction_id[7]
    log.feedback(pid, label=1, comment="says that person-7 came back")
    receipt = log.delete(subject="person-7")
    assert (receipt.predictions, receipt.labels, receipt.feedback, receipt.exported) == (1, 1, 1, 1) and receipt.files
    kill_when(p, lambda: True)
    log.count("risk"); log.close()
    seen = everything_in(tmp_path)
    assert b"person-8" in seen
    assert not any(trace in seen for trace in (b"that person-7 came", pid.encode()))
    w = pd.read_parquet(tmp_path / "old")
    assert "person-7" not in set(w.subject) and "person-8" in set(w.subject)


def test_erasing_drops_the_profiles_of_the_hours(tmp_path, url): profiles_are_erased(tmp_path, url)


def profiles_are_erased(tmp_path, url):
    "Of three hours, two had rows of the subject, one of them only in an export; another model's profiles stay."
    hours = [datetime(2026, 5, 4, h, tzinfo=UTC) for h in (7, 8, 9)]
    log = PredictionLog(url, home=tmp_path / "profiles", interval_s=60)
    at = [h.timestamp() + s for h in hours for s in (0.0, 3599.9)]
    log.append(batch(6, model="seen", time=at, subjects=["a", "b", "b", "a", "b", "b"]))
    log.export(tmp_path / "seen", "seen")
    log.purge(hours[1], "seen")
    assert log.delete("seen", subject="nobody").profiles == 0, "there need not be any"
    database = log._database()
    database.make("log_profiles", dict(id="key", model="text", version="text", hour="integer", profile="text"))
    for i, (model, hour) in enumerate((m, h) for m in ("seen", "other") for h in hours):
        values = f"'{i}', '{model}', '1', {int(hour.timestamp()) // 3600}, 'sample of {model} at {hour.hour}'"
        database.run(f"INSERT INTO log_profiles VALUES ({values})")
    receipt = log.delete(subject="a")
    assert (receipt.predictions, receipt.exported, receipt.profiles) == (1, 2, 2) and receipt.to_dict()["profiles"] == 2
    left = database.run("SELECT model, profile FROM log_profiles ORDER BY id").to_pylist()
    assert [(r["model"], r["profile"][-1]) for r in left] == [("seen", "9"), ("other", "7"), ("other", "8"), ("other", "9")]
    database.run("DROP TABLE log_profiles" if database.dialect == "postgresql" else "SELECT 1")
    log.close()
    assert not any(f"sample of seen at {h}".encode() in everything_in(tmp_path) for h in (7, 8)), "no trace in the file"


def test_erasing_reaches_exports_of_purged_rows(tmp_path, url):
    log = PredictionLog(url, interval_s=60)
    log.append(batch(4, subjects=["a", "b", "c", "a"]))
    log.export(tmp_path / "old")
    assert log.purge(before=datetime(2100, 1, 1, tzinfo=UTC))["predictions"] == 4 and log.count("risk") == 0
    log.append(batch(1, subjects=["a"])); log.export(tmp_path / "old")
    assert len(pd.read_parquet(tmp_path / "old")) == 5  # the rows that the database has no more stay in their file
    receipt = log.delete(subject="a")
    assert (receipt.predictions, receipt.exported) == (1, 3) and sorted(pd.read_parquet(tmp_path / "old").subject) == [
        "b",
        "c",
    ]
    with pytest.raises(ConfigError, match="expected one of"): log.delete("risk")


# --- labels

def test_the_latest_label_counts_whatever_order_they_arrive_in(url):
    log = PredictionLog(url, interval_s=60)
    a, b, c, d = log.append(batch(4))  # predictions 0, 1, 0, 1
    log.feedback(a, label=1, time=2000.); log.feedback(a, label=0, time=1000.)
    log.feedback(b, correct=True); log.feedback(c, correct=False); log.feedback(d, comment="?")
    w = log.window("risk").set_index("prediction_id").label
    assert (w[a], w[b], w[c]) == (1, 1, 1) and pd.isna(w[d])
    times = [datetime(1970, 1, 1, 0, 10, tzinfo=UTC), datetime.now(UTC)]
    assert log.labels("risk", pd.DataFrame(dict(prediction_id=[a, "nobody"], label=[0, 1], time=times))) == dict(
        rows=2, matched=1
    )
    assert log.window("risk").set_index("prediction_id").label[a] == 1
    assert log.labels("risk", pd.DataFrame(dict(prediction_id=[a, b, d], label=[0, None, 1]))) == dict(
        rows=2, matched=2
    )
    w = log.window("risk").set_index("prediction_id").label
    assert (w[a], w[b], w[d]) == (0, 1, 1) and str(w.dtype) == "Int64"
    assert (
        log.feedbacks("risk").comment.notna().sum() == 1
        and len(log.feedbacks()) == 5
        and len(log.feedbacks("nobody")) == 0
    )
    with pytest.raises(ConfigError, match="expected prediction_id and label"):
        log.labels("risk", pd.DataFrame(dict(id=[1])))
    with pytest.raises(ConfigError, match="expected at least one"): log.feedback(a)


def test_labels_by_sql(tmp_path, url):
    import sqlite3
    log = PredictionLog(url, interval_s=60)
    ids = log.append(batch(3))
    with sqlite3.connect(tmp_path / "clinic.db") as c:
        c.execute("create table outcome (id text, worse integer)")
        c.executemany("insert into outcome values (?, ?)", [(i, 1) for i in ids])
    c.close()
    sql = "select id as prediction_id, worse as label from outcome"
    assert log.labels("risk", sql, database=f"sqlite:///{tmp_path}/clinic.db") == dict(rows=3, matched=3)
    assert list(log.window("risk").label) == [1, 1, 1]
    assert log.labels("risk", f"select prediction_id, prediction as label from {log.models().table[0]}")["matched"] == 3
    with pytest.raises(LogError):
        log.labels("risk", "select nothing from nowhere", database=f"sqlite:///{tmp_path}/clinic.db")


# --- windows

def test_windows_by_time_and_source(url):
    log = PredictionLog(url, interval_s=60)
    now = time.time()
    log.append(batch(4, time=[now - 8 * 86400, now - 6 * 86400, now - 60, now]))
    log.append(batch(1, source="demo"))
    assert len(log.window("risk", since="7d")) == 4 and len(log.window("risk", since="7d", until="1d")) == 1
    assert len(log.window("risk", source="api")) == 4 and len(log.window("risk", source=["demo", "batch"])) == 1
    at = datetime.fromtimestamp(now, UTC)
    w = log.window("risk", until=at, source="api")
    assert len(w) == 3 and w.time.is_monotonic_increasing  # the end is not in the window
    assert len(log.window("risk", since=at.isoformat(), source="api")) == 1
    with pytest.raises(ConfigError, match="aware"): log.window("risk", since=datetime(2026, 1, 1))
    assert list(log.window("nobody")) == list(OURS) and log.count("nobody") == 0


def test_no_heavy_import_and_no_file_before_the_first_append(tmp_path):
    code = (
        "import sys; from deploy_assist.predictions import PredictionLog, uuid7; log = PredictionLog(); "
        "log.health(); uuid7(); "
        "heavy = {'pandas', 'pyarrow', 'sqlalchemy', 'numpy', 'adbc_driver_sqlite'} & set(sys.modules); assert "
        "not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "DEPLOY_ASSIST_HOME": str(tmp_path / "x")},
        cwd=tmp_path,
    )
    assert not (tmp_path / "x").exists()


def test_urls(tmp_path):
    assert PredictionLog().target.where == str(tmp_path / "home" / "predictions.db")
    assert "secret" not in repr(PredictionLog("postgresql+psycopg://me:secret@db/x"))
    for bad in ("sqlite://", "mysql://me:secret@x/y", "predictions.db"):
        with pytest.raises(ConfigError) as e: PredictionLog(bad)
        assert "secret" not in str(e.value)

"""Is anything lost? Servers killed, a database that stops, a disk that fills up, a long log, a person who is forgotten.

    python benchmarks/bench_durability.py                         # everything, about half an hour
    python benchmarks/bench_durability.py --quick                 # the same with less of each, about five minutes
    python benchmarks/bench_durability.py --only kill --kills 20
    python benchmarks/bench_durability.py --only long --rows 1000000 --json out.json

Real servers on loopback under real load. A client notes the id and the answer of every prediction that was acknowledged with 200;
in the end each id must be in the log once, with that answer. Each line shows goal and measured value; the exit code is 1 when one
is missed. A PostgreSQL is started from Debian's packages; the full disk is a small tmpfs, which needs root.
"""
import argparse
import copy
import http.client
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pandas as pd
from processes import family
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deploy_assist import history, prepare, promote, register, rollback, serve
from deploy_assist.errors import DeployAssistError, LogError
from deploy_assist.predictions import Batch, Drainer, PredictionLog
from deploy_assist.registry import resolve
from deploy_assist.release import dump_model
from deploy_assist.schema import Column, Schema
from deploy_assist.verdict import baseline_profile
from deploy_assist.windows import profile_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from postgres import programs, running_server  # noqa: E402

MEASURES = {}  # name -> (goal, function of what was told -> yields (what, measured, met))


def measure(name, goal):
    "Enter a line of the table."
    def enter(f): MEASURES[name] = (goal, f); return f
    return enter


# ------------------------------------------------------------------------------------------------------- server and load


def made(folder):
    "A bundle on 30 features, rows to send, and what the model answers to each."
    data = load_breast_cancer(as_frame=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(data.data, data.target)
    release = prepare(model, data.data, data.target, name="lumps")
    rows = release.schema.rows(data.data.iloc[:200])
    return release.save(folder / "bundle"), rows, [int(y) for y in model.predict(pd.DataFrame(rows))]


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


def started(bundle, port, url, home, **options):
    "An endpoint on a given port; waits for the port while processes of a killed one end."
    until = time.monotonic() + 30
    while True:
        try: return serve(bundle, port=port, log=url, home=home, **options)
        except DeployAssistError as e:
            if "cannot be opened" not in str(e) or time.monotonic() > until: raise
            time.sleep(0.1)


class Load:
    "Clients that predict without a pause and note what was acknowledged, and what was not."

    def __init__(self, port, rows, answers, clients=8, pause_s=0.0):
        self.port, self.rows, self.answers, self.pause_s = port, rows, answers, pause_s
        self.acknowledged, self.statuses, self.wrong, self.reasons = {}, Counter(), [], Counter()
        self.times, self.longest, self.stopping = [], 0.0, threading.Event()  # seconds: of the answered, of any request
        self.threads = [threading.Thread(target=self.client, args=(k,), daemon=True) for k in range(clients)]

    def __enter__(self):
        for t in self.threads: t.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for t in self.threads: t.join(60)

    def client(self, k):
        "One connection, opened again when it breaks."
        rng, connection = random.Random(k), None
        while not self.stopping.is_set():
            if connection is None: connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            chosen = [rng.randrange(len(self.rows)) for _ in range(1 + (k == 0) * 6)]  # one client sends seven rows at once
            body, t = json.dumps({"rows": [self.rows[i] for i in chosen]}), time.perf_counter()
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                raw = answer.read()
                said = json.loads(raw) if "json" in answer.headers.get("Content-Type", "") else {"detail": raw.decode()}
                self.note(answer.status, said, chosen, time.perf_counter() - t)
            except (OSError, http.client.HTTPException):  # no whole answer: not acknowledged
                self.statuses["broken"] += 1
                connection.close(); connection = None
                time.sleep(0.02)
            self.longest = max(self.longest, time.perf_counter() - t)
            if self.pause_s: time.sleep(self.pause_s)

    def note(self, status, said, chosen, took):
        self.statuses[status] += 1
        if status != 200: self.reasons[str(said.get("detail") or said.get("title"))] += 1; time.sleep(0.01); return
        self.times.append(took)
        expected = self.expected(said, chosen)
        if said["predictions"] != expected: self.wrong.append((said["predictions"], expected))
        self.acknowledged.update(zip(said["prediction_ids"], said["predictions"]))

    def expected(self, said, chosen):
        "What the model answers to the chosen rows."
        return [self.answers[i] for i in chosen]

    def failed(self): return sum(n for status, n in self.statuses.items() if status != 200)

    def wait_for(self, more, timeout=30):
        "Wait until so many more predictions were acknowledged."
        target, until = len(self.acknowledged) + more, time.monotonic() + timeout
        while len(self.acknowledged) < target:
            if time.monotonic() > until: raise RuntimeError(f"no answers: {dict(self.statuses)} {self.reasons.most_common(2)}")
            time.sleep(0.01)


def ready(port):
    "What readiness says: status, and the reason or the note."
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        said = json.loads(answer.read())
        return answer.status, said.get("detail") or said.get("note") or ""
    except OSError as e: return None, str(e)
    finally: connection.close()


def until(condition, timeout, every=0.05):
    "Seconds until `condition()`; None when it did not come."
    t = time.monotonic()
    while time.monotonic() - t < timeout:
        if condition(): return time.monotonic() - t
        time.sleep(every)
    return None


def reckon(load, url, home):
    "What the log has of what was acknowledged: (lost, twice, other answers, broken pieces beyond torn ones)."
    with PredictionLog(url, home=home) as log:
        deadline = time.monotonic() + 120
        while log.pending() and time.monotonic() < deadline: log.flush(5)
        w = log.window("lumps")
        seen = dict(zip(w.prediction_id, w.prediction))
        lost = [i for i in load.acknowledged if i not in seen]
        other = [i for i, y in load.acknowledged.items() if i in seen and seen[i] != y]
        hurt = list(log.spool.folder.glob("*.bad"))
    return len(lost), int(w.prediction_id.duplicated().sum()), len(other), len(hurt)


def told_of(load, lost, twice, other, hurt):
    return (f"{len(load.acknowledged):,} acknowledged, {lost} lost, {twice} twice, {len(load.wrong) + other} wrong answers"
            + (f", {hurt} damaged files" if hurt else ""))


@contextmanager
def databases(told, folder):
    "name -> the URL of a fresh database, for those that were asked for."
    found = {"sqlite": f"sqlite:///{folder}/log.db"}
    if "postgresql" in told.databases and programs() is None: print("    no PostgreSQL here: apt-get install postgresql")
    elif "postgresql" in told.databases:
        with running_server() as server:
            found |= {"postgresql": server.url}
            yield {k: v for k, v in found.items() if k in told.databases}
        return
    yield {k: v for k, v in found.items() if k in told.databases}


# ----------------------------------------------------------------------------------------------------------- kill -9


@measure("kill", "0 acknowledged predictions lost in 20 kill -9 under load, none twice")
def kill(told):
    "With several workers, every second time one process below the server is killed: the server goes on by itself."
    for workers in (1, 2):
        with tempfile.TemporaryDirectory(prefix="deploy-assist-kill-") as made_here:
            bundle, rows, answers = made(Path(made_here))
            with databases(told, made_here) as urls:
                for name, url in urls.items():
                    measured, met = killed(told, bundle, rows, answers, url, Path(made_here, name), workers)
                    yield f"{name}, {workers} worker{'s' * (workers > 1)}", measured, met


def killed(told, bundle, rows, answers, url, home, workers):
    "Kill, start again, and again; what was measured, and whether it is the goal."
    port, rng, options = free_port(), random.Random(told.seed), {"workers": workers}
    endpoint = started(bundle, port, url, home, **options)
    try:
        with Load(port, rows, answers) as load:
            for i in range(told.kills):
                load.wait_for(rng.randrange(50, 400))
                below = family(endpoint._process.pid)
                if workers > 1 and i % 2 and below: os.kill(rng.choice(below), signal.SIGKILL)
                else:
                    endpoint._process.send_signal(signal.SIGKILL)
                    endpoint._process.wait(10)
                    endpoint.stop()
                    endpoint = started(bundle, port, url, home, **options)
            load.wait_for(100)
        endpoint.stop()
    finally: endpoint.stop()
    lost, twice, other, hurt = reckon(load, url, home)
    return f"{told.kills} kills, {told_of(load, lost, twice, other, hurt)}", not (lost or twice or other or hurt or load.wrong)


# ------------------------------------------------------------------------------------------------------ database away


@measure("away", "PostgreSQL stopped for 60 s under load: 0 failed requests, 0 lost, caught up within 60 s of its return")
def away(told):
    if programs() is None: yield "PostgreSQL", "not measured here: apt-get install postgresql", None; return
    with tempfile.TemporaryDirectory(prefix="deploy-assist-away-") as made_here, running_server() as server:
        bundle, rows, answers = made(Path(made_here))
        home, port = Path(made_here, "home"), free_port()
        endpoint = started(bundle, port, server.url, home)
        try:
            with Load(port, rows, answers) as load:
                load.wait_for(300)
                server.stop("immediate")
                t = time.monotonic()
                noticed = until(lambda: "rows wait in the spool" in ready(port)[1], 40)
                time.sleep(max(0, told.away_s - (time.monotonic() - t)))
                during, status = sum(load.statuses.values()), ready(port)[0]
                spool = sum(p.stat().st_size for p in home.glob("spool/*/*.spool")) / 2**20
                server.start()
                back = time.time_ns()
                caught = until(lambda: not before(home, back) and not ready(port)[1], 120)
                load.wait_for(100)
            failed = sum(n for s, n in load.statuses.items() if s != 200)
        finally: endpoint.stop()
        lost, twice, other, hurt = reckon(load, server.url, home)
    said = "never" if caught is None else f"{caught:.1f} s"
    yield (f"away for {told.away_s:g} s",
           f"{failed} failed of {sum(load.statuses.values()):,} requests ({during:,} until its return, p99 "
           f"{sorted(load.times)[len(load.times) * 99 // 100] * 1000:.0f} ms), readiness {status} and told of it after "
           f"{'never' if noticed is None else f'{noticed:.1f} s'}, spool {spool:.0f} MB; "
           f"{told_of(load, lost, twice, other, hurt)}; caught up in {said}",
           not (failed or lost or twice or other or hurt or load.wrong) and status == 200 and noticed is not None
           and caught is not None and caught <= 60)


def before(home, moment_ns):
    "Segments that were begun before a moment and are not drained."
    return [p for p in home.glob("spool/*/*.spool") if int(p.name.split("-")[0]) < moment_ns]


# ---------------------------------------------------------------------------------------------------------- full disk


@contextmanager
def small_disk(folder, mb):
    "A tmpfs of so many MB; None where it cannot be mounted."
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mb}m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode: yield None; return
    try: yield folder
    finally: subprocess.run(["umount", "-l", str(folder)], check=True)


@measure("disk", "disk full: no corrupted file, no wrong answer, 503 with a reason at the bound, recovers by itself")
def disk(told):
    with tempfile.TemporaryDirectory(prefix="deploy-assist-disk-") as made_here, \
         small_disk(Path(made_here, "small"), 24) as small:
        if small is None: yield "tmpfs", "not measured here: mounting one needs root", None; return
        bundle, rows, answers = made(Path(made_here))
        for what, url, home in (("spool and database on it", f"sqlite:///{small}/log.db", small / "home"),
                                ("only the database on it", f"sqlite:///{small}/only.db", Path(made_here, "home"))):
            yield what, *filled(told, bundle, rows, answers, url, home, small, home.is_relative_to(small))


def filled(told, bundle, rows, answers, url, home, small, bound):
    "Fill the disk under load, hold, and make room again; twice, and a kill -9 while it is full."
    port = free_port()
    endpoint = started(bundle, port, url, home)
    ballast, refused, reasons, recovered = small / "ballast", [], set(), []
    try:
        with Load(port, rows, answers, pause_s=0.002) as load:
            for i in range(2):
                load.wait_for(300)
                fill(ballast, 200_000)
                if bound:
                    refused.append(until(lambda: ready(port)[0] == 503, 60))
                    reasons.add(ready(port)[1])
                    time.sleep(2)
                    if i:
                        endpoint._process.send_signal(signal.SIGKILL); endpoint._process.wait(10); endpoint.stop()
                else:
                    time.sleep(0.5); fill(ballast, 0)
                    refused.append(until(lambda: "rows wait in the spool" in ready(port)[1], 60))
                    reasons.add(ready(port)[1])
                    load.wait_for(200)
                ballast.unlink()
                if bound and i: endpoint = started(bundle, port, url, home)
                recovered.append(until(lambda: ready(port) == (200, ""), 60))
                load.wait_for(100)
    finally: endpoint.stop()
    lost, twice, other, hurt = reckon(load, url, home)
    sound = check_sqlite(url)
    n = load.statuses
    measured = (f"{n[200]:,} answered, {n[503]:,} times 503 ({'; '.join(sorted(load.reasons)) or 'none'}), "
                f"{others(n)}, the longest wait {load.longest:.1f} s, readiness: {'; '.join(sorted(reasons))}; well again after "
                f"{', '.join('never' if r is None else f'{r:.1f} s' for r in recovered)}; "
                f"{told_of(load, lost, twice, other, hurt)}; SQLite says {sound}")
    met = (not (lost or twice or other or hurt or load.wrong or set(n) - {200, 503, "broken"}) and sound == "ok"
           and None not in refused and None not in recovered and load.longest < 10 and (n[503] > 0 if bound else n[503] == 0))
    return measured, met


def others(statuses):
    "How often what else came: a connection breaks when its server is killed."
    return ", ".join(f"{n} times {s}" for s, n in statuses.items() if s not in (200, 503)) or "nothing else"


def fill(path, leave):
    "Write until only so many bytes are free."
    with path.open("ab") as f:
        free = shutil.disk_usage(path.parent).free - leave
        try:
            if free > 0: f.write(b"x" * free); f.flush()
        except OSError: pass


def check_sqlite(url):
    import sqlite3
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try: return connection.execute("PRAGMA integrity_check").fetchone()[0]
    finally: connection.close()


# ------------------------------------------------------------------------------------------------------------- versions


class Versions(Load):
    "Load on an endpoint whose versions answer differently: which one answered is noted, and whether it is that one's answer."

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.versions = {}  # prediction id -> the version that said it

    def expected(self, said, chosen):
        "The answers of the version that answered; None when nobody knows it."
        version = said["model"]["version"]
        self.versions |= dict.fromkeys(said["prediction_ids"], version)
        return version in self.answers and [self.answers[version][i] for i in chosen] or None


@contextmanager
def registered(folder):
    "A registry with two versions of a model that answer each row differently, the first in production: releases, rows, answers."
    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "DEPLOY_ASSIST_HOME")}
    os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "DEPLOY_ASSIST_HOME": f"{folder}/home"}
    try:
        data, releases = load_breast_cancer(as_frame=True), []
        for y in (data.target, 1 - data.target):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(data.data, y)
            releases.append(prepare(model, data.data, y, name="lumps"))
            register(releases[-1])
        promote("lumps", "1", reason="the first")
        rows = releases[0].schema.rows(data.data.iloc[:200])
        yield releases, rows, {str(k): releases[k - 1].predict(pd.DataFrame(rows)).tolist() for k in (1, 2)}
    finally:
        for name, value in before.items():
            if value is None: os.environ.pop(name)
            else: os.environ[name] = value


MOVED_S = 30  # so long is a version waited for
ENOUGH = 20   # answers by it in a row, over fresh connections, until all of several workers are taken to have it


def told_version(port):
    "What a fresh connection is told by /version."
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/version")
        return json.loads(connection.getresponse().read())
    finally: connection.close()


@measure("alias", "promote and rollback, 50 times, at 32 connections: 0 failed, answers within 5 s, each row logs its version")
def alias(told):
    for workers in (1, 2):
        with tempfile.TemporaryDirectory(prefix="deploy-assist-alias-") as made_here, \
             registered(made_here) as (_, rows, answers):
            port, url, took = free_port(), f"sqlite:///{made_here}/log.db", []
            endpoint = serve("models:/lumps@champion", port=port, log=url, workers=workers)
            try:
                with Versions(port, rows, answers, clients=32) as load:
                    load.wait_for(500)
                    for k in range(told.moves):
                        wanted, t = "12"[(k + 1) % 2], time.monotonic()
                        if wanted == "2": promote("lumps", "2", reason=f"move {k}")
                        else: rollback("lumps", reason=f"move {k}")
                        took.append(moved(port, wanted, workers, t))
                        load.wait_for(50)
            finally: endpoint.stop()
            lost, twice, other, hurt = reckon(load, url, None)
            with PredictionLog(url) as log: rows_seen = log.window("lumps").set_index("prediction_id")
            mixed = sum(rows_seen["version"].get(id) != version for id, version in load.versions.items())
            more = len(rows_seen) - len(load.acknowledged)
            failed, late = load.failed(), sum(s is None for s in took)
            seconds = [MOVED_S if s is None else s for s in took]
            measured = (f"{told.moves} moves, {failed} failed of {sum(load.statuses.values()):,} requests; "
                        f"{told_of(load, lost, twice, other, hurt)}; {mixed} rows under another version, "
                        f"{more} never acknowledged; a move answers after {median(seconds):.1f} s (median), "
                        f"{max(seconds):.1f} s (worst), from the call on"
                        + (f", {late} never" if late else ""))
            met = not (failed or lost or twice or other or hurt or load.wrong or mixed or more) and max(seconds) <= 5
            yield f"{workers} worker{'s' * (workers > 1)}", measured, met


def moved(port, wanted, workers, since):
    """Seconds from `since` until the new version answers; None when it did not come.

    A fresh connection goes to whichever worker is free. That one of two is never met in 20 has a chance of about 1 in 500,000."""
    row, first = 0, None
    while (now := time.monotonic()) - since < MOVED_S:
        if told_version(port)["model"]["version"] != wanted: row = 0; time.sleep(0.02); continue
        if row == 0: first = now
        row += 1
        if row == (1 if workers == 1 else ENOUGH): return first - since
    return None


def refusals(version):
    "What the history says of a version that an endpoint refused."
    return [e for e in history("lumps").to_dict("records") if e["action"] == "refused" and e["version"] == version]


@measure("candidate", "a candidate that does not load, or fails its own example, never answers; readiness and history say why")
def candidate(told):
    with tempfile.TemporaryDirectory(prefix="deploy-assist-candidate-") as made_here, \
         registered(made_here) as (releases, rows, answers):
        port, url = free_port(), f"sqlite:///{made_here}/log.db"
        nan = copy.deepcopy(releases[0].model)
        nan[-1].coef_ = nan[-1].coef_ * float("nan")
        broken = replace(releases[0], model=nan, artefact=dump_model(nan), parts={})
        bad = {"answers NaN": register(broken).version}
        torn = register(replace(releases[1], metrics=releases[1].metrics | {"torn": 1}))
        bad["has a torn file"] = torn.version
        (Path(resolve(torn.uri).folder) / "schema.json").write_text("{}")
        endpoint = serve("models:/lumps@champion", port=port, log=url)
        try:
            with Versions(port, rows, answers, clients=8) as load:
                load.wait_for(200)
                for what, version in bad.items():
                    promote("lumps", version, reason="a bad candidate")
                    until(lambda v=version: f"version {v} " in (told_version(port)["traffic"]["problem"] or ""), 60)
                    problem, (status, note) = told_version(port)["traffic"]["problem"] or "", ready(port)
                    load.wait_for(200)
                    until(lambda v=version: refusals(v), 60)
                    found = refusals(version)
                    rollback("lumps", reason="back")
                    by_it, failed = list(load.versions.values()).count(version), load.failed()
                    met = bool(problem and found) and status == 200 and f"version {version} " in note
                    met &= not (by_it or failed or load.wrong)
                    why = found[0]["reason"][:80] if found else "nothing"
                    yield what, (f"{by_it} of {len(load.acknowledged):,} answers by it, {failed} failed, "
                                 f"{len(load.wrong)} wrong; readiness {status}: {note[:100]}; history: {why}"), met
        finally: endpoint.stop()


@measure("cost", "logging costs <= 25% of the requests/s without it")
def cost(told): yield "", "not measured here: make bench-serving ARGS='--servers \"ours,ours without log\"'", None


# --------------------------------------------------------------------------------------------------------- a long log


FLAT_MB = 160  # what a drainer may hold, however many rows go through it


def wide():
    "30 columns: 24 numbers, 4 whole numbers, 2 categories."
    columns = [Column(f"x{i}", "float") for i in range(24)] + [Column(f"n{i}", "integer") for i in range(4)]
    columns += [Column(f"k{i}", "category", categories=("red", "green", "blue")) for i in range(2)]
    return Schema(tuple(columns), classes=(0, 1))


def memory(pid="self"):
    "Resident MB, now and at most."
    said = Path(f"/proc/{pid}/status").read_text()
    return [int(re.search(rf"^{k}:\s+(\d+)", said, re.M)[1]) / 1024 for k in ("VmRSS", "VmHWM")]


@measure("long", "10M rows in the log: a 7-day window of 1M x 30 in <= 3 s; spool and drainer stay flat in memory")
def long(told):
    if shutil.disk_usage(tempfile.gettempdir()).free < told.rows * 1000:
        yield "", f"not measured here: {tempfile.gettempdir()} has less than {told.rows * 1000 / 1e9:.0f} GB of space", None
        return
    with tempfile.TemporaryDirectory(prefix="deploy-assist-long-") as made_here, databases(told, made_here) as urls:
        for name, url in urls.items():
            yield f"{name}, written", *written(told.rows, url, Path(made_here, name))
            yield f"{name}, read", *read(told.rows, url, Path(made_here, name))


def written(n, url, home):
    "Log rows of 70 days through the spool; how fast, and the memory of writer and drainer on the way."
    schema, rng, size = wide(), random.Random(0), 5000
    end = datetime.now(UTC).timestamp()
    def value(c): return rng.choice(c.categories) if c.categories else rng.randrange(100) if c.type == "integer" else rng.random()
    columns = {c.name: [value(c) for _ in range(size)] for c in schema.columns}
    predictions, chances = [rng.randrange(2) for _ in range(size)], [[0.25, 0.75]] * size
    step, writer, drainer = 70 * 86400 / n, [], []
    t = time.monotonic()
    with Drainer(url, home) as other, PredictionLog(url, home=home, drains=False, spool_max_mb=64) as log:
        done = 0
        while done < n:
            times = [end - (n - done - i) * step for i in range(size)]
            batch = Batch(model="wide", schema=schema, columns=columns, predictions=predictions, probabilities=chances,
                          time=times, version="1", latency_ms=1.0)
            try: log.append(batch); done += size
            except LogError: time.sleep(0.05); continue  # the bound: the drainer is behind
            if done % (n // 20 // size * size or size) == 0:
                writer.append(memory()[0]); drainer.append(memory(other.process.pid)[0])
        if not log.flush(300): return f"the drainer did not keep up: {log.health()}", False
        took = time.monotonic() - t
        writer.append(memory()[0]); drainer.append(memory(other.process.pid)[0])
        broken = log.health().broken
    grown = max(writer) - writer[0]
    return (f"{n:,} rows in {took:.0f} s ({n / took:,.0f} rows/s); memory of the writer {min(writer):.0f} to {max(writer):.0f} "
            f"MB, of the drainer {min(drainer):.0f} to {max(drainer):.0f} MB; {broken} broken",
            grown < 40 and max(drainer) < FLAT_MB and not broken)


def read(n, url, home):
    "A window of 7 of the 70 days, three times."
    now, took, spent = datetime.now(UTC), [], time.process_time()
    with PredictionLog(url, home=home) as log:
        for back in (35, 20, 8):
            t = time.monotonic()
            w = log.window("wide", since=now - timedelta(days=back), until=now - timedelta(days=back - 7))
            took.append(time.monotonic() - t)
        spent = (time.process_time() - spent) / 3
        count = log.count("wide")
    shape = f"{len(w):,} x {w.shape[1] - 10}"
    right = abs(len(w) - n / 10) <= n / 10 / 100 + 1 and count == n and w.x0.notna().all()
    return (f"{shape} of {count:,} rows in {', '.join(f'{s:.2f}' for s in took)} s (median {median(took):.2f}; "
            f"{spent:.1f} s of CPU in the reader, load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores)",
            bool(right) and median(took) <= 3)


# ------------------------------------------------------------------------------------------------------------ erasure


@measure("erase", "erase a subject: gone from tables, spool, Parquet exports and profiles that keep rows, with a receipt")
def erase(told):
    with tempfile.TemporaryDirectory(prefix="deploy-assist-erase-") as made_here, databases(told, made_here) as urls:
        for name, url in urls.items(): yield name, *erased(url, Path(made_here, name), Path(made_here))


WHO = "subject-4f1c-who-asked-to-be-forgotten"


def erased(url, home, below):
    "Rows of a person in the table, an export, the spool of a live process and of a dead one; then none, nowhere."
    schema = Schema((Column("age", "integer"), Column("note", "string")), classes=(0, 1))
    def batch(n): return Batch(model="people", schema=schema, predictions=[1] * n, subjects=([WHO, "someone else"] * n)[:n],
                               columns=dict(age=list(range(n)), note=([f"about {WHO}", "about none"] * n)[:n]))
    with PredictionLog(url, home=home, interval_s=3600) as log, PredictionLog(url, home=home / "other", interval_s=0.2) as live:
        ids = log.append(batch(1000))
        log.feedback(ids[0], label=0)
        rows = pd.DataFrame(batch(1000).columns).assign(prediction=1)
        base = baseline_profile(rows, prediction="prediction")
        profile_of(log, "people", baseline=base, now=datetime.now(UTC) + timedelta(hours=1))
        exported = log.export(home / "exports")
        dead = subprocess.run([sys.executable, "-c", DEAD, url, str(home / "dead"), WHO], capture_output=True, text=True)
        if dead.returncode != -9: raise RuntimeError(dead.stderr)
        live.append(batch(100)); log.append(batch(10))
        with live._reading(): pass  # its folder is known to the database
        receipt = log.delete(subject=WHO)
        left = log.window("people").astype(str)
        seen = int(left.apply(lambda c: c.str.contains(WHO)).any(axis=1).sum())
        kept = len(left)
        live.flush()
    files = [str(p) for p in below.rglob("*") if p.is_file() and WHO.encode() in p.read_bytes()]
    return (f"{receipt.predictions} predictions, {receipt.labels} label, {receipt.exported} exported rows of {len(exported)} "
            f"file, {receipt.profiles} stored profiles removed; {seen} rows left in tables, {len(files)} files hold the name; "
            f"{kept} rows of others kept; receipt {receipt.id[:13]}",
            receipt.predictions == 500 + 50 + 5 + 20 and receipt.exported == 500 and receipt.profiles >= 1
            and not seen and not files and kept == 555)


DEAD = """
import os, signal, sys
from deploy_assist.predictions import Batch, PredictionLog
from deploy_assist.schema import Column, Schema
url, home, who = sys.argv[1:]
schema = Schema((Column("age", "integer"), Column("note", "string")), classes=(0, 1))
log = PredictionLog(url, home=home, interval_s=3600)
log.count("people")
def batch(n): return Batch(model="people", schema=schema, predictions=[1] * n, subjects=[who] * n,
                           columns=dict(age=[1] * n, note=[who] * n))
log.append(batch(5))
log.count("people")
log.append(batch(15))
os.kill(os.getpid(), signal.SIGKILL)
"""

# --------------------------------------------------------------------------------------------------------------- main


def main():
    say = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    say.add_argument("--only", help=f"some of {', '.join(MEASURES)}, with commas")
    say.add_argument("--quick", action="store_true", help="4 kills, 10 s without a database, 500,000 rows")
    say.add_argument("--kills", type=int, help="default 20")
    say.add_argument("--moves", type=int, help="of the alias, default 50")
    say.add_argument("--away-s", type=float, help="default 60")
    say.add_argument("--rows", type=int, help="of the long log, default 10,000,000")
    say.add_argument("--databases", default="sqlite,postgresql")
    say.add_argument("--seed", type=int, default=0)
    say.add_argument("--json", type=Path, help="also write the figures there")
    told = say.parse_args()
    told.kills = told.kills or (4 if told.quick else 20)
    told.moves = told.moves or (8 if told.quick else 50)
    told.away_s = told.away_s or (10 if told.quick else 60)
    told.rows = told.rows or (500_000 if told.quick else 10_000_000)
    chosen = told.only.split(",") if told.only else list(MEASURES)
    if not set(chosen) <= set(MEASURES): sys.exit(f"--only: got {told.only}, expected some of {', '.join(MEASURES)}")
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    figures, met_all = {}, True
    for name in chosen:
        goal, run = MEASURES[name]
        print(f"\n{name}: {goal}", flush=True)
        t = time.monotonic()
        for what, measured, met in run(told):
            verdict = "  -  " if met is None else "  ok " if met else "MISSED"
            print(f"  {verdict:<6} {what + ': ' if what else ''}{measured}   [{time.monotonic() - t:.0f} s]", flush=True)
            figures.setdefault(name, []).append(dict(goal=goal, what=what, measured=measured, met=met))
            met_all &= met is not False
            t = time.monotonic()
    if told.json: told.json.write_text(json.dumps(figures, indent=1))
    sys.exit(0 if met_all else 1)


if __name__ == "__main__": main()

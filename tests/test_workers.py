"""An endpoint as processes: several workers, a stop and a reload that no client notices, and nothing that outlives its parent."""

import http.client
import json
import os
import pty
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
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

from deploy_assist import BundleError, EndpointError, PredictionLog, serve

BODY = {"Content-Type": "application/json"}
BMI = [21.0, 35.0, 24.0, 33.0, 22.0, 36.0] * 5


def children(pid):
    "The processes that `pid` started."
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try: state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
        except OSError: continue
        if int(parent) == pid and state != "Z": found.append(int(entry.name))
    return sorted(found)


def is_alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError: return False


def port_of(endpoint): return int(endpoint.url.rsplit(":", 1)[1])


def get(endpoint, path):
    "The body of an answer, over a connection of its own."
    with urlopen(endpoint.url + path, timeout=30) as answer: return answer.read().decode()


@contextmanager
def load(endpoint, clients=8):
    "Clients that ask all the time, half of them over kept connections; afterwards how often they got what. Refused, they end."
    got, heard, stop = Counter(), [], threading.Event()

    def ask(keep):
        connection, used = None, False
        while not stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port_of(endpoint), timeout=30)
                used = False
                try: connection.connect()
                except ConnectionRefusedError: heard.append("refused"); return
            try:
                connection.request("POST", "/predict", b'{"bmi": 40}', BODY | ({} if keep else {"Connection": "close"}))
                answer = connection.getresponse()
                body = answer.read()
                heard.append(answer.status if b'"predictions":[' in body else body)
                used = True
            except Exception as e:  # a server may close a silent connection just then (RFC 9112, 9.6): asked again; the log tells
                if not (used and isinstance(e, ConnectionError)): heard.append(f"failed: {e!r}")
                connection.close()
                connection = None
            else:
                if answer.will_close: connection.close(); connection = None
        if connection: connection.close()

    threads = [threading.Thread(target=ask, args=(i % 2 == 0,)) for i in range(clients)]
    for thread in threads: thread.start()
    try: yield got
    finally:
        time.sleep(0.3)
        stop.set()
        for thread in threads: thread.join(30)
        got.update(heard)


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    "Two versions of a model, as folders: the second says the opposite."
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    from deploy_assist import prepare

    X, folder = pd.DataFrame(dict(bmi=BMI)), tmp_path_factory.mktemp("versions")
    ill = X.bmi > 30
    return [prepare(LogisticRegression().fit(X, y), X, y, name="risk").save(folder / n) for n, y in (("a", ill), ("b", ~ill))]


@pytest.fixture(scope="module")
def two(versions, tmp_path_factory):
    "An endpoint with two workers, of a copy of the first version."
    home = tmp_path_factory.mktemp("two")
    folder = shutil.copytree(versions[0], home / "bundle")
    with serve(folder, workers=2, log=False, home=home) as endpoint:
        endpoint.folder = folder
        yield endpoint


def value(text, name):
    "The sum of a metric's samples over their labels."
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return sum(s.value for s in samples if s.name == name)


def test_any_workers_metrics_are_those_of_all_also_after_one_was_killed(two):
    def predict(n):
        for _ in range(n): urlopen(Request(two.url + "/predict", b'{"bmi": 40}', BODY), timeout=30).close()

    def seen():  # connections of their own: now one worker answers, now the other
        texts = [get(two, "/metrics") for _ in range(8)]
        return {value(t, "deploy_assist_predicted_rows_total") for t in texts}

    predict(60)
    assert seen() == {60}
    before = children(two._process.pid)
    with load(two, 4) as got: time.sleep(0.3)
    n = 60 + got[200]
    assert seen() == {n} and set(got) == {200}
    os.kill(before[0], signal.SIGKILL)
    assert seen() == {n}
    predict(20)
    after = until(lambda: len(now := children(two._process.pid)) == 2 and now, "the next worker")
    assert before[0] not in after and before[1] in after
    until(lambda: "a worker is back" in two.logs(), "the next worker to be ready")
    predict(20)
    assert seen() == {n + 40}


def test_connections_that_are_opened_at_once_are_shared_out(two):
    workers = children(two._process.pid)

    def is_socket(fd):
        try: return "socket:" in os.readlink(fd)
        except FileNotFoundError: return False  # closed meanwhile

    def sockets(): return [sum(map(is_socket, Path(f"/proc/{pid}/fd").iterdir())) for pid in workers]
    least, before = 0, sockets()
    for _ in range(5):
        open_now = [socket.create_connection(("127.0.0.1", port_of(two))) for _ in range(32)]
        for s in open_now: s.sendall(b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n")
        for s in open_now: assert s.recv(1000).startswith(b"HTTP/1.1 200")
        least += min(now - n for now, n in zip(sockets(), before))
        for s in open_now: s.close()
        until(lambda: sum(sockets()) <= sum(before), "the connections to be closed")
    assert least >= 40  # of 80; whoever takes all that wait leaves about 25


def test_a_replaced_folder_answers_after_a_reload_and_a_broken_one_never(two, versions):
    new = json.loads((versions[1] / "bundle.json").read_bytes())["hash"]
    said = two.logs().count("champion is version")
    with load(two) as got:
        two.folder.rename(two.folder.with_name("old"))
        shutil.copytree(versions[1], two.folder)
        two.reload()
        until(lambda: two.logs().count("champion is version") == said + 2, "both workers to be new")
    assert {json.loads(get(two, "/version"))["model"]["hash"] for _ in range(8)} == {new}
    assert set(got) == {200} and got[200] > 50
    answer = json.loads(urlopen(Request(two.url + "/predict", b'{"bmi": 40}', BODY), timeout=30).read())
    assert answer["predictions"] == [False]
    (two.folder / "schema.json").write_text("{}")
    two.reload()
    until(lambda: two.logs().count("was refused: BundleError") == 2, "both workers to refuse it")
    assert json.loads(get(two, "/version"))["model"]["hash"] == new
    shutil.copy(versions[1] / "schema.json", two.folder / "schema.json")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_under_load_fails_no_request(versions, workers, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ann/")
    url, late = f"sqlite:///{tmp_path}/log.db", {}
    endpoint = serve(versions[0], workers=workers, log=url, home=tmp_path)
    try:
        path = f"/user/ann/proxy/{port_of(endpoint)}"
        assert endpoint.proxied_url == path and f"href='{path}/docs'" in endpoint._repr_html_()
        assert endpoint.url.count("/") == 2 and json.loads(get(endpoint, path + "/schema"))["columns"]

        request = Request(endpoint.url + "/predict", json.dumps([{"bmi": 40}] * 30_000).encode(), BODY)

        def ask():
            late.update(json.loads(urlopen(request, timeout=30).read()), at=time.monotonic())
        asking = threading.Thread(target=ask)
        with load(endpoint) as got:
            time.sleep(0.4)
            asking.start()
            time.sleep(0.05)
            start = time.monotonic()
            endpoint.stop()
        asking.join(30)
    finally: endpoint.stop()
    assert set(got) == {200, "refused"} and got["refused"] == 8, got
    assert late["predictions"] == [True] * 30_000 and late["at"] > start  # it was being answered when the stop came
    assert endpoint._process.returncode == 0 and not endpoint.is_running and "stopped" in endpoint._repr_html_()
    with PredictionLog(url, home=tmp_path) as log: assert (log.count("risk"), log.pending()) == (got[200] + 30_000, 0)


def test_workers_that_cannot_start_are_given_up_with_the_reason(versions, tmp_path):
    folder = shutil.copytree(versions[0], tmp_path / "bundle")
    (folder / "engine.json").write_text("{}")
    before = children(os.getpid())
    with pytest.raises(EndpointError, match=r"did not start: BundleError.*engine.json"): serve(folder, workers=2, log=False)
    assert children(os.getpid()) == before


def test_nothing_outlives_a_killed_parent_or_a_killed_supervisor(two, versions, tmp_path):
    code = ("import sys; from deploy_assist import serve; "
            "e = serve(sys.argv[1], workers=2, log=False); print(e._process.pid, flush=True); input()")
    parent = subprocess.Popen([sys.executable, "-c", code, versions[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True)
    with parent:
        supervisor = int(parent.stdout.readline())
        others = [supervisor, *children(supervisor), two._process.pid, *children(two._process.pid)]
        assert len(others) == 6
        parent.kill()
        two._process.kill()
    until(lambda: not any(map(is_alive, others)), "all to end")
    two.stop()
    assert not list(Path(tempfile.gettempdir()).glob("deploy_assist-metrics-*"))


def test_a_terminal_that_is_closed_ends_the_command_and_a_hang_up_from_elsewhere_reloads(versions, home):
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "deploy_assist.cli", "serve", versions[0], "--port", "0", "--no-log", "--json"]
    script = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, line)], stdin=theirs, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    os.close(theirs)
    try:
        said = json.loads(process.stdout.readline())
        log, = (home / "logs").glob("risk-*.log")
        os.kill(said["pid"], signal.SIGHUP)
        until(lambda: "was loaded again" in log.read_text(), "the reload")
        urlopen(said["url"] + "/health/ready", timeout=30).close()
        os.close(ours)
        assert process.wait(30) == 0
        with pytest.raises(OSError): urlopen(said["url"], timeout=5)
    finally:
        if process.poll() is None: process.kill()
        process.communicate()


def test_a_folder_that_mlflow_wrote_is_served(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    X = pd.DataFrame(dict(bmi=BMI))
    signature = mlflow.models.infer_signature(X, [True])
    mlflow.sklearn.save_model(LogisticRegression().fit(X, X.bmi > 30), str(tmp_path / "theirs"), signature=signature,
                              pip_requirements=["scikit-learn"])
    with serve(tmp_path / "theirs", log=False) as endpoint:
        answer = json.loads(urlopen(Request(endpoint.url + "/predict", b'{"bmi": 40}', BODY), timeout=30).read())
        assert (endpoint.name, answer["model"]["name"], answer["predictions"]) == ("theirs", "theirs", [True])
    (tmp_path / "theirs" / "MLmodel").unlink()
    with pytest.raises(BundleError, match="without bundle.json"): serve(tmp_path / "theirs", log=False)

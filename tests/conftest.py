"""Fixtures for all tests. Each test runs in a folder of its own, and none leaves a process behind.

Two workers (pytest-xdist) share the files, the longest first; the process that started them looks for
what is left at the end."""
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest

os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1",
               "ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "MPLBACKEND": "agg"}
is_worker = "PYTEST_XDIST_WORKER" in os.environ  # one of several: mark and folder are those of the process that started it
if not is_worker:
    os.environ["DEPLOY_ASSIST_TESTS"] = uuid.uuid4().hex  # every process that a test starts inherits it
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest keeps its own folders of the last runs
    # MLflow and Chromium forget temporary folders: all of them lie in one that is removed at the end
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="deploy_assist-tests-")
mark = f"DEPLOY_ASSIST_TESTS={os.environ['DEPLOY_ASSIST_TESTS']}"
# several processes at once: one thread each, so that none waits for threads that wait for a core
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# a shell that starts the tests in the background, and nohup, have them ignored; tests of Ctrl-C and of hang-ups send them
for ignored, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN: signal.signal(ignored, usual)
here = {"127.0.0.1", "localhost", "::1", "[::1]"}
longest = ("artefact check demo quickstart wizard_browser retrain runtime cli docs registry wizard readme environment "
           "packaging schedule panels protocols predictions library").split()


def pytest_collection_modifyitems(items):
    "The files that take longest first: the workers end at about the same time then."
    order = {f"test_{name}": place for place, name in enumerate(longest)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "The current folder, deploy_assist's home and MLflow's store are inside `tmp_path`."
    folder = tmp_path / "home"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPLOY_ASSIST_HOME", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("DEPLOY_ASSIST_LOG_URL", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(autouse=True)
def widget_errors():
    "ipywidgets logs what a callback raises and goes on: a test in which that happened fails. Tests of it clear this list."
    found, make = [], logging.getLogRecordFactory()

    def factory(name, *args, **kwargs):
        record = make(name, *args, **kwargs)
        if "Exception in callback" in str(record.msg) and name != "asyncio":
            found.append(f"{record.getMessage()} {record.exc_info[1]!r}" if record.exc_info else record.getMessage())
        return record

    logging.setLogRecordFactory(factory)
    yield found
    logging.setLogRecordFactory(make)
    if found: pytest.fail("a widget's callback raised: " + "; ".join(found))


@pytest.fixture
def sh(capfd):
    "Run a command line in this process: (exit code, stdout, stderr)."
    from deploy_assist.cli import run

    def sh(*words):
        capfd.readouterr()
        code = run([str(word) for word in words])
        return code, *capfd.readouterr()
    return sh


@pytest.fixture
def free_port() -> int:
    "A port on loopback that nobody listens on."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def patients():
    "A prepared release on real patients: will their diabetes progress to the worst quarter?"
    from sklearn.compose import make_column_transformer
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from deploy_assist import prepare

    data = load_diabetes(as_frame=True, scaled=False)
    X = data.data.assign(sex=data.data["sex"].map({1.0: "female", 2.0: "male"}), age=data.data["age"].astype(int))
    y = (data.target >= data.target.quantile(0.75)).astype(int).rename("worse")
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)
    numbers = [name for name in X if name != "sex"]
    model = make_pipeline(make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["sex"])),
                          LogisticRegression(max_iter=1000))
    return prepare(model.fit(X_train, y_train), X_train, y_train, name="patients", X_test=X_test, y_test=y_test)


@pytest.fixture(scope="session")
def bundle(patients, tmp_path_factory) -> Path:
    "The folder that `patients` was saved to. Copy it before changing it."
    return Path(patients.save(tmp_path_factory.mktemp("bundle") / "patients"))


# --- pages in Chromium

@pytest.fixture(scope="module")
def chromium():
    """A Chromium that finds no host but this machine. Not for the whole session: while playwright's synchronous interface
    is open, its event loop is the main thread's, and `asyncio.run` in another test would be refused."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program: pytest.skip("no Chromium: apt-get install chromium fonts-dejavu-core")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    args = [
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=args)
        yield browser
        browser.close()


def outside(url: str) -> bool:
    "Does a request to `url` leave this machine?"
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about", "chrome-error", "file") and parts.hostname not in here


@pytest.fixture
def new_page(chromium):
    "Pages in contexts of their own (options as in playwright's `new_context`); a request to the outside fails the test."
    contexts, asked = [], []

    def make(**options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(60_000)
        context.on("request", lambda request: asked.append(request.url))
        context.on("page", lambda page: page.on("websocket", lambda ws: asked.append(ws.url)))
        contexts.append(context)
        return context.new_page()

    yield make
    for context in contexts: context.close()
    gone = sorted({url for url in asked if outside(url)})
    if gone: pytest.fail(f"the page asked for {len(gone)} outside addresses: {', '.join(gone[:5])}")


@pytest.fixture
def page(new_page):
    "A page in Chromium, 1280 x 900."
    return new_page()


# --- PostgreSQL

def as_postgres(command: list) -> list:
    "initdb refuses to run as root: step down to the user that Debian's package made."
    return ["runuser", "-u", "postgres", "--", *command] if os.getuid() == 0 else command


@pytest.fixture(scope="session")
def postgres():
    "The SQLAlchemy URL of a PostgreSQL that lives for this session, on loopback, without a password."
    pytest.importorskip("psycopg", reason='no psycopg: pip install "deploy_assist[postgres]"')
    places = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        Path(shutil.which("initdb") or "/none").parent,
    ]
    programs = next((place for place in places if (place / "initdb").exists()), None)
    if not programs: pytest.skip("no PostgreSQL: apt-get install postgresql")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="deploy_assist-pg-", dir="/tmp"))
    data = folder / "data"
    if os.getuid() == 0: shutil.chown(folder, "postgres")

    def run(*command):
        done = subprocess.run(
            as_postgres([str(part) for part in command]),
            stdin=subprocess.DEVNULL,
            cwd=folder,
            timeout=120,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode: pytest.fail(f"PostgreSQL did not start: {done.stdout[-2000:]}")

    try:
        run(programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=50"
        run(programs / "pg_ctl", "-D", data, "-o", settings, "-l", folder / "log", "-w", "start")
        try: yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally: run(programs / "pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
    finally: shutil.rmtree(folder, ignore_errors=True)


# --- nothing is left running

def left_running() -> dict[int, str]:
    "Processes that this session started and that still run, as number and command line."
    parents, commands, marked = {}, {}, set()
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        try:
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            commands[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"): marked.add(pid)
        except OSError: continue
        if state != "Z": parents[pid] = int(parent)

    def is_child(pid):  # a forked child shows the environment that we were started with, so its parents tell
        while pid in parents and pid != os.getpid(): pid = parents[pid]
        return pid == os.getpid()

    helpers = ("resource_tracker", "multiprocessing.forkserver")  # Python's own, which end with us
    return {pid: commands[pid] for pid in parents if pid != os.getpid() and (pid in marked or is_child(pid))
            and not any(helper in commands[pid] for helper in helpers)}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    result = yield  # workers have ended after that
    if is_worker: return result
    until = time.monotonic() + 10
    while (left := left_running()) and time.monotonic() < until: time.sleep(0.2)
    if left:
        print("\nleft running by the tests:\n" + "\n".join(f"  {pid} {command[:200]}" for pid, command in left.items()))
        for pid in left:
            try: os.kill(pid, signal.SIGTERM)
            except OSError: pass
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    return result

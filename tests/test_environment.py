"""What a model needs elsewhere: found in a fresh process, locked, and proven in a new virtual environment."""
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from deploy_assist import ModelError, ProofError, check, prepare
from deploy_assist.environment import Lock, _tops, differences, lock, lock_of, prove, proven, requirements_of
from deploy_assist.release import dump_model

program = Path(sys.executable).with_name("deploy-assist")
rng = np.random.default_rng(0)
X = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(size=60)})
y = (X.a > X.b).astype(int)


def names(requirements): return {r.partition("==")[0] for r in requirements}


@pytest.fixture(scope="module")
def release(): return prepare(LogisticRegression().fit(X, y), X, y, name="small")


def installed(folder: Path, name: str, files: dict, requires: tuple = (), url: dict | None = None) -> None:
    "A package in `folder` as an installer leaves it."
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    for file, source in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(source)
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/METADATA"]))
    if url: (info / "direct_url.json").write_text(json.dumps(url))


@pytest.fixture
def site(tmp_path, monkeypatch):
    "A folder for packages, and nothing of it known afterwards."
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    known = dict(_tops)
    _tops.clear()
    yield folder
    for name in set(sys.modules) - before:
        if str(folder.parent) in str(getattr(sys.modules[name], "__file__", "")): del sys.modules[name]
    _tops.clear()
    _tops.update(known)


# --- requirements

def test_only_what_the_model_needs(release):
    "scikit-learn imports pytest, pyarrow and rich when they are there: they are not needed."
    assert names(release.requirements) == {"numpy", "pandas", "scikit-learn", "scipy", "skops"}
    assert all("==" in r for r in release.requirements) and list(release.requirements) == sorted(release.requirements)
    assert "pandas" not in names(requirements_of(release.artefact, rows=X.to_numpy()[:2]))


def test_a_travelling_module_brings_what_it_imports(release):
    source = b"def f(x):\n    import dateutil.parser\n    import nowhere_at_all\n    return x\n"
    found = names(requirements_of(release.artefact, {"mine.py": source}, X[:2]))
    assert found == {*names(release.requirements), "python-dateutil"}


def test_what_nobody_declared_is_found_and_what_is_optional_is_not(site):
    installed(site, "undeclared-thing", {"undeclared.py": "def same(x): return x\n"})
    installed(site, "lazy-steps", {"lazy_steps.py": (
        "try: import pytest\nexcept ImportError: pytest = None\n"
        "def step(x):\n    from undeclared import same\n    return same(x)\n")})
    from lazy_steps import step
    artefact = dump_model(make_pipeline(FunctionTransformer(step), LogisticRegression()).fit(X, y))
    found = names(requirements_of(artefact, rows=X[:2]))
    assert found == {"lazy-steps", "undeclared-thing", "numpy", "pandas", "scikit-learn", "scipy", "skops"}
    assert names(requirements_of(artefact, rows=X[:2])) == found, "the second time from memory"


def test_a_setting_that_asks_for_a_package_is_not_hidden_by_a_model_of_the_same_classes():
    rows, labels = X.to_numpy(), y.to_numpy()
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    framed = make_pipeline(StandardScaler(), LogisticRegression()).set_output(transform="pandas").fit(rows, labels)
    assert "pandas" not in names(requirements_of(dump_model(plain), rows=rows[:2]))
    assert "pandas" in names(requirements_of(dump_model(framed), rows=rows[:2]))


def test_packages_that_share_a_name_and_an_editable_install(site, tmp_path):
    installed(site, "shared-a", {"shared/a.py": "def f(x): return x\n"})
    installed(site, "shared-b", {"shared/b.py": "def f(x): return x\n"})
    source = tmp_path / "source"
    source.mkdir()
    (source / "at_home.py").write_text("def f(x): return x\n")
    installed(site, "at-home", {"at_home.pth": str(source)}, url={"url": source.as_uri(), "dir_info": {"editable": True}})
    sys.path.append(str(source))
    try:
        from at_home import f as second
        from shared.b import f as first
        model = make_pipeline(FunctionTransformer(first), FunctionTransformer(second), LogisticRegression()).fit(X, y)
        from deploy_assist.environment import _owner
        assert (_owner("shared.a"), _owner("shared.b"), _owner("at_home")) == ("shared-a", "shared-b", "at-home")
        with pytest.raises(ModelError, match="fresh process"):  # this .pth is in no folder that Python reads at its start
            requirements_of(dump_model(model), rows=X[:2])
    finally: sys.path.remove(str(source))
    text = lock_of(["at-home==1.0"]).decode()
    assert "# warning: at-home 1.0 is installed in editable form" in text and str(tmp_path) not in text
    assert "at-home" not in Lock.read(text.encode()).pins


def test_a_model_that_works_here_only_is_refused(release):
    with pytest.raises(ModelError, match="fresh process .*no such camera"):
        requirements_of(release.artefact, {"camera.py": b"raise OSError('no such camera')"}, X[:2])


# --- lock

def test_the_lock_is_complete_and_the_same_each_time(release):
    pins = lock(release).pins
    assert lock_of(release.requirements) == release.parts["requirements.lock"]
    assert dict(r.split("==") for r in release.requirements).items() <= pins.items()
    for name in pins:
        for r in map(Requirement, distribution(name).requires or ()):
            if r.marker and not r.marker.evaluate({"extra": ""}): continue
            assert canonicalize_name(r.name) in pins and r.specifier.contains(pins[canonicalize_name(r.name)]), (name, str(r))


def test_another_environment_is_told_in_sentences_and_by_the_gate(release):
    data = release.parts["requirements.lock"]
    other = data.replace(b"# python 3.", b"# python 2.").replace(f"numpy=={np.__version__}".encode(), b"numpy==1.0")
    told = differences(Lock.read(other + b"not-there==2\n"))
    assert told[0].startswith("Python is 3") and len(told) == 3
    assert told[1:] == [f"numpy is {np.__version__}, the lock has 1.0", "not-there is not installed, the lock has 2"]
    with pytest.raises(ProofError, match="expected the file that"): Lock.read(b"numpy==1.0\n")
    here = check(release, only=["artefact.requirements"]).results
    there = check(with_lock(release, other), only=["artefact.requirements"]).results
    assert [r.status for r in here] == ["pass"] and [r.status for r in there] == ["warn"] and "numpy is" in there[0].evidence


# --- proof

def with_lock(release, data: bytes): return replace(release, parts={"requirements.lock": data}, folder=None)


def processes_of(folder: Path) -> list[str]:
    "Command lines of running processes that name `folder`."
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try: line = entry.read_bytes()
        except OSError: continue
        if str(folder).encode() in line: found.append(line.decode(errors="replace"))
    return found


@pytest.fixture(scope="module")
def proof(release, tmp_path_factory):
    "The proof, made once, with the home folder that keeps it and what was told on the way."
    home, told = tmp_path_factory.mktemp("home"), []
    before = os.environ.get("DEPLOY_ASSIST_HOME")
    os.environ["DEPLOY_ASSIST_HOME"] = str(home)
    try: made = prove(release, progress=lambda *now: told.append(now))
    except ProofError as e:
        if "out of reach" in str(e): pytest.skip(f"no package index: {e}")
        raise
    finally:
        if before is None: del os.environ["DEPLOY_ASSIST_HOME"]
        else: os.environ["DEPLOY_ASSIST_HOME"] = before
    return made, home, told


def test_the_lock_suffices_in_a_new_virtual_environment(release, proof):
    made, home, told = proof
    assert made.proven and made.said.startswith("60 rows are answered bit-equal"), made
    assert (made.packages, made.lock_hash, made.bundle) == (len(lock(release).pins), lock(release).hash, release.hash)
    assert [p.name for p in (home / "environments").iterdir()] == [f"{made.lock_hash}.json"], "the environment itself is gone"
    assert told[0][2] == "making a virtual environment" and told[-1] == (made.packages + 3, made.packages + 3, "done")
    assert [t[0] for t in told] == sorted(t[0] for t in told)


def test_a_proof_is_kept_for_the_lock_and_the_kind_of_model(release, proof, monkeypatch):
    made, home, _ = proof
    assert proven(release) is None, "another home"
    monkeypatch.setenv("DEPLOY_ASSIST_HOME", str(home))
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    retrained = prepare(LogisticRegression(C=2.0).fit(X, y), X, y, name="small")
    assert prove(release) == proven(release) == prove(retrained) == made
    assert proven(replace(release, modules={"mine.py": b""}, folder=None)) is None
    assert proven(with_lock(release, release.parts["requirements.lock"] + b"# \n")) is None


def test_the_command_reads_a_kept_proof(release, proof, tmp_path):
    made, home, _ = proof
    bundle = release.save(tmp_path / "bundle")
    done = subprocess.run([program, "prove", bundle, "--json"], env=os.environ | {"DEPLOY_ASSIST_HOME": str(home)},
                          capture_output=True, text=True, timeout=120)
    assert (done.returncode, json.loads(done.stdout)) == (0, made.to_dict()), done.stderr


def test_ctrl_c_in_the_command_leaves_nothing(release, home, tmp_path):
    bundle = release.save(tmp_path / "bundle")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        settings = {"UV_DEFAULT_INDEX": index, "PIP_INDEX_URL": index, "UV_CACHE_DIR": str(tmp_path / "cache")}
        process = subprocess.Popen([program, "prove", bundle], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env=os.environ | settings)
        try:
            while not (line := process.stderr.readline()).startswith("[1/"): assert line, "it ended by itself"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None: process.kill(); process.communicate()
    assert (process.returncode, out) == (1, "") and "nothing of the proof was left" in err, err
    assert not home.exists() and not processes_of(home)


@pytest.mark.parametrize("way", ["event", "Ctrl-C"])
def test_a_cancel_leaves_nothing(release, way, home, tmp_path, monkeypatch):
    "The package index of this test takes connections and never answers."
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        for name in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"): monkeypatch.setenv(name, index)
        monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
        cancel, since = threading.Event(), []
        def progress(done, all, what):
            if not what.startswith("installing"): return
            until = time.monotonic() + 10
            while not processes_of(home): assert time.monotonic() < until, "no installer is seen"
            since.append(time.monotonic())
            if way == "Ctrl-C": raise KeyboardInterrupt
            cancel.set()
        with pytest.raises((ProofError, KeyboardInterrupt), match="cancelled" if way == "event" else None):
            prove(release, progress=progress, cancel=cancel)
        assert time.monotonic() - since[0] < 5
    assert not home.exists() and not processes_of(home)


@pytest.mark.parametrize("index", ["empty", "closed"])
def test_what_an_index_lacks_is_said(release, index, home, tmp_path, monkeypatch):
    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self): self.send_error(404)
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/simple"
    if index == "closed": server.shutdown(); server.server_close()
    for name in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"): monkeypatch.setenv(name, url)
    for name, value in {"UV_CACHE_DIR": str(tmp_path / "cache"), "UV_HTTP_RETRIES": "0"}.items(): monkeypatch.setenv(name, value)
    data = release.parts["requirements.lock"].replace(f"numpy=={np.__version__}".encode(), b"numpy==99.0")
    try:
        expected = "does not have this version" if index == "empty" else "out of reach"
        with pytest.raises(ProofError, match=expected) as e: prove(with_lock(release, data))
    finally:
        if index == "empty": server.shutdown(); server.server_close()
    assert "127.0.0.1" not in str(e.value) and not home.exists()


def test_a_lock_that_cannot_be_installed_is_refused_at_once(release, home):
    data = release.parts["requirements.lock"]
    with pytest.raises(ProofError, match="at-home 1.0 is installed in editable form"):
        prove(with_lock(release, data + b"# warning: at-home 1.0 is installed in editable form, from a folder of this machine\n"))
    with pytest.raises(ProofError, match="Python 2.4.1, which this machine does not have"):
        prove(with_lock(release, b"# python 2.4.1\n" + data.partition(b"\n")[2]))
    with pytest.raises(ProofError, match="no requirements.lock"): prove(replace(release, parts={}, folder=None))
    assert not home.exists()

"""The doctor on a well installation, and on broken ones: says what is broken, how to mend it, and never a traceback."""
import json
import os
import socket
import sys
from pathlib import Path


from deploy_assist import doctor as module
from deploy_assist.doctor import PORTS, doctor


def found() -> dict:
    return {health.what: health for health in doctor()}


def test_content_here(sh):
    code, out, err = sh("doctor", "--json")
    said = {health["what"]: health for health in json.loads(out)}
    assert code == 0, [health for health in said.values() if health["status"] == "fail"]
    assert {"Python", "base packages", "extra notebook", "widgets in JupyterLab", "anywidget in JupyterLab", "kernels",
            "registry", "prediction log", "this folder", "home of deploy_assist", "clock", "time zones", "port 8000", "port 5000",
            "JupyterHub", "Chromium"} <= set(said)
    assert "this Python" in said["kernels"]["found"] and "not needed" in said["Chromium"]["found"]
    assert not list(Path().iterdir()), "it made something"


def test_everything_broken_at_once(sh, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    old = tmp_path / "jupyter" / "labextensions" / "@jupyter-widgets" / "jupyterlab-manager" / "package.json"
    old.parent.mkdir(parents=True)
    old.write_text('{"version": "3.1.0"}')
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(dict(argv=["/no/such/python", "-m", "ipykernel"], display_name="old", language="python")))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("DEPLOY_ASSIST_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("DEPLOY_ASSIST_LOG_URL", "postgresql+psycopg://me:secret@127.0.0.1:9/log")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setitem(PORTS, port := taken.getsockname()[1], "tests")
        code, out, err = sh("doctor")
    assert code == 1 and "Traceback" not in out + err and "secret" not in out + err
    lines = out.splitlines()
    def told(what: str, status: str) -> str:
        "What the doctor said of it, and how it is mended."
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{status:<5} {what} "))
        assert lines[at + 1].strip().startswith("to mend: "), what
        return " ".join(lines[at:at + 2])
    widgets = told("widgets in JupyterLab", "fail")
    assert "takes version 3.1.0" in widgets and "remove that folder" in widgets
    assert "ipykernel install" in told("kernels", "fail") and "kernelspec remove" in told("kernel python3", "warn")
    assert "DEPLOY_ASSIST_HOME" in told("home of deploy_assist", "fail")
    assert "MLFLOW_TRACKING_URI" in told("registry", "fail") and "out of reach" in told("registry", "fail")
    assert "DEPLOY_ASSIST_LOG_URL" in told("prediction log", "fail") and "refused" in told("prediction log", "fail")
    assert f"(process {os.getpid()})" in told(f"port {port}", "warn")
    assert lines[-1] == "5 to mend"


def test_an_extension_that_is_turned_off_or_gone(monkeypatch, tmp_path):
    page = tmp_path / "labconfig" / "page_config.json"
    page.parent.mkdir()
    page.write_text('{"disabledExtensions": {"@jupyter-widgets/jupyterlab-manager": true}}')
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    said = found()["widgets in JupyterLab"]
    assert (said.status, "turned off" in said.found, "enable" in said.mend) == ("fail", True, True)
    page.write_text("{")  # a half-written file is no reason to fail
    assert found()["widgets in JupyterLab"].status == "ok"
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *_: [str(tmp_path)])
    said = found()["widgets in JupyterLab"]
    assert (said.status, "not where JupyterLab looks" in said.found) == ("fail", True)


def test_stores_that_are_no_stores(monkeypatch, tmp_path):
    (tmp_path / "notes.db").write_text("dear diary, this is no database")
    bad = {f"sqlite:///{tmp_path}/notes.db": "not an SQLite database", f"sqlite:///{tmp_path}": "is a folder",
           "nonsense": "not the address", "oracle+none://a:secret@b/c": "", f"sqlite:///{tmp_path}/notes.db/x": "cannot"}
    for url, words in bad.items():
        monkeypatch.setenv("DEPLOY_ASSIST_LOG_URL", url)
        said = found()["prediction log"]
        assert said.status == "fail" and words in said.found and said.mend and "secret" not in said.found, url
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
    assert [h.status for h in doctor() if "gone with the process" in h.found] == ["fail"]


def test_a_hub_without_its_proxy_and_a_package_that_does_not_import(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ana/")
    (tmp_path / "torn.py").write_text("raise RuntimeError('built for another numpy')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(module._serving, "torn", "torn")
    said = found()
    assert said["JupyterHub"].status == "warn" and "jupyter-server-proxy" in said["JupyterHub"].mend
    assert said["import torn"].status == "fail" and "another numpy" in said["import torn"].found
    sys.modules.pop("torn", None)


def test_a_look_that_fails_is_a_finding(monkeypatch):
    def trips(): raise ZeroDivisionError("clock")
    monkeypatch.setitem(module._looks, "clock", trips)
    said = found()["clock"]
    assert said.status == "fail" and "could not be looked at" in said.found

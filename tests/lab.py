"""A JupyterLab of its own for tests, and what a person does in it."""
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import pytest


class Lab:
    "A JupyterLab of its own: folders, settings and token are nobody else's."

    def __init__(self, folder: Path):
        self.folder, self.work, self.token = folder, folder / "work", "t0ken"
        self.work.mkdir()
        settings = folder / "settings" / "@jupyterlab"
        quiet = {
            "apputils-extension/notification": {"fetchNews": "false"},
            "apputils-extension/themes": {"adaptive-theme": True},  # light or dark as the browser asks
            "docmanager-extension/plugin": {"autosave": False},
            "codemirror-extension/plugin": {"defaultConfig": {"autoClosingBrackets": True}},
        }
        for name, value in quiet.items():
            path = settings / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
        env = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("JUPYTER", "DEPLOY_ASSIST_HOME", "MLFLOW", "PYTEST"))
        }
        env |= {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
        env |= {
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "IPYTHONDIR": str(folder / "ipython"),
            "DEPLOY_ASSIST_HOME": str(self.work / ".deploy_assist"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.work}/mlflow.db",
        }
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--ip=127.0.0.1",
            "--port=0",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.work}",
            "--ServerApp.allow_root=True",
            "--LabApp.news_url=",
            "--ServerApp.port_retries=0",
        ]
        self.log = (folder / "lab.log").open("w")
        self.process = subprocess.Popen(
            command, cwd=self.work, env=env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT
        )
        self.url = self._wait()

    def _wait(self) -> str:
        end = time.monotonic() + 90
        while time.monotonic() < end and self.process.poll() is None:
            for info in (self.folder / "runtime").glob("jpserver-*.json"):
                try: return json.loads(info.read_text())["url"]
                except ValueError: pass
            time.sleep(.1)
        self.stop()
        pytest.fail(f"JupyterLab did not start: {(self.folder / 'lab.log').read_text()[-2000:]}")

    def write(self, name: str, *sources: str) -> str:
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}},
        )
        nbformat.write(book, self.work / name)
        return f"{self.url}doc/tree/{name}?token={self.token}&reset"

    def api(self, path: str, method: str = "GET") -> object:
        request = Request(f"{self.url}api/{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with urlopen(request, timeout=30) as answer: return json.loads(answer.read() or "null")

    def stop_kernels(self) -> None:
        for session in self.api("sessions"): self.api(f"sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        if self.process.poll() is None:
            try: self.stop_kernels()
            except OSError: pass  # it is going down already
            self.process.terminate()
            try: self.process.wait(15)
            except subprocess.TimeoutExpired: self.process.kill(); self.process.wait(5)
        self.log.close()


def run_all(page, url: str) -> None:
    "Open a notebook in JupyterLab or in Notebook 7 and run its cells."
    page.goto(url)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    if "/doc/" in url: page.get_by_text("Python 3 (ipykernel) | Idle").first.wait_for()
    ran = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    for _ in range(12):  # Notebook 7 does not say when its kernel is there, and before that nothing runs
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        try: return ran.wait_for(timeout=5000)
        except page_errors().TimeoutError: pass
    pytest.fail("no cell runs")


def page_errors():
    import playwright.sync_api  # tests without a browser do without it
    return playwright.sync_api

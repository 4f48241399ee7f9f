"""A package runs where it is put: the Space's own application, with the library that travels along and nothing else of ours."""
import os
import re
import signal
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import zoo_tables

from deploy_assist import ConfigError, load_release
from deploy_assist.package import package


def test_a_space_runs_by_itself(tmp_path, free_port):
    gradio_client = pytest.importorskip("gradio_client", reason='no gradio: pip install "deploy_assist[notebook]"')
    release = zoo_tables.vectors()  # with a type of one's own, which travels
    space = package(release, "spaces", tmp_path / "space")
    front = dict(re.findall(r"^(\w+): (.+)$", (space / "README.md").read_text().split("---")[1], re.M))
    assert front["sdk"] == '"gradio"' and front["app_file"] == '"app.py"' and {"sdk_version", "title"} <= set(front)
    needed = (space / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("scikit-learn==") for line in needed) and not any(line.startswith("deploy") for line in needed)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DEPLOY_ASSIST_HOME")}
    env |= dict(GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT=str(free_port), DEMO_LOGIN="ada:lovelace")
    env["TMPDIR"] = str(tmp_path)
    with (tmp_path / "said").open("wb") as said:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=env, stdout=said, stderr=said)
    try:
        until, url = time.monotonic() + 90, f"http://127.0.0.1:{free_port}"
        while time.monotonic() < until and app.poll() is None:
            try: urlopen(url, timeout=2).close(); break
            except (TimeoutError, URLError): time.sleep(0.2)
        assert app.poll() is None, (tmp_path / "said").read_text()
        caller = gradio_client.Client(url, verbose=False, auth=("ada", "lovelace"), download_files=False)
        row = release.schema.rows(release.X_test.iloc[:1])[0]
        try: said = caller.predict(*row.values(), api_name="/predict")
        finally: caller.close()
        assert said["prediction"] == release.predict(release.X_test.iloc[:1])[0]
    finally:
        app.send_signal(signal.SIGINT)
        app.wait(30)
    assert not list(space.rglob("*.db"))


def test_a_folder_is_the_bundle_and_nothing_is_overwritten(bundle, patients, tmp_path):
    folder = package(bundle, out=tmp_path / "out")
    assert load_release(folder).hash == patients.hash
    with pytest.raises(ConfigError, match="got 'moon', expected one of folder, spaces"): package(bundle, "moon")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other things"): package(bundle, "spaces", tmp_path / "mine")
    with pytest.raises(ConfigError, match="got int"): package(3)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"

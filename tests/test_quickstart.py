"""The quickstart as a newcomer types it: what it prints, what it leaves behind, and that it ends."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.request import urlopen

import pytest

from deploy_assist import PredictionLog, history

program = Path(sys.executable).with_name("deploy-assist")
STEPS = ["prepare(", "check(", "register(", "serve(", "demo(", "first_patients", "report(", "later_patients", "report("]


class Newcomer:
    "An account with an empty home, an empty folder for temporary files and an empty current folder."

    def __init__(self, folder: Path):
        self.mark = f"QUICKSTART_TEST={uuid.uuid4().hex}"
        self.cwd, self.home, self.tmp = (folder / name for name in ("cwd", "home", "tmp"))
        for made in (self.cwd, self.home, self.tmp): made.mkdir()
        ours = ("DEPLOY_ASSIST", "MLFLOW", "GRADIO", "HF_", "JUPYTER", "IPYTHON", "XDG", "MPL", "PYTEST")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) or k == "DEPLOY_ASSIST_TESTS"}
        self.env = kept | {"HOME": str(self.home), "TMPDIR": str(self.tmp)} | dict([self.mark.split("=")])
        self.dir = self.cwd / "first"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]

    def start(self, *options: str) -> subprocess.Popen:
        command = [program, "quickstart", "--dir", "first", "--port", str(self.port), *options]
        return subprocess.Popen(command, cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=(self.cwd.parent / "story").open("w"), text=True, start_new_session=True)

    def story(self) -> str: return (self.cwd.parent / "story").read_text()

    def running(self) -> list[str]:
        "What still runs of all that was started."
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError: continue
        return found

    def ids(self) -> set[str]:
        "The prediction ids in the log."
        with PredictionLog(f"sqlite:///{self.dir}/.deploy_assist/predictions.db", home=self.dir / ".deploy_assist") as log:
            assert log.pending() == 0
            return set(log.window("chronic-risk")["prediction_id"])

    def reports(self) -> list[Path]: return sorted((self.dir / "reports").glob("*.json"))

    def elsewhere(self) -> list[str]:
        "Files outside the chosen folder."
        places = [*self.cwd.iterdir(), *self.home.rglob("*"), *self.tmp.rglob("*")]
        places = [p for p in places if not p.name.startswith("db_init_lock-")]  # MLflow's, which it does not always remove
        return [str(path) for path in places if path != self.dir]


def ended(someone: Newcomer, within_s: float = 10) -> list[str]:
    "What is left running, after some time to go."
    until = time.monotonic() + within_s
    while (left := someone.running()) and time.monotonic() < until: time.sleep(0.1)
    return left


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory): return Newcomer(tmp_path_factory.mktemp("newcomer"))


@pytest.fixture(scope="module")
def first(newcomer):
    "`deploy-assist quickstart --no-wait`, and what was there when it had ended."
    process = newcomer.start("--no-wait")
    try: out, _ = process.communicate(timeout=180)
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    told = dict(code=process.returncode, out=out, story=newcomer.story())
    assert told["code"] == 0, told["story"][-2000:]
    return told | dict(left=ended(newcomer), elsewhere=newcomer.elsewhere(), ids=newcomer.ids(), reports=newcomer.reports())


@pytest.fixture(scope="module")
def second(newcomer, first):
    "Once more in the same folder, its port in use, staying up until Ctrl-C; with `--json`."
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", newcomer.port))
        taken.listen()
        process = newcomer.start("--json")
        try:
            line = process.stdout.readline()
            assert line, newcomer.story()[-2000:]
            said = json.loads(line)
            pages = {what: urlopen(said["links"][what], timeout=20).read() for what in ("endpoint", "demo", "mlflow")}
            up = newcomer.running()
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
            rest, _ = process.communicate(timeout=60)
        finally:
            if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    return dict(code=process.returncode, said=said, rest=rest, story=newcomer.story(), pages=pages, up=up, left=ended(newcomer))


def test_it_tells_the_story_and_ends(first, newcomer):
    assert first["code"] == 0
    lines = [line for line in first["story"].splitlines() if line.startswith(">>> ")]
    assert len(lines) == len(STEPS) and all(step in line for step, line in zip(STEPS, lines))
    assert "ready (" in first["story"] and re.search(r"quickstart: \d\d checks passed", first["story"])
    assert "Traceback" not in first["story"] and "Warning" not in first["story"]
    assert first["left"] == []


def test_links_are_shown_once_and_it_says_that_the_servers_were_stopped(first, newcomer):
    shown = dict(re.findall(r"^  (endpoint|demo|report|mlflow) +(.+)$", first["out"], re.M))
    assert shown["endpoint"] == f"http://127.0.0.1:{newcomer.port}/docs" and shown["demo"].startswith("http://127.0.0.1:")
    assert Path(shown["report"]).is_file() and f"sqlite:///{newcomer.dir}/mlflow.db" in shown["mlflow"]
    assert "  report " not in first["story"], "links are the command's answer, on stdout alone"
    assert first["out"].splitlines()[-1] == "The endpoint and the demo were stopped: without --no-wait they stay up until Ctrl-C"


def test_nothing_is_written_outside_the_folder(first): assert first["elsewhere"] == []


def test_every_acknowledged_request_is_in_the_log(first):
    answered = [int(n) for n in re.findall(r"^(\d+) \w+ patients were answered", first["story"], re.M)]
    assert len(answered) == 2 and min(answered) > 50 and len(first["ids"]) == sum(answered)


def test_the_first_report_says_keep_and_the_second_names_what_moved(first):
    assert len(first["reports"]) == 2
    for path in first["reports"]: assert path.with_suffix(".html").is_file() and path.with_suffix(".ipynb").is_file()
    before, after = (json.loads(path.read_text()) for path in first["reports"])
    assert before["action"] == "keep" and after["action"] in ("watch", "retrain")
    moved = {finding["column"] for finding in after["findings"] if finding["cause"] == "population"}
    assert {"age", "bmi"} <= moved
    page = first["reports"][1].with_suffix(".html").read_text()
    assert after["action"] in page and "bmi moved" in page


def test_again_is_a_new_version_on_the_next_free_port_and_loses_nothing(newcomer, first, second, monkeypatch):
    assert second["said"]["version"] == "2" and second["said"]["ready"] is True
    port = int(re.search(r":(\d+)/docs$", second["said"]["links"]["endpoint"])[1])
    assert port > newcomer.port and f"(port {newcomer.port} is in use, {port} is taken instead)" in second["story"]
    assert first["ids"] < newcomer.ids() and len(newcomer.ids()) == 2 * len(first["ids"])
    assert set(first["reports"]) < set(newcomer.reports()) and len(newcomer.reports()) == 4
    before, after = second["said"]["reports"]
    assert before["action"] == "keep" and after["action"] in ("watch", "retrain") and {"age", "bmi"} <= {*after["columns"]}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{newcomer.dir}/mlflow.db")
    said = history("chronic-risk")
    champions = said[(said["action"] == "promote") & (said["alias"] == "champion")].sort_values("time")
    assert champions["version"].astype(str).tolist() == ["1", "2"]
    assert champions["reason"].str.fullmatch(r"quickstart: \d+ checks passed on held-out patients").all()
    from mlflow import MlflowClient
    assert MlflowClient().get_model_version_by_alias("chronic-risk", "champion").version in (2, "2")


def test_json_is_all_of_stdout(second):
    assert second["rest"] == "" and ">>> " in second["story"]
    assert set(second["said"]) == {"folder", "version", "ready", "links", "seconds", "reports"}


def test_staying_up_the_links_answer_and_ctrl_c_ends_all(second, newcomer):
    assert all(second["pages"].values()) and b"MLflow" in second["pages"]["mlflow"]
    assert b"gradio" in second["pages"]["demo"] and b"chronic-risk" in second["pages"]["endpoint"]
    assert len(second["up"]) >= 3, "the command, the endpoint, MLflow's page"
    assert second["code"] == 0 and second["left"] == [] and newcomer.elsewhere() == []
    for url in second["said"]["links"].values():
        if url.startswith("http"):
            with pytest.raises(OSError): urlopen(url, timeout=2)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_reports_look_right_in_a_browser(first, new_page, width):
    "No outside request (`new_page`), nothing wider than the window, and the sections in their order."
    page = new_page(viewport={"width": width, "height": 900})
    for path in [*(p.with_suffix(".html") for p in first["reports"]), first["reports"][0].parent / "index.html"]:
        page.goto(path.resolve().as_uri())
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, path
        if path.name == "index.html": break
        assert page.locator("h2").all_inner_texts() == ["Findings", "Service", "Data quality", "Inputs", "Predictions", "Quality",
                                                        "Feedback", "Decision", "Appendix"]
        assert page.locator(".tile").count() == 6 and page.locator(".strip dt").count() == 8
        boxes = [page.locator(".tile").nth(i).bounding_box() for i in range(2)]
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"], "tiles stand side by side"

"""The wizard without a browser: buttons are clicked, and what a person would read is read."""
import json
import os
import re
import subprocess
import sys
import threading
from html import unescape
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from waiting import until

from deploy_assist import Client
from deploy_assist.errors import ConfigError, DeployAssistError
from deploy_assist.quickstart import fitted
from deploy_assist.release import load_release
from deploy_assist.schedule import list_schedules
from deploy_assist.widgets import MISSING
from deploy_assist.wizard import Wizard, execute, release_from_toml, wizard


def text(w) -> str:
    "All that a widget and its children show, as HTML."
    return getattr(w, "value", "") if not hasattr(w, "children") else "\n".join(str(text(c)) for c in w.children)


def plain(w) -> str:
    "The same without colours and other tags."
    return unescape(re.sub(r"<[^>]+>", "", text(w)))


class Person:
    "Clicks and counts: a decision is a press of a button."

    def __init__(self, wizard: Wizard): self.wizard, self.decisions = wizard, 0

    def press(self, name: str) -> None:
        "Press a step's main button and wait for what it started, and for what starts by itself after it."
        card = self.wizard.cards[name]
        assert card.go in card.buttons.children, f"{name} has no button: {self.wizard.flow.states}"
        card.go.click()
        self.decisions += 1
        self.wizard.wait(120)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    "From live objects to an endpoint and a demo link, and the person who clicked; then the files."
    folder = tmp_path_factory.mktemp("deployed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DEPLOY_ASSIST_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        model, (X, X_test, y, y_test) = fitted()
        w = wizard(model, X, y, X_test=X_test, y_test=y_test, name="patients").wait(60)  # starts at once
        person = Person(w)
        w.cards["contract"].form.parts["columns"].edit("bmi", "low", "10")
        w.cards["contract"].form.parts["p95_ms"].value = 150.0
        for name in ("contract", "register", "serve", "demo"): person.press(name)
        yield person
        for running in (w.page, w.endpoint):
            if running: running.stop()


def test_a_demo_link_and_an_authenticated_endpoint_take_five_decisions_at_most(deployed):
    w = deployed.wizard
    assert [w.flow.state(n) for n in ("model", "contract", "check", "register", "serve", "demo")] == ["done"] * 6
    assert deployed.decisions == 4  # the limit of the contract is one that nobody had to set
    row = w.endpoint._example
    with pytest.raises(DeployAssistError, match="key"): Client(w.endpoint.url).call("POST", "/predict", {"rows": [row]})
    assert Client(w.endpoint.url, w.endpoint.key).call("POST", "/predict", {"rows": [row]})["predictions"] == [0]
    assert w.endpoint.key not in w.summary_html(), "a saved notebook tells no key"
    assert w.page.url in text(w.cards["demo"].result) and "Open the demo" in text(w.cards["demo"].result)
    shown = text(w.cards["serve"].box) + plain(w.cards["serve"].box)
    missing = [part for part in ("curl -s", "client.predict", "/docs", w.endpoint.key, "da-light") if part not in shown]
    assert not missing, shown


def test_the_first_report_is_shown_and_the_next_ones_are_scheduled(deployed):
    "Chosen by clicks: the promise (in the contract), when, and who hears of it."
    w = deployed.wizard
    card, decisions = w.cards["watch"], deployed.decisions
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(w.folder)
        patch.setenv("DEPLOY_ASSIST_HOME", str(w.folder / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{w.folder}/mlflow.db")
        assert "95% of answers within 150 ms" in card.note.value
        card.form.parts["cron"].value = "own"
        card.form.parts["own"].value = "every monday"
        assert "expected five fields" in card.problem.value
        card.form.parts["cron"].value = "0 6 * * MON"
        card.form.parts["alerts"].value = "https://hooks.example.org/ward"
        assert 'alerts=["https://hooks.example.org/ward"]' in plain(card.pane)
        deployed.press("watch")
        assert w.flow.state("watch") == "done", text(card.box)
        made, = list_schedules()
    said = text(card.result)
    n = len(w.objects["X_test"])
    assert "<iframe" in said and f"{n} of {n + 1} rows" in unescape(said)  # one row was sent before
    assert (made.name, made.cron, made.window, w.value("planned").id) == ("patients", "0 6 * * MON", "7d", made.id)
    said = plain(card.result)
    assert all(words in said for words in ("Scheduled", "0 6 * * MON (UTC)", "hooks.example.org", "deploy-assist schedule start"))
    assert "again every Monday at 6:00" in str(w.flow) and deployed.decisions == decisions + 1
    assert "deploy-assist schedule add patients --cron '0 6 * * MON'" in w.flow.commands()


def test_no_step_can_be_jumped_into_and_an_early_change_drops_what_stood_on_it(deployed):
    w = deployed.wizard
    fresh = wizard(w.objects["model"], w.objects["X"], w.objects["y"], name="other").wait(60)
    fresh.run("serve")
    assert "got a jump into a step that waits, expected Contract first" in fresh.cards["serve"].problem.value
    assert fresh.cards["serve"].buttons.children == ()
    flow = w.flow.confirm("contract", {"p95_ms": 100.0}, {})
    assert flow.dropped == ("check", "register", "serve", "demo", "watch") and flow.states["package"] == "waiting"
    assert flow.news.startswith("Contract changed, so Check, Register, Serve, Demo and Watch were dropped")
    w.cards["contract"].change.click()
    assert "A change here drops Check, Register, Serve, Demo, Watch; the answers are kept" in text(w.cards["contract"].body)
    w.cards["contract"].back.click()
    assert w.flow.state("serve") == "done" and w.endpoint.is_running


def test_what_is_different_from_the_champion_is_shown_before_registering(deployed):
    "A second version of the same name, learnt from fewer rows and with a limit more."
    w = deployed.wizard
    X, y = w.objects["X"].head(200), w.objects["y"].head(200)
    model = w.objects["model"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(w.folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{w.folder}/mlflow.db")
        again = wizard(model, X, y, name="patients").wait(60)
        again.cards["contract"].form.parts["columns"].edit("age", "high", "120")
        again.flow = again.flow.confirm("contract", again.cards["contract"].form.values())
        again.spaces["contract"] = execute(again.flow.code("contract"), {"release": again.release})
        again.flow = again.flow.confirm("check", {}, {"passed": True})
        again.draw()
        until(lambda: "Against the champion" in again.cards["register"].note.value)
    said = again.cards["register"].note.value
    fewer = len(w.objects["X"]) - 200
    assert "Version 1 (champion)" in said and "This one" in said and f"{fewer} fewer" in said and "limits" in said
    assert again.cards["register"].form.values()["reason"] == "replaces version 1"
    assert 'reason="replaces version 1"' in plain(again.cards["register"].pane)


def test_three_ways_give_the_same_bundle(deployed):
    "deploy.ipynb through papermill, deploy.toml through the library, and the command line: one hash."
    w, env = deployed.wizard, os.environ | {"DEPLOY_ASSIST_HOME": "", "MLFLOW_TRACKING_URI": ""}
    folder = w.folder
    env |= {"DEPLOY_ASSIST_HOME": str(folder / "home"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("DEPLOY_ASSIST_HOME", "MLFLOW_TRACKING_URI"): patch.setenv(name, env[name])
        deployed.press("package")
        assert w.flow.complete, text(w.cards["package"].box)
        by_wizard = load_release("patients-bundle").hash
        by_toml = release_from_toml("deploy.toml").hash
        command = next(line for line in w.flow.commands().splitlines() if " prepare " in line)
        command = command.replace("patients-bundle", "by-command")
        running = subprocess.Popen([sys.executable, "-m", *command.replace("deploy-assist", "deploy_assist.cli", 1).split()],
                                   env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        import papermill
        done = papermill.execute_notebook("deploy.ipynb", "done.ipynb", dict(out="by-notebook"), progress_bar=False,
                                          cwd=str(folder))
        said, _ = running.communicate(timeout=120)
        assert running.returncode == 0, said
    assert load_release(folder / "by-notebook").schema["bmi"].low == 10
    hashes = {by_wizard, by_toml, load_release(folder / "by-command").hash, load_release(folder / "by-notebook").hash}
    assert hashes == {by_wizard}
    printed = "".join(o.get("text", "") for cell in done.cells for o in cell.get("outputs", ()))
    assert f"bundle hash {by_wizard}" in printed
    parameters = next(c for c in nbformat.read(folder / "deploy.ipynb", 4).cells if "parameters" in c.metadata.get("tags", ()))
    assert 'source: str = ' in parameters.source and "start: bool = False" in parameters.source


def test_a_restarted_kernel_goes_on(deployed):
    w = deployed.wizard
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(w.folder)
        patch.setenv("DEPLOY_ASSIST_HOME", str(w.folder / "home"))
        again = wizard(resume="deploy.toml").wait(60)
    assert again.flow.current == "serve" and again.flow.values("serve") == dict(w.flow.values("serve"))
    assert again.release.hash == w.release.hash
    (w.folder / "broken.toml").write_text("[model\n")
    with pytest.raises(ConfigError, match="expected TOML"): wizard(resume=w.folder / "broken.toml")
    (w.folder / "broken.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("broken.toml", "nowhere.toml"):
        with pytest.raises(ConfigError, match="cannot be read"): wizard(resume=w.folder / name)


def test_a_damaged_file_is_taken_over_as_far_as_it_goes_and_left_alone(deployed):
    w = deployed.wizard
    damaged = (w.folder / "deploy.toml").read_text().replace("p95_ms = 150.0", 'p95_ms = "fast"')
    assert "fast" in damaged
    (w.folder / "damaged").mkdir()
    (w.folder / "damaged" / "deploy.toml").write_text(damaged.replace('bundle = "', 'bundle = "../'))
    again = wizard(resume=w.folder / "damaged" / "deploy.toml").wait(60)
    card = again.cards["contract"]
    assert again.flow.state("contract") == "open" and card.go in card.buttons.children and card.form
    assert "Not taken over from the file: Contract, 95% of answers within: got 'fast'" in plain(again.news)
    assert "fast" in (w.folder / "damaged" / "deploy.toml").read_text(), "it can still be mended"


def test_a_notebook_without_a_model_says_what_is_near(tmp_path):
    w = eval("wizard()", dict(wizard=wizard, X=pd.DataFrame({"a": [1.0]}), lr=LogisticRegression())).wait(5)
    card = w.cards["model"]
    assert "none found" in plain(card.form.box) and "lr: got an unfitted LogisticRegression" in plain(card.problem)
    card.go.click()
    assert w.flow.state("model") == "open" and "run wizard() again" in plain(card.problem)


def test_types_beyond_the_list_are_a_question(tmp_path, monkeypatch):
    "A class of one's own: the wizard asks once, names the file that travels, and goes on after a yes."
    (tmp_path / "my_features.py").write_text(
        "from sklearn.base import BaseEstimator, TransformerMixin\n"
        "class Clip(TransformerMixin, BaseEstimator):\n"
        "    'Cuts values off at 1.'\n"
        "    def fit(self, X, y=None): self.n_features_in_ = X.shape[1]; return self\n"
        "    def transform(self, X): return X.clip(upper=1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    from my_features import Clip
    X, y = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0] * 10, "b": [1.0, 0.0] * 20}), pd.Series([0, 1, 1, 1] * 10, name="y")
    w = wizard(make_pipeline(Clip(), LogisticRegression()).fit(X, y), X, y, name="mine").wait(60)
    card = w.cards["model"]
    assert w.flow.state("model") == "open" and "a class of your module my_features: Cuts values off at 1." in text(card.form.box)
    card.go.click()
    w.wait(60)
    assert "expected your yes" in text(card.problem) and w.flow.state("model") == "open"
    card.form.parts["trusted"].value = True
    assert "expected your yes" not in text(card.problem)
    assert "my_features.Clip" in card.pane.value and "modules" in card.pane.value
    card.go.click()
    w.wait(60)
    assert w.flow.state("model") == "done" and list(w.release.modules) == ["my_features.py"]
    w.flow = w.flow.confirm("contract")
    w.save()
    saved = (tmp_path / "deploy.toml").read_text()
    assert 'trusted = ["my_features.Clip"]' in saved and 'modules = ["my_features.py"]' in saved
    assert 'load_release(source, trusted=["my_features.Clip"])' in json.dumps(w.flow.notebook()).replace('\\"', '"')


def test_an_error_is_a_sentence_and_loses_nothing(tmp_path, patients, widget_errors):
    X = patients.baseline[patients.schema.names]
    w = wizard(patients.model, X, patients.baseline["bmi"] > 26, name="sentence").wait(60)
    editor = w.cards["contract"].form.parts["columns"]
    editor.edit("age", "unit", "years")
    editor.edit("age", "high", "abc")
    assert editor.error == "column 'age': got 'abc' as a limit, expected a number or nothing"
    w.cards["contract"].form.parts["p95_ms"].value = -1.0
    w.cards["contract"].go.click()
    w.wait(60)
    problem = text(w.cards["contract"].problem)
    assert "got -1.0, expected milliseconds above 0" in problem and w.flow.state("contract") == "open"
    assert editor.value == {"age": {"unit": "years"}}
    assert 'unit="years"' in plain(w.cards["contract"].pane)
    (tmp_path / "home" / "wizard").parent.mkdir(exist_ok=True)
    (tmp_path / "home" / "wizard").write_text("a file where a folder is wanted")  # what happens beyond our code
    w.cards["contract"].form.parts["p95_ms"].value = 150.0
    w.cards["contract"].go.click()
    w.wait(60)
    problem = text(w.cards["contract"].problem)
    assert "<details><summary>Details for a developer</summary>" in problem and "your answers are kept" in problem
    assert w.cards["contract"].form.values()["p95_ms"] == 150.0 and editor.value == {"age": {"unit": "years"}}


def test_a_cancel_ends_what_runs_and_the_main_thread_stays_free(patients):
    X = patients.baseline[patients.schema.names]
    w = wizard(patients.model, X, patients.baseline["bmi"] > 26, name="slow").wait(60)
    w.run("contract")
    until(lambda: w.job and w.cards["check"].job and w.cards["check"].seen)  # this line runs while the checks do
    card, threads = w.cards["check"], threading.active_count()
    assert card.stop in card.buttons.children and "<progress" in card.progress.value and "So far" in card.result.value
    card.stop.click()
    w.wait(30)
    assert w.flow.state("check") == "open" and w.flow.state("contract") == "done"
    assert "Cancelled. Nothing was kept" in text(card.problem) and threads
    until(lambda: not [t for t in threading.enumerate() if t.name == "deploy_assist job"], "the thread's end")


def test_other_notebooks_find_core_widgets_and_a_static_twin(deployed):
    "What Notebook 7, VS Code, Colab, GitHub and an export build on: no widget of ours needs a labextension."
    from ipywidgets import embed
    w = deployed.wizard
    w.cards["contract"].change.click()
    state = embed.dependency_state([w.widget], drop_defaults=False)
    w.cards["contract"].back.click()
    modules = {one["model_module"] for one in state.values()}
    assert modules == {"@jupyter-widgets/base", "@jupyter-widgets/controls", "anywidget"}
    esm = [one["state"]["_esm"] for one in state.values() if one["model_module"] == "anywidget"]
    assert len(esm) == 2 and not any(re.search(r"\bimport\b|https?://(?!www.w3.org)", code) for code in esm)
    assert (Path(sys.prefix) / "share/jupyter/nbextensions/anywidget/index.js").is_file()  # where VS Code looks before a CDN
    bundle = w._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] in state
    assert "Model     done      patients, classification, 10 columns" in bundle["text/plain"]
    assert "Deployment of patients" in bundle["text/html"] and "<script" not in bundle["text/html"]
    for words in ("JupyterLab, Notebook 7, VS Code or Voila", "deploy-assist doctor"): assert words in MISSING
    assert "Widgets need a notebook" in repr(w) and "deploy-assist doctor" in repr(w)  # in a terminal

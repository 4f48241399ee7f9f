"""The wizard and the panels in Chromium: JupyterLab from the first step to a prediction and a promotion; Notebook 7; Voila."""
import json
import re
from urllib.request import Request, urlopen

import nbformat
import pytest
from lab import Lab, run_all
from nbconvert import HTMLExporter
from waiting import until

from deploy_assist import history, load_release, register

TRAIN = """import warnings; warnings.filterwarnings("ignore")
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
data = load_diabetes(as_frame=True, scaled=False)
X = data.data.assign(sex=data.data["sex"].map({1.0: "female", 2.0: "male"}), age=data.data["age"].astype(int))
y = (data.target >= data.target.quantile(.75)).astype(int).rename("worse")
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=.3, stratify=y, random_state=0)
numbers = [c for c in X if c != "sex"]
model = make_pipeline(
    make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["sex"])), LogisticRegression(max_iter=1000)
)
model.fit(X_train, y_train)
from deploy_assist import wizard"""
LETTERS = """import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from deploy_assist import wizard
X = pd.DataFrame({"dose": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] * 20, "email": [f"person{i}@example.org" for i in range(120)]})
y = pd.Series([0, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1] * 10, name="answered")
model = make_pipeline(make_column_transformer(("passthrough", ["dose"])), LogisticRegression()).fit(X, y)"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


def click(page, what: str) -> None:
    page.locator(f".da-{what}").first.click()


def state(page, step: str, word: str) -> None:
    "Wait until a card says this state, in words."
    page.locator(f".da-step-{step} .da-head .da-state", has_text=re.compile(f"^{word}$")).wait_for()


def test_from_the_first_step_to_a_prediction_and_a_promotion(lab, page):
    run_all(page, lab.write("first.ipynb", TRAIN, "wizard()", ""))
    click(page, "run-model")  # what it found in the notebook is chosen already
    state(page, "model", "done")
    assert "release = prepare(model, X_train, y_train" in page.locator(".da-step-model pre").text_content()
    page.locator(".da-step-contract .da-insert").first.click()
    page.locator(".jp-Notebook .cm-content", has_text="contract = release.schema").wait_for()  # below, as a cell of its own
    click(page, "run-contract")
    state(page, "check", "done")
    click(page, "run-register")
    state(page, "register", "done")
    click(page, "run-serve")
    state(page, "serve", "done")
    assert 'serve("models:/worse@champion", key=True)' in page.locator(".da-step-serve pre").last.text_content()
    click(page, "ask")
    page.locator(".da-answer", has_text="Answer to a row of medians: 0").wait_for()
    page.locator(".da-health", has_text="healthy").wait_for()
    # the same from outside, with the key that the card shows
    curl = page.locator(".da-step-serve .da-code pre").first.text_content()
    url, key = re.search(r"(http://\S+)/predict", curl)[1], re.search(r"Bearer (\S+)'", curl)[1]
    row = json.loads(re.search(r"-d '(.*)'$", curl)[1])
    request = Request(
        f"{url}/predict",
        json.dumps(row).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urlopen(request, timeout=30) as answer: said = json.loads(answer.read())
    assert said["predictions"] == [0] and said["model"]["alias"] == "champion"
    promotes_and_reports(lab, page)


def promotes_and_reports(lab, page) -> None:
    "The panels of what the wizard made, in the same kernel."
    uri = f"sqlite:///{lab.work}/mlflow.db"
    register(load_release(lab.work / ".deploy_assist" / "wizard" / "worse"), uri=uri)
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").last.click()
    page.keyboard.insert_text("from deploy_assist import monitor_panel, registry_panel\n"
                              "display(registry_panel('worse'), monitor_panel('worse'))")
    page.keyboard.press("Shift+Enter")
    def said(where, words): page.locator(f".da-{where}").get_by_text(re.compile(words)).first.wait_for()
    page.locator(".da-in-promote").get_by_label("Why", exact=True).fill("better on ward B")
    page.keyboard.press("Tab")
    said("in-promote", "reason=.*better on ward B")
    page.locator(".da-promote").click()
    said("in-promote", "is version 2 now")
    page.locator(".da-in-rollback").get_by_label("Why").fill("errors on ward C")
    page.keyboard.press("Tab")
    page.locator(".da-rollback").click()
    said("in-rollback", "is version 1 now")
    said("history", "errors on ward C")
    page.locator(".da-monitor .da-run").click()
    page.locator(".da-in-run").get_by_role("button", name="Cancel").wait_for()
    said("verdicts", "2 rows")
    page.locator(".da-show").click()
    page.frame_locator(".da-in-read iframe").get_by_text("Window").first.wait_for()
    assert page.get_by_label("Version", exact=True).count() and page.get_by_label("Cron").count()
    assert [e.reason for e in history("worse", uri=uri).tail(2).itertuples()] == ["better on ward B", "errors on ward C"]


def fits(page) -> bool:
    "Does the wizard fit into a page of 390 pixels?"
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    inside = "e => e.scrollWidth <= e.clientWidth && e.getBoundingClientRect().right <= innerWidth"
    return page.locator(".da-wizard").evaluate(inside)


def test_a_failed_check_its_fix_a_cancel_a_restart_and_no_kernel(lab, page):
    "People's addresses are in the data: the gate refuses, its fix is a click, and nothing of that is lost with the kernel."
    (lab.work / "deploy.toml").write_text('[model]\nname = "another"\n')  # somebody else's: this deployment has a file of its own
    run_all(page, lab.write("second.ipynb", LETTERS, "wizard(model, X, y, name='letters')"))
    state(page, "model", "done")
    click(page, "run-contract")
    click(page, "cancel-check")
    page.locator(".da-step-check", has_text="Cancelled. Nothing was kept").wait_for()
    state(page, "contract", "done")
    click(page, "run-check")
    state(page, "check", "failed")
    assert "privacy.columns" in page.locator(".da-step-check").inner_text()
    page.locator(".da-fix", has_text="'email'").first.click()
    state(page, "check", "done")
    assert 'policy="hash"' in page.locator(".da-step-contract pre").first.text_content()
    page.keyboard.press("Control+s")
    until(lambda: "Deployment of letters" in (lab.work / "second.ipynb").read_text(), "the notebook is saved")
    lab.stop_kernels()
    lab.write("third.ipynb", LETTERS, "wizard(resume='deploy-letters.toml')")
    run_all(page, f"{lab.url}notebooks/third.ipynb?token={lab.token}")  # Notebook 7, and a kernel that knows nothing but the file
    state(page, "contract", "done")
    assert 'policy="hash"' in page.locator(".da-step-contract pre").first.text_content()
    click(page, "change-contract")
    page.locator(".da-step-contract .da-back-contract").wait_for()
    page.locator(".da-step-contract [data-column=dose]").wait_for()  # anywidget works here too
    assert fits(page)
    lab.stop_kernels()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{lab.url}doc/tree/second.ipynb?token={lab.token}&reset")
    page.get_by_text("Deployment of letters").first.wait_for()
    assert page.get_by_text("Error displaying widget").count() == 0
    book = nbformat.read(lab.work / "second.ipynb", 4)  # and what GitHub or an export makes of it
    shown = [o.data for cell in book.cells for o in cell.get("outputs", ()) if o.output_type == "display_data"]
    assert "application/vnd.jupyter.widget-view+json" in shown[0] and "deploy-assist doctor" in shown[0]["text/plain"]
    assert "Model     done      letters, classification, 2 columns" in shown[1]["text/plain"]
    exported, _ = HTMLExporter(template_name="basic").from_notebook_node(book)
    assert "Deployment of letters" in exported


def test_voila_shows_it_as_a_page(lab, chromium):
    page = chromium.new_page()  # Voila's own page asks a CDN for fonts and MathJax, in vain here: `new_page` would refuse that
    page.set_default_timeout(60_000)
    lab.write("page.ipynb", LETTERS.replace("answered", "page"), "wizard()")
    page.goto(f"{lab.url}voila/render/page.ipynb?token={lab.token}")
    click(page, "run-model")
    state(page, "model", "done")
    page.locator(".da-step-contract [data-column=email]").click()
    assert page.get_by_label("Sensitive").count() == 1 and fits(page)

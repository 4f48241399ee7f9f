"""The wizard and the panels in Chromium: JupyterLab from the first step to a prediction and a promotion; Notebook 7; Voila."""
import json
import re
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import pytest
from lab import Lab, run_all
from nbconvert import HTMLExporter
from waiting import until

from deploy_assist import history, load_release, register

TUTORIAL = Path(__file__).parents[1] / "nbs" / "tutorials" / "wizard.ipynb"
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


STOP = """selector => {  // where the keyboard is, and whether that is right of the last stop or below it, as both lie now
  const part = document.activeElement, style = getComputedStyle(part), last = window.lastStop;
  const inside = Boolean(part.closest('.da-face'));
  const a = last && last.isConnected && last !== part ? last.getBoundingClientRect() : null, b = part.getBoundingClientRect();
  const comparable = a && inside && last.closest('.da-face') && a.height && b.height;
  window.lastStop = part;
  return { there: part.matches(selector), inside, what: part.outerHTML.slice(0, 160),
           ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
           after: !comparable || (b.top < a.bottom && a.top < b.bottom ? b.left > a.left : b.top > a.top) } }"""


def tab_to(page, selector: str, key: str = "Tab") -> None:
    "Press Tab until the keyboard is there. Each stop shows where it is and, by Tab, lies right of the last or below it."
    last = page.evaluate(STOP, selector)
    for _ in range(90):
        page.keyboard.press(key)
        stop = page.evaluate(STOP, selector)
        if stop["inside"]: assert stop["ring"], f"nothing shows that the keyboard is at {stop['what']}"
        if key == "Tab": assert stop["after"], f"{last['what']} then {stop['what']}"
        if stop["there"]: return
        last = stop
    pytest.fail(f"the keyboard does not come to {selector}, it is at {last['what']}")


def keyboard_is_at(page, selector: str) -> None:
    page.wait_for_function("selector => document.activeElement.matches(selector)", arg=selector)


def to_the_wizard(page) -> None:
    "From a cell below up to the wizard's, with the notebook's own keys."
    page.keyboard.press("Escape")
    for _ in range(5):
        page.keyboard.press("ArrowUp")
        if page.locator(".jp-Cell.jp-mod-selected .da-wizard").count(): return
    pytest.fail("the wizard's cell is not above")


def unnamed(page, face: str) -> list[str]:
    "The roles of what the keyboard can reach in a face and Chromium's accessibility tree has no name for."
    cdp = page.context.new_cdp_session(page)
    root = cdp.send("DOM.getDocument")["root"]["nodeId"]
    node = cdp.send("DOM.querySelector", {"nodeId": root, "selector": face})["nodeId"]
    seen = [part for part in cdp.send("Accessibility.queryAXTree", {"nodeId": node})["nodes"] if not part["ignored"]
            and any(p["name"] == "focusable" and p["value"].get("value") for p in part.get("properties", ()))]
    cdp.detach()
    assert len(seen) > 5, f"{face}: {seen}"
    return [part["role"]["value"] for part in seen if not part.get("name", {}).get("value", "").strip()]


def copies(page, url: str) -> None:
    "Copy gives the exact Python; where the clipboard is refused, in the old way; where that is refused too, it is selected."
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    pane = page.locator(".da-step-model .da-code")
    said = ('from deploy_assist import prepare\n\n'
            'release = prepare(model, X_train, y_train, name="worse", X_test=X_test, y_test=y_test)')
    for refused in ("", "navigator.clipboard.writeText = () => Promise.reject(new DOMException('', 'NotAllowedError'))",
                    "document.execCommand = () => false"):
        page.evaluate(f"async () => {{ await navigator.clipboard.write([new ClipboardItem({{'text/plain': '-'}})]); {refused} }}")
        pane.get_by_role("button", name="Copy").focus()
        page.keyboard.press("Enter")
        told = pane.get_by_role("status")
        if "execCommand" not in refused:
            told.get_by_text("Copied", exact=True).wait_for()
            assert page.evaluate("navigator.clipboard.readText()") == said
            assert page.evaluate("document.activeElement.textContent") == "Copy"
    told.get_by_text("Selected: press Ctrl or Cmd and C").wait_for()
    assert page.evaluate("getSelection().toString()") == said
    page.evaluate("delete document.execCommand")


def test_from_the_first_step_to_a_prediction_and_a_promotion(lab, page):
    "By keyboard alone: Tab, Space, Enter and arrows."
    run_all(page, lab.write("first.ipynb", TRAIN, "wizard()", ""))
    page.locator(".da-run-model").wait_for()
    to_the_wizard(page)
    tab_to(page, ".da-run-model")  # what it found in the notebook is chosen already
    page.keyboard.press("Enter")
    state(page, "model", "done")
    assert "release = prepare(model, X_train, y_train" in page.locator(".da-step-model pre").text_content()
    keyboard_is_at(page, ".da-run-contract")
    page.locator(".da-aloud", has_text="1 Model: done").wait_for(state="attached")
    page.keyboard.press("x")  # would cut the cell, were it the notebook's
    tab_to(page, ".da-step-contract .da-insert")
    page.keyboard.press("Space")
    page.locator(".jp-Notebook .cm-content", has_text="contract = release.schema").wait_for()  # below, as a cell of its own
    to_the_wizard(page)
    tab_to(page, ".da-step-model details:has(pre) > summary")
    page.keyboard.press("Enter")
    copies(page, lab.url)
    tab_to(page, "[data-column=bmi]")
    page.keyboard.press("Space")
    tab_to(page, ".da-field-policy")
    page.keyboard.press("ArrowDown")
    page.locator(".da-step-contract pre", has_text='policy="drop"').wait_for()
    page.keyboard.press("ArrowUp")
    page.locator(".da-step-contract pre", has_text="contract = release.schema").wait_for()
    assert unnamed(page, ".da-wizard") == []
    tab_to(page, ".da-run-contract")
    page.keyboard.press("Enter")
    page.locator(".jp-Notebook .cm-content").last.click()  # while it checks, a person writes on
    page.keyboard.insert_text("kept = 1 ")
    state(page, "check", "done")
    page.locator(".da-aloud", has_text="3 Check: done").wait_for(state="attached")
    page.locator(".da-run-register").wait_for()
    page.wait_for_timeout(500)
    page.keyboard.press("Space")
    assert page.locator(".jp-Notebook .cm-content").last.inner_text().rstrip("\n") == "kept = 1  ", "the keyboard was taken away"
    page.emulate_media(color_scheme="dark")
    to_the_wizard(page)
    tab_to(page, ".da-run-register")
    page.keyboard.press("Space")
    state(page, "register", "done")
    keyboard_is_at(page, ".da-run-serve")
    page.keyboard.press("Enter")
    state(page, "serve", "done")
    assert 'serve("models:/worse@champion", key=True)' in page.locator(".da-step-serve pre").last.text_content()
    keyboard_is_at(page, ".da-run-demo")
    tab_to(page, ".da-ask", "Shift+Tab")
    page.keyboard.press("Enter")
    page.locator(".da-answer", has_text="Answer to a row of medians: 0").wait_for()
    page.locator(".da-health", has_text="healthy").wait_for()
    assert unnamed(page, ".da-wizard") == []
    tab_to(page, ".da-skip-demo")
    page.keyboard.press("Enter")
    keyboard_is_at(page, ".da-run-watch")
    tab_to(page, ".da-field-cron select", "Shift+Tab")
    page.keyboard.press("ArrowDown")
    page.get_by_label("Time zone").wait_for()
    assert unnamed(page, ".da-wizard") == []
    tab_to(page, ".da-skip-watch")
    page.keyboard.press("Space")
    keyboard_is_at(page, ".da-run-package")
    assert unnamed(page, ".da-wizard") == []
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
    page.keyboard.insert_text("\nfrom deploy_assist import monitor_panel, registry_panel\n"
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
    assert unnamed(page, ".da-registry") + unnamed(page, ".da-monitor") == []
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


def test_voila_shows_it_as_a_page(lab, page):
    "In a template of a few lines, which the tutorial gives: Voila's own asks a CDN for icons and for MathJax."
    tutorial = nbformat.read(TUTORIAL, 4)
    template, = (re.search(r"```jinja\n(.*)```", c.source, re.S)[1] for c in tutorial.cells if "```jinja" in c.source)
    folder = lab.folder / "data" / "voila" / "templates" / "alone"
    folder.mkdir(parents=True)
    (folder / "index.html.j2").write_text(template)
    (folder / "conf.json").write_text('{"base_template": "lab"}')
    lab.write("page.ipynb", LETTERS.replace("answered", "page"), "wizard()")
    page.goto(f"{lab.url}voila/render/page.ipynb?token={lab.token}&template=alone")
    click(page, "run-model")
    state(page, "model", "done")
    page.locator(".da-step-contract [data-column=email]").click()
    assert page.get_by_label("Sensitive").count() == 1 and fits(page)
    assert page.locator("link[rel=alternate][href*=fontawesome]").count() == 2  # that template is the one that was drawn

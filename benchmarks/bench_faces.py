"""How fast faces appear, measured: `--demo`, a page for each of the tests' tables; `--wizard`, with 10 and with 200 columns;
`--browser`, the same in JupyterLab in Chromium, from a click until the frame in which the step is drawn.

Goals: demo() returns within 2 s once Gradio is imported; the wizard is drawn within 1 s of its import, a step within 0.1 s of
a click."""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

root = Path(__file__).resolve().parent.parent
BENCHES: dict = {}


def bench(function):
    BENCHES[function.__name__] = function
    return function


@bench
def demo() -> list[dict]:
    "Seconds until demo() returns, by table; the first one is measured after Gradio's import, which is shown alone."
    sys.path.insert(0, str(root / "tests"))
    from zoo_tables import TABLES

    from deploy_assist import PredictionLog
    start = time.perf_counter()
    import gradio  # noqa: F401
    found = [dict(what="import gradio", seconds=time.perf_counter() - start)]
    from deploy_assist.demo import demo
    with PredictionLog() as log:
        for name, make in TABLES.items():
            release = make()
            start, cpu = time.perf_counter(), time.process_time()
            page = demo(release, log=log)
            found.append(dict(what=f"demo({name})", columns=len(release.schema), seconds=time.perf_counter() - start,
                              cpu_s=time.process_time() - cpu, limit_s=2.0))
            page.stop()
    return found


@bench
def wizard() -> list[dict]:
    "Seconds until the wizard is drawn, and from a click on Contract until its card and the next are drawn; no browser."
    import pandas as pd
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression

    from deploy_assist.wizard import wizard
    found = []
    for columns in (10, 200):
        X, y = make_classification(2_000, columns, random_state=0)
        X, y = pd.DataFrame(X).rename(columns="x{}".format), pd.Series(y, name="y")
        model = LogisticRegression(max_iter=300).fit(X, y)
        start = time.perf_counter()
        face = wizard(model, X, y, name="faces")
        found.append(dict(what=f"wizard, {columns} columns", seconds=time.perf_counter() - start, limit_s=1.0))
        face.wait(60)
        start = time.perf_counter()
        face.cards["contract"].go.click()
        found.append(dict(what=f"click, {columns} columns", seconds=time.perf_counter() - start, limit_s=0.1))
        while face.cards["check"].job is None: time.sleep(0.01)  # it starts by itself
        face.cancel()
        face.wait(60)
        start = time.perf_counter()
        face.cards["contract"].change.click()
        found.append(dict(what=f"reopened, {columns} columns", seconds=time.perf_counter() - start, limit_s=0.1))
    return found


TABLE = """import pandas as pd
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from deploy_assist import wizard
X, y = make_classification(2_000, {columns}, random_state=0)
X, y = pd.DataFrame(X).rename(columns="x{{}}".format), pd.Series(y, name="y")
model = LogisticRegression(max_iter=300).fit(X, y)"""
CLICK = """([button, drawn]) => new Promise(done => {  // [ms until the page changes, ms until the frame that shows it]
  const start = performance.now(), face = document.querySelector('.da-wizard');
  let first = 0;
  const seen = new MutationObserver(() => {
    first = first || performance.now(); if (!face.querySelector(drawn)) return; seen.disconnect();
    requestAnimationFrame(() => setTimeout(() => done([first - start, performance.now() - start]))) });
  seen.observe(face, {subtree: true, childList: true, characterData: true, attributes: true});
  face.querySelector(button).click() })"""


CLICKS = (  # what, the button, what is drawn then
    ("click", ".da-run-contract", ".da-state.da-running"),
    ("click again", ".da-run-check", ".da-state.da-running"),
    ("reopened", ".da-change-contract", ".da-columns [data-column]"),
    ("closed", ".da-back-contract", ".da-change-contract"))


@bench
def browser() -> list[dict]:
    """Seconds from a click to the frame that shows the step, the median of five where the step can be done again; `page_s` of
    them after the first change arrived in the page. Between two clicks a person's second passes."""
    sys.path[:0] = [str(root / "scripts"), str(root / "tests")]
    from screenshots import a_lab, chromium
    found = []
    with chromium() as driver, a_lab() as lab:
        page = driver.new_page(viewport=dict(width=1200, height=1400))
        page.set_default_timeout(120_000)
        for columns in (10, 200):
            lab.run_all(page, f"faces{columns}.ipynb", TABLE.format(columns=columns), "wizard(model, X, y)")
            page.locator(".da-run-contract").wait_for()
            page.wait_for_timeout(3000)
            took = {what: [] for what, *_ in CLICKS}
            for group in (CLICKS[:1], CLICKS[1:2] * 5, CLICKS[2:] * 5):
                for what, button, drawn in group:
                    took[what].append([ms / 1000 for ms in page.evaluate(CLICK, [button, drawn])])
                    if "click" in what:
                        page.locator(".da-cancel-check").click()
                        page.locator(".da-step-check", has_text="Cancelled").wait_for()
                    page.wait_for_timeout(1000)
            for what, times in took.items():
                began, ended = map(median, zip(*times))
                found.append(dict(what=f"{what} in Chromium, {columns}", seconds=ended, page_s=ended - began, limit_s=0.1))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, function in BENCHES.items(): parser.add_argument(f"--{name}", action="store_true", help=function.__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    told = vars(parser.parse_args())
    names = [name for name in BENCHES if told[name]] or list(BENCHES)
    with tempfile.TemporaryDirectory(prefix="deploy_assist-") as folder:
        os.chdir(folder)
        os.environ |= {"DEPLOY_ASSIST_HOME": f"{folder}/home", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        found = [one for name in names for one in BENCHES[name]()]
        os.chdir(root)
    if told["json"]: print(json.dumps(found))
    else:
        for one in found:
            parts = ("cpu_s", "of CPU"), ("page_s", "of it in the page")
            more = "".join(f", {one[k]:.3f} s {words}" for k, words in parts if k in one)
            print(f"{one['what']:<30} {one['seconds']:7.3f} s{more}")
    return int(any(one["seconds"] > one.get("limit_s", float("inf")) for one in found))


if __name__ == "__main__":
    sys.exit(main())

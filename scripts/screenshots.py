"""The pictures of the README, drawn from the running library: nbs/images/NAME-light.png and NAME-dark.png.

Usage: screenshots.py [NAME...]            all of them without a name; needs Chromium and playwright
       screenshots.py --look FOLDER [wizard|panels|demo...]
                                           to be looked at: each step of the wizard and both panels in a JupyterLab, the
                                           demo of each of the tests' tables; light and dark, wide and 390 pixels narrow
A picture is a function of a browser that opens pages in light and dark; `@picture` enters it below its name, `@look` one that
takes all it comes by."""
import argparse
import io
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

root = Path(__file__).resolve().parent.parent
images = root / "nbs" / "images"
SCHEMES, MOST_BYTES = ("light", "dark"), 120_000
PICTURES: dict[str, Callable] = {}


def picture(name: str) -> Callable:
    "Enter a function of a `Studio` that calls `studio.keep(scheme, png)` for both schemes."
    def enter(function: Callable) -> Callable:
        PICTURES[name] = function
        return function
    return enter


class Studio:
    "A browser for one picture, and where its files go."

    def __init__(self, browser, name: str):
        self.browser, self.name, self.kept = browser, name, []

    @contextmanager
    def page(self, scheme: str, width: int = 1200, height: int = 800):
        "A page in a fresh context, in light or dark."
        context = self.browser.new_context(viewport=dict(width=width, height=height), color_scheme=scheme)
        context.set_default_timeout(60_000)
        try: yield context.new_page()
        finally: context.close()

    def keep(self, scheme: str, png: bytes) -> Path:
        "Write a picture with as many colours as fit into the limit."
        from PIL import Image
        image, file = Image.open(io.BytesIO(png)).convert("RGB"), images / f"{self.name}-{scheme}.png"
        for colours in (256, 128, 64, 32):
            out = io.BytesIO()
            image.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
            if len(out.getvalue()) <= MOST_BYTES: break
        else: sys.exit(f"screenshots: {file.name} has {len(out.getvalue()):,} bytes, expected at most {MOST_BYTES:,}")
        images.mkdir(exist_ok=True)
        file.write_bytes(out.getvalue())
        self.kept.append(file)
        return file


@contextmanager
def chromium():
    "A Chromium that finds no host but this machine."
    from playwright.sync_api import sync_playwright
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program: sys.exit("screenshots: no Chromium: apt-get install chromium fonts-dejavu-core")
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", alone])
        try: yield browser
        finally: browser.close()


def patients():
    "The quickstart's release: will this person's diabetes progress to the worst quarter?"
    from deploy_assist import prepare
    from deploy_assist.quickstart import HELP, LIMITS, UNITS, fitted
    model, (X, X_test, y, y_test) = fitted()
    return prepare(model, X, y, name="chronic-risk", X_test=X_test, y_test=y_test, units=UNITS, limits=LIMITS,
                   edits={column: {"help": text} for column, text in HELP.items()})


@picture("demo")
def demo_page(studio: Studio) -> None:
    "The demo of the quickstart's model, with an answer and its why."
    from deploy_assist import demo
    with demo(patients(), log=False) as running:
        for scheme in SCHEMES:
            with studio.page(scheme) as page:
                page.goto(running.url)
                page.get_by_role("button", name="Predict", exact=True).click()
                page.locator("#what-if svg").wait_for()
                page.wait_for_timeout(500)
                studio.keep(scheme, page.screenshot())


PATIENTS = """import warnings; warnings.filterwarnings("ignore")
from deploy_assist.quickstart import fitted
from deploy_assist import wizard
model, (X, X_test, y, y_test) = fitted()"""
LETTERS = """import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from deploy_assist import wizard
X = pd.DataFrame({"dose": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] * 20, "email": [f"person{i}@example.org" for i in range(120)]})
y = pd.Series([0, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1] * 10, name="answered")
model = make_pipeline(make_column_transformer(("passthrough", ["dose"])), LogisticRegression()).fit(X, y)"""
START = 'wizard(model, X, y, X_test=X_test, y_test=y_test, name="patients")'


@picture("wizard")
def wizard_in_jupyterlab(studio: Studio) -> None:
    "The wizard in JupyterLab, at its gate: what was checked, and the Python of each step."
    with a_lab() as lab, studio.page("light", 1200, 900) as page:
        lab.run_all(page, "deploy.ipynb", PATIENTS, START)
        page.locator(".da-run-contract").click()
        page.locator(".da-step-check .da-state", has_text="done").wait_for()
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            page.locator(".da-wizard").evaluate("e => e.scrollIntoView()")
            page.wait_for_timeout(1500)
            studio.keep(scheme, page.screenshot())


@contextmanager
def a_lab():
    "A JupyterLab that follows the browser's light and dark."
    sys.path.insert(0, str(root / "tests"))
    from lab import Lab, run_all
    with TemporaryDirectory(prefix="deploy_assist-") as folder:
        lab = Lab(Path(folder))
        lab.run_all = lambda page, name, *cells: run_all(page, lab.write(name, *cells))
        try: yield lab
        finally: lab.stop()


LOOKS: dict[str, Callable] = {}
NARROW = 390
TOO_WIDE = "e => Math.max(e.scrollWidth - e.clientWidth, e.getBoundingClientRect().right - innerWidth)"  # pixels


def look(name: str) -> Callable:
    "Enter a function of a studio and a folder that writes pictures to be looked at."
    def enter(function: Callable) -> Callable:
        LOOKS[name] = function
        return function
    return enter


def four(page, folder: Path, name: str, what: str, wide: int = 1200, tall: int = 2400) -> None:
    "An element in light and dark, wide and narrow; says when it is wider than the narrow page."
    for width in (wide, NARROW):
        page.set_viewport_size(dict(width=width, height=tall))
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(700)
            file = folder / f"{name}-{scheme}-{width}.png"
            page.locator(what).first.screenshot(path=file, animations="disabled")
            print(file)
        over = page.locator(what).first.evaluate(TOO_WIDE)
        if width == NARROW and over > 0: print(f"{name}: {over:.0f} pixels wider than {NARROW}")
    page.set_viewport_size(dict(width=wide, height=tall))


@look("wizard")
def steps_of_the_wizard(studio: Studio, folder: Path) -> None:
    "Each step as it asks and as it ends; a check that failed; an error; a step at work."
    with a_lab() as lab, studio.page("light", 1200, 2400) as page:
        def press(what): page.locator(f".da-{what}").first.click()
        def ends(step, word="done"):
            page.locator(f".da-step-{step} .da-head .da-state", has_text=word).first.wait_for(timeout=120_000)
        def shot(step, name=""): four(page, folder, f"{step}{name and '-'}{name}", f".da-step-{step}")
        lab.run_all(page, "failed.ipynb", LETTERS, 'wizard(model, X, y, name="letters")')
        press("run-contract")
        page.locator(".da-step-check progress").wait_for()
        shot("check", "at-work")
        ends("check", "failed")
        shot("check", "failed")
        page.goto("about:blank")
        lab.run_all(page, "deploy.ipynb", PATIENTS, "wizard()")
        page.locator(".da-run-model").wait_for()
        shot("model", "asks")
        press("run-model")
        ends("contract", "next")
        shot("model")
        page.locator(".da-columns [data-column=bmi]").click()
        shot("contract", "asks")
        page.get_by_label("Lowest allowed").first.fill("abc")
        page.keyboard.press("Tab")
        shot("contract", "refuses")
        page.get_by_label("Lowest allowed").first.fill("10")
        page.keyboard.press("Tab")
        press("run-contract")
        ends("check")
        shot("contract")
        shot("check")
        page.locator(".da-step-register h4, .da-step-register details").first.wait_for()
        shot("register", "asks")
        press("run-register")
        ends("register")
        shot("register")
        shot("serve", "asks")
        press("run-serve")
        ends("serve")
        press("ask")
        page.locator(".da-answer b").first.wait_for()
        shot("serve")
        shot("demo", "asks")
        press("run-demo")
        ends("demo")
        shot("demo")
        page.locator(".da-step-watch select").nth(1).select_option(index=1)
        page.locator(".da-field-alerts input").fill("https://hooks.example.org/risk")
        page.keyboard.press("Tab")
        shot("watch", "asks")
        page.locator(".da-field-alerts input").fill("")
        page.keyboard.press("Tab")
        press("run-watch")
        ends("watch")
        page.wait_for_timeout(1500)
        shot("watch")
        shot("package", "asks")
        press("run-package")
        ends("package")
        shot("package")
        press("change-contract")
        page.wait_for_timeout(500)
        shot("contract", "changes")
        four(page, folder, "all", ".da-wizard", tall=5000)


PANELS = """from deploy_assist import monitor_panel, prepare, promote, register, registry_panel, report, schedule
release = prepare(model, X, y, name="patients", X_test=X_test, y_test=y_test)
few = prepare(model, X.head(200), y.head(200), name="patients", X_test=X_test, y_test=y_test)
promote("patients", register(release), reason="first release")
register(few)
schedule("patients", cron="0 6 * * MON", window="7d")
report("patients", window="7d")
display(registry_panel("patients"), monitor_panel("patients"))"""


@look("panels")
def both_panels(studio: Studio, folder: Path) -> None:
    "The registry's and the monitor's panel, as they come, after a refusal, and with a report open."
    with a_lab() as lab, studio.page("light", 1200, 2400) as page:
        lab.run_all(page, "panels.ipynb", PATIENTS, PANELS)
        page.locator(".da-monitor .da-in-schedule").wait_for()
        page.wait_for_timeout(1500)
        page.locator(".da-promote").click()
        page.locator(".da-in-promote [role=alert]").wait_for()
        page.locator(".da-show").click()
        page.locator(".da-in-read iframe").wait_for()
        for name in ("registry", "monitor"): four(page, folder, name, f".da-{name}", tall=5000)


@look("demo")
def demos(studio: Studio, folder: Path) -> None:
    "The page of each of the tests' tables with an answer and its why; the other tabs once."
    sys.path.insert(0, str(root / "tests"))
    from zoo_tables import TABLES

    from deploy_assist import PredictionLog, demo
    with PredictionLog() as log, studio.page("light", 1200, 1200) as page:
        for name, make in TABLES.items():
            with demo(make(), log=log) as running:
                page.goto(running.url)
                page.get_by_role("button", name="Predict", exact=True).click()
                page.locator("#answer .da-answer, #answer .da-refusal").wait_for()
                page.wait_for_timeout(1500)
                if name in ("mixed", "several"):
                    page.get_by_role("button", name="Wrong", exact=True).click()
                    page.wait_for_timeout(800)
                four(page, folder, name, "body", tall=1300)
                if name != "mixed": continue
                for tab in ("Table", "API", "Model card"):
                    page.get_by_role("tab", name=tab).click()
                    page.wait_for_timeout(800)
                    four(page, folder, f"{name}-{tab.lower().replace(' ', '-')}", "body", tall=1300)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--look", type=Path, metavar="FOLDER")
    told = parser.parse_args()
    there = LOOKS if told.look else PICTURES
    if unknown := [name for name in told.names if name not in there]:
        sys.exit(f"screenshots: got {', '.join(unknown)}, expected of {', '.join(there)}")
    with TemporaryDirectory(prefix="deploy_assist-") as folder, chromium() as browser:
        os.environ |= {"DEPLOY_ASSIST_HOME": f"{folder}/home", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                       "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        for name in told.names or there:
            studio = Studio(browser, name)
            if told.look:
                told.look.mkdir(parents=True, exist_ok=True)
                LOOKS[name](studio, told.look)
                continue
            PICTURES[name](studio)
            for file in studio.kept: print(f"{file.relative_to(root)}: {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The pictures of the README, drawn from the running library: nbs/images/NAME-light.png and NAME-dark.png.

Usage: screenshots.py [NAME...]            all of them without a name; needs Chromium and playwright
A picture is a function of a browser that opens pages in light and dark; `@picture` enters it below its name."""
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
START = 'wizard(model, X, y, X_test=X_test, y_test=y_test, name="patients")'


@picture("wizard")
def wizard_in_jupyterlab(studio: Studio) -> None:
    "The wizard in JupyterLab, at its gate: what was checked, and the Python of each step."
    sys.path.insert(0, str(root / "tests"))
    from lab import Lab, run_all
    for scheme in SCHEMES:
        with TemporaryDirectory(prefix="deploy_assist-") as folder:
            lab = Lab(Path(folder), theme=f"JupyterLab {scheme.title()}")
            try:
                with studio.page(scheme, 1200, 900) as page:
                    run_all(page, lab.write("deploy.ipynb", PATIENTS, START))
                    page.locator(".da-run-contract").click()
                    page.locator(".da-step-check .da-state", has_text="done").wait_for()
                    page.locator(".da-wizard").evaluate("e => e.scrollIntoView()")
                    page.wait_for_timeout(1500)
                    studio.keep(scheme, page.screenshot())
            finally: lab.stop()


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in PICTURES]
    if unknown: sys.exit(f"screenshots: got {', '.join(unknown)}, expected of {', '.join(PICTURES)}")
    with TemporaryDirectory(prefix="deploy_assist-") as folder, chromium() as browser:
        os.environ |= {"DEPLOY_ASSIST_HOME": f"{folder}/home", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                       "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        for name in names or PICTURES:
            studio = Studio(browser, name)
            PICTURES[name](studio)
            for file in studio.kept: print(f"{file.relative_to(root)}: {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

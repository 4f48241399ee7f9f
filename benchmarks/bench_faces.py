"""How fast faces appear, measured: `--demo`, a page for each of the tests' tables; `--wizard`, with 10 and with 200 columns.

Goals: demo() returns within 2 s once Gradio is imported; the wizard is drawn within 1 s of its import, a step within 0.1 s of
a click."""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

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
        face.cancel()
        face.wait(60)
        start = time.perf_counter()
        face.cards["contract"].change.click()
        found.append(dict(what=f"reopened, {columns} columns", seconds=time.perf_counter() - start, limit_s=0.1))
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
            cpu = f", {one['cpu_s']:.2f} s of CPU" if "cpu_s" in one else ""
            print(f"{one['what']:<22} {one['seconds']:6.2f} s{cpu}")
    return int(any(one["seconds"] > one.get("limit_s", float("inf")) for one in found))


if __name__ == "__main__":
    sys.exit(main())

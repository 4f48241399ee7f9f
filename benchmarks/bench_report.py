"""What a whole report costs: CPU seconds on 100,000 rows x 30 columns from frames and from a log, the page's size, and memory.

    python benchmarks/bench_report.py                # everything, a minute or two
    python benchmarks/bench_report.py --quick        # smaller files

Exit code 1 when a goal is missed; each is printed beside what was measured.

CPU seconds are those of this process from the call of `report` to its return, with everything imported before by a small report,
and those of the kernel from the end of its imports to its last cell. What is left out: starting the kernel and its imports.
The kernel says itself what it used: the template is the library's own with one line at the end of the cell that imports and
one before the last call.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from deploy_assist import PredictionLog, report
from deploy_assist.predictions import Batch
from deploy_assist.release import Release
from deploy_assist.report import TEMPLATE, WARM
from deploy_assist.schema import Schema

GOALS = []


def goal(name, value, limit):
    "Print a goal beside what was measured."
    GOALS.append(value <= limit)
    print(f"{'met   ' if GOALS[-1] else 'MISSED'} {name}: {value:.2f}, goal <= {limit}", flush=True)


def table(n, seed, moved=0.0):
    "Thirty columns, a score, a prediction and a label."
    rng = np.random.default_rng(seed)
    d = pd.DataFrame({f"x{i:02d}": rng.normal(i + (moved if i < 3 else 0), 1 + i / 9, n) for i in range(24)}
                     | {f"c{i}": rng.choice(list("abcde"), n) for i in range(6)})
    s = 1 / (1 + np.exp(-(d.x00 + d.x01 - 1 + (d.c0 == "a"))))
    return d.assign(score=s, prediction=(s > .5).astype(int), label=(rng.random(n) < s).astype(int))


def measured(folder: Path) -> Path:
    "The library's template, with its kernel's CPU seconds told by the notebook."
    nb = nbformat.read(TEMPLATE, 4)
    start = next(c for c in nb.cells if c.cell_type == "code" and "Monitor.read" in c.source)
    line = "from deploy_assist.report import Monitor\n"
    assert start.source.startswith(line)
    start.source = f"{line}import time\n{WARM}\nbegan = time.process_time()\n" + start.source[len(line):]
    nb.cells[-1].source = 'print("CPU", time.process_time() - began)\n' + nb.cells[-1].source
    nbformat.write(nb, folder / "measured.ipynb")
    return folder / "measured.ipynb"


def cost(template, *source, **more):
    "CPU seconds of this process and of the kernel, and the report."
    t = time.process_time()
    done = report(*source, template=template, **more)
    own = time.process_time() - t
    said = [o.text for c in nbformat.read(done.notebook, 4).cells if c.cell_type == "code" for o in c.outputs
            if o.get("name") == "stdout" and o.text.startswith("CPU")]
    return own, float(said[0].split()[1]), done


def told(what, own, kernel, done, judged=True):
    "Print what a report cost, and its size."
    size, rows = done.html.stat().st_size / 1000, done.verdict.rows["current"]
    print(f"{what}, {rows:,} rows x 30 columns: {done.verdict.action}, {len(done.verdict.findings)} findings, "
          f"{own:.2f} CPU s here + {kernel:.2f} in the kernel", flush=True)
    if judged: goal("a whole report, CPU s", own + kernel, 2)
    goal("its page, kB", size, 150)


def logged(folder: Path, d: pd.DataFrame, base: pd.DataFrame, until: datetime) -> tuple[Release, PredictionLog]:
    "A week of rows in a log of its own, labels too, and the release that answered them."
    inputs = [c for c in d if c not in ("score", "prediction", "label")]
    schema = Schema.learn(base[inputs], classes=(0, 1))
    release = Release("bench", None, schema, base, {})
    log = PredictionLog(f"sqlite:///{folder}/log.db", home=folder)
    times = (until - timedelta(days=7)).timestamp() + np.arange(len(d)) * (7 * 86400 / len(d))
    for at in range(0, len(d), 5000):
        part = d.iloc[at:at + 5000]
        p = part.score.to_numpy()
        log.append(Batch(model="bench", schema=schema, columns={c: part[c].tolist() for c in inputs}, version="1", source="api",
                         predictions=part.prediction.tolist(), probabilities=np.c_[1 - p, p].tolist(),
                         time=times[at:at + 5000].tolist()))
    log.flush(60)
    return release, log


READ = """
import json, resource, sys
from deploy_assist import report
r = report((sys.argv[1] + "/base.parquet", sys.argv[2]), name="many", out=sys.argv[1] + "/out", label="label", score="score",
           prediction="prediction", template=sys.argv[3])
own, kernel = (resource.getrusage(w).ru_maxrss / 1e6 for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps(dict(gb=max(own, kernel), rows=r.verdict.rows["current"], action=r.verdict.action)))
"""


def long_file(folder: Path, template: Path, kind: str, many: int) -> None:
    "A report on a file that is longer than what is held at once."
    import pyarrow as pa
    import pyarrow.parquet as pq
    table(20_000, 1).to_parquet(folder / "base.parquet")
    part, path = table(250_000, 2), folder / f"many.{kind}"
    if kind == "parquet":
        part = pa.Table.from_pandas(part, preserve_index=False)
        with pq.ParquetWriter(path, part.schema) as w:
            for _ in range(many // 250_000): w.write_table(part)
    else:
        for i in range(many // 250_000): part.round(4).to_csv(path, mode="a", index=False, header=i == 0)
    del part
    t = os.times()
    out = subprocess.run([sys.executable, "-c", READ, folder, path, template], capture_output=True, text=True, check=True).stdout
    used, said = os.times(), json.loads(out)
    cpu = used.children_user + used.children_system - t.children_user - t.children_system
    print(f"a report on {said['rows']:,} rows x 33 columns from {kind}: {said['action']}, {cpu:.1f} CPU s with the start of "
          f"both processes, at most {said['gb']:.2f} GB in one of them", flush=True)
    goal(f"GB of memory, {said['rows']:,} rows from {kind}", said["gb"], 2)
    path.unlink()


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--quick", action="store_true", help="files of a tenth")
    a.add_argument("--rows", type=int, default=100_000)
    x = a.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder, who = Path(folder), dict(prediction="prediction", score="score", label="label")
        os.environ["DEPLOY_ASSIST_HOME"] = str(folder / "home")
        template, base, d = measured(folder), table(20_000, 0), table(x.rows, 3, moved=.3)
        cost(template, (base[:200], d[:200]), name="warm", out=folder / "out", **who)
        for name, now in (("moved", d), ("quiet", table(x.rows, 4))):
            told(f"two frames, {name}", *cost(template, (base, now), name=name, out=folder / "out", **who))
        until = datetime(2026, 6, 1, tzinfo=UTC)
        release, log = logged(folder, d, base, until)
        with log:
            for name in ("for the first time", "again"):
                got = cost(template, release, log=log, until=until, window="7d", out=folder / "out", now=until)
                told(f"a log, {name}", *got, judged=name == "again")
        for kind, many in (("parquet", 10_000_000), ("csv", 2_500_000)):
            long_file(folder, template, kind, many // 10 if x.quick else many)
    sys.exit(0 if all(GOALS) else 1)


if __name__ == "__main__": main()

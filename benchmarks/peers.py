"""What other monitors say of one window: read a pair of tables, answer with a line of JSON. Run by `bench_monitoring.py --peers`.

    PYTHON benchmarks/peers.py evidently|nannyml     # PYTHON: of an environment of its own, in which the peer is installed

Asked on stdin by the path of a pickle, {"baseline" | "window": {column: (kind, bytes of float64 or datetime64[us], or texts)}}.
The peers keep other versions of numpy and pandas than the library does, so nothing but plain values goes between them.
"""
import importlib.metadata
import json
import pickle
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd


def frame(columns):
    def column(kind, values):
        if kind == "text": return pd.Series(values, dtype=object)
        return pd.Series(np.frombuffer(values, "f8" if kind == "number" else "M8[us]"))
    return pd.DataFrame({k: column(*v) for k, v in columns.items()})


def evidently(b, c):
    "Its drift preset as it comes, and with tests for every column: does a column alarm, does the headline (half of the columns)?"
    from evidently import Report
    from evidently.presets import DataDriftPreset
    out = {}
    for name, how in (("", {}), (" tests", dict(num_method="ks", cat_method="chisquare"))):
        t = time.process_time()
        got = Report([DataDriftPreset(**how)]).run(c, b).dict()["metrics"]
        drifted = next(m["value"] for m in got if isinstance(m["value"], dict) and "count" in m["value"])
        used = time.process_time() - t
        out |= {f"Evidently{name}, any column": (drifted["count"] > 0, used),
                f"Evidently{name}, headline": (drifted["share"] >= .5, used)}
    return out


def nannyml(b, c):
    "Drift of each column, and of all together by reconstruction from principal components; chunks of the window's size."
    import nannyml
    cat = [k for k in b if b[k].dtype == object]
    num = [k for k in b if b[k].dtype.kind == "f"]
    def judged(calculator, cells):
        t = time.process_time()
        got = calculator.fit(b).calculate(c).filter(period="analysis").to_df()
        return bool(got.loc[:, [k for k in got if k[-1] == "alert" and cells(k)]].to_numpy().any()), time.process_time() - t
    size = dict(chunk_size=len(c))
    univariate = nannyml.UnivariateDriftCalculator(column_names=num + cat, treat_as_categorical=cat, **size)
    out = {"NannyML, any column": judged(univariate, lambda k: True)}
    together = nannyml.DataReconstructionDriftCalculator(column_names=[k for k in num + cat if b[k].nunique() > 1], **size)
    return out | {"NannyML, together": judged(together, lambda k: True)}


def main():
    warnings.filterwarnings("ignore")
    sys.stdout, answers = sys.stderr, sys.stdout  # what a peer prints is no answer
    says = dict(evidently=evidently, nannyml=nannyml)[sys.argv[1]]
    print(json.dumps({p: importlib.metadata.version(p) for p in (sys.argv[1], "pandas", "numpy")}), file=answers, flush=True)
    for line in sys.stdin:
        pair = pickle.loads(Path(line.strip()).read_bytes())
        b, c = (frame(pair[k]) for k in ("baseline", "window"))
        try: said = says(b, c)
        except Exception as e: said = dict(error=f"{type(e).__name__}: {e}"[:300])
        print(json.dumps(said, default=float), file=answers, flush=True)


if __name__ == "__main__": main()

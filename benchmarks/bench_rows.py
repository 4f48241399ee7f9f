"""What it costs to read rows: bytes of 1 and of 1,000 rows of 30 numbers to checked columns, in microseconds."""
import json
import time

import msgspec
import numpy as np
import pandas as pd

from deploy_assist import Schema
from deploy_assist.rows import Decoder, Marker


def fastest(work, seconds: float = 0.5) -> float:
    "Microseconds of the fastest call."
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def main() -> None:
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(1000, 30)), columns=[f"c{i}" for i in range(30)])
    schema = Schema.learn(X)
    decoder, marker, rows = Decoder(schema), Marker(schema), schema.rows(X)
    for n in (1, 1000):
        body = json.dumps({"rows": rows[:n]}).encode()
        columns = decoder.decode(body)
        arrays = {c: X[c].to_numpy()[:n] for c in X}
        print(f"{n} x 30 numbers, microseconds")
        for what, work in {
            "json": lambda body=body: json.loads(body),
            "json and Schema.check": lambda body=body: schema.check(json.loads(body)["rows"]),
            "msgspec, unchecked": lambda body=body: msgspec.json.decode(body),
            "Decoder": lambda body=body: decoder.decode(body),
            "Decoder.check of arrays": lambda arrays=arrays: decoder.check(arrays),
            "marks": lambda columns=columns: marker(columns),
            "Schema.marks": lambda columns=columns: schema.marks({k: v.tolist() for k, v in columns.items()}),
        }.items(): print(f"  {what:<26}{fastest(work):>10.1f}")


if __name__ == "__main__": main()

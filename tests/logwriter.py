"""Logs predictions and notes each acknowledged one: python logwriter.py URL HOME ACKS [rows=1] [apart=1] ...

With `apart=1` a drainer process moves the spool; its pid is printed."""

import json
import os
import sys
import time

from deploy_assist.errors import LogError
from deploy_assist.predictions import Batch, Drainer, PredictionLog
from deploy_assist.schema import Column, Schema

schema = Schema(
    (Column("age", "integer", nullable=True), Column("bmi", "float"), Column("sex", "category", categories=("f", "m"))),
    classes=(0, 1),
)


def main(
    url,
    home,
    acks,
    rows=1,
    n=1_000_000,
    interval_s=0.1,
    pause_s=0.0,
    hold=0,
    spool_max_mb=512,
    model="risk",
    durability="process",
    apart=0,
):
    drainer = Drainer(url, home, interval_s=interval_s).start() if apart else None
    if drainer: print(drainer.process.pid, flush=True)
    log = PredictionLog(
        url, home=home, interval_s=interval_s, spool_max_mb=spool_max_mb, durability=durability, drains=not apart
    )
    out = os.open(acks, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for i in range(int(n)):
        batch = Batch(
            model=model,
            version="1",
            alias="champion",
            schema=schema,
            predictions=[i % 2] * rows,
            probabilities=[[0.25, 0.75]] * rows,
            columns={"age": [i] * rows, "bmi": [i / 4] * rows, "sex": ["f"] * rows},
            latency_ms=1.0,
            subjects=[f"person-{i}"] * rows,
        )
        try: ids = log.append(batch)
        except LogError as e: os.write(out, (json.dumps({"refused": str(e)}) + "\n").encode())
        else: os.write(out, "".join(f"{x}\n" for x in ids).encode())
        if pause_s: time.sleep(pause_s)
    if hold: print("held", flush=True); time.sleep(hold)
    log.close()
    if drainer: drainer.stop()


if __name__ == "__main__":
    options = dict(a.split("=", 1) for a in sys.argv[4:])
    main(*sys.argv[1:4], **{k: v if k in ("model", "durability") else type(v)(v) if not v.replace(".", "").isdigit()
                            else float(v) if "." in v else int(v) for k, v in options.items()})

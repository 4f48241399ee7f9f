"""How fast is the endpoint, beside MLflow's scoring server, a bare ASGI floor, and ONNX Runtime behind that floor?

    python benchmarks/bench_serving.py                     # everything, about ten minutes
    python benchmarks/bench_serving.py --models logistic --rounds 3 --seconds 3 --json out.json
    python benchmarks/bench_serving.py --mlserver DIR/bin/python      # MLServer too, one tensor a column

Server and client (wrk, from Debian's packages) are pinned to a core each, one process each, loopback only, rounds interleaved,
medians shown. Our endpoint has validation, key, prediction ids, metrics and the log switched on. Answers are checked first.
CPU seconds a request come from /proc and do not depend on what else the machine does.
"""
import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

import joblib
import numpy as np
import pandas as pd
from processes import family
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from deploy_assist.prepare import prepare
from deploy_assist.endpoint import listen

KEY = "a-key-of-the-benchmark"

# ---------------------------------------------------------------------------------------------------------------- models


def thirty():
    data = load_breast_cancer(as_frame=True)
    return data.data, data.target


def logistic():
    X, y = thirty()
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(X, y), X, y


def boosting():
    X, y = thirty()
    return HistGradientBoostingClassifier(max_iter=100, random_state=0).fit(X, y), X, y


def forest():
    rng, n = np.random.default_rng(0), 2000
    X = pd.DataFrame({f"x{i}": rng.normal(size=n) for i in range(5)})
    for name, size in (("city", 12), ("kind", 5), ("channel", 3)):
        X[name] = rng.choice([f"{name}-{i}" for i in range(size)], n)
    y = (X.x0 + X.x1 * (X.kind == "kind-1") + rng.normal(size=n) > 0).astype(int)
    numbers = [f"x{i}" for i in range(5)]
    strings = OneHotEncoder(handle_unknown="ignore")
    columns = make_column_transformer((SimpleImputer(), numbers), (strings, ["city", "kind", "channel"]))
    return make_pipeline(columns, RandomForestClassifier(100, random_state=0)).fit(X, y), X, y


CASES = (("1 row, 32 connections", 1, 32), ("1 row, 1 connection", 1, 1), ("1,000 rows, 4 connections", 1000, 4))
MODELS = {"logistic": logistic, "boosting": boosting, "forest": forest}

# --------------------------------------------------------------------------------------------------------------- servers

FLOOR = '''
import sys, socket, uvicorn
BODY = b'{"predictions":[1]}'
async def app(scope, receive, send):
    if scope["type"] != "http": return
    more = True
    while more: more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]})
    await send({"type": "http.response.body", "body": BODY})
# not fd=, which uvicorn takes for a Unix socket, without TCP_NODELAY
config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", loop="uvloop", http="httptools")
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
'''
ORT = '''
import socket, sys, numpy as np, onnxruntime as ort, orjson, uvicorn
options = ort.SessionOptions(); options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
kinds = {"tensor(double)": np.float64, "tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(string)": object,
         "tensor(bool)": bool}
inputs = [(i.name, kinds[i.type]) for i in session.get_inputs()]
async def app(scope, receive, send):
    if scope["type"] != "http": return
    body, more = b"", True
    while more: part = await receive(); body += part["body"]; more = part.get("more_body", False)
    rows = orjson.loads(body)["rows"]
    out = session.run(None, {n: np.array([r[n] for r in rows], dtype=k).reshape(-1, 1) for n, k in inputs})
    answer = orjson.dumps({"predictions": out[0], "probabilities": out[-1]}, option=orjson.OPT_SERIALIZE_NUMPY)
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]})
    await send({"type": "http.response.body", "body": answer})
# not fd=, which uvicorn takes for a Unix socket, without TCP_NODELAY
config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", loop="uvloop", http="httptools")
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
'''


class Server:
    "One process, pinned to core 0; `url`, CPU seconds and memory of it and its children."
    def __init__(self, name, command, port, folder, sock=None, ready="/"):
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self.started, self.log = time.perf_counter(), folder / f"{name}.log"
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "ORT_DISABLE_TELEMETRY": "1"}
        quiet["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where MLflow looks for uvicorn
        env = os.environ | quiet | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                ["taskset", "-c", "0", *map(str, command)],
                stdout=out,
                stderr=out,
                env=env,
                cwd=folder,
                pass_fds=[sock.fileno()] if sock else [],
                start_new_session=True,
            )
        if sock: sock.close()

    def wait(self, path, body, headers):
        "Until the first answer: seconds since the start."
        while True:
            if self.process.poll() is not None: sys.exit(f"{self.name} did not start:\n{self.log.read_text()[-2000:]}")
            try:
                with urlopen(Request(self.url + path, body, headers), timeout=30) as answer: raw = answer.read()
                self.first = time.perf_counter() - self.started
                return json.loads(raw)
            except OSError as e:
                if getattr(e, "code", None) not in (None, 502, 503): sys.exit(f"{self.name}: {e} {e.read()[:500]}")
                if time.perf_counter() - self.started > 90:
                    sys.exit(f"{self.name} did not answer:\n{self.log.read_text()[-2000:]}")
                time.sleep(0.02)

    def family(self):
        "The process and all below it."
        return [self.process.pid, *family(self.process.pid)]

    def cpu(self):
        ticks = 0
        for pid in self.family():
            try: ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
            except OSError: continue
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self):
        "Proportional set size, MB."
        total = 0
        for pid in self.family():
            try: total += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
            except (OSError, TypeError): continue
        return total / 1024

    def stop(self):
        try: os.killpg(self.process.pid, signal.SIGTERM)
        except ProcessLookupError: return
        try: self.process.wait(15)
        except subprocess.TimeoutExpired: os.killpg(self.process.pid, signal.SIGKILL); self.process.wait(5)


def free(): s = listen(); port = s.getsockname()[1]; return s, port


def servers(which, folder, bundle, model, peer_python):
    "name -> (start a server, path, function of rows -> body, headers)."
    python, program = sys.executable, Path(sys.executable).with_name("deploy-assist")
    (folder / "floor.py").write_text(FLOOR)
    (folder / "ort.py").write_text(ORT)
    (folder / "key.txt").write_text(KEY)

    def ours(name, *more):
        def start():
            sock, port = free(); sock.close()
            command = [program, "serve", bundle, "--port", port, "--key-file", folder / "key.txt", *more]
            return Server(name, command, port, folder)
        return start

    def script(name, *more):
        def start():
            sock, port = free()
            return Server(name, [python, folder / f"{name}.py", sock.fileno(), *more], port, folder, sock)
        return start

    def mlflow():
        sock, port = free(); sock.close()
        command = [python, "-m", "mlflow", "models", "serve", "-m", bundle, "--env-manager", "local", "-p", port, "-w", "1"]
        return Server("mlflow", command, port, folder)

    plain = {"Content-Type": "application/json"}
    rows = lambda part: json.dumps({"rows": part}).encode()
    records = lambda part: json.dumps({"dataframe_records": part}).encode()
    keyed = plain | {"Authorization": f"Bearer {KEY}"}
    found = {
        "ours": (ours("ours", "--log", f"sqlite:///{folder}/log.db"), "/predict", rows, keyed),
        "ours without log": (ours("ours without log", "--no-log"), "/predict", rows, keyed),
        "mlflow": (mlflow, "/invocations", records, plain),
        "floor": (script("floor"), "/", rows, plain),
    }
    def mlserver():
        home = folder / "mlserver"
        if not home.exists():
            home.mkdir()
            joblib.dump(model, home / "model.joblib")
            (home / "model-settings.json").write_text(json.dumps(dict(
                name="m", implementation="mlserver_sklearn.SKLearnModel",
                parameters=dict(uri="model.joblib", version="1", content_type="pd"))))
        ports = [listen() for _ in range(3)]
        http, grpc, metrics = (s.getsockname()[1] for s in ports)
        for s in ports: s.close()
        (home / "settings.json").write_text(json.dumps(dict(
            host="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics, parallel_workers=0, debug=False)))
        return Server("mlserver", [Path(peer_python).with_name("mlserver"), "start", home], http, folder)

    def tensors(part):
        kinds = {float: "FP64", int: "INT64", str: "BYTES"}
        first, n = part[0], len(part)
        inputs = [dict(name=c, shape=[n, 1], datatype=kinds[type(first[c])], data=[r[c] for r in part]) for c in first]
        return json.dumps(dict(inputs=inputs)).encode()

    found["ours tensors"] = (ours("ours tensors", "--no-log"), f"/v2/models/{bundle.parent.name}/infer", tensors, keyed)
    if peer_python: found["mlserver"] = (mlserver, "/v2/models/m/infer", tensors, plain)
    if (bundle / "model.onnx").is_file(): found["ort"] = (script("ort", bundle / "model.onnx"), "/", rows, plain)
    return {name: found[name] for name in which if name in found}


# ---------------------------------------------------------------------------------------------------------------- client

LUA = """
wrk.method = "POST"
%s
local bodies = {}
for line in io.lines(%s) do bodies[#bodies + 1] = line end
local i = 0
request = function() i = i %% #bodies + 1; return wrk.format(nil, nil, nil, bodies[i]) end
done = function(summary, latency, requests)
  io.write(string.format("\\nRESULT %%d %%f %%f %%f %%d\\n", summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""


def load(server, path, bodies, headers, connections, seconds, folder):
    "One round of wrk on core 1: requests/s, p50, p99 (ms), errors, CPU ms a request."
    (folder / "bodies").write_bytes(b"\n".join(bodies) + b"\n")
    lines = "\n".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in headers.items())
    (folder / "load.lua").write_text(LUA % (lines, json.dumps(str(folder / "bodies"))))
    before = server.cpu()
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    command += ["-s", folder / "load.lua", server.url + path]
    out = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds + 60).stdout
    n, took, p50, p99, errors = map(float, re.search(r"RESULT (.+)", out)[1].split())
    return dict(rate=n / took, p50=p50, p99=p99, errors=int(errors), cpu_ms=(server.cpu() - before) * 1000 / max(n, 1))


BUSY = """import time
def busy(X):
    end = time.perf_counter() + 1
    while time.perf_counter() < end: sum(range(1000))
    return X
"""


def health(folder):
    "While predictions of 1 s (pure Python, which holds the interpreter's lock) run all the time: how long health takes, in ms."
    from http.client import HTTPConnection
    from threading import Thread

    from sklearn.linear_model import LinearRegression
    from sklearn.preprocessing import FunctionTransformer
    (folder / "busy_of_the_bench.py").write_text(BUSY)
    sys.path.insert(0, str(folder))
    from busy_of_the_bench import busy
    X = pd.DataFrame(dict(a=np.arange(4.0)))
    release = prepare(make_pipeline(FunctionTransformer(busy), LinearRegression()).fit(X, X.a), X, X.a, name="busy", onnx=False,
                      modules=[folder / "busy_of_the_bench.py"], trusted=["busy_of_the_bench.busy"])
    bundle = release.save(folder / "busy")
    (start, path, body, headers), = servers(["ours"], folder, bundle, None, None).values()
    server = start()
    try:
        server.wait(path, body([{"a": 1.0}]), headers)
        until, took, answered = time.perf_counter() + 10, [], []
        def ask():
            while time.perf_counter() < until:
                request = Request(server.url + path, body([{"a": 1.0}]), headers)
                with urlopen(request, timeout=60) as answer: answered.append(answer.status)
        asking = [Thread(target=ask) for _ in range(2)]
        for thread in asking: thread.start()
        connection = HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        while time.perf_counter() < until:
            start = time.perf_counter()
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            took.append((time.perf_counter() - start) * 1000)
            time.sleep(0.01)
        for thread in asking: thread.join()
    finally: server.stop()
    p50, p99 = map(float, np.percentile(took, [50, 99]))
    return dict(p50=p50, p99=p99, count=len(took), predictions=len(answered))


def packages():
    "How many packages an environment with the base install holds."
    from deploy_assist.environment import Lock, lock_of
    return len(Lock.read(lock_of(["deploy_assist", "onnxruntime"])).pins)


def same(answer, expected, name, model):
    got = np.asarray(answer["predictions"] if "predictions" in answer else answer["outputs"][0]["data"]).ravel()
    if name in ("floor",) or (got.shape == expected.shape and (got == expected).all()): return
    sys.exit(f"{model}, {name}: the answers are not those of the model: {got[:5]} instead of {expected[:5]}")


def main():
    say = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    say.add_argument("--models", default=",".join(MODELS))
    say.add_argument("--servers", help="their names",
                     default="ours,ours without log,mlflow,ort,floor,ours tensors,mlserver")
    say.add_argument("--rounds", type=int, default=5)
    say.add_argument("--seconds", type=int, default=4)
    say.add_argument("--mlserver", type=Path, help="the Python of an environment of its own, to measure MLServer too: "
                     "uv venv DIR && uv pip install --python DIR/bin/python mlserver mlserver-sklearn")
    say.add_argument("--json", type=Path, help="also write the figures there")
    say.add_argument("--no-health", action="store_true", help="leave out the health of an endpoint whose model takes 1 s")
    say.add_argument("--markdown", type=Path, help="also write the tables of nbs/tutorials/serving_speed.ipynb there")
    told = say.parse_args()
    if not shutil.which("wrk"): sys.exit("wrk is missing: apt-get install wrk")
    versions = ", ".join(f"{p} {version(p)}" for p in ("scikit-learn", "mlflow", "onnxruntime", "uvicorn", "msgspec"))
    machine = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    print(machine)
    every = {}
    with tempfile.TemporaryDirectory(prefix="deploy-assist-bench-") as made:
        os.environ["DEPLOY_ASSIST_HOME"] = f"{made}/home"
        for model_name in told.models.split(","):
            folder = Path(made) / model_name
            folder.mkdir()
            model, X, y = MODELS[model_name]()
            release = prepare(model, X, y, name=model_name)
            bundle = release.save(folder / "bundle")
            sent = release.schema.rows(X.iloc[:1000])
            sent = (sent * (1000 // len(sent) + 1))[:1000]
            expected = np.asarray(model.predict(pd.DataFrame(sent)))
            running, ways = {}, servers(told.servers.split(","), folder, bundle, model, told.mlserver)
            try:
                for name, (start, path, body, headers) in ways.items():
                    running[name] = start()
                    running[name].wait(path, body(sent[:1]), headers)
                    with urlopen(Request(running[name].url + path, body(sent), headers), timeout=60) as answer:
                        same(json.loads(answer.read()), expected, name, model_name)
                figures = {}
                for case, rows, connections in CASES:
                    rounds = {name: [] for name in ways}
                    for _ in range(told.rounds):
                        for name, (_, path, body, headers) in ways.items():
                            if rows == 1 and body.__name__ == "tensors": continue  # a protocol for batches
                            bodies = [body(sent[:1000])] if rows > 1 else [body([row]) for row in sent[:200]]
                            done = load(running[name], path, bodies, headers, connections, told.seconds, folder)
                            rounds[name].append(done)
                    figures[case] = {name: {k: median(r[k] for r in all) for k in all[0]} for name, all in rounds.items() if all}
                    show(model_name, case, rows, figures[case])
                figures["start"] = {name: dict(first_s=s.first, memory_mb=s.memory()) for name, s in running.items()}
                for name, f in figures["start"].items():
                    print(f"{model_name}: first answer after {f['first_s']:5.2f} s, memory {f['memory_mb']:5.0f} MB   {name}")
                every[model_name] = figures
            finally:
                for server in running.values(): server.stop()
        if not told.no_health:
            every["health"] = found = health(Path(made))
            print(f"\nhealth while predictions of 1 s run: p50 {found['p50']:.1f} ms, p99 {found['p99']:.1f} ms "
                  f"({found['count']} answers, {found['predictions']} predictions)")
    every["packages"] = packages()
    print(f"packages in an environment that serves a bundle: {every['packages']}")
    if told.json: told.json.write_text(json.dumps(every, indent=1))
    if told.markdown: told.markdown.write_text(markdown(every, machine, told))


def processor():
    "The processor's name, where Linux knows it."
    try: return re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)[1]
    except (OSError, TypeError): return platform.processor() or platform.machine()


def table(head, rows):
    "A table in Markdown."
    return ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]] + [""]


def markdown(every, machine, told):
    "The figures as the documentation shows them."
    date, models = time.strftime("%Y-%m-%d", time.gmtime()), told.models.split(",")
    out = [f"Measured on {date}: {machine}; {told.rounds} interleaved rounds of {told.seconds} s, medians.", ""]
    head = ["", "requests/s", "rows/s", "p50 ms", "CPU ms a request", "of the floor", "of ONNX Runtime", "times MLflow"]
    for model in models:
        for case, n, _ in CASES:
            found, rows = every[model][case], []
            for name, f in found.items():
                over = [f"{f['rate'] / found[to]['rate']:.2f}" if to in found else "" for to in ("floor", "ort", "mlflow")]
                rows.append([name, f"{f['rate']:,.0f}", f"{f['rate'] * n:,.0f}", f"{f['p50']:.2f}", f"{f['cpu_ms']:.3f}", *over])
            out += [f"**{model}, {case}**", "", *table(head, rows)]
    rows = []
    for name in every[models[0]]["start"]:
        found = [every[m]["start"].get(name) for m in models]
        rows.append([name, *("" if f is None else f"{f['first_s']:.2f} s, {f['memory_mb']:.0f} MB" for f in found)])
    out += ["**Start to the first answer, and memory of all processes**", "", *table(["", *models], rows)]
    if "health" in every:
        h = every["health"]
        out.append(f"Health while predictions of 1 s run all the time: p50 {h['p50']:.1f} ms, p99 {h['p99']:.1f} ms.")
    return "\n".join([*out, f"Packages in an environment that serves a bundle: {every['packages']}.", ""])


def show(model, case, rows, found):
    "A line a server, with ratios to the floor and to MLflow, by rate and by CPU."
    def ratio(name, key, to, up=True):
        if to not in found: return "     -"
        a, b = found[name][key], found[to][key]
        return f"{(a / b if up else b / a):6.2f}"
    print(f"\n{model}, {case}: requests/s, rows/s, p50 ms, CPU ms a request; "
          "requests/s over floor, over ORT, over MLflow; CPU under MLflow")
    for name, f in found.items():
        print(f"  {name:<17}{f['rate']:9.0f} {f['rate'] * rows:10.0f} {f['p50']:8.2f} {f['cpu_ms']:8.3f}   "
              f"{ratio(name, 'rate', 'floor')} {ratio(name, 'rate', 'ort')} {ratio(name, 'rate', 'mlflow')} "
              f"{ratio(name, 'cpu_ms', 'mlflow', False)}" + (f"   {f['errors']} ERRORS" if f["errors"] else ""), flush=True)


if __name__ == "__main__": main()

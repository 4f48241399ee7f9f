"""What an endpoint tells besides its answers, under a real uvicorn: log lines, traces, spans in a real OTLP receiver, CORS."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
import pytest

from deploy_assist import ConfigError, MissingExtraError, serve
from deploy_assist.observe import Observer, Tracing, tracing
from deploy_assist.server import Settings

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE, PARENT = GOOD.split("-")[1:3]
APP = """
import asyncio, json, logging, socket, sys, threading, warnings
import uvicorn
from deploy_assist.observe import Observer, json_logging

json_logging()
settings = json.loads(sys.argv[2])
observer = Observer("risk", **settings)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown": await asyncio.to_thread(observer.stop)
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown": return
    if scope["method"] == "OPTIONS" and observer.cors is not None:
        allowed = observer.cors.preflight(scope["headers"])
        if allowed is not None:
            await send({"type": "http.response.start", "status": 204, "headers": allowed})
            return await send({"type": "http.response.body"})
    seen = observer.begin(scope["method"], scope["path"], scope["headers"], scope["scheme"])
    status, body, route = 200, {"seen": seen is not None}, "/predict"
    try:
        if scope["path"] == "/warn": warnings.warn("two\\nlines"); logging.getLogger("a.library").error("it said %s", "\\x1b[2J")
        elif scope["path"] == "/thread": threading.Thread(target=lambda: 1 / 0, name="drainer").start()
        elif scope["path"] == "/fail": raise ValueError("got 'abc'\\n{}")
        elif scope["path"] == "/raise": raise RuntimeError("uvicorn hears of this")
        elif scope["path"] != "/predict": status, route = 404, None
        elif seen is not None:
            for step in ("check", "predict", "log"): seen.mark(step)
    except ValueError as e:
        observer.failed(seen, e, request_id="r-1", route="/predict")
        status = 500
    body = json.dumps(body).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"x-request-id", b"r-1")]
    if seen is not None:
        observer.end(seen, status, headers, request_id="r-1", route=route, rows=3, version="7", caller="5f0c2a91")
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, server_header=False, date_header=False)
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


class Served:
    "The small application above in a process of its own."

    def __init__(self, folder: Path, env: dict | None = None, **settings):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            self.port = sock.getsockname()[1]
            self.file = folder / f"{self.port}.log"
            with self.file.open("wb") as err:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", APP, str(sock.fileno()), json.dumps(settings)],
                    stderr=err, env=os.environ | (env or {}), pass_fds=[sock.fileno()],
                )
    def __enter__(self): return self
    def __exit__(self, *_): self.stop()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try: return self.process.wait(20)
        except subprocess.TimeoutExpired: self.process.kill(); raise

    def ask(self, method="POST", path="/predict", headers=()):
        "Status and headers (name -> values) of one request."
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers: connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        connection.close()
        found: dict = {}
        for name, value in answer.getheaders(): found.setdefault(name.lower(), []).append(value)
        return answer.status, found

    def lines(self) -> list[dict]:
        "The log; every line of it is one JSON object."
        return [json.loads(line) for line in self.file.read_bytes().splitlines()]


class Receiver(ThreadingHTTPServer):
    "An OTLP/HTTP collector: reads what OpenTelemetry's own protobuf says, and keeps it."
    daemon_threads = True

    def __init__(self):
        self.spans, self.resources, self.heads, self.came = [], [], [], threading.Condition()
        super().__init__(("127.0.0.1", 0), _Receive)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def find(self, n: int, trace_id: str, span_id: str = "") -> dict:
        "The `n` spans of a trace, or of one span and its children, by name, as soon as they are here."
        def found():
            return {s.name: s for s in self.spans if s.trace_id.hex() == trace_id
                    and (not span_id or span_id in (s.span_id.hex(), s.parent_span_id.hex()))}
        with self.came:
            assert self.came.wait_for(lambda: len(found()) >= n, 15), f"{len(found())} of {n} spans came"
            return found()


class _Receive(BaseHTTPRequestHandler):
    def do_POST(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.came:
            self.server.heads.append((self.path, dict(self.headers)))
            for group in request.resource_spans:
                self.server.resources.append(attributes(group.resource))
                for scope in group.scope_spans: self.server.spans += scope.spans
            self.server.came.notify_all()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_): pass


def attributes(what) -> dict:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in what.attributes}


@pytest.fixture(scope="module")
def receiver():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason='pip install "deploy_assist[otel]"')
    with Receiver() as receiver:
        yield receiver
        receiver.shutdown()


@pytest.fixture(scope="module")
def loud(receiver, tmp_path_factory):
    "All that can be asked for."
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=ward"}
    env["OTEL_BSP_SCHEDULE_DELAY"] = "100"  # ms
    settings = dict(cors=["https://app.example.org"], access_log=True, otel=True)
    with Served(tmp_path_factory.mktemp("loud"), env, **settings) as served: yield served


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("quiet")) as served: yield served


# --- traces and lines

def test_nobody_asked(quiet):
    status, headers = quiet.ask(headers=[("Origin", "https://app.example.org")])
    assert status == 200 and set(headers) == {"content-length", "x-request-id"}
    status, headers = quiet.ask("OPTIONS", headers=[("Origin", "https://a.org"), ("Access-Control-Request-Method", "POST")])
    assert not [name for name in headers if name.startswith("access-control")] and "vary" not in headers
    assert quiet.lines() == []


@pytest.mark.parametrize("given, goes_on", [
    ([GOOD], True),
    (["cc" + GOOD[2:] + "-more"], True),
    ([f" {GOOD}\t"], True),
    ([GOOD, GOOD], False),
    ([GOOD.upper()], False),
    ([GOOD + "-more"], False),
    (["ff" + GOOD[2:]], False),
    ([GOOD.replace(PARENT, "0" * 16)], False),
    (["x" * 4000], False),
])
def test_a_trace_goes_on_or_is_ignored(quiet, given, goes_on):
    sent = [*(("TraceParent", value) for value in given), ("tracestate", "a=1,b=2"), ("tracestate", "c=3")]
    status, headers = quiet.ask(headers=sent)
    assert status == 200 and ("traceparent" in headers) == ("tracestate" in headers) == goes_on
    if goes_on:
        assert headers["traceparent"] == headers["traceresponse"] and headers["tracestate"] == ["a=1,b=2,c=3"]
        found = re.fullmatch(f"00-{TRACE}-([0-9a-f]{{16}})-01", headers["traceparent"][0])
        assert found and found[1] not in (PARENT, "0" * 16)


def test_errors_are_told_without_being_asked(quiet):
    before = len(quiet.lines())
    status, headers = quiet.ask(path="/fail", headers=[("traceparent", GOOD)])
    assert status == 500 and quiet.ask(path="/fail")[0] == 500
    first, second = quiet.lines()[before:]
    assert first["span_id"] == headers["traceparent"][0].split("-")[2] and first["trace_id"] == TRACE
    assert "trace_id" not in second
    assert first["level"] == "error" and first["request_id"] == "r-1" and first["pid"] == quiet.process.pid
    error = first["error"]
    assert (error["type"], error["message"]) == ("ValueError", "got 'abc'\n{}") and "in app" in error["stack"]


def test_whatever_speaks_speaks_json(quiet):
    before = len(quiet.lines())
    for path in ("/warn", "/thread", "/raise"): quiet.ask(path=path)
    with socket.create_connection(("127.0.0.1", quiet.port), timeout=10) as s:  # no HTTP: uvicorn warns
        s.sendall(b"\x00\x01 nonsense\r\n\r\n")
        s.recv(1000)
    until = time.monotonic() + 10
    while len(quiet.lines()) < before + 5 and time.monotonic() < until: time.sleep(0.05)
    told = {line.get("logger", line["message"]): line for line in quiet.lines()[before:]}
    assert "two\nlines" in told["py.warnings"]["message"] and told["a.library"]["message"] == "it said \x1b[2J"
    assert told["drainer ends"]["error"]["type"] == "ZeroDivisionError"
    assert sum(line.get("logger") == "uvicorn.error" for line in quiet.lines()[before:]) == 2
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert all(re.fullmatch(form, line["time"]) and line["level"] in ("warning", "error") for line in told.values())


def test_a_line_for_each_request_and_no_injection(loud):
    before = len(loud.lines())
    loud.ask(path="/predict?key=a-secret", headers=[("Authorization", "Bearer a-secret"), ("traceparent", GOOD)])
    loud.ask(path="/x%0A%7B%22level%22:%22info%22%7D%0D%1B[2J%C2%85%E2%80%A8")
    first, second = loud.lines()[before:]
    expected = dict(method="POST", route="/predict", status=200, rows=3, model="risk", version="7", caller="5f0c2a91",
                    request_id="r-1", trace_id=TRACE, level="info", message="request")
    assert {name: first[name] for name in expected} == expected
    assert 0 < first["ms"] < 10_000 and "path" not in first and "a-secret" not in loud.file.read_text()
    assert second["status"] == 404 and second["path"] == '/x\n{"level":"info"}\r\x1b[2J\x85\u2028' and "route" not in second


# --- CORS

def test_a_page_of_an_opened_origin_may_read(loud):
    ours = ("Origin", "https://app.example.org")
    status, headers = loud.ask("OPTIONS", headers=[ours, ("Access-Control-Request-Method", "POST"),
                                                   ("Access-Control-Request-Headers", "authorization,content-type")])
    assert status == 204 and headers["access-control-allow-origin"] == [ours[1]] and headers["vary"] == ["Origin"]
    allowed = headers["access-control-allow-headers"][0].lower().split(", ")
    assert {"content-type", "authorization", "x-api-key", "idempotency-key", "traceparent"} <= set(allowed)
    assert "POST" in headers["access-control-allow-methods"][0] and int(headers["access-control-max-age"][0]) > 0
    for path, expected in (("/predict", 200), ("/nowhere", 404), ("/fail", 500)):  # a refusal can be read too
        status, headers = loud.ask(path=path, headers=[ours])
        assert status == expected and headers["access-control-allow-origin"] == [ours[1]] and headers["vary"] == ["Origin"]
        assert "X-Request-Id, Retry-After" in headers["access-control-expose-headers"][0]
        assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("origin", ["https://evil.example.org", "https://app.example.org.evil.org", "http://app.example.org",
                                    "https://APP.example.org", "null", ""])
def test_a_page_of_another_origin_may_not(loud, origin):
    for method in ("POST", "OPTIONS"):
        _, headers = loud.ask(method, headers=[("Origin", origin), ("Access-Control-Request-Method", "POST")])
        assert not [name for name in headers if name.startswith("access-control")] and headers["vary"] == ["Origin"]


def test_an_answer_says_that_it_depends_on_the_origin(loud):
    assert loud.ask()[1]["vary"] == ["Origin"]


# --- spans

def test_a_request_is_a_span_in_the_callers_trace(loud, receiver):
    _, headers = loud.ask(headers=[("traceparent", GOOD), ("tracestate", "a=1")])
    span_id = headers["traceparent"][0].split("-")[2]
    spans = receiver.find(4, TRACE, span_id)
    server = spans["POST /predict"]
    assert (server.span_id.hex(), server.parent_span_id.hex(), server.trace_state) == (span_id, PARENT, "a=1")
    assert server.kind == 2 and server.status.code == 0  # SPAN_KIND_SERVER, unset
    said = attributes(server)
    assert {"http.request.method": "POST", "url.path": "/predict", "url.scheme": "http", "http.route": "/predict",
            "http.response.status_code": 200, "deploy_assist.model.name": "risk", "deploy_assist.model.version": "7",
            "deploy_assist.rows": 3, "deploy_assist.request.id": "r-1", "deploy_assist.caller.id": "5f0c2a91"} == said
    times = [server.start_time_unix_nano]
    for step in ("check", "predict", "log"):  # one after the other, all inside
        assert spans[step].start_time_unix_nano == times[-1] and spans[step].kind == 1
        times.append(spans[step].end_time_unix_nano)
    assert times == sorted(times) and times[-1] <= server.end_time_unix_nano
    assert abs(times[0] / 1e9 - time.time()) < 60
    path, head = receiver.heads[-1]
    assert path == "/v1/traces" and head["x-tenant"] == "ward" and receiver.resources[-1]["service.name"] == "risk"


def test_failures_are_errors_and_refusals_are_not(loud, receiver):
    _, headers = loud.ask(path="/fail")
    assert "traceparent" not in headers  # this caller takes part in no trace
    loud.ask("PROPFIND", "/nowhere", [("traceparent", GOOD.replace(TRACE, "d" * 32))])
    line = next(line for line in loud.lines()[::-1] if line.get("error"))
    failed, refused = receiver.find(1, line["trace_id"])["POST /predict"], receiver.find(1, "d" * 32)["HTTP"]
    assert failed.status.code == 2 and attributes(failed)["error.type"] == "ValueError" and not failed.parent_span_id
    assert "abc" not in str(failed)  # the message may hold what somebody sent: it stays in the log
    assert refused.status.code == 0 and attributes(refused)["http.request.method"] == "_OTHER"
    assert "http.route" not in attributes(refused) and "error.type" not in attributes(refused)


def test_a_trace_that_is_not_sampled_is_not_sent(loud, receiver):
    _, headers = loud.ask(headers=[("traceparent", GOOD.replace(TRACE, "a" * 32)[:-1] + "2")])
    assert re.fullmatch(f"00-{'a' * 32}-[0-9a-f]{{16}}-02", headers["traceparent"][0]) and PARENT not in headers["traceparent"][0]
    loud.ask(headers=[("traceparent", GOOD.replace(TRACE, "c" * 32))])
    assert receiver.find(4, "c" * 32) and not [s for s in receiver.spans if s.trace_id.hex() == "a" * 32]


def test_what_waits_is_sent_at_the_stop(receiver, tmp_path):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "by-name"}  # sends every 5 s
    with Served(tmp_path, env, otel=True) as served:
        served.ask(headers=[("traceparent", GOOD.replace(TRACE, "b" * 32))])
    assert [s.name for s in receiver.spans if s.trace_id.hex() == "b" * 32].count("POST /predict") == 1
    assert receiver.resources[-1]["service.name"] == "by-name"


def test_a_silent_collector_delays_nobody(tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with socket.socket() as hole:  # takes connections and never answers
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{hole.getsockname()[1]}", "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with Served(tmp_path, env, otel=True) as served:
            assert [served.ask()[0] for _ in range(200)] == [200] * 200
            started = time.monotonic()
            served.stop()
            assert time.monotonic() - started < 10
    assert not [line for line in served.lines() if line.get("error", {}).get("type") == "ValueError"]


def test_the_environment_is_heard(monkeypatch):
    wrong = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"), ("OTEL_TRACES_EXPORTER", "zipkin", "otlp")
    for name, value, said in wrong:
        with monkeypatch.context() as m:
            m.setenv(name, value)
            with pytest.raises(ConfigError, match=said): Observer("risk", otel=True)
    for name, value in (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as m:
            m.setenv(name, value)
            assert tracing("risk") is None and Observer("risk", otel=True).is_quiet


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtraError, match=r"deploy_assist\[otel\]"): Tracing("risk")


def test_off_it_costs_no_import():
    code = ("import sys; from deploy_assist.observe import Observer; Observer('risk', cors=['*'], access_log=True); "
            "print(sorted({m.split('.')[0] for m in sys.modules} & {'opentelemetry', 'requests', 'uvicorn', 'numpy', 'pandas'}))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.strip() == "[]"


# --- the endpoint itself

hooked = pytest.mark.skipif("cors" not in Settings.__dataclass_fields__, reason="the endpoint does not call the observer yet")
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def pages():
    "A page of a server of its own, which is 127.0.0.1 to some and localhost to others: two origins."
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>a page</title>")

        def log_message(self, *_): pass
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def endpoint(bundle, receiver, pages, tmp_path_factory):
    home = tmp_path_factory.mktemp("observed")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        m.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        endpoint = serve(bundle, key=KEY, log=f"sqlite:///{home}/log.db", home=home, cors=[f"http://127.0.0.1:{pages}"],
                         access_log=True, otel=True)
    with endpoint: yield endpoint


def ask(endpoint, method, path, body=None, **headers):
    "Status and headers of one request."
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None: headers.setdefault("Content-Type", "application/json")
    request = Request(endpoint.url + path, None if body is None else json.dumps(body).encode(), headers, method=method)
    try: answer = urlopen(request, timeout=30)
    except HTTPError as e: answer = e
    with answer: answer.read(); return answer.status, answer.headers


def told(endpoint, request_id: str) -> list[dict]:
    "The lines on a request; every line of the log is JSON."
    return [line for line in map(json.loads, endpoint.logs().splitlines()) if line.get("request_id") == request_id]


@hooked
@pytest.mark.parametrize("path, body", [("/predict", lambda row: {"rows": [row, row]}),
                                        ("/invocations", lambda row: {"dataframe_records": [row, row]})])
def test_a_prediction_is_a_line_and_a_span(endpoint, receiver, patients, path, body):
    trace_id = os.urandom(16).hex()
    parent, row = GOOD.replace(TRACE, trace_id), patients.schema.example()[0]
    status, headers = ask(endpoint, "POST", path, body(row), traceparent=parent, authorization=f"Bearer {KEY}")
    span_id = headers["traceparent"].split("-")[2]
    assert status == 200 and headers["traceresponse"] == headers["traceparent"] == f"00-{trace_id}-{span_id}-01"
    line, = told(endpoint, headers["X-Request-Id"])
    expected = dict(trace_id=trace_id, span_id=span_id, route=path, status=200, rows=2, model="patients", caller="key")
    assert {name: line[name] for name in expected} == expected and KEY not in endpoint.logs()
    spans = receiver.find(4, trace_id)
    server = attributes(spans[f"POST {path}"])
    assert server["deploy_assist.rows"] == 2 and server["deploy_assist.request.id"] == headers["X-Request-Id"]
    assert server["http.response.status_code"] == 200 and {"check", "predict", "log"} < set(spans)


@hooked
def test_a_refusal_is_a_line_too_and_a_page_can_read_it(endpoint, pages):
    ours = {"Origin": f"http://127.0.0.1:{pages}"}
    for expected, sent in ((401, {}), (422, {"X-API-Key": KEY})):
        status, headers = ask(endpoint, "POST", "/predict", {"rows": []}, **ours, **sent)
        assert status == expected and headers["Access-Control-Allow-Origin"] == ours["Origin"]
        line, = told(endpoint, headers["X-Request-Id"])
        assert (line["status"], line["route"], line.get("caller")) == (expected, "/predict", "key" if sent else None)
    status, headers = ask(endpoint, "OPTIONS", "/predict", **ours, Access_Control_Request_Method="POST")
    assert status == 204 and headers["Access-Control-Allow-Origin"] == ours["Origin"]  # without the key
    theirs = {"Origin": "https://evil.example.org"}
    status, headers = ask(endpoint, "OPTIONS", "/predict", **theirs, Access_Control_Request_Method="POST")
    assert status == 405 and "Access-Control-Allow-Origin" not in headers and headers["Vary"] == "Origin"


@hooked
def test_a_page_in_a_browser_predicts_where_it_may(endpoint, pages, patients, page):
    fetch = """async ([url, key, row]) => {
        try {
            const answer = await fetch(url + "/predict", {method: "POST", body: JSON.stringify(row),
                headers: {"Content-Type": "application/json", "Authorization": "Bearer " + key}});
            return [answer.status, answer.headers.get("X-Request-Id"), await answer.json()];
        } catch (e) { return String(e) }
    }"""
    row = patients.schema.example()[0]
    page.goto(f"http://127.0.0.1:{pages}/")
    status, id, answer = page.evaluate(fetch, [endpoint.url, KEY, row])
    assert status == 200 and id and answer["predictions"] == patients.predict(pd.DataFrame([row])).tolist()
    status, id, answer = page.evaluate(fetch, [endpoint.url, "a wrong key", row])
    assert status == 401 and answer["request_id"] == id
    page.goto(f"http://localhost:{pages}/")
    assert page.evaluate(fetch, [endpoint.url, KEY, row]) == "TypeError: Failed to fetch"


@hooked
def test_an_endpoint_that_nobody_asked_is_silent(bundle, patients, tmp_path):
    row = patients.schema.example()[0]
    with serve(bundle, log=False, home=tmp_path) as endpoint:
        status, headers = ask(endpoint, "POST", "/predict", row, origin="https://app.example.org")
        assert status == 200 and not [n for n in headers if n.lower().startswith(("access-control", "trace", "vary"))]
        status, headers = ask(endpoint, "POST", "/predict", row, traceparent=GOOD, tracestate="a=1")
        assert status == 200 and headers["traceparent"].startswith(f"00-{TRACE}-") and headers["tracestate"] == "a=1"
        assert ask(endpoint, "OPTIONS", "/predict", Origin="https://a.org", Access_Control_Request_Method="POST")[0] == 405
        assert endpoint.logs() == ""
    with pytest.raises(ConfigError, match="cors: got"): serve(bundle, log=False, home=tmp_path, cors=["app.example.org"])

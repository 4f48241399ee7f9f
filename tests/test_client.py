"""The clients against real endpoints, and what may stand between or instead of them: cut connections, proxies, other servers."""
import asyncio
import json
import os
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from deploy_assist import AsyncClient, Client, ConfigError, EndpointError, PredictionLog, Schema, SchemaError, serve
from deploy_assist.access import self_signed


# --- what stands between a client and an endpoint

def message(sock) -> bytes:
    "One HTTP message with a Content-Length, or nothing when the other side has closed."
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part: return b""
        data += part
    head, body = data.split(b"\r\n\r\n", 1)
    sizes = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(sizes[0] if sizes else 0): body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def to(url: str):
    "Passes a request on to an endpoint and gives its answer back."
    host, port = url.split("//")[1].split(":")

    def ask(request: bytes) -> bytes:
        with socket.create_connection((host, int(port))) as upstream:
            upstream.sendall(request)
            return message(upstream)

    return ask


class Last(bytes):
    "What is sent before the connection is closed."


class Tunnel(int):
    "The port on loopback that a proxy connects its client to."


@contextmanager
def between(answer, *, tls=None, port=0):
    "A server on loopback. `answer` makes of a request the bytes to send back."
    seen, threads, socks, lock = SimpleNamespace(requests=[], connections=0), [], [], threading.Lock()

    def talk(sock):
        try:
            if tls: sock = tls.wrap_socket(sock, server_side=True)
            while request := message(sock):
                with lock: seen.requests.append(request)
                said = answer(request)
                if isinstance(said, Tunnel): return tunnel(sock, said)
                sock.sendall(said)
                if isinstance(said, Last): break
        except OSError: pass
        finally: sock.close()

    def tunnel(sock, port):
        with socket.create_connection(("127.0.0.1", int(port))) as other:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=[other, sock])
            back.start()
            pump(sock, other)
            back.join()

    def pump(source, target):
        try:
            while part := source.recv(65536): target.sendall(part)
            target.shutdown(socket.SHUT_WR)
        except OSError: pass

    def accept():
        while True:
            try: sock, _ = listener.accept()
            except OSError: return
            seen.connections += 1
            socks.append(sock)
            threads.append(threading.Thread(target=talk, args=[sock]))
            threads[-1].start()

    listener = socket.create_server(("127.0.0.1", port))
    seen.port = listener.getsockname()[1]
    seen.url = f"{'https' if tls else 'http'}://127.0.0.1:{seen.port}"
    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try: yield seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for sock in socks:
            try: sock.shutdown(socket.SHUT_RDWR)
            except OSError: pass
        for thread in threads: thread.join()


def http(status, body, kind="application/json", **headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}",
             *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def refusal(status, detail="so it is", **headers):
    return http(status, dict(title="No", status=status, detail=detail, request_id="0198"), "application/problem+json", **headers)


FINE = http(200, dict(predictions=[1], prediction_ids=["0198"], model={}))


# --- both clients, called alike

class Awaited:
    "An AsyncClient whose calls are run to their end, so that one test serves both clients."
    def __init__(self, *args, **options): self.client, self.runner = AsyncClient(*args, **options), asyncio.Runner()

    def __getattr__(self, name): return lambda *args, **given: self.runner.run(getattr(self.client, name)(*args, **given))
    def __enter__(self): return self
    def __exit__(self, *_):
        with self.runner: self.close()


@pytest.fixture(params=[Client, Awaited], ids=["blocking", "awaited"])
def connect(request): return request.param


@pytest.fixture(scope="module")
def endpoint(bundle, tmp_path_factory):
    home = tmp_path_factory.mktemp("endpoint")
    with serve(bundle, log=f"sqlite:///{home}/log.db", home=home) as endpoint:
        endpoint.log_url, endpoint.home = f"sqlite:///{home}/log.db", home
        yield endpoint


@pytest.fixture(scope="module")
def narrow(bundle, tmp_path_factory):
    "An endpoint that takes little, and not often."
    home = tmp_path_factory.mktemp("narrow")
    with serve(bundle, log=False, home=home, max_rows=10, rate="20/second", key="a-key-of-the-tests") as endpoint: yield endpoint


@pytest.fixture(scope="module")
def X(patients): return patients.X_test.iloc[:40]


# --- frames in and out

def test_every_kind_of_table_gives_the_same_answers(endpoint, patients, X, connect):
    import polars as pl
    import pyarrow as pa
    records = X.to_dict("records")
    with connect(endpoint) as client:
        expected = patients.predict(X)
        backwards, array = X[X.columns[::-1]], X.to_numpy()
        for table in (X, backwards, array, array.tolist(), records, tuple(records), pl.from_pandas(X), pa.table(X)):
            answers = client.predict(table)
            assert (answers == expected).all() and answers.dtype == expected.dtype
        assert client.predict(records[0]).tolist() == expected[:1].tolist()
        assert client.predict(X.iloc[:0]).shape == client.predict([]).shape == (0,)


def test_a_frame_comes_back(endpoint, patients, X, connect):
    with connect(endpoint, rows_per_request=15) as client:
        out, ids = client.predict(X, return_ids=True, as_frame=True)
        assert list(out) == ["prediction", "p_0", "p_1", "prediction_id"] and out.index.equals(X.index)
        assert (out["prediction"] == patients.predict(X)).all()
        assert out["prediction_id"].tolist() == ids and len(set(ids)) == len(X)
        assert np.allclose(out[["p_0", "p_1"]], patients.predict_proba(X), rtol=1e-4)
        assert client.predict(X.to_dict("records")[:3], as_frame=True).index.tolist() == [0, 1, 2]
        assert list(client.predict(X.iloc[:0], as_frame=True)) == ["prediction", "prediction_id"]


def test_several_outputs_have_their_names(connect):
    known = Schema.learn(pd.DataFrame(dict(a=[1.0, 2.0])), outputs=("up", "down"))
    out = dict(predictions=[[1.0, -1.0], [2.0, -2.0]], prediction_ids=["0198", "0199"])
    with between(lambda request: http("200 OK", known.to_dict() if request.startswith(b"GET") else out)) as seen:
        with connect(seen.url) as client:
            assert client.predict([{"a": 1}, {"a": 2}], as_frame=True).to_dict("list") == dict(
                up=[1, 2], down=[-1, -2], prediction_id=["0198", "0199"])
            assert client.predict([]).shape == (0, 2)


def test_a_wrong_cell_in_a_later_part_is_named_before_anything_is_sent(endpoint, X, connect):
    bad = X.assign(bmi=[*X["bmi"][:-1], float("inf")])
    with between(to(endpoint.url)) as seen, connect(seen.url, rows_per_request=7) as client:
        for table in (bad, bad.to_dict("records")):
            with pytest.raises(SchemaError, match="row 39") as e: client.predict(table)
            assert [(x["row"], x["column"]) for x in e.value.errors] == [(39, "bmi")]
        assert {r.split()[0] for r in seen.requests} == {b"GET"}
    with connect(endpoint) as client, pytest.raises(SchemaError, match="row 39, column 'bmi': got"): client.predict(bad)


def test_parts_adapt_to_what_the_endpoint_takes(narrow, patients, X, connect):
    with connect(narrow) as client:
        bad = X.assign(bmi=[*X["bmi"][:-1], None])
        with pytest.raises(SchemaError, match="row 39, column 'bmi': got null"): client.predict(bad)
        assert (client.predict(X) == patients.predict(X)).all()
    with between(to(narrow.url)) as seen, connect(seen.url, narrow.key) as client:
        client.predict(X)
        before = len(seen.requests)
        client.predict(X)
        assert max(r.count(b'"bmi"') for r in seen.requests[before:]) == 10  # it remembers


def test_too_often_is_asked_again_when_the_endpoint_says(narrow, patients, X, connect):
    row = X.iloc[0].to_dict()
    with connect(narrow) as client: assert {client.predict(row)[0] for _ in range(25)} == set(patients.predict(X.iloc[:1]))
    with connect(narrow, retries=0) as client, pytest.raises(EndpointError, match="429 Too many.*ask again later") as e:
        while True: client.predict(row)
    assert e.value.status == 429 and e.value.retry_after == 1 and e.value.request_id


# --- connections

def test_an_answer_that_was_lost_is_logged_once(endpoint, X, connect):
    "The answer was computed and logged, and the connection broke before it, and then in the middle of it."
    ask, lost = to(endpoint.url), []

    def cut(request):
        answer = ask(request)
        if not request.startswith(b"POST") or len(lost) == 2: return answer
        lost.append(json.loads(answer.split(b"\r\n\r\n", 1)[1])["prediction_ids"])
        return Last(answer[:len(answer) // 2 * (len(lost) - 1)])

    with between(cut) as seen, connect(seen.url) as client: answers, ids = client.predict(X, return_ids=True)
    assert len(seen.requests) == 4 and len(answers) == len(set(ids)) == len(X) and lost == [ids, ids]
    with PredictionLog(endpoint.log_url, home=endpoint.home) as log:
        until = time.monotonic() + 10
        while not set(ids) <= set(kept := log.window("patients")["prediction_id"]) and time.monotonic() < until: time.sleep(0.05)
        assert kept[kept.isin(ids)].tolist() == sorted(ids)


def test_connections_are_kept_and_replaced(endpoint, patients, X, connect, free_port):
    row, expected = X.iloc[[0]], patients.predict(X.iloc[:1])
    with connect(f"http://127.0.0.1:{free_port}", retries=0) as client:
        for _ in range(2):  # the endpoint is started again: what was kept is closed by now
            with between(to(endpoint.url), port=free_port) as seen:
                for _ in range(3): assert client.predict(row) == expected
                assert seen.connections == 1
        with pytest.raises(EndpointError, match="cannot be reached.*expected a running endpoint"): client.predict(row)
        assert client.ready() is False


def test_an_endpoint_that_is_started_again_meanwhile(endpoint, X, connect, free_port):
    def start():
        with between(to(endpoint.url), port=free_port): stop.wait(20)
    stop, late = threading.Event(), threading.Timer(0.3, start)
    late.start()
    try:
        with connect(f"http://127.0.0.1:{free_port}", retries=8, retry_s=15) as client: assert len(client.predict(X)) == len(X)
    finally: stop.set(), late.join()


def test_many_at_once_get_their_own_answers(endpoint, patients, X):
    rows, expected = X.to_dict("records") * 4, patients.predict_proba(X)[:, 1].tolist() * 4
    with Client(endpoint) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: client.predict(row, as_frame=True)["p_1"][0], rows))
    assert np.allclose(answers, expected, rtol=1e-4)

    async def ask():
        async with AsyncClient(endpoint) as client:
            given_up = asyncio.ensure_future(client.predict(X))
            await asyncio.sleep(0.001)
            given_up.cancel()
            return await asyncio.gather(*(client.predict(row, as_frame=True) for row in rows))

    assert np.allclose([out["p_1"][0] for out in asyncio.run(ask())], expected, rtol=1e-4)


def test_a_fork_uses_connections_of_its_own(endpoint, X):
    with between(to(endpoint.url)) as seen, Client(seen.url) as client:
        client.schema()
        child = os.fork()
        if child == 0: os._exit(0 if client.ready() else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert client.ready() and seen.connections == 2


# --- what is asked again, and what is not

@pytest.mark.parametrize("first, asked", [
    (refusal("503 Service Unavailable", Retry_After="0"), 2), (refusal("429 Too Many Requests"), 2),
    (http("502 Bad Gateway", b""), 2),
    (refusal("504 Gateway Timeout"), 1), (refusal("500 Internal Server Error"), 1), (refusal("400 Bad Request"), 1),
    (refusal("422 Unprocessable"), 1),
    (refusal("503 Service Unavailable", Retry_After="99"), 1), (b"SSH-2.0-OpenSSH_9.2\r\n", 1),
])
def test_what_is_asked_again(first, asked, connect):
    with between(lambda request: first if len(seen.requests) == 1 else FINE) as seen, connect(seen.url) as client:
        if asked == 2: assert client.predict({"age": 1}).tolist() == [1]
        else:
            with pytest.raises((EndpointError, SchemaError)): client.predict({"age": 1})
        keys = {line for r in seen.requests for line in r.split(b"\r\n") if line.lower().startswith(b"idempotency-key: ")}
        assert len(seen.requests) == asked and len(keys) == 1


def test_it_is_said_how_often_was_asked(connect):
    with between(lambda request: Last(b"")) as seen, connect(seen.url, retries=1) as client:
        with pytest.raises(EndpointError, match=r"before an answer came.*asked 2 times in 0\.\d s"): client.predict({"age": 1})
    assert len(seen.requests) == 2


def test_no_answer_in_time_is_final(connect):
    until = threading.Event()
    with between(lambda request: Last(b"" if until.wait(10) else b"")) as seen, connect(seen.url, timeout_s=0.2) as client:
        with pytest.raises(EndpointError, match="no answer within 0.2 s") as e: client.predict({"age": 1})
        until.set()
        assert len(seen.requests) == 1 and e.value.status is None


# --- what is no endpoint of ours

@pytest.mark.parametrize("answer, said", [
    (http("200 OK", b"<h1>Welcome</h1>", "text/html"), r"status 200 \(text/html\) and no problem\+json, expected an endpoint"),
    (http("404 Not Found", {"detail": "Not Found"}), r"status 404 \(application/json\) and no problem\+json"),
    (http("301 Moved", b"", Location="https://risk.example"), r"a redirect \(301\) to https://risk.example"),
    (http("200 OK", {"answer": 42}), "JSON that is no prediction.*`predictions`"),
    (http("200 OK", [1]), "JSON that is no prediction"),
    (http("200 OK", dict(predictions=[1, 1], prediction_ids=["a", "b"])), "2 predictions and 2 ids for 1 rows"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP"),
    (Last(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "the answer broke off after 1 bytes of 100"),
    (refusal("404 Not Found", "/x/predict is not a route"), "is the address that of the endpoint, without a route"),
    (refusal("401 Unauthorized", "send the key"), r"401 No: send the key; pass its key: Client\(url, key=...\) \(request 0198\)"),
    (refusal("403 Forbidden"), "ask for a key with this scope"),
])
def test_what_is_no_answer_is_said(answer, said, connect):
    with between(lambda request: answer) as seen, connect(seen.url, retries=0) as client:
        with pytest.raises(EndpointError, match=said): client.predict({"age": 1})


def test_other_wrong_addresses(connect, tmp_path, monkeypatch):
    for url in ("ftp://127.0.0.1", "http://", "http://[::1", "http://127.0.0.1:x", "http://127.0.0.1?a=1", "127.0.0.1:8000", 7):
        with pytest.raises(ConfigError, match="expected an endpoint's address"): Client(url)
    with pytest.raises(ConfigError, match="blanks"): Client("http://127.0.0.1", "a key\r\nX: 1")
    with connect("http://no-such-host.invalid", retries=0) as client:
        with pytest.raises(EndpointError, match="expected a host that is known here"): client.schema()
    with between(lambda request: http("200 OK", {"a": 1})) as seen, connect(seen.url) as client:
        with pytest.raises(EndpointError, match="JSON that is no schema"): client.schema()
        assert client.ready() is False
        assert client.call("GET", "/version") == {"a": 1}


# --- https, and proxies

@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    "A certificate for endpoint.test and this machine, and a context that serves it."
    ca, secret = map(str, self_signed(tmp_path_factory.mktemp("tls"), ["endpoint.test", "127.0.0.1"]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, secret)
    return ca, context


def test_https(endpoint, X, certificate, connect):
    ca, context = certificate
    with between(to(endpoint.url), tls=context) as seen:
        with connect(seen.url, ca=ca) as client: assert len(client.predict(X)) == len(X) and seen.connections == 1
        with connect(seen.url) as client, pytest.raises(EndpointError, match="certificate is not trusted.*ca=") as e:
            client.schema()
        assert "asked" not in str(e.value)
        with connect(seen.url.replace("https", "http"), retries=0) as client:
            with pytest.raises(EndpointError, match="https"): client.schema()
    with connect(endpoint.url.replace("http", "https")) as client:
        with pytest.raises(EndpointError, match="no TLS .*does it speak http"): client.schema()


def test_through_a_proxy(endpoint, X, certificate, connect, monkeypatch):
    "endpoint.test is known to the proxy alone; it asks for a password, and passes on plain requests and tunnels."
    ca, context = certificate
    ask, asked = to(endpoint.url), []
    with between(ask, tls=context) as secure:
        def proxy(request):
            line, fields = request.split(b"\r\n", 1)
            asked.append(line.decode())
            if b"Proxy-Authorization: Basic bWU6c2VjcmV0" not in fields: return Last(http("407 Who are you", b""))
            if line.startswith(b"CONNECT"): return Tunnel(secure.port)
            return ask(request.replace(b"http://endpoint.test", b"", 1))

        with between(proxy) as seen:
            for name in ("HTTP_PROXY", "HTTPS_PROXY"): monkeypatch.setenv(name, f"http://me:secret@127.0.0.1:{seen.port}")
            for name in ("http_proxy", "https_proxy", "no_proxy", "NO_PROXY"): monkeypatch.delenv(name, raising=False)
            with connect("http://endpoint.test") as client: assert len(client.predict(X)) == len(X)
            with connect("https://endpoint.test", ca=ca) as client: assert len(client.predict(X)) == len(X)
            assert asked == ["GET http://endpoint.test/schema HTTP/1.1", "POST http://endpoint.test/predict HTTP/1.1",
                             "CONNECT endpoint.test:443 HTTP/1.1"]
            with connect(endpoint.url) as client: assert client.ready() and len(asked) == 3  # this machine is asked directly
            monkeypatch.setenv("HTTPS_PROXY", seen.url)
            with connect("https://endpoint.test", ca=ca) as client:
                with pytest.raises(EndpointError, match="the proxy .*407.*NO_PROXY"): client.schema()
            monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
            with pytest.raises(ConfigError, match="HTTPS_PROXY: got a socks5 proxy"): connect("https://endpoint.test")

"""The load test against real endpoints: counted answers, mishaps that are reported, an end by Ctrl-C."""
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deploy_assist import ConfigError, EndpointError, serve
from deploy_assist.bench import bench, listeners, sample_rows, schema_of, target
from deploy_assist.cli import run

key = "a-key-for-the-load-test"


@pytest.fixture(scope="module")
def endpoint(bundle, tmp_path_factory):
    with serve(bundle, log=False, key=key, home=tmp_path_factory.mktemp("home")) as endpoint: yield endpoint


@contextmanager
def stand_in(schema, answer, context=None):
    "A server with the schema, whose POSTs are answered by `answer(handler)`."
    class Handler(BaseHTTPRequestHandler):
        protocol_version, wbufsize = "HTTP/1.1", -1

        def say(self, status, body, **headers):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items(): self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self): self.say(200, json.dumps(schema.to_dict()).encode())

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def log_message(self, *_): pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context: server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_a_short_run_measures_client_server_and_latency(endpoint):
    found = bench(endpoint.url, seconds=1, connections=2, key=key)
    assert set(found.answers) == {"200"} and found.requests > 20 and not found.errors
    assert 0 < found.latencies.percentile(50) <= found.latencies.percentile(99) <= found.latencies.most_ms
    assert found.seconds >= 1 and found.client_cores < 0.9
    if sys.platform == "linux":
        assert listeners(int(endpoint.url.rsplit(":", 1)[1])) == [endpoint._process.pid]
        assert found.cpu_ms > 0 and found.server_peak_mb > 50
    assert "requests/s" in str(found) and json.loads(json.dumps(found.to_dict()))["requests"] == found.requests


def test_batches_count_rows(endpoint):
    found = bench(endpoint.url, seconds=5, connections=2, rows=2000, requests=6, key=key)
    assert found.requests == 6 and found.bytes_out > 6 * 2000 * 50
    assert found.rows_per_s == pytest.approx(found.requests_per_s * 2000)


def test_a_missing_key_is_said_before_anything_is_measured(endpoint):
    with pytest.raises(EndpointError, match="expected a key"): bench(endpoint.url, seconds=1)


def test_drawn_rows_are_valid_for_the_endpoints_schema(endpoint):
    schema = schema_of(target(endpoint.url, key))
    schema.check(sample_rows(schema, 2000, seed=3))


def test_refusals_and_failures_are_counted_not_measured(patients):
    turn = iter(range(10**6))
    with stand_in(patients.schema, lambda h: h.say((200, 422, 500, 503)[next(turn) % 4], b"{}")) as url:
        found = bench(url, seconds=5, connections=2, requests=40)
    assert found.answers == {"200": 10, "422": 10, "500": 10, "503": 10}
    assert (found.requests, found.errors) == (10, 30)


def test_connections_that_the_server_closes_are_opened_again(patients):
    with stand_in(patients.schema, lambda h: h.say(200, b"{}", Connection="close")) as url:
        found = bench(url, seconds=5, connections=2, requests=20)
    assert found.answers == {"200": 20}


def test_what_is_not_http_is_counted(patients):
    def answer(handler):
        handler.wfile.write(b"hello\r\n\r\n")
        handler.close_connection = True
    with stand_in(patients.schema, answer) as url: found = bench(url, seconds=5, connections=1, requests=3)
    assert found.answers == {"not HTTP": 3} and found.requests == 0
    assert "p50" not in str(found) and found.to_dict()["latency_ms"]["p50"] is None


def test_silence_is_given_up(patients):
    go_on = threading.Event()
    with stand_in(patients.schema, lambda h: go_on.wait(20)) as url:
        start = time.monotonic()
        found = bench(url, seconds=0.3, connections=2, timeout_s=0.2)
        assert time.monotonic() - start < 10
        go_on.set()
    assert found.answers["no answer"] >= 2 and found.requests == 0


def test_a_server_that_goes_away_is_reported(bundle, tmp_path):
    with serve(bundle, log=False, home=tmp_path) as endpoint:
        gone = threading.Timer(0.8, endpoint._process.kill)
        gone.start()
        start = time.monotonic()
        found = bench(endpoint.url, seconds=30, connections=4)
        gone.join()
        assert time.monotonic() - start < 15
    assert found.requests > 0 and found.answers["not connected"] == 4
    assert "after the start a connection failed" in found.notes[0]


def test_a_self_signed_certificate_is_taken_on_loopback(patients, tmp_path):
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    certificate, file = builder.sign(private, hashes.SHA256()), tmp_path / "both.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(certificate.public_bytes(pem) + private.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with stand_in(patients.schema, lambda h: h.say(200, b"x" * 100_000), context) as url:
        found = bench(url, seconds=5, connections=2, rows=1000, requests=8)
    assert found.answers == {"200": 8} and found.bytes_in > 800_000


def test_other_machines_need_a_yes():
    with pytest.raises(ConfigError, match="allow_remote=True"): bench("http://192.0.2.1:80")


def test_the_command_ends_by_ctrl_c_with_what_was_measured(endpoint, tmp_path):
    (tmp_path / "key").write_text(key)
    words = [sys.executable, "-m", "deploy_assist.cli", "bench", endpoint.url, "--seconds", "60", "--key-file", "key", "--json"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port, end = int(endpoint.url.rsplit(":", 1)[1]), time.monotonic() + 60
        hexed = f"{port:04X}"
        def connected():
            lines = open("/proc/net/tcp").read().splitlines()[1:]
            return sum(line.split()[2].endswith(":" + hexed) and line.split()[3] == "01" for line in lines)
        while connected() < 8 and time.monotonic() < end: time.sleep(0.05)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None: process.kill(); process.wait()
    found = json.loads(out)
    assert process.returncode == 130 and found["interrupted"] and found["requests"] > 0 and not err, err


def test_the_command_fails_when_a_request_did(patients, capfd):
    with stand_in(patients.schema, lambda h: h.say(500, b"{}")) as url:
        code = run(["bench", url, "--requests", "4", "--connections", "1"])
    assert code == 1 and "500: 4" in capfd.readouterr().out

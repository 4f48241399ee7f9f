"""The endpoint over real HTTP: what it answers, what it refuses and with which words, and that it survives what it is sent."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from deploy_assist import Client, ConfigError, EndpointError, PredictionLog, SchemaError, serve
from deploy_assist.access import SCOPES, KeyStore


@pytest.fixture(scope="module")
def endpoint(bundle, tmp_path_factory):
    home = tmp_path_factory.mktemp("endpoint")
    with serve(bundle, key="a-key-of-the-tests", log=f"sqlite:///{home}/log.db", home=home) as endpoint:
        endpoint.log_url, endpoint.home = f"sqlite:///{home}/log.db", home
        yield endpoint


def ask(endpoint, method, path, body=None, key="a-key-of-the-tests", **headers):
    "Status, headers and JSON (or text) of one request."
    if body is not None and not isinstance(body, bytes): body = json.dumps(body).encode()
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    if key: headers["Authorization"] = f"Bearer {key}"
    if body is not None: headers.setdefault("Content-Type", "application/json")
    request = Request(endpoint.url + path, body, headers, method=method)
    try: answer = urlopen(request, timeout=30)
    except HTTPError as e: answer = e
    with answer:
        raw = answer.read()
        kind = answer.headers.get("Content-Type", "")
        return answer.status, answer.headers, json.loads(raw) if "json" in kind and raw else raw.decode()


@pytest.fixture(scope="module")
def row(patients):
    return patients.schema.example()[0]


def test_answers_like_the_model(endpoint, patients):
    X = patients.X_test
    with Client(endpoint.url, endpoint.key) as client:
        answers, ids = client.predict(X, return_ids=True)
        assert (answers == patients.predict(X)).all() and answers.dtype == patients.predict(X).dtype
        assert len(set(ids)) == len(X)
        single = np.concatenate([client.predict(X.iloc[[i]]) for i in range(5)])
        assert (single == answers[:5]).all()
        assert client.predict(X.iloc[:0]).shape == (0,)
        assert client.schema() == patients.schema


@pytest.mark.parametrize("wrap", [lambda row: {"rows": [row]}, lambda row: row, lambda row: [row]])
def test_three_ways_to_send_rows(endpoint, row, wrap):
    status, headers, out = ask(endpoint, "POST", "/predict", wrap(row))
    assert status == 200 and len(out["predictions"]) == len(out["prediction_ids"]) == 1
    assert out["classes"] == [0, 1] and abs(sum(out["probabilities"][0]) - 1) < 1e-9
    assert out["model"]["name"] == "patients" and headers["X-Request-Id"]


@pytest.mark.parametrize(
    "change, column",
    [
        ({"age": 30.5}, "age"),
        ({"age": "63"}, "age"),
        ({"age": True}, "age"),
        ({"age": None}, "age"),
        ({"age": [1]}, "age"),
        ({"age": {}}, "age"),
        ({"bmi": "32"}, "bmi"),
        ({"bmi": float("nan")}, "bmi"),
        ({"bmi": float("inf")}, "bmi"),
        ({"sex": 1}, "sex"),
        ({"sex": "other"}, "sex"),
        ({"weight": 1}, "weight"),
        ({"age": 10**400}, None),
        ({"bmi": 10**400}, "bmi"),
    ],
)
def test_a_wrong_cell_is_named(endpoint, row, change, column):
    status, _, out = ask(endpoint, "POST", "/predict", {"rows": [row, row | change]})
    assert status in (400, 422) and out["status"] == status and out["title"]
    if column:
        assert status == 422 and [(e["row"], e["column"]) for e in out["errors"]] == [(1, column)]
        assert out["errors"][0]["expected"]


def test_a_missing_column_and_many_errors(endpoint, row):
    status, _, out = ask(endpoint, "POST", "/predict", {"rows": [{k: v for k, v in row.items() if k != "bp"}]})
    assert status == 422 and out["errors"][0]["column"] == "bp"
    status, _, out = ask(endpoint, "POST", "/predict", {"rows": [row | {"age": "x"}] * 500})
    assert status == 422 and len(out["errors"]) == 100


def test_lenient_where_nothing_is_lost(endpoint, row, patients):
    status, _, out = ask(endpoint, "POST", "/predict", row | {"age": float(row["age"]), "bmi": 30})
    assert status == 200
    status, _, out = ask(endpoint, "POST", "/predict", row | {"bmi": 90.0})
    assert status == 200 and out["marks"][0]["column"] == "bmi"


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 50_000, 400),
        (b"null", 422),
        (b"1", 422),
        (b"[]", 422),
        (b'{"rows": []}', 422),
        (b'[1, "a", null]', 422),
        (b'{"rows": {}}', 422),
        (b'{"rows": [[]]}', 422),
        (b'{"a": 1, "a": 2}', 422),
        (b'"' + b"a" * 10_000 + b'"', 422),
    ],
)
def test_malformed_bodies(endpoint, body, status):
    got, headers, out = ask(endpoint, "POST", "/predict", body)
    assert got == status, out
    assert headers["Content-Type"] == "application/problem+json" and out["request_id"] == headers["X-Request-Id"]
    assert "Traceback" not in json.dumps(out) and "/site-packages" not in json.dumps(out)


def test_a_body_over_the_limit(endpoint):
    status, _, out = ask(endpoint, "POST", "/predict", b" " * 17_000_000)
    assert status == 413 and "16 MB" in out["detail"]


@pytest.mark.parametrize(
    "method, path, headers, status",
    [
        ("GET", "/predict", {}, 405),
        ("POST", "/health/live", {}, 405),
        ("GET", "/nothing", {}, 404),
        ("POST", "/predict", {"Content_Type": "text/csv"}, 415),
        ("POST", "/predict", {"Accept": "text/html"}, 406),
    ],
)
def test_other_refusals(endpoint, row, method, path, headers, status):
    got, answered, out = ask(endpoint, method, path, row if method == "POST" else None, **headers)
    assert got == status == out["status"]
    if status == 405: assert answered["Allow"]


def test_keys(endpoint, row):
    for key in (None, "wrong", "a-key-of-the-test"):
        assert ask(endpoint, "POST", "/predict", row, key=key)[0] == 401
        assert ask(endpoint, "GET", "/schema", key=key)[0] == 401
    assert ask(endpoint, "POST", "/predict", row, key=None, X_API_Key="a-key-of-the-tests")[0] == 200
    assert ask(endpoint, "GET", "/health/live", key=None)[0] == 200
    with pytest.raises(ConfigError, match="without a key"): serve(endpoint.home, host="0.0.0.0")


def test_a_page_of_another_site_may_not_write_into_an_endpoint_without_a_key(bundle, tmp_path, row, endpoint):
    with serve(bundle, log=False, home=tmp_path, cors=["https://app.example.org"]) as here:
        ways = [({}, 200), (dict(Sec_Fetch_Site="same-origin"), 200), (dict(Sec_Fetch_Site="cross-site"), 403),
                (dict(Sec_Fetch_Site="cross-site", Origin="https://app.example.org"), 200)]
        assert [ask(here, "POST", "/predict", row, key=None, **headers)[0] for headers, _ in ways] == [s for _, s in ways]
    assert ask(endpoint, "POST", "/predict", row, Sec_Fetch_Site="cross-site")[0] == 200  # it sent a key


def test_keys_of_a_store_have_scopes_and_end_while_it_runs(bundle, tmp_path, row):
    store = KeyStore(tmp_path / "keys.json")
    with pytest.raises(ConfigError, match="which holds none"): serve(bundle, keys=store.path, home=tmp_path)
    made = {scope: store.create(scope, [scope])[0] for scope in SCOPES}
    with serve(bundle, keys=store.path, log=f"sqlite:///{tmp_path}/log.db", home=tmp_path) as endpoint:
        asked = dict(predict=("POST", "/predict", row), metrics=("GET", "/metrics", None))
        for scope, (method, path, body) in asked.items():
            got = {name: ask(endpoint, method, path, body, key=key)[0] for name, key in made.items()}
            assert got == dict.fromkeys(SCOPES, 403) | {scope: 200, "admin": 200}
        id = ask(endpoint, "POST", "/predict", row, key=made["predict"])[2]["prediction_ids"][0]
        told = {"prediction_id": id, "label": 1}
        assert [ask(endpoint, "POST", "/feedback", told, key=made[s])[0] for s in ("predict", "feedback")] == [403, 200]
        query = "mutation ($id: ID!) { feedback(predictionId: $id, label: 1) { feedbackId } }"
        question = {"query": query, "variables": {"id": id}}
        assert ask(endpoint, "POST", "/graphql", question, key=made["feedback"])[0] == 403
        refused = ask(endpoint, "POST", "/graphql", question, key=made["predict"])[2]
        assert "not for feedback" in refused["errors"][0]["message"] and not refused.get("data")
        assert ask(endpoint, "GET", "/schema", key=made["metrics"])[0] == 200
        new, _ = store.rotate("predict")
        assert [ask(endpoint, "POST", "/predict", row, key=key)[0] for key in (made["predict"], new)] == [401, 200]
        store.revoke(new.split("_")[1])
        status, headers, problem = ask(endpoint, "POST", "/predict", row, key=new)
        assert status == 401 and headers["WWW-Authenticate"] == "Bearer" and "ended" in problem["detail"]
        assert made["admin"] not in endpoint.logs()


def test_others_are_let_in_by_the_store_of_the_home_folder(bundle, tmp_path, row):
    key, _ = KeyStore(tmp_path / "keys.json").create("a colleague")
    with serve(bundle, host="0.0.0.0", log=False, home=tmp_path) as endpoint:
        assert [ask(endpoint, "POST", "/predict", row, key=k)[0] for k in (None, "guess", key)] == [401, 401, 200]


def test_tokens_of_an_issuer_are_keys(bundle, tmp_path, row):
    import jwt
    from cryptography.hazmat.primitives.asymmetric import ec
    secret = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(secret.public_key())) | {"kid": "1"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public]}))
    told = dict(issuer="https://id.example.org", audience="risk", jwks=str(tmp_path / "jwks.json"))
    claims = dict(iss=told["issuer"], aud="risk", sub="ward", scope="predict")
    def token(**more): return jwt.encode(claims | dict(exp=time.time() + 60) | more, secret, "ES256", headers={"kid": "1"})
    with serve(bundle, jwt=told, log=False, home=tmp_path) as endpoint:
        tokens = (token(), token(exp=time.time() - 60), token(scope="metrics"), token(aud="other"))
        assert [ask(endpoint, "POST", "/predict", row, key=t)[0] for t in tokens] == [200, 401, 403, 401]


def test_https_with_a_certificate_made_here(bundle, tmp_path, patients):
    X = patients.X_test.iloc[:3]
    with serve(bundle, tls_self_signed=True, log=False, home=tmp_path) as endpoint:
        assert endpoint.url.startswith("https://127.0.0.1") and "--cacert" in endpoint.curl
        with Client(endpoint) as client: assert (client.predict(X) == patients.predict(X)).all()
        with Client(endpoint.url, ca=endpoint.ca) as client: assert (client.predict(X) == patients.predict(X)).all()
        with pytest.raises(EndpointError, match="certificate"): Client(endpoint.url, retries=0).predict(X)


def test_documents(endpoint, patients):
    status, _, api = ask(endpoint, "GET", "/openapi.json")
    assert status == 200 and api["openapi"].startswith("3.1")
    assert list(api["components"]["schemas"]["Row"]["properties"]) == patients.schema.names
    status, headers, page = ask(endpoint, "GET", "/docs", key=None)
    assert (
        status == 200
        and "patients" in page
        and "http://" not in page.replace("http://www.w3", "")
        and "https://" not in page
    )
    assert ask(endpoint, "GET", "/schema")[2]["columns"][0]["name"] == "age"
    assert ask(endpoint, "GET", "/version")[2]["model"]["hash"] == patients.hash
    assert ask(endpoint, "GET", "/health/ready", key=None)[2]["status"] == "ready"


def test_metrics_are_prometheus(endpoint, row):
    from prometheus_client.parser import text_string_to_metric_families
    ask(endpoint, "POST", "/predict", row)
    families = {f.name: f for f in text_string_to_metric_families(ask(endpoint, "GET", "/metrics")[2])}
    counted = {
        (s.labels["route"], s.labels["status"]): s.value
        for s in families["deploy_assist_requests"].samples
        if s.name.endswith("_total")
    }
    assert counted["/predict", "200"] >= 1


def test_every_acknowledged_row_is_in_the_log(endpoint, patients):
    X, log = patients.X_test.iloc[:40], PredictionLog(endpoint.log_url, home=endpoint.home)

    def one(i):
        with Client(endpoint.url, endpoint.key) as client: return client.predict(X.iloc[[i]], return_ids=True)[1]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = [i for found in pool.map(one, range(len(X))) for i in found]
    with Client(endpoint.url, endpoint.key) as client:
        client.feedback(ids[0], label=1, comment="seen again")
        client.feedback(ids[1], correct=False)
        with pytest.raises(SchemaError, match="expected one of 0, 1"): client.feedback(ids[2], label=7)
        with pytest.raises(SchemaError, match="prediction_id"): client.feedback("no id", label=1)
        with pytest.raises(SchemaError, match="at least one"): client.feedback(ids[2])
    until = time.monotonic() + 20
    while time.monotonic() < until:
        seen = log.window("patients").set_index("prediction_id")
        if set(ids) <= set(seen.index) and seen.loc[ids[0], "label"] == 1: break
        time.sleep(0.1)
    assert set(ids) <= set(seen.index)
    assert seen.loc[ids, "bmi"].tolist() == X["bmi"].tolist()
    assert seen.loc[ids[0], "label"] == 1 and set(seen.loc[ids, "source"]) == {"api"}
    log.close()


def test_the_endpoint_ends_with_its_parent(bundle, tmp_path):
    code = (
        f"from deploy_assist import serve\ne = serve({str(bundle)!r})\nprint(e.url, e._process.pid, "
        f"flush=True)\nimport time; time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    url, pid = parent.stdout.readline().split()
    assert urlopen(url + "/health/ready", timeout=10).status == 200
    os.kill(parent.pid, signal.SIGKILL); parent.wait(10); parent.stdout.close()
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < until: time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_model_that_fails_is_a_500_without_details(tmp_path, patients):
    code = (
        "def refuse(X):\n    if (X['bmi'] > 1000).any(): raise RuntimeError('the secret reason at "
        "/some/path')\n    return X\n"
    )
    (tmp_path / "refusing.py").write_text(code)
    script = f"""
import sys, json; sys.path.insert(0, {str(tmp_path)!r})
from refusing import refuse
import numpy as np, pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.linear_model import LogisticRegression
from urllib.request import urlopen, Request
from urllib.error import HTTPError
from deploy_assist.prepare import prepare
from deploy_assist.endpoint import listen; from deploy_assist.predictor import Predictor
from deploy_assist.server import App, Settings
import threading, uvicorn
X = pd.DataFrame(dict(bmi=np.linspace(18, 45, 40))); y = (X.bmi > 30).astype(int)
model = make_pipeline(FunctionTransformer(refuse), LogisticRegression()).fit(X, y)
mine = dict(modules=[{str(tmp_path / "refusing.py")!r}], trusted=["refusing.refuse"])
release = prepare(model, X, y, name="refusing", **mine)
sock = listen(); port = sock.getsockname()[1]
server = uvicorn.Server(uvicorn.Config(App(Predictor(release), Settings()), log_level="warning"))
threading.Thread(target=server.run, kwargs=dict(sockets=[sock]), daemon=True).start()
while not server.started: pass
try: urlopen(Request(f"http://127.0.0.1:{{port}}/predict", b'{{"bmi": 5000}}', {{"Content-Type": "application/json"}}))
except HTTPError as e: print(e.status, e.read().decode())
server.should_exit = True
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("500 "), done.stderr
    out = json.loads(done.stdout[4:])
    assert "secret" not in done.stdout and "RuntimeError" not in done.stdout
    assert out["request_id"] in done.stderr and "the secret reason" in done.stderr


def test_a_broken_bundle_is_not_served(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match="without bundle.json"): serve(tmp_path / "empty")


def test_a_port_in_use_says_so(endpoint, bundle):
    port = int(endpoint.url.rsplit(":", 1)[1])
    with pytest.raises(EndpointError, match=f"port {port} .*choose another"): serve(bundle, port=port)

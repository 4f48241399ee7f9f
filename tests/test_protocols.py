"""The dialects over real HTTP: REST, MLflow's, the Open Inference Protocol's and GraphQL's agree and refuse alike, and
clients that others wrote work unchanged."""

import concurrent.futures
import json
import struct
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
from waiting import own_module

from deploy_assist import ConfigError, PredictionLog, prepare, serve

KEY = "a-key-of-the-tests"
LABELS = ("ill", "well")


def table(n: int, seed: int) -> pd.DataFrame:
    "An integer, a float with gaps, a category, a boolean and a date."
    rng = np.random.default_rng(seed)
    bmi = rng.normal(27, 4, n).round(3)
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 700, n), unit="D")
    return pd.DataFrame(
        dict(
            age=rng.integers(18, 95, n),
            bmi=np.where(rng.random(n) < 0.1, np.nan, bmi),
            sex=rng.choice(["f", "m"], n),
            smokes=rng.random(n) < 0.3,
            seen=pd.Series(days.date, dtype=object),
        )
    )


@pytest.fixture(scope="module")
def mixed():
    "A release of a model of columns of all kinds, and 1,000 rows that it has not seen."
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    X = table(400, 0)
    y = np.where(X.age + 2 * X.bmi.fillna(27) + 20 * X.smokes > 120, "ill", "well")
    model = make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(), StandardScaler()), ["age", "bmi"]),
            (OneHotEncoder(handle_unknown="ignore"), ["sex"]),
            ("passthrough", ["smokes"]),
        ),
        LogisticRegression(max_iter=2000),
    )
    return prepare(model.fit(X, y), X, y, name="mixed"), table(1000, 1)


@pytest.fixture(scope="module")
def endpoint(mixed, tmp_path_factory):
    home = tmp_path_factory.mktemp("protocols")
    with serve(mixed[0], key=KEY, log=f"sqlite:///{home}/log.db", home=home, max_body_mb=2) as endpoint:
        endpoint.log_url, endpoint.home = f"sqlite:///{home}/log.db", home
        yield endpoint


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    "An endpoint without a key, of a model that takes numbers only, and its release."
    from sklearn.linear_model import LinearRegression

    X = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=["a", "b (kg)", "c"])
    release = prepare(LinearRegression().fit(X, X.sum(axis=1)), X, X.sum(axis=1), name="numbers")
    home = tmp_path_factory.mktemp("numbers")
    with serve(release, log=f"sqlite:///{home}/log.db", home=home) as endpoint:
        yield endpoint, release


def ask(endpoint, path, body=None, kind="application/json", method=None, **headers):
    "Status, headers and JSON (or bytes) of one request."
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    if endpoint.key:
        headers.setdefault("Authorization", f"Bearer {endpoint.key}")
    if body is not None and kind:
        headers["Content-Type"] = kind
    try:
        answer = urlopen(Request(endpoint.url + path, body, headers, method=method), timeout=60)
    except HTTPError as e:
        answer = e
    with answer:
        raw = answer.read()
        return (
            answer.status,
            answer.headers,
            json.loads(raw) if "json" in answer.headers.get("Content-Type", "") else raw,
        )


MUTATION = "mutation ($rows: [RowInput!]!) { predict(rows: $rows) { predictions predictionIds } }"
TYPES = dict(age="INT64", bmi="FP64", sex="BYTES", smokes="BOOL", seen="BYTES")


def rows_of(X: pd.DataFrame) -> list[dict]:
    return json.loads(X.astype({"seen": str}).to_json(orient="records"))


def v2_json(rows: list[dict]) -> dict:
    inputs = [dict(name=n, datatype=t, shape=[len(rows)], data=[r[n] for r in rows]) for n, t in TYPES.items()]
    return {"id": "17", "inputs": inputs}


def v2_binary(X: pd.DataFrame) -> tuple[bytes, int]:
    "The same with binary tensors."

    def texts(values):
        return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)

    raw = [
        X.age.to_numpy("<i8").tobytes(),
        X.bmi.to_numpy("<f8").tobytes(),
        texts(X.sex),
        X.smokes.to_numpy("?").tobytes(),
        texts(X.seen.astype(str)),
    ]
    inputs = [
        dict(name=n, datatype=t, shape=[len(X), 1], parameters=dict(binary_data_size=len(part)))
        for (n, t), part in zip(TYPES.items(), raw)
    ]
    head = json.dumps(dict(inputs=inputs, outputs=[dict(name="prediction")])).encode()
    return head + b"".join(raw), len(head)


def test_all_dialects_agree_on_a_thousand_rows(endpoint, mixed):
    release, X = mixed
    rows, expected = rows_of(X), list(release.predict(X))
    assert set(expected) == set(LABELS)
    lists, columns = [list(r.values()) for r in rows], {n: [r[n] for r in rows] for n in X}
    status, _, said = ask(endpoint, "/predict", {"rows": rows})
    assert (status, said["predictions"]) == (200, expected)
    np.testing.assert_allclose(said["probabilities"], release.predict_proba(X), rtol=1e-12)
    for body in (
        {"dataframe_split": {"columns": list(X), "index": list(range(len(X))), "data": lists}},
        {"dataframe_records": rows},
        {"instances": rows},
        {"instances": lists},
        {"inputs": columns},
        {"inputs": lists},
        {"inputs": rows, "params": {}},
    ):
        status, _, said = ask(endpoint, "/invocations", body)
        assert (status, said["predictions"]) == (200, expected), next(iter(body))
    status, _, said = ask(endpoint, "/invocations", X.to_csv(index=False).encode(), "text/csv; charset=utf-8")
    assert (status, said["predictions"]) == (200, expected) and len(set(said["prediction_ids"])) == 1000
    status, _, said = ask(endpoint, "/v2/models/mixed/infer", v2_json(rows))
    outputs = {o["name"]: o for o in said["outputs"]}
    assert (status, said["id"], outputs["prediction"]["data"]) == (200, "17", expected)
    assert outputs["probabilities"]["shape"] == [1000, 2] and outputs["prediction"]["datatype"] == "BYTES"
    body, size = v2_binary(X)
    status, _, said = ask(
        endpoint,
        "/v2/models/mixed/versions/1/infer",
        body,
        "application/octet-stream",
        Inference_Header_Content_Length=str(size),
    )
    assert (status, said["outputs"][0]["data"]) == (200, expected)
    status, _, said = ask(endpoint, "/graphql", {"query": MUTATION, "variables": {"rows": rows}})
    assert status == 200 and said["data"]["predict"]["predictions"] == expected, said.get("errors")


def test_every_dialect_logs_and_its_ids_take_feedback(endpoint, mixed):
    rows = rows_of(mixed[1].iloc[:2])
    ids = ask(endpoint, "/predict", {"rows": rows})[2]["prediction_ids"]
    ids += ask(endpoint, "/invocations", {"inputs": rows})[2]["prediction_ids"]
    ids += ask(endpoint, "/v2/models/mixed/infer", v2_json(rows))[2]["outputs"][-1]["data"]
    ids += ask(endpoint, "/graphql", {"query": MUTATION, "variables": {"rows": rows}})[2]["data"]["predict"][
        "predictionIds"
    ]
    for one in ids[::2]:
        assert ask(endpoint, "/feedback", {"prediction_id": one, "label": "ill"})[0] == 200
    said = 'mutation ($id: ID!) { feedback(predictionId: $id, label: "well") { feedbackId } }'
    assert ask(endpoint, "/graphql", {"query": said, "variables": {"id": ids[1]}})[2]["data"]["feedback"]["feedbackId"]
    with PredictionLog(endpoint.log_url, home=endpoint.home) as log:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            seen = log.window("mixed").set_index("prediction_id")
            if set(ids) <= set(seen.index) and seen.loc[ids[:2] + ids[6:7], "label"].notna().all():
                break
            time.sleep(0.1)
        seen = seen.loc[ids]
    assert len(seen) == 8 and set(seen["source"]) == {"api"} and seen["label"].tolist()[:3] == ["ill", "well", "ill"]
    assert seen["age"].tolist() == [r["age"] for r in rows] * 4


def test_the_caller_chooses_what_comes_back(endpoint, numbers, mixed):
    row = rows_of(mixed[1].iloc[:1])[0]

    def members(path, body, on=endpoint):
        return sorted(ask(on, path, body)[2])

    assert members("/predict?output=predictions", row) == ["predictions"]
    assert members("/predict?output=probabilities,ids", row) == ["classes", "prediction_ids", "probabilities"]
    assert members("/invocations?output=predictions", {"inputs": [row]}) == ["predictions"]
    assert {"predictions", "probabilities", "prediction_ids", "classes", "model"} <= set(members("/predict", row))
    status, _, said = ask(endpoint, "/predict?output=everything", row)
    assert status == 422 and said["errors"][0]["column"] == "output"
    assert ask(numbers[0], "/predict?output=probabilities", {"a": 1, "b (kg)": 1, "c": 1})[0] == 422


# --- what is malformed is refused, by every dialect, and named

NAN, INF = float("nan"), float("inf")
WRONG_CELLS = [  # column, value
    ("age", 30.5), ("age", "63"), ("age", True), ("age", None), ("age", NAN), ("age", INF), ("age", [63]),
    ("age", {}), ("age", 10**30),
    ("bmi", "27.5"), ("bmi", INF), ("bmi", -INF), ("bmi", True), ("bmi", [1.0]), ("bmi", "NaN"), ("bmi", {"value": 1}),
    ("sex", 1), ("sex", None), ("sex", True), ("sex", ["f"]), ("smokes", 1), ("smokes", 0.0), ("smokes", "true"),
    ("smokes", None),
    ("seen", "2024-13-01"), ("seen", "yesterday"), ("seen", 20240101), ("seen", None), ("seen", "2024-02-30"),
    ("seen", True),
]  # fmt: skip
BROKEN = [  # bodies that no dialect takes
    b"", b"{", b"[]", b"{}", b"null", b"1", b'"text"', b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 50_000,
    b'{"x": ' * 50_000, b"[[]]",
    b'{"inputs": "' + b"a" * 1000 + b'"}', b'{"rows": [], "rows": []}', b"NaN", b'{"unknown": [1]}', b"\x00\x01",
    b'{"query": 1e400}',
]  # fmt: skip


def rest(rows):
    return {"rows": rows}


def split(rows):
    return {"dataframe_split": {"columns": list(rows[0]), "data": [[r.get(n) for n in rows[0]] for r in rows]}}


def graphql(rows):
    return {"query": MUTATION, "variables": {"rows": rows}}


def v2(rows):
    names = list(rows[0])
    return {
        "inputs": [
            dict(name=n, datatype=TYPES.get(n, "FP64"), shape=[len(rows)], data=[r.get(n) for r in rows]) for n in names
        ]
    }


DIALECTS = {
    "/predict": rest, "/invocations": split, "/v2/models/mixed/infer": v2, "/graphql": graphql,
}  # fmt: skip


def leaks(said, headers) -> list[str]:
    "What no answer may hold."
    text = json.dumps(said) if not isinstance(said, bytes) else said.decode(errors="replace")
    text += str(headers)
    banned = (
        "Traceback",
        "site-packages",
        "/usr/",
        "/tmp/",
        ".py",
        "sklearn",
        "numpy",
        "pandas",
        "graphql-core",
        "uvicorn",
        "line 1, in",
    )
    return [word for word in banned if word in text]


def is_refused(path, status, headers, said, *statuses) -> str:
    "Nothing, or why this is no proper refusal."
    if found := leaks(said, headers):
        return f"leaks {found}"
    if path == "/graphql" and status == 200:
        return "" if said.get("errors") and not said.get("data") else f"answered {said}"
    if status not in (statuses or (400, 422)):
        return f"status {status}: {str(said)[:200]}"
    if headers["Content-Type"] != "application/problem+json":
        return f"content type {headers['Content-Type']}"
    if said["status"] != status or not said["title"] or said["request_id"] != headers["X-Request-Id"]:
        return f"members {said}"
    return "" if "error" in said or not path.startswith("/v2") else "no `error`"


@pytest.mark.parametrize("path", DIALECTS)
def test_malformed_requests_are_refused_and_named(endpoint, mixed, path):
    wrap, good = DIALECTS[path], rows_of(mixed[1].iloc[:2])
    with PredictionLog(endpoint.log_url, home=endpoint.home) as log:
        before = settled(log)
    failures, n = [], 0

    def expect(what, body, *statuses, cell=None, **headers):
        nonlocal n
        n += 1
        status, got, said = ask(endpoint, path, body, **headers)
        why = is_refused(path, status, got, said, *statuses)
        if not why and cell:
            cells = (
                [e["extensions"] for e in said["errors"] if "extensions" in e]
                if path == "/graphql"
                else said.get("errors", [])
            )
            if cell not in [(c.get("row"), c.get("column")) for c in cells]:
                why = f"does not name {cell}: {str(said)[:300]}"
        if why:
            failures.append(f"{what}: {why}")

    for column, value in WRONG_CELLS:
        named = (
            None if path.startswith("/v2") and isinstance(value, list) else (1, column)
        )  # a nested tensor is no cell
        expect(f"{column}={value!r:.40}", wrap([good[0], good[1] | {column: value}]), cell=named)
    expect(
        "1e400",
        json.dumps(wrap([good[0], good[1] | {"bmi": 4242.5}])).replace("4242.5", "1e400").encode(),
        cell=(1, "bmi"),
    )
    expect("half a pair", json.dumps(wrap([good[0], good[1] | {"sex": "\ud800"}])).encode())
    by_row = path in ("/predict", "/graphql")
    expect(
        "missing",
        wrap([{k: v for k, v in row.items() if k != "sex"} for row in good]),
        cell=(0 if by_row else None if path != "/invocations" else 0, "sex"),
    )
    expect(
        "extra",
        wrap([row | {"weight": 1.0} for row in good]),
        cell=(0 if by_row or path == "/invocations" else None, "weight"),
    )
    twice = (
        json.dumps(wrap(good)).replace('"sex": "', '"age": 1, "sex": "', 1)
        if by_row
        else json.dumps(wrap(good)).replace('"sex"', '"age"', 1)
    )
    expect("twice", twice.encode())
    expect(
        "no rows",
        {
            "/predict": {"rows": []},
            "/invocations": {"dataframe_records": []},
            "/graphql": graphql([]),
            "/v2/models/mixed/infer": {"inputs": [dict(name="age", datatype="INT64", shape=[0], data=[])]},
        }[path],
    )
    for body in BROKEN:
        expect(f"{body[:30]}", body)
    for kind in ("text/plain", "application/xml", "multipart/form-data", "application/json; charset=latin-1"):
        expect(kind, wrap(good), 415, kind=kind)
    expect("not json, said to be", b"age,bmi\n1,2\n")
    expect("compressed", wrap(good), 415, Content_Encoding="gzip")
    expect("accept", wrap(good), 406, Accept="image/png")
    expect("huge", b'{"rows": "' + b" " * 2_100_000 + b'"}', 413)
    for other in OTHERS[path]:
        expect(f"{str(other)[:60]}", other)
    assert not failures, f"{len(failures)} of {n}:\n" + "\n".join(failures)
    assert n >= 40
    with PredictionLog(endpoint.log_url, home=endpoint.home) as log:
        assert settled(log) == before


def settled(log, name="mixed") -> int:
    "Rows in the log when the server has nothing more to write."
    last = -1
    while (now := log.count(name)) != last:
        last = now
        time.sleep(0.6)
    return now


def tensor(**change):
    return {"inputs": [dict(name="age", datatype="INT64", shape=[1], data=[1]) | change]}


OTHERS = {
    "/predict": [{"rows": [1]}, {"rows": [[]]}, {"rows": {"age": 1}}, {"rows": [{}], "params": {}}, [[1, 2]],
    {"instances": []}],
    "/invocations": [
        {"dataframe_split": []}, {"dataframe_split": {}}, {"dataframe_split": {"columns": ["age"], "data": [[1, 2]]}},
        {"dataframe_split": {"columns": [1], "data": [[1]]}},
        {"dataframe_split": {"columns": ["age"], "data": [[1]], "index": [1, 2]}},
        {"dataframe_split": {"data": 1}}, {"dataframe_records": {"age": 1}}, {"dataframe_records": [1]},
        {"instances": 1},
        {"instances": [1, 2]}, {"instances": [[1]]}, {"inputs": {"age": [1], "bmi": 2}},
        {"inputs": {"age": [1], "bmi": [1, 2]}},
        {"inputs": [], "instances": []}, {"inputs": [{}], "params": {"a": 1}}, {"inputs": [{}], "params": [1]},
        {"dataframe_split": {"columns": ["age", "age"], "data": [[1, 2]]}},
    ],
    "/v2/models/mixed/infer": [
        {"inputs": 1}, {"inputs": [1]}, {"inputs": [{}]}, tensor(datatype="INT65"), tensor(datatype=None),
        tensor(shape=[2]),
        tensor(shape=[-1]), tensor(shape=[1, 1, 1]), tensor(shape=["1"]), tensor(shape=[1.0]), tensor(shape=[True]),
        tensor(shape=[10**12]),
        tensor(data=1), tensor(data=[300], datatype="INT8"), tensor(data=[-1], datatype="UINT8"),
        tensor(data=[1e39], datatype="FP32"),
        tensor(data=["1"]), tensor(data=[[1, 2]]), tensor(name=1), tensor(extra=1),
        tensor(parameters={"shared_memory_region": "x"}),
        tensor(parameters=[]), tensor(parameters={"binary_data_size": 8}), {"inputs": [], "id": 1},
        tensor() | {"outputs": [{"name": "x"}]},
        tensor() | {"parameters": {"sequence_id": 1}}, tensor() | {"outputs": {"name": "prediction"}},
        tensor() | {"more": 1},
        {"inputs": tensor()["inputs"] * 2},
        {"inputs": [dict(name="all", datatype="FP64", shape=[1, 4], data=[1.0] * 4)]},
        {"inputs": [dict(name="all", datatype="FP64", shape=[1, 5], data=[1.0] * 5)]},
    ],
    "/graphql": [
        [{"query": "{ model { name } }"}], {"query": "{ model { name }"}, {"query": "{ nothing }"},
        {"query": "subscription { model }"},
        {"query": "{ model { name } }", "variables": []}, {"query": "{ model { name } }", "operationName": 1},
        {"query": ""},
        {"query": "{ model { name } }", "more": 1}, {"query": "{" * 5000},
        {"query": "{ " + "a: model { name } " * 30 + "}"},
        {"query": "query { " + "model { name } " * 600 + "}"},
        {"query": "mutation { predict(rows: [" + "1 " * 30_000 + "]) { predictions } }"},
        {"query": "query A { model { ...f } } fragment f on Model { ...f }"}, {"query": MUTATION},
        {"query": MUTATION, "variables": {"rows": 1}},
        {"query": "mutation { a: predict(rows: []) { predictions } b: predict(rows: []) { predictions } }"},
        {"query": "{ __schema { types { " + "fields { type { " * 4 + "name" + " } }" * 4 + " } } }"},
    ],
}  # fmt: skip


def test_malformed_csv(endpoint, mixed):
    good = mixed[1].iloc[:2].to_csv(index=False).splitlines()
    head, first, second = good
    cells = second.split(",")

    def changed(i, text):
        return ",".join(cells[:i] + [text] + cells[i + 1 :])

    bodies = [
        b"", b"\n\n", head.encode(), b"\xff\xfe\xfd", b"age\n1", f"{head}\n{first},7".encode(),
        f"{head}\n{first[:9]}".encode(),
        f"{head},{head}\n{first},{first}".encode(), f"{head}\n\n{first}".encode(), b'age,bmi\n"1,2', b"{}",
        (f",{head}\n0,{first}").encode(), f"{head};x\n{first}".encode(), b'"' * 200_001,
        head.replace("sex", "gender").encode() + b"\n" + first.encode(),
        *(f"{head}\n{first}\n{changed(i, text)}".encode() for i, texts in enumerate((
            ("30.5", "abc", "", "nan", "inf", "0x10", "1_000", "1e400", "True", "９", " 63"),
            ("x", "inf", "-inf", "1e400", "1,5"), ("",),
            ("1", "0", "", "yes", "T"), ("2024-13-01", "", "01.02.2024", "yesterday", "20"))) for text in texts),
    ]  # fmt: skip
    assert len(bodies) >= 40
    failures = [
        f"{body[-60:]}: {why}"
        for body in bodies
        if (why := is_refused("/invocations", *ask(endpoint, "/invocations", body, "text/csv")))
    ]
    assert not failures, "\n".join(failures)
    assert ask(endpoint, "/invocations", f"{head}\n{changed(0, '63.0')}".encode(), "text/csv")[0] == 200


def test_malformed_binary_tensors(endpoint, mixed):
    body, size = v2_binary(mixed[1].iloc[:3])

    def refused(body, length):
        said = ask(
            endpoint,
            "/v2/models/mixed/infer",
            body,
            "application/octet-stream",
            Inference_Header_Content_Length=str(length),
        )
        return is_refused("/v2", *said)

    cases = [(body, size - 1), (body, len(body) + 1), (body, "x"), (body, -1), (body, 0), (body[:-1], size),
    (body + b"1", size),
             (body.replace(b"INT64", b"INT32"), size), (body.replace(b"INT64", b"FP64 "), size),
             (body.replace(b"[3, 1]", b"[1, 3]"), size),
             (body.replace(b"[3, 1]", b"[4, 1]"), size),
             (body[:size] + b"\xff" * (len(body) - size), size)]  # fmt: skip
    assert not [why for case in cases if (why := refused(*case))]


def test_other_paths_of_v2(endpoint, numbers, mixed):
    assert ask(endpoint, "/v2")[2]["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/mixed/ready", "/v2/models/mixed/versions/1/ready",
                 f"/v2/models/mixed/versions/{mixed[0].hash[:12]}/ready"):
        assert ask(endpoint, path)[0] == 200
    about = ask(endpoint, "/v2/models/mixed")[2]
    assert {i["name"]: i["datatype"] for i in about["inputs"]} == TYPES and about["versions"] == [mixed[0].hash[:12]]
    for path in (
        "/v2/models/other",
        "/v2/models/other/infer",
        "/v2/models/mixed/versions/2",
        "/v2/models/mixed/nothing",
        "/v2/nothing",
    ):
        status, _, said = ask(endpoint, path)
        assert status == 404 and said["error"]
    assert ask(endpoint, "/v2/models/mixed/infer")[0] == 405
    said = ask(
        numbers[0],
        "/v2/models/numbers/infer",
        {"inputs": [dict(name="X", datatype="FP64", shape=[2, 3], data=[1, 2, 3, 4, 5, 6])]},
    )[2]
    np.testing.assert_allclose(said["outputs"][0]["data"], [6, 15])


# --- clients that others wrote


def test_tritonclient(endpoint, mixed, numbers):
    http = pytest.importorskip("tritonclient.http", reason='no tritonclient: pip install "tritonclient[http]"')
    release, X = mixed
    host = endpoint.url.split("//")[1]
    auth = {"Authorization": f"Bearer {KEY}"}
    client = http.InferenceServerClient(host)
    try:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("mixed", headers=auth)
        assert client.get_server_metadata(headers=auth)["name"]
        arrays = dict(
            age=X.age.to_numpy("int64"),
            bmi=X.bmi.to_numpy("float64"),
            sex=X.sex.to_numpy(object),
            smokes=X.smokes.to_numpy(bool),
            seen=X.seen.astype(str).to_numpy(object),
        )
        for binary in (True, False):
            inputs = []
            for i in client.get_model_metadata("mixed", headers=auth)["inputs"]:
                values = arrays[i["name"]]
                if i["name"] == "bmi" and not binary:
                    values = np.nan_to_num(values, nan=27.0)
                inputs.append(http.InferInput(i["name"], [len(X)], i["datatype"]))
                inputs[-1].set_data_from_numpy(values, binary_data=binary)
            wanted = [
                http.InferRequestedOutput("prediction", binary_data=binary),
                http.InferRequestedOutput("probabilities", binary_data=binary),
            ]
            for outputs in (wanted, None):
                said = client.infer(
                    "mixed", inputs, outputs=outputs, request_id="9", headers=dict(auth)
                )  # it writes into them
                XX = X if binary else X.fillna({"bmi": 27.0})
                labels = [v.decode() if isinstance(v, bytes) else v for v in said.as_numpy("prediction")]
                assert labels == list(release.predict(XX)) and said.get_response()["id"] == "9"
                np.testing.assert_allclose(said.as_numpy("probabilities"), release.predict_proba(XX), rtol=1e-9)
        bad = http.InferInput("age", [1], "INT64")
        bad.set_data_from_numpy(np.array([1]))
        with pytest.raises(Exception, match="column 'bmi': got nothing"):
            client.infer("mixed", [bad], headers=dict(auth))
    finally:
        client.close()
    other, release = numbers
    client = http.InferenceServerClient(other.url.split("//")[1])
    try:
        one = http.InferInput("X", [5, 3], "FP32")
        one.set_data_from_numpy(np.ones((5, 3), "float32"))
        np.testing.assert_allclose(client.infer("numbers", [one]).as_numpy("prediction"), [3.0] * 5)
    finally:
        client.close()


def test_mlflow_scoring_client(numbers):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    endpoint, release = numbers
    client = ScoringServerClient("127.0.0.1", int(endpoint.url.rsplit(":", 1)[1]))
    client.wait_server_ready(timeout=10)
    assert "model" in client.get_version()
    X = pd.DataFrame(np.random.default_rng(1).normal(size=(50, 3)), columns=release.schema.names)
    for data in (X, X.to_numpy(), X.to_numpy().tolist()):
        np.testing.assert_allclose(client.invoke(data).get_predictions("ndarray"), release.predict(X), rtol=1e-9)
    with pytest.raises(Exception, match="takes no parameters"):
        client.invoke(X, params={"temperature": 1})


def test_graphql_client(numbers):
    gql = pytest.importorskip("gql", reason="no GraphQL client: pip install gql")
    from gql.transport.exceptions import TransportQueryError
    from gql.transport.httpx import HTTPXTransport

    endpoint, release = numbers
    X = pd.DataFrame(np.random.default_rng(1).normal(size=(50, 3)), columns=["a", "b_kg", "c"])
    transport = HTTPXTransport(f"{endpoint.url}/graphql", trust_env=False)
    with gql.Client(
        transport=transport, fetch_schema_from_transport=True
    ) as session:  # reads the types by introspection
        names = {
            c["field"]: c["name"]
            for c in session.execute(gql.gql("{ schema { columns { name field } } }"))["schema"]["columns"]
        }
        assert names == {"a": "a", "b_kg": "b (kg)", "c": "c"}
        query = gql.gql(MUTATION)
        query.variable_values = {"rows": X.to_dict("records")}
        answers = session.execute(query)["predict"]["predictions"]
        np.testing.assert_allclose(answers, release.predict(X.rename(columns=names)), rtol=1e-9)
        query.variable_values = {"rows": [{"a": 1.0, "b_kg": "2", "c": 3.0}]}
        with pytest.raises(TransportQueryError) as refused:
            session.execute(query)
        assert refused.value.errors[0]["extensions"] == {"row": 0, "column": "b (kg)"}


def test_graphql_answers_in_its_own_content_type(endpoint):
    status, headers, said = ask(
        endpoint, "/graphql", {"query": "{ nothing }"}, Accept="application/graphql-response+json"
    )
    assert (
        status == 422
        and headers["Content-Type"] == "application/graphql-response+json"
        and said["extensions"]["request_id"]
    )
    assert ask(endpoint, "/graphql", method="GET")[0] == 405


def test_prometheus_reads_the_metrics_of_all_dialects(endpoint, mixed):
    from prometheus_client.parser import text_string_to_metric_families

    rows = rows_of(mixed[1].iloc[:1])
    for path, wrap in DIALECTS.items():
        assert ask(endpoint, path, wrap(rows))[0] == 200
    families = {f.name: f for f in text_string_to_metric_families(ask(endpoint, "/metrics")[2].decode())}
    counted = {
        s.labels["route"]
        for s in families["deploy_assist_requests"].samples
        if s.value and s.labels.get("status") == "200"
    }
    assert {"/predict", "/invocations", "/graphql", "/v2/models/{name}/infer"} <= counted


def test_schemathesis_finds_nothing(endpoint, tmp_path):
    pytest.importorskip("schemathesis", reason="no schemathesis: pip install schemathesis")
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{endpoint.url}/openapi.json",
        "-H",
        f"Authorization: Bearer {KEY}",
        "--checks",
        "all",
        "--max-examples",
        "15",
        "--seed",
        "1",
        "--generation-deterministic",
        "--phases",
        "examples,coverage,fuzzing",
        "--workers",
        "2",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_gradio_client_and_the_mounted_demo(mixed, tmp_path_factory):
    from gradio_client import Client

    release, X = mixed
    home = tmp_path_factory.mktemp("mounted")
    with serve(release, key=KEY, log=f"sqlite:///{home}/log.db", home=home, demo=True) as endpoint:
        with pytest.raises(Exception, match="Could not|401|[Ll]ogin|auth"):
            Client(f"{endpoint.url}/demo", verbose=False, auth=("anybody", "wrong"), download_files=str(home))
        client = Client(f"{endpoint.url}/demo", verbose=False, auth=("anybody", KEY), download_files=str(home))
        try:
            for row in rows_of(X.dropna().iloc[:3]):
                said = client.predict(*row.values(), api_name="/predict")
                frame = release.schema.frame([row])
                assert said["prediction"] == release.predict(frame)[0], said
        finally:
            client.close()
        assert ask(endpoint, "/predict", rows_of(X.iloc[:1])[0])[0] == 200
        with PredictionLog(f"sqlite:///{home}/log.db", home=home) as log:
            settled(log)
            assert sorted(log.window("mixed")["source"]) == ["api", "demo", "demo", "demo"]


# --- limits


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    "An endpoint of a model that sleeps a second for b = 1, with one place in the queue and a timeout of 0.3 s."
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    home = tmp_path_factory.mktemp("slow")
    source = "import time\ndef sleep(X):\n    time.sleep(1.0 if float(X['b'].iloc[0]) == 1 else 0.0)\n    return X\n"
    with own_module(home, "sleepy_of_the_tests", source) as module:
        X = pd.DataFrame(dict(b=np.linspace(0.1, 0.9, 30)))
        release = prepare(
            make_pipeline(FunctionTransformer(module.sleep), LinearRegression()).fit(X, X.b),
            X,
            X.b,
            name="sleepy",
            modules=[home / "sleepy_of_the_tests.py"],
            trusted=["sleepy_of_the_tests.sleep"],
        )
        with serve(
            release,
            log=f"sqlite:///{home}/log.db",
            home=home,
            timeout_s=0.3,
            max_queue=1,
            rate="60/minute",
            details=False,
        ) as e:
            e.log_url, e.home = f"sqlite:///{home}/log.db", home
            yield e


def test_a_late_answer_is_a_504_and_is_not_logged_and_a_full_queue_is_a_503(slow):
    rows = [{"b": 1}] * 2
    assert ask(slow, "/predict", [{"b": 0.5}] * 2)[0] == 200
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: ask(slow, "/predict", rows), range(6)))
    statuses = sorted(s for s, _, _ in said)
    assert set(statuses) == {503, 504}
    assert all(h["Retry-After"] for s, h, _ in said if s == 503)
    assert ask(slow, "/health/live")[0] == 200
    with PredictionLog(slow.log_url, home=slow.home) as log:
        time.sleep(2.5)  # the threads have ended by now
        assert settled(log, "sleepy") == 2
        counts = log.requests("sleepy")["status"].value_counts().to_dict()
    assert counts.get(200) == 1 and counts.get(504, 0) + counts.get(503, 0) == 6


def test_details_can_be_hidden(slow):
    for path, body in (
        ("/predict", {"b": "text"}),
        ("/invocations", {"inputs": {"secret": [1]}}),
        ("/graphql", {"query": "{ modl }"}),
        ("/v2/models/sleepy/infer", {"inputs": [dict(name="c", datatype="FP64", shape=[1], data=[1])]}),
    ):
        _, _, said = ask(slow, path, body)
        assert "errors" not in said or path == "/graphql"
        assert not any(
            word in json.dumps(said) for word in ("text", "secret", "column", "number", "Did you mean", "FP64")
        )
    said = ask(slow, "/graphql", {"query": "{ __schema { types { name } } }"})[2]
    assert "data" not in said


def test_a_rate_is_kept_to(slow):
    statuses, last = [], None
    for _ in range(70):
        status, last, said = ask(slow, "/version")
        statuses.append(status)
        if status == 429:
            break
    assert statuses[-1] == 429 and 1 <= int(last["Retry-After"]) <= 60 and said["status"] == 429
    assert ask(slow, "/health/ready")[0] == 200
    with pytest.raises(ConfigError, match="100/minute"):
        serve("anything", rate="often")


def test_a_prefix_of_a_proxy_is_taken_away_or_not(mixed, tmp_path):
    with serve(mixed[0], root_path="/models/mixed", log=False, home=tmp_path) as endpoint:
        assert endpoint.url.endswith("/models/mixed") and ask(endpoint, "/schema")[0] == 200
        assert ask(endpoint, "/openapi.json")[2]["servers"] == [{"url": "/models/mixed"}]
        endpoint.url = endpoint.url.removesuffix("/models/mixed")
        assert ask(endpoint, "/predict", rows_of(mixed[1].iloc[:1])[0])[0] == 200
    with pytest.raises(ConfigError, match="a prefix such as"):
        serve(mixed[0], root_path="models", home=tmp_path)


def test_an_enormous_number_that_the_model_cannot_take_is_named(numbers):
    status, _, said = ask(numbers[0], "/predict", {"a": 1e308, "b (kg)": 1e308, "c": 1e308})
    assert status == 422 and {e["column"] for e in said["errors"]} == {"a", "b (kg)", "c"}


def test_the_quick_way_to_read_json_reads_what_the_slow_way_reads(monkeypatch):
    from deploy_assist import protocols

    bodies = r"""
{}
[]
1
null
"a"
{"a": 1}
{"a": 1, "a": 2}
[{"a": 1, "a": 2}]
{"rows": [{"a": 1}, {"a": 1, "a": 2}]}
{"a": ":", "b": 2}
{"a": "\u003a", "a": 2}
{"a": "\ud800"}
{"a": "\ud83d\ude00"}
{"a": NaN}
{"a": Infinity}
{"a": 1e400}
{"a": -1e400}
{"a": 1e-400}
{"a": 10000000000000000000000000}
{"a": -10000000000000000000000000}
{"a": 9223372036854775808}
{"a": 1.0}
{"a": 0.1, "b": 1e22, "c": 5e-324, "d": -0.0, "e": 123456789012345678}
{"a": 01}
{"a": 1,}
{'a': 1}
{"a" 1}
{"a": 1} x
{"a": [[{"b": 1, "b": 2}]]}
{"a": [1, {"b": 1, "b": 2}]}
{"a": [{"b": 1}, {"c": {"d": 1, "d": 2}}]}
{"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1], "data": [2]}]}
{"a": "ä"}
{"": {"": {"": {"": {"": 1}}}}}
""".strip().split("\n")
    many = [", ".join([row] * 200) for row in ('{"a": {"b": 1, "b": 2}}', '{"a": 1}')]
    bodies += ["[" * 5000 + "]" * 5000, "\ufeff{}", *(f"[{rows}]" for rows in many)]

    def said(body):
        try: return repr(protocols.read_json(body))
        except protocols.Refusal as e: return f"{e.status} {e}"

    quick = [said(b.encode()) for b in bodies] + [said(b'{"a": "\xff"}'), said(b"")]
    monkeypatch.setattr(protocols, "_quickly", lambda body: protocols._IN_DOUBT)
    slow = [said(b.encode()) for b in bodies] + [said(b'{"a": "\xff"}'), said(b"")]
    assert quick == slow and sum(s.startswith("4") for s in slow) > 8

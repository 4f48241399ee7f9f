"""Engines: which are proven for which kind of model, that those answer like the model, and that a wrong one does not pass."""
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from test_artefact import KINDS, mixed, rng, y

from deploy_assist import ConfigError, load_release, prepare
from deploy_assist.export import Gate, difference, export, probes
from deploy_assist.rows import check_columns
from deploy_assist.runtime import Linear, Onnx, Runtime, load_runtime

ONNX = ["logistic", "forest", "gradient boosting", "histogram boosting", "histogram regression", "neighbours", "svc", "mlp",
        "stacking", "voting", "string one-hot", "target encoder", "tf-idf", "function", "multi-output"]
NOT_ONNX = ["isolation forest", "target transformed", "word counts"]
LINEAR = ["logistic", "grid search", "string one-hot", "target encoder"]
gone = mixed.assign(s=mixed["s"].where(rng.random(len(mixed)) > 0.1, None).astype(object))


def by_columns(strings, last):
    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    return make_pipeline(make_column_transformer((numbers, ["a", "b", "c"]), (strings, ["s"])), last)


one_hot = OneHotEncoder(handle_unknown="ignore")
MISSING = {  # strings that are missing
    "missing category": (by_columns(one_hot, LogisticRegression()), gone, y),
    "imputed category": (by_columns(make_pipeline(SimpleImputer(strategy="most_frequent"), one_hot), LogisticRegression()),
                         gone.assign(s=gone["s"].astype("str")), y),
    "missing category, forest": (by_columns(one_hot, RandomForestClassifier(10, random_state=0)), gone, y),
    "ordinal, unknown is -1": (by_columns(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
                                          RandomForestClassifier(10, random_state=0)), mixed, y),
    "scaled forest": (make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0)), mixed[["b", "c"]], y),
    "forest with missing numbers": (RandomForestClassifier(10, random_state=0), mixed[["a", "b", "c"]], y),
    "three classes": (make_pipeline(StandardScaler(), LogisticRegression()), mixed[["b", "c"]], y + (mixed["c"] > 6)),
}


@pytest.fixture(scope="module")
def releases():
    out = {}
    for kind, (model, X, labels) in (KINDS | MISSING).items():
        if kind in (*ONNX, *NOT_ONNX, *LINEAR, *MISSING):
            out[kind] = prepare(model.fit(X) if labels is None else model.fit(X, labels), X, labels, name="kind")
    return out


def proven(release) -> dict:
    return {n: e["proven"] for n, e in json.loads(release.parts["engine.json"])["engines"].items()}


@pytest.mark.parametrize("kind", [*ONNX, *MISSING])
def test_these_are_proven_as_onnx(releases, kind):
    told = json.loads(releases[kind].parts["engine.json"])["engines"]["onnx"]
    assert told["proven"] and told["rows"] >= 1000 and told["max_difference"] <= 1e-4, told


@pytest.mark.parametrize("kind", NOT_ONNX)
def test_these_are_not_and_the_reason_is_told(releases, kind):
    told = json.loads(releases[kind].parts["engine.json"])["engines"]["onnx"]
    assert not told["proven"] and told["why"].startswith("not exportable: ") and "model.onnx" not in releases[kind].parts


@pytest.mark.parametrize("kind", [*LINEAR, "missing category", "imputed category", "three classes"])
def test_linear_models_are_folded(releases, kind): assert proven(releases[kind])["linear"]


@pytest.mark.parametrize("kind", [*ONNX, *NOT_ONNX, "grid search", *MISSING])
def test_every_proven_engine_answers_like_the_model_on_fresh_rows(releases, kind):
    release = releases[kind]
    runtime = Runtime(release)
    model = runtime.engine_for("frame")
    tried = probes(release.model, release.schema, release.baseline, seed=99)
    columns = {n: [v for part in tried.values() for v in part[n][:100]] for n in release.schema.names}
    try: expected = model.run(columns)
    except ValueError:  # the model refuses some of them
        columns = {n: tried["baseline"][n][:300] for n in columns}
        expected = model.run(columns)
    typed = check_columns(release.schema, columns)
    for name in runtime.engines:
        for form in (columns, typed):
            got = runtime.engine_for(name).run(form)
            assert difference(expected, got, "regression" not in release.task).max() <= 1e-4, name
    one = {n: v[:1] for n, v in columns.items()}
    assert len(runtime.predict(one).predictions) == 1


def test_the_same_model_gives_the_same_bytes(releases):
    for kind in ("scaled forest", "string one-hot"):
        model, X, labels = (KINDS | MISSING)[kind]
        again = prepare(model, X, labels, name="kind")
        assert again.parts == releases[kind].parts and again.hash == releases[kind].hash
        assert "times" in again.notes


def test_a_tampered_graph_fails_the_gate(releases):
    onnx = pytest.importorskip("onnx")
    release = releases["logistic"]
    graph, changed = onnx.load_from_string(release.parts["model.onnx"]), False
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.size > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * 1.01, tensor.name))
            changed = True
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "coefficients":
                scaled = [v * 1.01 for v in attribute.floats]
                del attribute.floats[:]
                attribute.floats.extend(scaled)
                changed = True
    assert changed
    gate = Gate.of(release.model, release.schema, release.baseline)
    why, most = gate.try_engine(Onnx(graph.SerializeToString(), release.schema, {}, True, True))
    assert why.startswith("differs on") and most > 1e-4
    folded = json.loads(release.parts["engine.json"])["linear"]
    folded["bias"][0] += 0.01
    assert gate.try_engine(Linear(folded, release.schema))[0].startswith("differs on")


def test_an_export_never_raises(releases):
    release = releases["logistic"]
    done = export(release.model, replace(release.schema, columns=release.schema.columns[:2]), release.baseline)
    assert done.onnx is None and done.why.startswith("not exportable: ")


def test_without_the_extra_it_says_so(releases, monkeypatch):
    monkeypatch.setattr("deploy_assist.export.find_spec", lambda name: None)
    release = releases["logistic"]
    assert export(release.model, release.schema, release.baseline).why == "onnx extra not installed"


def test_one_engine_can_be_forced_and_the_choice_follows_the_times(releases):
    release = releases["forest"]
    release.notes["times"] = {"onnx": {"1": 0.03, "10": 0.1, "100": 1.0, "1000": 52.0},
                              "arrays": {"1": 4.0, "10": 4.0, "100": 5.0, "1000": 39.0}}
    runtime = Runtime(release)
    assert [name for _, name in runtime.plan] == ["onnx", "arrays"] and 100 < runtime.plan[0][0] < 1000
    assert "onnx for 1 to 316 rows" in runtime.explain()["plan"]
    assert Runtime(release, "sklearn").engine == "arrays" and Runtime(release, "frame").engine == "frame"
    with pytest.raises(ConfigError, match="'linear' cannot answer for kind .RandomForestClassifier is not a linear model"):
        Runtime(release, "linear")


def test_an_edit_that_lets_other_values_in_needs_a_new_proof(releases):
    release = releases["string one-hot"]
    assert release.edit("b", unit="mm").parts == release.parts
    assert "engine.json" not in release.edit("b", nullable=True).parts
    assert Runtime(release.edit("b", nullable=True)).engine == "frame"


def test_a_saved_bundle_answers_without_the_model_and_the_times_are_no_part_of_it(releases, tmp_path):
    release = releases["forest"]
    bundle = release.save(tmp_path / "bundle")
    assert (bundle / "engine_times.json").is_file()
    (bundle / "engine_times.json").write_text("{}")
    assert load_release(bundle).hash == release.hash
    runtime = load_runtime(bundle)
    assert runtime.engine == "onnx" and runtime.hash == release.hash and "release" not in vars(runtime.source)
    row = release.schema.check(release.schema.rows(KINDS["forest"][1].iloc[:3]))
    assert runtime.predict(row).predictions == load_runtime(bundle, "sklearn").predict(row).predictions


FOOTPRINT = """
import sys, time
start = time.perf_counter()
from deploy_assist.runtime import load_runtime
runtime = load_runtime(sys.argv[1], sys.argv[2])
result = runtime.predict({c: [0.5] for c in runtime.schema.names})
spent = time.perf_counter() - start
memory = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
loaded = [m for m in ("sklearn", "pandas", "skops", "pyarrow", "scipy", "onnxruntime") if m in sys.modules]
print(f"{spent:.2f} s, {memory:.0f} MB", *loaded, result.predictions[0])
"""


@pytest.mark.parametrize("engine", ["linear", "onnx"])
def test_the_footprint_of_a_first_answer(releases, tmp_path, engine):
    bundle = releases["logistic"].save(tmp_path / "bundle")
    done = subprocess.run([sys.executable, "-c", FOOTPRINT, bundle, engine], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    print(engine, done.stdout)  # seconds and megabytes, for those who look (-s)
    for heavy in ("sklearn", "pandas", "skops", "pyarrow", "scipy"): assert heavy not in done.stdout


def test_a_foreign_mlflow_model_is_answered_by_pyfunc(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    X = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 1.0, 0.0, 1.0]})
    model = LinearRegression().fit(X, [1.0, 3.0, 3.0, 5.0])
    signature = mlflow.models.infer_signature(X, model.predict(X))
    mlflow.sklearn.save_model(model, str(tmp_path / "model"), signature=signature, pip_requirements=["scikit-learn"])
    runtime = load_runtime(tmp_path / "model")
    assert runtime.engine == "pyfunc" and runtime.schema.names == ["a", "b"] and runtime.schema.task == "regression"
    np.testing.assert_allclose(runtime.predict(runtime.schema.check([{"a": 1, "b": 0.0}])).predictions, model.predict(X[:1]))

"""The artefact: models of every kind load elsewhere and answer the same to the last bit; a forged one does not load."""
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler, TargetEncoder
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from deploy_assist import BundleError, ConfigError, ModelError, UntrustedTypeError, load_release, prepare, register
from deploy_assist.release import _files, dump_model, untrusted_types

rng, n = np.random.default_rng(0), 240
X = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n), "c": rng.integers(0, 9, n).astype(float)})
y = (X.a + X.b * X.c > 0).astype(int)
mixed = X.assign(s=rng.choice(list("xyz"), n), a=X.a.where(rng.random(n) > 0.1))
texts = pd.Series([f"word{i % 7} and word{i % 5} went to word{i % 3} today" for i in range(n)])
two = pd.DataFrame({"sick": y, "well": 1 - y})


def by_columns(encoder):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    return make_pipeline(make_column_transformer((numbers, ["a", "b", "c"]), (encoder, ["s"])), LogisticRegression())


def members(): return [("l", LogisticRegression()), ("t", DecisionTreeClassifier(max_depth=3, random_state=0))]


KINDS = {
    "logistic": (LogisticRegression(), X, y),
    "forest": (RandomForestClassifier(10, random_state=0), X, y),
    "gradient boosting": (GradientBoostingClassifier(n_estimators=5), X, y),  # its state holds the global generator of NumPy
    "histogram boosting": (HistGradientBoostingClassifier(max_iter=5), mixed[["a", "b"]], y),
    "histogram regression": (HistGradientBoostingRegressor(max_iter=5), X, X.a),
    "neighbours": (KNeighborsClassifier(), X, y),
    "svc": (SVC(), X, y),
    "svc with probabilities": (SVC(probability=True, random_state=0), X, y),
    "mlp": (MLPClassifier(max_iter=10, random_state=0), X, y),
    "calibrated": (CalibratedClassifierCV(GaussianNB(), method="isotonic"), X, y),
    "grid search": (GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, scoring="roc_auc"), X, y),
    "stacking": (StackingClassifier(members()), X, y),
    "voting": (VotingClassifier(members(), voting="soft"), X, y),
    "voting regression": (VotingRegressor([("r", Ridge()), ("k", KNeighborsRegressor())]), X, X.a),
    "isolation forest": (IsolationForest(n_estimators=10, random_state=0), X, None),
    "string one-hot": (by_columns(OneHotEncoder(handle_unknown="ignore")), mixed, y),
    "target encoder": (by_columns(TargetEncoder()), mixed, y),
    "tf-idf": (make_pipeline(TfidfVectorizer(), LogisticRegression()), texts, y),
    "word counts": (make_pipeline(CountVectorizer(ngram_range=(1, 2), stop_words="english"), MultinomialNB()), texts, y),
    "function": (make_pipeline(FunctionTransformer(np.log1p), PCA(2), LogisticRegression()), X.abs(), y),
    "target transformed": (TransformedTargetRegressor(Ridge(), transformer=StandardScaler()), X, X.a),
    "multi-output": (MultiOutputClassifier(LogisticRegression()), X, two),
    "multi-output forest": (RandomForestClassifier(5, random_state=0), X, two),  # several outputs by itself
    "multi-output regression": (MultiOutputRegressor(Ridge()), X, X[["a", "b"]]),
    "multi-output ridge": (Ridge(), X, X[["a", "b"]]),
}
try:
    from lightgbm import LGBMClassifier, LGBMRegressor
    KINDS["lightgbm"] = (LGBMClassifier(n_estimators=5, verbose=-1), X, y)
    KINDS["lightgbm regression"] = (LGBMRegressor(n_estimators=5, verbose=-1), X, X.a)
except ImportError: pass
try:
    from xgboost import XGBClassifier, XGBRegressor
    KINDS["xgboost"] = (XGBClassifier(n_estimators=5), X, y)
    KINDS["xgboost regression"] = (XGBRegressor(n_estimators=5), X, X.a)
except ImportError: pass

FRESH = """
import json, sys, warnings
from hashlib import sha256
from pathlib import Path
warnings.simplefilter("ignore")
from deploy_assist import load_release
for folder in sorted(Path(sys.argv[1]).iterdir()):
    release = load_release(folder)
    X = release.schema.frame(json.loads((folder.parent.parent / f"{folder.name}.json").read_text()))
    said = {"name": folder.name, "predict": release.predict(X).tolist(), "hash": release.hash}
    if hasattr(release.model, "predict_proba") and "multi" not in folder.name:
        said["proba"] = release.predict_proba(X).tolist()
    print(json.dumps(said))
"""


def elsewhere(code: str, *arguments: object, **environment: str) -> str:
    "Run Python in a fresh process and an unrelated folder."
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd="/", env=os.environ | environment,
                          capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    "Every kind, fitted and saved; and what a fresh process read and answered."
    folder = tmp_path_factory.mktemp("kinds")
    made = {}
    for kind, (model, rows, labels) in KINDS.items():
        model = model.fit(rows) if labels is None else model.fit(rows, labels)
        made[kind] = prepare(model, rows, labels, name=kind)
        made[kind].save(folder / "bundles" / kind)
        schema = made[kind].schema
        (folder / f"{kind}.json").write_text(json.dumps(schema.rows(schema.frame(rows))))
    said = [json.loads(line) for line in elsewhere(FRESH, folder / "bundles").splitlines()]
    return made, {one["name"]: one for one in said}, folder / "bundles"


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_the_same_in_a_fresh_process(releases, kind):
    made, said, _ = releases
    release, rows = made[kind], KINDS[kind][1]
    assert said[kind]["predict"] == release.predict(rows).tolist()
    if "proba" in said[kind]: assert said[kind]["proba"] == release.predict_proba(rows).tolist()
    assert untrusted_types(release.model) == {}
    needed = {r.partition("==")[0] for r in release.requirements} - {"numpy", "pandas", "scikit-learn", "scipy", "skops"}
    assert {p.removesuffix("-cpu") for p in needed} == {kind.split()[0]} & {"lightgbm", "xgboost"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_is_the_same_however_often_it_is_read_and_saved(releases, kind, tmp_path):
    made, said, bundles = releases
    again = load_release(bundles / kind)
    assert again.hash == made[kind].hash == said[kind]["hash"]
    again.save(tmp_path / "again")
    assert load_release(tmp_path / "again").hash == made[kind].hash


def test_mlflow_reads_bundles_and_registered_versions(releases, tmp_path):
    import mlflow
    made, _, bundles = releases
    for kind in ("forest", "string one-hot", "histogram regression", "tf-idf"):
        rows = KINDS[kind][1]
        assert mlflow.sklearn.load_model(str(bundles / kind)).predict(rows).tolist() == made[kind].predict(rows).tolist()
        assert mlflow.pyfunc.load_model(str(bundles / kind)).predict(rows).tolist() == made[kind].predict(rows).tolist()
    version = register(made["string one-hot"])
    assert mlflow.pyfunc.load_model(version.uri).predict(mixed).tolist() == made["string one-hot"].predict(mixed).tolist()
    mixed.head(5).to_csv(tmp_path / "in.csv", index=False)
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", bundles / "string one-hot", "-i", tmp_path / "in.csv",
               "-t", "csv", "--env-manager", "local", "-o", tmp_path / "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert said == made["string one-hot"].predict(mixed.head(5)).tolist()


# --- a module of one's own

SOURCE = '''"""Features of my own."""
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

def ratio(X):
    "Adds the ratio of two columns."
    X = np.asarray(X, dtype=float)
    return np.c_[X, X[:, 0] / (1 + abs(X[:, 1]))]

class Clip(TransformerMixin, BaseEstimator):
    "Clips to what was seen."
    def fit(self, X, y=None):
        X = np.asarray(X)
        self.low_, self.high_ = X.min(axis=0), X.max(axis=0)
        return self
    def transform(self, X): return np.clip(np.asarray(X), self.low_, self.high_)
'''
MINE = ["features_of_mine.Clip", "features_of_mine.ratio"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "A model that uses a module of the person's own, and the module's path."
    path = tmp_path / "features_of_mine.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("features_of_mine", None)
    from features_of_mine import Clip, ratio
    yield make_pipeline(Clip(), FunctionTransformer(ratio), LogisticRegression()).fit(X, y), path
    sys.modules.pop("features_of_mine", None)


def test_an_unknown_type_is_explained_and_needs_a_yes(mine):
    model, path = mine
    told = untrusted_types(model)
    assert list(told) == MINE and told[MINE[0]] == "a class of your module features_of_mine: Clips to what was seen."
    with pytest.raises(UntrustedTypeError, match="a function of your module features_of_mine: Adds the ratio"):
        prepare(model, X, y, name="mine", modules=[path])
    with pytest.raises(UntrustedTypeError, match="features_of_mine.ratio"):
        prepare(model, X, y, name="mine", modules=[path], trusted=MINE[:1])
    with pytest.raises(ModelError, match="let it travel with the model"): prepare(model, X, y, name="mine", trusted=MINE)
    with pytest.raises(ConfigError, match="the path of a Python file"):
        prepare(model, X, y, name="mine", trusted=MINE, modules=[path.with_name("nowhere.py")])


def test_a_module_travels_and_its_code_runs_only_after_a_yes(mine, tmp_path, monkeypatch):
    model, path = mine
    release = prepare(model, X, y, name="mine", modules=[path], trusted=MINE)
    bundle = release.save(tmp_path / "bundle")
    assert (bundle / "code" / "features_of_mine.py").read_text() == SOURCE
    assert load_release(bundle).predict(X).tolist() == release.predict(X).tolist(), "the yes was remembered on this machine"
    code = """import json, sys
from deploy_assist import load_release
release = load_release(sys.argv[1], trusted=sys.argv[2:])
X = release.schema.frame(release.baseline[release.schema.names])
print(json.dumps([release.hash, release.predict(X).tolist(), release.predict_proba(X).tolist()]))"""
    away = str(tmp_path / "another machine")
    there = json.loads(elsewhere(code, bundle, *MINE, DEPLOY_ASSIST_HOME=away))
    assert there == [release.hash, release.predict(X).tolist(), release.predict_proba(X).tolist()]
    refused = subprocess.run([sys.executable, "-c", code, bundle], cwd="/", env=os.environ | {"DEPLOY_ASSIST_HOME": away},
                             capture_output=True, text=True, timeout=60)
    assert "UntrustedTypeError" in refused.stderr and "features_of_mine" in refused.stderr
    import mlflow
    path.unlink()
    sys.modules.pop("features_of_mine")
    assert mlflow.pyfunc.load_model(str(bundle)).predict(X).tolist() == release.predict(X).tolist()


def test_a_module_never_takes_the_place_of_another(mine, tmp_path):
    model, path = mine
    bundle = prepare(model, X, y, name="mine", modules=[path], trusted=MINE).save(tmp_path / "bundle")
    path.write_text("x = 1\n")
    with pytest.raises(BundleError, match="another module 'features_of_mine' is imported here"): load_release(bundle)


def test_a_yes_is_for_the_source_that_was_seen(mine, tmp_path):
    model, path = mine
    prepare(model, X, y, name="mine", modules=[path], trusted=MINE)
    prepare(model, X, y, name="mine", modules=[path])  # remembered
    path.write_text(SOURCE + "print('other code')\n")
    with pytest.raises(UntrustedTypeError, match="features_of_mine.ratio@"):
        prepare(model, X, y, name="mine", modules=[path])


@pytest.mark.parametrize("function", [lambda X: X, "inner", "main"])
def test_what_only_the_notebook_knows_is_found_before_it_is_saved(function, monkeypatch):
    def inner(X): return X
    if function == "inner": function = inner
    if function == "main":
        import __main__
        exec("def scaled(X): return X * 2", __main__.__dict__)
        function = __main__.scaled
    model = make_pipeline(FunctionTransformer(function), LogisticRegression()).fit(X, y)
    with pytest.raises(ModelError, match=r"modules=\['my_features.py'\]"): prepare(model, X, y, name="homeless")


@pytest.mark.parametrize("answer, code", [("y\ny\n", 0), ("y\nn\n", 1), (None, 1)])
def test_the_command_asks_for_each_unknown_type(tmp_path, answer, code):
    "A terminal is asked yes or no; without one, --trust says it."
    import pty
    (tmp_path / "features_of_mine.py").write_text(SOURCE)
    (tmp_path / "train.py").write_text(
        "from features_of_mine import Clip, ratio\nfrom sklearn.datasets import load_iris\n"
        "from sklearn.linear_model import LogisticRegression\nfrom sklearn.pipeline import make_pipeline\n"
        "from sklearn.preprocessing import FunctionTransformer\ndef arguments():\n    X, y = load_iris(return_X_y=True)\n"
        "    model = make_pipeline(Clip(), FunctionTransformer(ratio), LogisticRegression(max_iter=500))\n"
        "    return dict(model=model.fit(X, y), X=X, y=y, name='iris', columns=list('abcd'))\n")
    command = [Path(sys.executable).with_name("deploy-assist"), "prepare", "train:arguments", "--out", "bundle", "--module",
               "features_of_mine.py"]
    def run(*more, stdin=subprocess.DEVNULL):
        return subprocess.run([*command, *more], cwd=tmp_path, stdin=stdin, capture_output=True, text=True, timeout=120)
    ours, theirs = pty.openpty()
    try:
        if answer: os.write(ours, answer.encode())
        done = run(stdin=theirs if answer else subprocess.DEVNULL)
    finally: os.close(ours); os.close(theirs)
    assert done.returncode == code, done.stderr
    if answer: assert "features_of_mine.Clip, a class of your module features_of_mine: Clips to what was" in done.stderr
    if code == 0: assert (tmp_path / "bundle" / "code" / "features_of_mine.py").exists()
    else: assert "UntrustedTypeError" in done.stderr and not (tmp_path / "bundle").exists()
    if answer is None:
        done = run(*[word for t in MINE for word in ("--trust", t)])
        assert done.returncode == 0, done.stderr


# --- tampering

def test_a_changed_bundle_does_not_load(releases, tmp_path):
    made, _, bundles = releases
    files = json.loads((bundles / "logistic" / "bundle.json").read_text())["files"]
    assert {"model.skops", "schema.json", "baseline.parquet", "requirements.txt"} <= set(files)
    for number, name in enumerate(files):
        bundle = made["logistic"].save(tmp_path / str(number))
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)
        with pytest.raises(BundleError, match="sha256 differs"): load_release(bundle)
        (bundle / name).unlink()
        with pytest.raises(BundleError, match="cannot be read"): load_release(bundle)


@pytest.mark.parametrize("name", ["../other.txt", "/etc/hostname", "code/../../x", "code/"])
def test_a_manifest_names_files_of_its_own_folder_only(releases, tmp_path, name):
    bundle = releases[0]["logistic"].save(tmp_path / "bundle")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][name] = "0" * 64
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="files of the bundle's own folder"): load_release(bundle)


def test_a_consistent_forgery_with_a_strange_type_does_not_load(releases, tmp_path):
    "Somebody who can write all of the bundle still meets our list, not the one in the artefact."
    import io
    from hashlib import sha256
    from zipfile import ZipFile

    from deploy_assist.release import _hash, _verified
    bundle = releases[0]["function"].save(tmp_path / "bundle")
    old, new = io.BytesIO((bundle / "model.skops").read_bytes()), io.BytesIO()
    with ZipFile(old) as source, ZipFile(new, "w") as forged:
        for name in source.namelist():
            was = source.read(name)
            forged.writestr(name, was.replace(b'"log1p","__module__":"numpy"', b'"system","__module__":"os"'))
    assert b'"system"' in new.getvalue()
    (bundle / "model.skops").write_bytes(new.getvalue())
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["model.skops"] = sha256(new.getvalue()).hexdigest()
    files = {name: (bundle / name).read_bytes() for name in manifest["files"]}
    manifest["hash"] = _hash(files)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert _verified(bundle) == files
    with pytest.raises(UntrustedTypeError, match="os.system"): load_release(bundle)


@pytest.mark.parametrize("file", ["code/more.py", "code/features_of_mine.so", "code/__pycache__/json.cpython-311.pyc",
                                  "code/inner/__init__.py"])
def test_a_file_that_was_added_to_the_code_is_refused(mine, tmp_path, file):
    "MLflow puts code/ on the path."
    model, path = mine
    bundle = prepare(model, X, y, name="mine", modules=[path], trusted=MINE).save(tmp_path / "bundle")
    (bundle / file).parent.mkdir(exist_ok=True)
    (bundle / file).write_text("")
    with pytest.raises(BundleError, match=r"was added since .* expected in code/ features_of_mine.py"): load_release(bundle)


def test_code_in_a_bundle_without_modules_is_refused(releases, tmp_path):
    bundle = releases[0]["logistic"].save(tmp_path / "bundle")
    (bundle / "code").mkdir()
    load_release(bundle)
    (bundle / "code" / "sklearn.py").write_text("")
    with pytest.raises(BundleError, match="expected in code/ nothing"): load_release(bundle)


@pytest.mark.parametrize("flavor, key, value", [
    ("python_function", "loader_module", "os"), ("python_function", "model_path", "other.pkl"),
    ("python_function", "code", "code"), ("python_function", "env", {"virtualenv": "other.yaml"}),
    ("sklearn", "pickled_model", "other.pkl"), ("sklearn", "serialization_format", "cloudpickle"), ("other", "data", "x")])
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_an_mlmodel_that_leads_elsewhere_is_refused(releases, tmp_path, flavor, key, value, form):
    import yaml
    bundle = releases[0]["logistic"].save(tmp_path / "bundle")
    def write(facts): (bundle / "MLmodel").write_text(json.dumps(facts) if form == "json" else yaml.safe_dump(facts))
    facts = json.loads((bundle / "MLmodel").read_text())
    write(facts | {"run_id": "1", "utc_time_created": "today"})
    load_release(bundle)
    facts["flavors"].setdefault(flavor, {})[key] = value
    write(facts)
    with pytest.raises(BundleError, match="lead elsewhere"): load_release(bundle)


def test_mlflow_rewrites_the_mlmodel_and_the_bundle_still_loads(releases, tmp_path):
    from mlflow.models import Model
    bundle = releases[0]["logistic"].save(tmp_path / "bundle")
    Model.load(bundle / "MLmodel").save(bundle / "MLmodel")
    assert not (bundle / "MLmodel").read_text().startswith("{")
    assert load_release(bundle).hash == releases[0]["logistic"].hash


# --- one bundle, whichever way

def test_the_same_bundle_from_a_cell_the_command_and_the_wizard(tmp_path):
    data = load_iris(as_frame=True)
    model = LogisticRegression(max_iter=500).fit(data.data, data.target)  # once: two fits need not agree to the last bit
    told = dict(model=model, X=data.data, y=data.target, X_test=data.data[::3], y_test=data.target[::3], name="iris")
    joblib.dump(told, tmp_path / "told.joblib")
    (tmp_path / "train.py").write_text("import joblib\ndef arguments(): return joblib.load('told.joblib')\n")
    command = [Path(sys.executable).with_name("deploy-assist"), "prepare", "train:arguments", "--out", "bundle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    from deploy_assist import wizard
    form = wizard(**told).wait()
    form.run("model", {"name": "iris"})
    form.wait()
    cell, command, clicked = (
        {name: sha256(data).hexdigest() for name, data in _files(release).items()}
        for release in (prepare(**told), load_release(tmp_path / "bundle"), form.release)
    )
    assert cell == command == clicked  # file by file, so that a failure names the file
    form.run("contract")
    form.wait()
    assert form.flow.state("contract") == "done" and form.release.hash == prepare(**told).hash


def test_metrics_do_not_depend_on_the_order_of_a_set():
    "A set of texts has another order in each process, and the last bit of a sum depends on the order."
    code = """
import numpy as np
from deploy_assist.prepare import measure
y, answers = np.random.default_rng(0).choice(list("abcdefg"), (2, 200))
print(measure("classification", None, y, answers))"""
    assert elsewhere(code, PYTHONHASHSEED="1") == elsewhere(code, PYTHONHASHSEED="2")


def test_a_model_that_has_answered_is_the_same_model():
    model = KNeighborsClassifier().fit(X, y)
    before = dump_model(model)
    model.predict(X)
    assert dump_model(model) == before == dump_model(KNeighborsClassifier().fit(X, y))


def test_a_graph_is_the_same_in_whatever_order_its_operator_sets_were_collected(monkeypatch):
    from skl2onnx import convert_sklearn

    from deploy_assist import export

    data = load_iris(as_frame=True)
    model = LogisticRegression(max_iter=500).fit(data.data, data.target)
    schema = prepare(model, data.data, data.target, name="iris", onnx=False).schema

    def turned(*args, **options):
        graph = convert_sklearn(*args, **options)
        sets = list(graph.opset_import)[::-1]
        del graph.opset_import[:]
        graph.opset_import.extend(sets)
        return graph

    once = export._convert(model, schema)
    monkeypatch.setattr("skl2onnx.convert_sklearn", turned)
    assert export._convert(model, schema) == once

"""The library on models of every kind: prepare, save, load, serve, ask, feedback; and what bad input is told."""

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_iris, load_linnerud, load_wine
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from deploy_assist import Client, DeployAssistError, PredictionLog, load_release, prepare, serve
from deploy_assist.schema import plain


def two_classes():
    X = pd.DataFrame(
        {
            "bmi": [21.0, 35, None, 33, 22, 36] * 20,
            "sex": ["f", "m", "m", "f", None, "m"] * 20,
            "smokes": [True, False, True] * 40,
        }
    )
    y = ["well", "ill", "well", "ill", "well", "ill"] * 20
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["bmi"]),
        (OneHotEncoder(handle_unknown="ignore"), ["sex"]),
        ("passthrough", ["smokes"]),
    )
    return make_pipeline(columns, LogisticRegression()).fit(X, y), X, y


def many_classes():
    data = load_iris(as_frame=True)
    y = data.target.map(dict(enumerate(data.target_names)))
    return RandomForestClassifier(20, random_state=0).fit(data.data, y), data.data, y


def no_probabilities():
    data = load_wine(as_frame=True)
    return make_pipeline(StandardScaler(), SVC()).fit(data.data, data.target), data.data, data.target


def regression():
    data = load_diabetes(as_frame=True, scaled=False)
    return HistGradientBoostingRegressor(max_iter=20).fit(data.data, data.target), data.data, data.target


def several_outputs():
    data = load_linnerud(as_frame=True)
    return LinearRegression().fit(data.data, data.target), data.data, data.target


def texts():
    X = [
        f"the patient felt {w} and slept {v}"
        for w in ("well", "good", "fine", "bad", "ill", "weak")
        for v in ("long", "short", "deep", "badly")
    ]
    y = ["well"] * 12 + ["ill"] * 12
    return make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(X, y), X, y


def same(answers, expected):
    "Labels are equal; numbers lie within what an engine is allowed, 1e-4 of their size."
    return np.allclose(answers, expected, rtol=1e-4, atol=0) if expected.dtype.kind == "f" else (answers == expected).all()


@pytest.mark.parametrize("make", [two_classes, many_classes, no_probabilities, regression, several_outputs, texts])
def test_from_fitted_model_to_served_answer(make, tmp_path):
    model, X, y = make()
    release = prepare(model, X, y, name=make.__name__.replace("_", "-"), X_test=X, y_test=y)
    expected = np.asarray(model.predict(X))
    assert (release.predict(X) == expected).all()
    again = load_release(release.save(tmp_path / "bundle"))
    assert (again.predict(X) == expected).all() and again.hash == release.hash
    with serve(again) as endpoint, Client(endpoint.url) as client:
        answers, ids = client.predict(X, return_ids=True)
        assert answers.shape == expected.shape and same(answers, expected)
        label = plain(expected[0])
        client.feedback(ids[0], label=label)
    with PredictionLog() as log:
        seen = log.window(release.name).set_index("prediction_id").loc[ids]
        assert len(seen) == len(expected) and seen["label"].notna().sum() == 1
        column = release.schema.names[0]
        sent = release.schema.frame(X)[column]
        assert [v for v in seen[column] if pd.notna(v)] == [v for v in sent if pd.notna(v)]


X = pd.DataFrame({"a": [1.0, 2, 3, 4] * 5, "b": [1, 0, 1, 0] * 5})
y = [0, 1, 0, 1] * 5
model = LogisticRegression().fit(X, y)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(model=LogisticRegression()), "unfitted LogisticRegression, expected a fitted one"),
        (dict(model=LogisticRegression), "got the class LogisticRegression"),
        (dict(model=make_pipeline(StandardScaler(), LogisticRegression())), "unfitted"),
        (dict(model=None), "without a predict method"),
        (dict(y=[0, 1]), "got 2 labels for 20 rows"),
        (dict(y=[0, None] * 10), "missing labels"),
        (dict(y=0), "expected 20 labels"),
        (dict(X=X.set_axis(["a", "a"], axis=1)), "duplicate columns 'a'"),
        (dict(X=X.to_numpy()), "no column names"),
        (dict(X=X.set_axis([0, 1], axis=1)), "no column names"),
        (dict(X=X.set_axis(["a", " "], axis=1)), "no column names"),
        (dict(X=X[:0], y=[]), "empty table"),
        (dict(X=X[[]]), "without columns"),
        (dict(X=X.assign(b=pd.Series([1, "x"] * 10, dtype=object))), "mixed types"),
        (dict(X=X.assign(b=[1j] * 20)), "complex"),
        (dict(X=X.assign(b=pd.Series([object()] * 20))), "type object"),
        (dict(X=X.rename(columns={"a": "c"})), "LogisticRegression.predict failed"),
        (dict(X=3), "expected a table"),
        (dict(name=""), "expected a name"),
        (dict(name="a/b"), "refuses; expected for example 'a-b'"),
        (dict(name="a:b"), "refuses"),
        (dict(name=None), "expected a name"),
        (dict(name=" a"), "spaces"),
        (dict(name="x" * 200), "200 characters"),
        (dict(X_test=X[:0], y_test=[]), "X_test: got an empty table"),
        (dict(X_test=X, y_test=[1]), "y_test: got 1 labels"),
        (dict(y_test=y), "without X_test"),
        (dict(X_test=X.assign(a="text")), "column 'a'"),
        (dict(X_test=X[["a"]]), "column 'b'"),
        (dict(units={"c": "kg"}), "column 'c': not in the schema"),
        (dict(limits={"a": 3}), "expected a pair"),
        (dict(limits={"a": (3, 1)}), "low <= high"),
    ],
)
def test_bad_input_is_told_what_came_and_what_to_do(arguments, said):
    with pytest.raises(DeployAssistError) as caught: prepare(**(dict(model=model, X=X, y=y, name="bad") | arguments))
    assert said in str(caught.value), str(caught.value)


def test_verbs_are_functions_whatever_was_imported():
    import deploy_assist.check
    import deploy_assist.demo
    import deploy_assist.report  # noqa: F401
    assert all(callable(getattr(deploy_assist, verb)) for verb in ("check", "demo", "report", "prepare", "serve"))


def test_odd_tables(tmp_path):
    "Unicode and reserved names, wide tables, dates, nullable and categorical dtypes."
    rng, n = np.random.default_rng(0), 60
    X = pd.DataFrame(
        {
            "größe in cm": rng.normal(170, 10, n),
            "select": pd.array(rng.integers(0, 9, n), dtype="Int64"),
            "label": rng.normal(size=n),
            "prediction": rng.normal(size=n),
            "time": pd.date_range("2026-01-01", periods=n),
            "kind": pd.Categorical(rng.choice(list("abc"), n)),
            "on": pd.array(rng.choice([True, False], n), dtype="boolean"),
        }
        | {f"x{i}": rng.normal(size=n) for i in range(150)}
    )
    y = (X["label"] > 0).astype(int)
    numbers = [c for c in X if X[c].dtype == float]
    odd = make_pipeline(
        make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(handle_unknown="ignore"), ["kind"])),
        LogisticRegression(),
    ).fit(X, y)
    release = prepare(odd, X, y, name="odd table", X_test=X, y_test=y)
    with serve(release) as endpoint, Client(endpoint.url) as client:
        answers, ids = client.predict(X, return_ids=True)
        assert (answers == odd.predict(X)).all()
    with PredictionLog() as log: seen = log.window("odd table").set_index("prediction_id").loc[ids]
    assert seen["größe in cm"].tolist() == X["größe in cm"].tolist() and len(seen) == n

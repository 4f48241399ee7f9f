"""The schema with its neighbours: MLflow, GraphQL, polars, bundles of before, the log."""
import json
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from deploy_assist import PredictionLog, load_release, prepare
from deploy_assist.errors import SchemaError
from deploy_assist.predictions import Batch
from deploy_assist.schema import Column, Schema, mlflow_columns

people = pd.DataFrame({
    "age": [63, 41, 55], "sex": ["f", "m", "f"], "body mass": [32.1, None, 30.5], "smokes": [True, False, True],
    "seen": pd.to_datetime(["2026-01-31"] * 3), "since": pd.to_datetime(["2026-01-31"] * 3, utc=True),
    "embedding": [[0.5, 1.5]] * 3, "steps": [[1, 2]] * 3, "email": ["a@example.org", "b@example.org", "c@example.org"],
})


def test_mlflow_signature_goes_there_and_back():
    schema = Schema.learn(people, classes=[0, 1])
    signature = schema.mlflow_signature()
    assert type(signature).__name__ == "ModelSignature" and signature.inputs.input_names() == schema.names
    assert [c["required"] for c in signature.inputs.to_dict()] == [c.name != "body mass" for c in schema.columns]
    again = Schema.from_mlflow(signature, classes=[0, 1])
    assert mlflow_columns(again) == mlflow_columns(schema)
    rows = [row | {"embedding": [0.5, 1.5]} for row in schema.rows(people)]
    for row in rows: row["since"] = row["since"][:19]  # MLflow's datetime has no zone
    frame = again.to_frame(again.check(rows))
    assert list(frame.dtypes.astype(str)[["age", "body mass", "smokes"]]) == ["int64", "float64", "bool"]


@pytest.mark.parametrize(["X", "types"], [
    (people[["age", "sex", "body mass", "smokes", "seen"]], ["integer", "string", "float", "boolean", "datetime"]),
    (pd.DataFrame({"small": np.array([1], "int32"), "single": np.array([1.5], "float32")}), ["integer", "float"]),
    (np.eye(3), ["float"] * 3),
])
def test_signatures_that_mlflow_infers_are_read(X, types):
    from mlflow.models import infer_signature
    schema = Schema.from_mlflow(infer_signature(X))
    assert [c.type for c in schema.columns] == types
    if isinstance(X, pd.DataFrame): assert schema["small" if "small" in X else "age"].dtype == str(X.iloc[:, 0].dtype)
    else: assert schema.form == "array" and schema.names == ["x0", "x1", "x2"]


def test_signatures_that_are_no_table_are_refused():
    from mlflow.models import infer_signature
    for X, said in [(np.zeros((2, 3, 4)), "a tensor of float64"), ({"a": np.zeros(2), "b": np.zeros(2)}, "2 tensors"),
                    (pd.DataFrame({"scan": [b"x"]}), "the type binary"),
                    (pd.DataFrame({"o": [{"a": 1}]}), "the type object")]:
        with pytest.raises(SchemaError, match=said): Schema.from_mlflow(infer_signature(X))


def test_graphql_type_is_valid_and_names_its_columns():
    graphql = pytest.importorskip("graphql")
    odd = ["blood pressure", "blood_pressure", "2nd", "__typename", "Größe", "年齢", 'a "quoted" one']
    schema = Schema(tuple(Column(n, "float", nullable=n == "2nd", help='say "hello"\n') for n in odd))
    more = (*Schema.learn(people).columns, Column("big", "integer", maximum=2**40))
    schema = replace(schema, columns=schema.columns + more)
    types = graphql.build_schema(schema.graphql_type() + " type Query { predict(rows: [RowInput!]!): Int }")
    fields = types.get_type("RowInput").fields
    assert schema.graphql_names() == dict(zip(fields, schema.names))
    kinds = {schema.graphql_names()[f]: str(v.type) for f, v in fields.items()}
    assert (kinds["age"], kinds["big"], kinds["2nd"], kinds["steps"]) == ("Int!", "Float!", "Float", "[Int!]!")
    assert all(not name.startswith("__") for name in fields)


def test_pydantic_names_never_hide_the_class():
    names = ["class", "copy", "model_config", "model_dump", "_x", "2nd", "schema", "match"]
    Row = Schema(tuple(Column(n, "integer") for n in names)).pydantic_model()
    row = Row.model_validate_json(json.dumps({n: i for i, n in enumerate(names)}))
    assert row.model_dump(by_alias=True) == {n: i for i, n in enumerate(names)}
    assert json.loads(row.model_dump_json(by_alias=True)) == row.model_dump(by_alias=True)


def test_pydantic_and_check_give_the_same_values():
    schema = Schema.learn(people).edit("sex", unseen="missing")
    Row = schema.pydantic_model()
    for row in schema.rows(people) + [schema.rows(people)[0] | {"sex": "x", "age": 63.0}]:
        checked = {n: v[0] for n, v in schema.check([row]).items()}
        assert Row.model_validate(row).model_dump(by_alias=True) == checked
        assert Row.model_validate(row).model_dump(by_alias=True, mode="json")["seen"].startswith("2026-01-31")


def test_polars_frames_come_in():
    pl = pytest.importorskip("polars")
    table = pl.DataFrame({
        "age": [63, 41], "bmi": [32.1, None], "sex": ["f", None],
        "day": [date(2026, 1, 31)] * 2, "at": [datetime(2026, 1, 31)] * 2,
        "fee": [Decimal("1.5")] * 2, "embedding": pl.Series([[0.5, 1.5]] * 2, dtype=pl.Array(pl.Float32, 2)),
        "kind": pl.Series(["b", "a"], dtype=pl.Enum(["b", "a"])), "flag": [True, False],
    })
    schema = Schema.learn(table)
    assert [c.type for c in schema.columns] == ["integer", "float", "category", "datetime", "datetime", "float", "list",
                                                "category", "boolean"]
    pd.testing.assert_frame_equal(schema.frame(schema.rows(table.to_pandas())), table.to_pandas())
    pd.testing.assert_frame_equal(schema.frame(table), table.to_pandas())
    with pytest.raises(SchemaError, match=r"X.collect\(\)"): Schema.learn(table.lazy())


def test_a_schema_of_before_still_loads_and_keeps_its_hash():
    old = dict(task="classification", outputs=["prediction"], classes=[0, 1], form="frame", rows_learnt=2, columns=[
        dict(name="mail", type="string", sensitivity="e-mail", distinct=2, dtype="str"),
        dict(name="size", type="category", categories=["s", "m"], counts=[1, 1], distinct=2, examples=["s"],
             dtype="category"),
        dict(name="vector", type="list", size=2, distinct=2, examples=[[0.5, 1.5]])])
    schema = Schema.from_dict(old)
    assert schema.to_dict() == old and schema["mail"].sensitivity_by is None
    frame = schema.to_frame(schema.check([dict(mail="x", size="s", vector=[1, 2])]))
    assert list(frame["size"].cat.categories) == ["m", "s"] and frame.vector[0] == [1.0, 2.0]


def test_a_bundle_gives_no_example_of_what_is_sensitive(tmp_path):
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    X = pd.DataFrame({"age": [63, 41, 55, 38] * 10, "email": [f"person{i}@example.org" for i in range(40)]})
    y = pd.Series([1, 0, 1, 0] * 10)
    model = make_pipeline(make_column_transformer(("passthrough", ["age"])), LogisticRegression()).fit(X, y)
    release = prepare(model, X, y, name="risk").edit("age", policy="drop")
    folder = release.save(tmp_path / "risk")
    for name in ("schema.json", "input_example.json"): assert "@example.org" not in (folder / name).read_text()
    mail = load_release(folder).schema["email"]
    assert (mail.sensitivity, mail.sensitivity_by, mail.examples) == ("e-mail", "suggestion", ())
    assert load_release(folder).schema["age"].examples == ()


def test_fingerprints_stay_the_same_and_nanoseconds_are_logged(tmp_path):
    when = pd.to_datetime(["2026-01-31"] * 2).astype("datetime64[ns]")
    learnt = Schema.learn(pd.DataFrame({"at": when, "name": ["a", "b"]}))
    schema = learnt.edit("name", policy="hash")
    seen = []
    for _ in range(2):
        with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log:
            columns = schema.check([{"at": "2026-01-31T13:00:00.123456789", "name": "Ada"}])
            log.append(Batch(model="m", schema=schema, columns=columns, predictions=[0]))
            seen.append(log.window("m"))
    assert seen[1].name.nunique() == 1 and len(seen[1]) == 2 and seen[1]["at"].notna().all()


def test_views_are_made_without_loading_their_tools():
    code = """
import sys
from deploy_assist.schema import Column, Schema, mlflow_dict
s = Schema((Column("age", "integer"),)); mlflow_dict(s); s.graphql_type(); s.json_schema(); s.as_code(s)
assert not {"mlflow", "pydantic", "graphql", "pyarrow.dataset"} & set(sys.modules), "loaded"
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""

"""The fast way from bytes and arrays to columns takes nothing that the slow way refuses, and gives the same columns."""
import json
import random

import numpy as np
import pandas as pd
import pytest

from deploy_assist import Schema, SchemaError
from deploy_assist.rows import Decoder, Marker, check_columns
from deploy_assist.runtime import as_lists
from deploy_assist.protocols import Refusal, read_json, rows_of

rng = np.random.default_rng(0)
X = pd.DataFrame({
    "age": rng.integers(20, 80, 60), "bmi": np.where(rng.random(60) < 0.1, np.nan, rng.normal(25, 4, 60)),
    "sex": rng.choice(["f", "m"], 60), "ward": pd.Series(rng.choice(["a", "b", None], 60), dtype=object),
    "smoker": rng.random(60) < 0.5, "small": rng.integers(0, 9, 60).astype("int8"),
    "score": rng.normal(size=60).astype("float32"),
    "caf\u00e9": rng.normal(size=60),
})
schema = Schema.learn(X).edit("age", low=0, high=120).edit("sex", unseen="error").edit("ward", unseen="missing")
good = schema.rows(X)
ODD = """30.5 63.0 -0 1e2 1e400 -1e-400 NaN Infinity true null "f" "63" [1] {} 01 1. +1 9007199254740993 128 3e38 4e38 "a:b"
    "\\u003a" "\\ud800" "\\n" 121 -1 "\u00fc" "m" "never" nul 0.1e1 120.0000001 4.0e0""".split() + ["1" * 400, '"\t"', "1 2", ""]


def slow(body: bytes) -> dict | None:
    try: return schema.check(rows_of(read_json(body)))
    except (Refusal, SchemaError): return None


SHAPES = ['{{"rows": [{}]}}', '{{"rows":[{}]}}', "[{}]", "{}", ' {{ "rows" : [{}] }} ', '{{"rows": [{}], "more": 1}}',
          '{{"rows": [{}]}} x', "\ufeff[{}]", '{{"rows": {}}}', '{{"rows": [], "rows": [{}]}}']


def bodies(count: int, seed: int = 1):
    "Bodies of valid, invalid and odd cells, names and shapes."
    pick = random.Random(seed)
    for _ in range(count):
        rows = []
        for _ in range(pick.choice([1, 1, 2, 3])):
            cells = [(json.dumps(k, ensure_ascii=pick.random() < 0.2), json.dumps(v)) for k, v in pick.choice(good).items()]
            if pick.random() < 0.6: i = pick.randrange(len(cells)); cells[i] = (cells[i][0], pick.choice(ODD))
            if pick.random() < 0.1: cells.pop(pick.randrange(len(cells)))
            more = pick.choice(['"age"', '"other"', '"\\u0061ge"', '"sex"', "age"]), pick.choice(["1", '"f:"'])
            if pick.random() < 0.1: cells.append(more)
            if pick.random() < 0.3: pick.shuffle(cells)
            space = pick.choice(["", " ", "\n", "\t "])
            rows.append("{" + ",".join(f"{k}{space}:{space}{v}" for k, v in cells) + "}")
        text = ",".join(rows)
        shape = pick.choice(SHAPES)
        body = shape.format(text).encode()
        if pick.random() < 0.02: body = body.replace(b"f", b"\xff", 1)
        yield body


def same(a: dict, b: dict) -> bool:
    def equal(x, y): return repr(x) == repr(y) or (x == y and type(x) is type(y))
    return list(a) == list(b) and all(equal(x, y) for k in a for x, y in zip(a[k], b[k]))


def test_the_decoder_agrees_with_the_slow_way_on_5000_bodies():
    decoder, marker, fast, taken = Decoder(schema), Marker(schema), 0, 0
    assert decoder.is_fast
    for body in bodies(5000):
        expected, found = slow(body), decoder.decode(body)
        taken += expected is not None
        if found is None: continue
        fast += 1
        assert expected is not None, f"taken, but the slow way refuses {body!r}"
        assert same(as_lists(schema, found), expected), body
        assert marker(found) == schema.marks(expected)
    assert taken > 600 and fast > 0.7 * taken, (fast, taken)


STRANGE = [b"", b"[]", b'{"rows": []}', b"{}", b"null", b"[" * 5000, b"\xff", b'"rows"', b"[1]", b'{"rows": [null]}']


@pytest.mark.parametrize("body", STRANGE)
def test_strange_bodies_are_left_to_the_slow_way(body):
    assert Decoder(schema).decode(body) is None


def test_a_schema_with_dates_or_a_column_called_rows_takes_the_slow_way():
    assert not Decoder(Schema.learn(pd.DataFrame({"day": pd.to_datetime(["2026-01-01", "2026-01-02"])}))).is_fast
    for name in ("rows", "a:b", 'a "b"'): assert not Decoder(Schema.learn(pd.DataFrame({name: [1.0, 2.0]}))).is_fast


def test_columns_agree_with_the_slow_way():
    pick = random.Random(2)
    values = [0, 1, 63, 30.5, 200, -1, 1e300, float("nan"), float("inf"), None, "f", "m", "x", True, 2**60, 127, 128, [1]]
    agreed = 0
    for _ in range(2000):
        rows = [dict(pick.choice(good)) for _ in range(pick.choice([1, 2, 5]))]
        for row in rows:
            if pick.random() < 0.4: row[pick.choice(schema.names)] = pick.choice(values)
        columns = {k: [r[k] for r in rows] for k in schema.names}
        try: expected = schema.check(rows)
        except SchemaError as e: expected = e.errors
        try: found = as_lists(schema, check_columns(schema, columns))
        except SchemaError as e: found = e.errors
        assert found == expected if isinstance(expected, list) else same(found, expected), rows
        agreed += not isinstance(expected, list)
    assert agreed > 400


def test_typed_arrays_are_checked_as_wholes():
    arrays = {c: X[c].to_numpy() for c in X} | {"ward": X["ward"].where(X["ward"].notna(), None).to_numpy()}
    found = check_columns(schema, arrays)
    assert found.numbers.shape == (6, 60)
    assert same(as_lists(schema, found), schema.check(schema.rows(X)))
    numbers = [("age", 30.5), ("age", 121), ("age", np.nan), ("age", True), ("smoker", 1.0), ("score", np.inf), ("small", 200)]
    for name, wrong in [*numbers, ("sex", "x")]:
        with pytest.raises(SchemaError, match=f"column '{name}'"): check_columns(schema, arrays | {name: np.full(60, wrong)})
    less = {k: v for k, v in arrays.items() if k != "age"}
    with pytest.raises(SchemaError, match="the column is missing"): check_columns(schema, less)
    with pytest.raises(SchemaError, match="an unknown column"): check_columns(schema, arrays | {"other": np.ones(60)})
    with pytest.raises(SchemaError): check_columns(schema, arrays | {"age": np.ones(59)})

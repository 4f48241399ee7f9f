"""The demo through gradio_client and HTTP: unlike tables, files, feedback, logins, snippets that run."""
import os
import subprocess
import sys
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
import zoo_tables
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from deploy_assist import ConfigError, PredictionLog, demo, serve
from deploy_assist.demo import link_to, snippets

gradio_client = pytest.importorskip("gradio_client", reason='no gradio: pip install "deploy_assist[notebook]"')


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    "A home, and a log in it."
    home = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOY_ASSIST_HOME", str(home))
        patch.setenv("GRADIO_TEMP_DIR", str(home / "files"))
        with PredictionLog(f"sqlite:///{home}/predictions.db", home=home) as log: yield home, log


@pytest.fixture(scope="module")
def mixed(places):
    "The table with a column of nearly every kind, and its page."
    release = zoo_tables.mixed()
    with demo(release, log=places[1]) as page: yield release, page


def client(page, **options): return gradio_client.Client(page.url, verbose=False, download_files=False, **options)


def asked(page, *values, **options):
    caller = client(page, **options)
    try: return caller.predict(*values, api_name="/predict")
    finally: caller.close()


def same(said, expected) -> bool:
    if isinstance(said["prediction"], (str, bool)): return said["prediction"] == expected
    return np.allclose(said["prediction"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in zoo_tables.TABLES if name != "mixed"])
def test_a_page_for_every_table_answers_as_the_model(name, places):
    release = zoo_tables.TABLES[name]()
    rows, expected = release.schema.rows(release.X_test.iloc[:3]), release.predict(release.X_test.iloc[:3])
    with demo(release, log=places[1]) as page:
        caller = client(page)
        try: answers = [caller.predict(*row.values(), api_name="/predict") for row in rows]
        finally: caller.close()
    assert all(same(said, y) for said, y in zip(answers, expected))
    if "classification" in release.task and answers[0].get("probabilities"):
        assert np.allclose([a["probabilities"][0] for a in answers], release.predict_proba(release.X_test.iloc[:3]), atol=1e-6)


def test_missing_values_are_choices_and_refusals_are_sentences(mixed):
    release, page = mixed
    X = release.X_test
    row = release.schema.rows(X[X.price.isna() & X.channel.isna()].iloc[:1])[0]
    caller = client(page)
    try:
        said = caller.predict(*row.values(), api_name="/predict")
        assert said["prediction"] == release.predict(release.schema.frame([row]))[0]
        with pytest.raises(Exception, match="nights.*a whole number"):
            caller.predict(*(row | {"nights": "many"}).values(), api_name="/predict")
    finally: caller.close()


def test_a_table_comes_back_and_feedback_is_joined(mixed, places, tmp_path):
    release, page = mixed
    rows = pd.DataFrame(release.schema.rows(release.X_test.iloc[:5])).astype({"nights": object})
    rows.loc[2, "nights"] = "two"
    rows.to_csv(tmp_path / "guests.csv", index=False)
    caller = gradio_client.Client(page.url, verbose=False, download_files=str(tmp_path))
    try:
        file, said = caller.predict(gradio_client.handle_file(tmp_path / "guests.csv"), api_name="/predict_table")
        out = pd.read_csv(file)
        assert said["rows"] == 5 and [(x["row"], x["column"]) for x in said["wrong"]] == [(2, "nights")]
        assert out.prediction.isna().tolist() == [i == 2 for i in range(5)] and "nights: got 'two'" in out.problem[2]
        assert out.prediction.dropna().tolist() == [*release.predict(release.X_test.iloc[[0, 1, 3, 4]])]
        told = caller.predict(out.prediction_id[0], "stays", None, "seen at the desk", api_name="/feedback")
        with pytest.raises(Exception, match="label.*one of"):
            caller.predict(out.prediction_id[0], "maybe", None, None, api_name="/feedback")
    finally: caller.close()
    seen = places[1].window("bookings").set_index("prediction_id")
    assert set(seen["source"]) == {"demo"} and seen.loc[out.prediction_id[0], "label"] == "stays" and told["feedback_id"]


def test_page_and_link_leave_sensitive_columns_out(mixed):
    release, page = mixed
    row = release.schema.rows(release.X_test.iloc[:1])[0]
    assert "example.org" in str(row) and "example.org" not in link_to(page.url, release.schema, row)
    with urlopen(page.url) as answer: assert "guest" not in answer.read().decode().replace("bookings", "")


@pytest.fixture(scope="module")
def quoted(places):
    "A release with quotes in its values, its page with a login, and its endpoint with a key."
    X = pd.DataFrame({"bmi": [21.5, 30.25, 24.4, 26.1] * 12, "ward's name": ["O'Hara", 'a "b" $HOME `x`', "c\\d", "é"] * 12})
    columns = make_column_transformer(("passthrough", ["bmi"]), (OneHotEncoder(handle_unknown="ignore"), ["ward's name"]))
    y = np.where(X.bmi > 25, "heavy", "light")
    release = zoo_tables.split(make_pipeline(columns, LogisticRegression()), X, y, "quoted")
    with (demo(release, log=False, auth=("ada", "love lace&")) as page,
          serve(release, key="a-key-of-the-tests", home=places[0], log=f"sqlite:///{places[0]}/served.db") as endpoint):
        yield release, page, endpoint


def run(text: str, how: str, **env) -> str:
    command = {"curl": ["bash", "-c", text], "Python": [sys.executable, "-c", text],
               "JavaScript": ["node", "--input-type=module", "-e", text]}[how]
    try: done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | env)
    except FileNotFoundError: pytest.skip(f"{command[0]} is not installed")
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


@pytest.mark.parametrize("how", ["curl", "Python", "JavaScript"])
def test_the_snippets_run_as_they_are(quoted, how):
    release, page, endpoint = quoted
    row = release.schema.rows(release.X_test.iloc[:1])[0]
    expected = release.predict(release.X_test.iloc[:1])[0]
    out = run(snippets(row, page=page.url, login=True)[how], how, DEMO_USER="ada", DEMO_PASSWORD="love lace&")
    assert expected in out, out
    out = run(snippets(row, page=page.url, endpoint=endpoint.url, key=True)[how], how, KEY=endpoint.key)
    assert expected in out, out


def test_the_login_is_asked(quoted):
    with pytest.raises(Exception, match="credentials|[Ll]ogin|401"): client(quoted[1], auth=("ada", "wrong"))
    with pytest.raises(ConfigError, match="others can reach, without a login"): demo(quoted[0], host="0.0.0.0", log=False)
    with pytest.raises(ConfigError, match="auth: .*pairs"): demo(quoted[0], auth="ada", log=False)


def test_a_demo_of_an_endpoint_and_of_a_bare_model(quoted, places):
    release, _, endpoint = quoted
    rows = release.schema.rows(release.X_test.iloc[:2])
    with demo(endpoint.url, key=endpoint.key) as page: said = [asked(page, *row.values()) for row in rows]
    assert [s["prediction"] for s in said] == release.predict(release.X_test.iloc[:2]).tolist()
    with demo(release.model, release.X_test, release.y_test, log=False) as page:
        assert asked(page, *rows[0].values())["prediction"] == said[0]["prediction"]
    with pytest.raises(ConfigError, match=r"demo\(model, X\)"): demo(release.model)


def test_share_says_when_no_public_link_can_be_had(quoted):
    with demo(quoted[0], share=True, log=False) as page:
        assert page.share_url is None and "No public link" in repr(page) and page.url in page._repr_html_()

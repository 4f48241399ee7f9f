"""The demo through gradio_client, HTTP and Chromium: unlike tables, every kind of field, files, feedback, logins, snippets that
run; behind a proxy, in several processes, as versions change."""
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
import zoo_tables
from waiting import until
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from deploy_assist import ConfigError, PredictionLog, demo, prepare, promote, register, serve
from deploy_assist import cli
from deploy_assist.demo import link_to, snippets
from deploy_assist.predictor import Predictor

KEY = "a-key-of-the-tests"
gradio_client = pytest.importorskip("gradio_client", reason='no gradio: pip install "deploy_assist[notebook]"')


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    "A home, and a log in it."
    home = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOY_ASSIST_HOME", str(home))
        patch.setenv("GRADIO_TEMP_DIR", str(home / "files"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        with PredictionLog(f"sqlite:///{home}/predictions.db", home=home) as log: yield home, log


@pytest.fixture(scope="module")
def shown(places):
    "The release of a table and its page, made once."
    with contextlib.ExitStack() as stack:
        made = {}
        def of(name):
            if name not in made:
                release = zoo_tables.TABLES[name]()
                made[name] = release, stack.enter_context(demo(release, log=places[1]))
            return made[name]
        yield of


@pytest.fixture
def mixed(shown):
    "The table with a column of nearly every kind, and its page."
    return shown("mixed")


def client(page, **options): return gradio_client.Client(page.url, verbose=False, download_files=False, **options)


def asked(page, *values, **options):
    caller = client(page, **options)
    try: return caller.predict(*values, api_name="/predict")
    finally: caller.close()


def same(said, expected) -> bool:
    if isinstance(said["prediction"], (str, bool)): return said["prediction"] == expected
    return np.allclose(said["prediction"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in zoo_tables.TABLES if name != "mixed"])
def test_a_page_for_every_table_answers_as_the_model(name, shown):
    release, page = shown(name)
    rows, expected = release.schema.rows(release.X_test.iloc[:3]), release.predict(release.X_test.iloc[:3])
    caller = client(page)
    try: answers = [caller.predict(*row.values(), api_name="/predict") for row in rows]
    finally: caller.close()
    assert all(same(said, y) for said, y in zip(answers, expected))
    if "classification" in release.task and answers[0].get("probabilities"):
        assert np.allclose([a["probabilities"][0] for a in answers], release.predict_proba(release.X_test.iloc[:3]), atol=1e-6)


@pytest.mark.parametrize("name", zoo_tables.TABLES)
def test_all_sampled_rows_of_every_table_are_answered_as_by_the_model(name, shown, tmp_path):
    release, page = shown(name)
    X, outputs = release.X_test, release.schema.outputs
    pd.DataFrame(release.schema.rows(X)).to_parquet(tmp_path / "rows.parquet")
    caller = gradio_client.Client(page.url, verbose=False, download_files=str(tmp_path))
    try: file, said = caller.predict(gradio_client.handle_file(tmp_path / "rows.parquet"), api_name="/predict_table")
    finally: caller.close()
    out, expected = (pd.read_parquet if file.endswith("parquet") else pd.read_csv)(file), np.asarray(release.predict(X))
    assert said["rows"] == len(X) == len(out) and not said["wrong"]
    expected = expected.reshape(len(X), -1)
    assert expected.shape[1] == len(outputs), out.columns
    for k, column in enumerate(outputs):
        if expected.dtype.kind in "OUSb": assert out[column].tolist() == expected[:, k].tolist()
        else: assert np.allclose(out[column].astype(float), expected[:, k].astype(float), rtol=1e-6)


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


def test_nothing_is_sent_home_and_nothing_is_kept_beside_the_log(mixed):
    with urlopen(f"{mixed[1].url}/config") as answer: config = json.loads(answer.read())
    assert config["analytics_enabled"] is False and config["run_history"] is False and config["is_colab"] is False
    assert not [d for d in config["dependencies"] if "flag" in str(d.get("api_name"))]
    offered = {d["api_name"] for d in config["dependencies"] if d["api_visibility"] == "public"}
    assert offered == {"predict", "predict_table", "feedback"}


@pytest.fixture(scope="module")
def quoted(places):
    "A release with quotes in its values, its page with a login, and its endpoint with a key."
    X = pd.DataFrame({"bmi": [21.5, 30.25, 24.4, 26.1] * 12, "ward's name": ["O'Hara", 'a "b" $HOME `x`', "c\\d", "é"] * 12})
    columns = make_column_transformer(("passthrough", ["bmi"]), (OneHotEncoder(handle_unknown="ignore"), ["ward's name"]))
    y = np.where(X.bmi > 25, "heavy", "light")
    release = zoo_tables.split(make_pipeline(columns, LogisticRegression()), X, y, "quoted")
    with (demo(release, log=False, auth=("ada", "love lace&")) as page,
          serve(release, key=KEY, demo=True, home=places[0], log=f"sqlite:///{places[0]}/served.db") as endpoint):
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
    caller = gradio_client.Client(f"{endpoint.url}/demo", auth=("ada", KEY), verbose=False, download_files=False)
    try: assert caller.predict(*rows[0].values(), api_name="/predict")["prediction"] == said[0]["prediction"]
    finally: caller.close()
    with demo(release.model, release.X_test, release.y_test, log=False) as page:
        assert asked(page, *rows[0].values())["prediction"] == said[0]["prediction"]
    with pytest.raises(ConfigError, match=r"demo\(model, X\)"): demo(release.model)


def test_share_says_when_no_public_link_can_be_had(quoted):
    with demo(quoted[0], share=True, log=False) as page:
        assert page.share_url is None and "No public link" in repr(page) and page.url in page._repr_html_()


def test_the_command_takes_an_address_and_an_endpoint(quoted, tmp_path, free_port):
    "Each is started here as the program does it, asked by another thread, and ended by Ctrl-C."
    release, _, endpoint = quoted
    promote("quoted", register(release), reason="tests")
    (tmp_path / "key.txt").write_text(KEY)
    row, told = release.schema.rows(release.X_test.iloc[:1])[0], []
    def ask():
        try:
            until(lambda: socket.socket().connect_ex(("127.0.0.1", free_port)) == 0, "the page")
            told.append(asked(SimpleNamespace(url=f"http://127.0.0.1:{free_port}"), *row.values()))
        finally: os.kill(os.getpid(), signal.SIGINT)
    for words in (["models:/quoted@champion"], [endpoint.url, "--key-file", str(tmp_path / "key.txt")]):
        asking = threading.Thread(target=ask)
        asking.start()
        assert cli.run(["demo", *words, "--port", str(free_port)]) == 0
        asking.join()
    assert [said["prediction"] for said in told] == [release.predict(release.X_test.iloc[:1])[0]] * 2
    assert (told[0]["model"]["version"], told[0]["model"]["alias"]) == ("1", "champion") and told[1]["prediction_ids"]


# --- in Chromium

def press(page, name="Predict"): page.get_by_role("button", name=name, exact=True).click()


def answered(page, what: str = "") -> str:
    "The text of the answer, when it holds `what`."
    found = page.locator("#answer .da-answer", has_text=what)
    found.wait_for()
    return found.inner_text()


def choose(page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=option, exact=True).click()


def unnamed(page) -> list[str]:
    "What can be reached with the keyboard and has no name, in Chromium's accessibility tree; and what lacks a column's name."
    page.wait_for_timeout(300)  # what has just come is named within 0.1 s
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    def said(node, what): return str(node.get(what, {}).get("value", ""))
    def is_reached(node): return any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))
    reached = [n for n in nodes if not n["ignored"] and is_reached(n) and said(n, "role") != "RootWebArea"]
    named_alike = ("", "Reset to default value")
    return [f"{said(n, 'role')} {said(n, 'description')}" for n in reached if said(n, "name").strip() in named_alike]


def test_the_keyboard_is_enough_and_everything_has_a_name(mixed, places, page):
    release, shown = mixed
    def count(): return len(places[1].window("bookings"))
    page.goto(shown.url)
    page.get_by_role("slider", name="rating, slider").wait_for()
    reached, before = [""], count()
    while reached[-1] != "Reset" and len(reached) < 40:
        page.keyboard.press("Tab")
        name, outline = page.evaluate("""(e => [e.ariaLabel || e.labels?.[0]?.innerText || e.innerText,
            getComputedStyle(e).outlineStyle])(document.activeElement)""")
        reached.append(name.strip())
        assert outline == "solid", f"nobody sees where the focus is: {reached}"
    assert [name for name in reached if name in release.schema.names] == release.schema.names, reached
    keys = dict(nights="Enter", email="Enter", booked="Enter", wish="Control+Enter")
    for done, (name, key) in enumerate(keys.items(), 1):
        page.get_by_label(name, exact=True).first.press(key)
        until(lambda n=before + done: count() == n, f"{key} in {name}")
    page.locator("#answer[role=status] .da-answer").wait_for()  # read aloud: the place was there before its text
    page.get_by_label("arrival", exact=True).first.fill("")
    page.get_by_label("arrival", exact=True).first.press("Enter")
    page.locator("#answer").get_by_role("alert").wait_for()
    assert unnamed(page) == []
    for tab in ("Table", "API", "Model card"):
        page.get_by_role("tab", name=tab).click()
        if tab == "API": page.locator(".cm-content", has_text="curl").first.wait_for()
        assert unnamed(page) == [], tab


def test_every_kind_of_field_a_table_and_feedback(mixed, places, page, tmp_path):
    release, shown = mixed
    row = release.schema.rows(release.X_test[release.X_test.breakfast].iloc[:1])[0] | dict(
        nights=9, price=None, rating=4.5, breakfast=False, returning=None, channel="phone", town="Lund", wish="a quiet bed",
        arrival="2025-03-04", booked="2025-02-01 10:20:30", email="ada@example.org")
    page.goto(shown.url)
    for name in ("nights", "rating"): page.get_by_label(name, exact=True).first.fill(str(row[name]))  # a number beside its slider
    page.get_by_label("price", exact=True).first.fill("")  # unknown
    page.get_by_label("breakfast", exact=True).uncheck()
    choose(page, "returning", "(unknown)")
    choose(page, "channel", "phone")
    town = page.get_by_label("town", exact=True).first
    town.fill("Lun")  # searchable
    page.get_by_role("option", name="Lund", exact=True).click()
    for name in ("wish", "email"): page.get_by_label(name, exact=True).fill(row[name])
    for name in ("arrival", "booked"):
        field = page.get_by_label(name, exact=True).first
        field.fill(row[name])
        field.press("Enter")
    press(page)
    expected = release.predict(release.schema.frame([row]))[0]
    chance = release.predict_proba(release.schema.frame([row]))[0].max()
    assert expected in answered(page, f"{100 * chance:.1f}%")
    press(page, "Wrong")
    page.get_by_role("radio", name="cancels", exact=True).click()  # it goes away when its answer has come: no check()
    page.locator("#thanks", has_text="recorded cancels").wait_for()
    page.get_by_label("Comment").fill("it rained")
    press(page, "Send")
    page.locator("#thanks", has_text="recorded.").wait_for()
    page.locator("#why", has_text="do not add up").wait_for()
    assert page.locator("#what-if svg, #what-if ul").count() == 1
    seen = places[1].window("bookings").iloc[-1]
    assert (seen["source"], seen["prediction"], seen["label"], seen["nights"]) == ("demo", expected, "cancels", 9)
    assert seen["email"] != row["email"] and pd.isna(seen["price"])
    assert "it rained" in str(places[1].feedbacks("bookings").to_dict())
    press(page, "Link to these inputs")
    link = page.locator("#link").locator("input, textarea").first
    link.wait_for()
    assert "example.org" not in link.input_value() and "quiet" in link.input_value()
    page.goto(link.input_value())
    press(page)
    answered(page)
    assert page.get_by_label("wish", exact=True).input_value() == "a quiet bed"
    rows = pd.DataFrame(release.schema.rows(release.X_test.iloc[:4])).astype({"nights": object})
    rows.loc[1, "nights"] = "two"
    rows.to_csv(tmp_path / "guests.csv", index=False)
    page.get_by_role("tab", name="Table").click()
    page.get_by_role("button", name="Predict the table").wait_for()  # the tab is drawn
    page.locator("input[type=file]").last.set_input_files(tmp_path / "guests.csv")
    page.get_by_label("guests.csv").wait_for()  # uploaded: the page shows name and ending apart
    press(page, "Predict the table")
    page.locator("#table-said", has_text="3 of 4 rows predicted").wait_for()
    assert "line 3" in page.locator("#table-said").inner_text() and "nights" in page.locator("#table-said").inner_text()
    with page.expect_download() as got: page.locator("a[download]").last.click()
    assert pd.read_csv(got.value.path()).prediction.notna().tolist() == [True, False, True, True]


@pytest.mark.parametrize("name, scheme, width", [("digits", "dark", 1280), ("vectors", "light", 390), ("several", "dark", 390)])
def test_pictures_lists_and_several_outputs(name, scheme, width, places, shown, new_page):
    release, running = shown(name)
    page = new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    page.goto(running.url)
    if name == "digits":
        page.get_by_role("button", name="Clear").click()
        canvas = page.locator("#picture canvas")
        canvas.focus()
        for key in ("ArrowDown", "ArrowRight", " "): canvas.press(key)
        row = {f"pixel_{i}_{j}": 16.0 if (i, j) == (1, 1) else 0.0 for i in range(8) for j in range(8)}
    elif name == "vectors":
        row = dict(bmi=31.5, embedding=[0.5, -1.0, 2.0, 0.25])
        page.get_by_label("bmi", exact=True).fill("31.5")
        page.get_by_label("embedding", exact=True).fill("[0.5 -1, 2 0.25]")
    else:
        row = dict(area=100.5, rooms=4, age=30)
        for column, value in row.items(): page.get_by_label(column, exact=True).first.fill(str(value))
    press(page)
    said = answered(page)
    expected = release.predict(release.schema.frame([row]))[0]
    if name == "several": said_truth_of_each(page, said, expected, places[1])
    else: assert str(expected) in said.split()
    assert page.locator("#answer").evaluate("e => e.getBoundingClientRect().top < innerHeight"), "the answer is in view"
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    if name != "vectors": return
    page.set_content(running._repr_html_())  # as a notebook shows it
    page.frame_locator("iframe").get_by_role("button", name="Predict", exact=True).wait_for()


def said_truth_of_each(page, said, expected, log) -> None:
    "Each output with its interval; the truth is given for all of them or none."
    assert all(f"{value:.4g}" in said for value in expected) and said.count("\u00b1") == 4, said
    press(page, "Wrong")
    page.locator("#thanks", has_text="What was true?").wait_for()
    page.get_by_label("True value of heating", exact=True).fill("300")
    press(page, "Send")
    page.locator("#thanks", has_text="of each output, or none").wait_for()
    for output, value in (("cooling", "90"), ("water", "80.5")):
        page.get_by_label(f"True value of {output}", exact=True).fill(value)
    press(page, "Send")
    page.locator("#thanks", has_text="300, 90, 80.5 as the true value").wait_for()
    label = log.window("energy").iloc[-1]["label"]
    assert list(json.loads(label) if isinstance(label, str) else label) == [300, 90, 80.5]


class Held:
    "A predictor that answers the parts of a table when it is told."
    def __init__(self, predictor): self.predictor, self.go = predictor, threading.Semaphore(0)
    def __getattr__(self, name): return getattr(self.predictor, name)

    def predict(self, rows, **how):
        assert self.go.acquire(timeout=60)
        return self.predictor.predict(rows, **how)


def enter(page, user: str, password: str) -> None:
    "Log in."
    page.locator("input").first.fill(user)
    page.locator("input[type=password]").fill(password)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Predict", exact=True).wait_for()


def test_a_long_table_shows_how_far_it_is_and_the_card_is_for_named_users(quoted, new_page, tmp_path):
    release, (page, other) = quoted[0], (new_page(), new_page())
    rows = pd.DataFrame(release.schema.rows(release.X_test.iloc[:1]) * 4100)
    rows.to_parquet(tmp_path / "long.parquet")
    held = Held(Predictor(release, None))
    with demo(held, auth=[("ada", "a"), ("bob", "b")], card=["ada"]) as running:
        page.goto(running.url)
        enter(page, "ada", "a")
        page.get_by_role("tab", name="Table").click()
        page.locator("input[type=file]").last.set_input_files(tmp_path / "long.parquet")
        page.get_by_label("long.parquet").wait_for()
        press(page, "Predict the table")
        for done, share in (("0", 0), ("2k", 49), ("4k", 98)):
            bar = page.locator(f"#table-said [role=progressbar][aria-valuetext='{done} / 4.1k rows']")
            bar.wait_for()
            assert abs(int(bar.get_attribute("aria-valuenow")) - share) <= 1
            held.go.release()
        page.locator("#table-said", has_text="4,100 of 4,100 rows predicted").wait_for()
        page.get_by_role("tab", name="Model card").click()
        page.locator(".da-card", has_text="Measured on rows").wait_for()
        other.goto(running.url)
        enter(other, "bob", "b")
        assert not other.get_by_role("tab", name="Model card").count()
        said = other.evaluate("""async () => {  // all that a choice on the page asks for: the card too
            const config = await (await fetch('config')).json(), out = [], headers = {'Content-Type': 'application/json'};
            for (const d of config.dependencies.filter(d => d.targets.some(t => t[1] == 'select') && !d.inputs.length)) {
                const body = JSON.stringify({data: [], fn_index: d.id, session_hash: 'x'});
                out.push(await (await fetch('gradio_api/run/predict', {method: 'POST', headers, body})).text()); }
            return out.join(); }""")
        assert "not shown to this user" in said and "da-card" not in said


@contextlib.contextmanager
def proxy(port: int, prefix: str):
    """A reverse proxy on loopback that takes `prefix` away, byte for byte otherwise; gives its port. What comes as a stream
    of events passes a moment later than other answers, as it may with several processes and connections."""
    async def pump(reader, writer, late_s=0.0):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if late_s: await asyncio.sleep(late_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve_one(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            verb, path, rest = head.split(" ", 2)
            if not path.startswith(prefix):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return writer.close()
            rest = re.sub(r"(?i)\bconnection: [^\r]*", "Connection: close", rest)
            head = f"{verb} {path.removeprefix(prefix) or '/'} {rest}"
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
            to_writer.write(head.encode("latin-1"))
            late_s = 0.3 if "/queue/data" in path else 0.0
            await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer, late_s))

    async def main():
        server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
        place.append(server.sockets[0].getsockname()[1])
        up.set()
        async with server: await over.wait()

    place, up, loop = [], threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    def run():
        loop.run_until_complete(main())
        for task in asyncio.all_tasks(loop): task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    up.wait(10)
    try: yield place[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)


def test_below_two_workers_behind_a_proxy_with_a_login_it_follows_the_alias(places, page):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(dict(bmi=rng.normal(28, 4, 200).round(1), age=rng.integers(20, 80, 200)))
    y = (X.bmi > 28).astype(int)
    made = [prepare(LogisticRegression(C=c).fit(t, y), t, y, name="followed", X_test=t, y_test=y)
            for t, c in ((X, 1), (X, 0.01), (X.assign(height=rng.normal(170, 9, 200).round()), 1))]
    def put(release): promote("followed", register(release), reason="tests")
    put(made[0])
    home, prefix = places[0], "/models/risk"
    with (serve("models:/followed@champion", workers=2, key=KEY, demo=True, root_path=prefix, poll_s=0.5, home=home,
                log=f"sqlite:///{home}/served.db") as endpoint,
          proxy(int(endpoint.url.split(":")[2].split("/")[0]), prefix) as port):
        at = f"http://127.0.0.1:{port}{prefix}/demo"
        page.goto(at)
        enter(page, "ada", KEY)
        press(page)
        answered(page, "version 1")
        page.get_by_role("tab", name="API").click()
        curl = page.locator(".cm-content", has_text="curl").first
        curl.wait_for()
        assert f"127.0.0.1:{port}{prefix}/predict" in curl.inner_text() and "$KEY" in curl.inner_text()
        page.get_by_role("tab", name="Predict", exact=True).click()
        put(made[1])
        end = time.monotonic() + 30
        while "version 2" not in page.locator("#answer").inner_text() and time.monotonic() < end:
            press(page)
            page.wait_for_timeout(500)
        answered(page, "drawn for version 1")
        page.reload()
        page.locator(".da-head", has_text="version 2").first.wait_for()
        put(made[2])
        refused = page.locator("#answer .da-refusal", has_text="version 3 (champion) answers now")
        end = time.monotonic() + 30
        while not refused.count() and time.monotonic() < end:
            press(page)
            page.wait_for_timeout(500)
        assert "reload the page" in refused.inner_text()
        page.reload()
        page.get_by_label("height", exact=True).first.wait_for()
        press(page)
        answered(page, "version 3")
        caller = gradio_client.Client(at, auth=("ada", KEY), verbose=False, download_files=False)
        try: said = caller.predict(31.0, 50, 170.0, api_name="/predict")
        finally: caller.close()
        assert said["model"]["version"] == "3" and said["prediction"] == made[2].predict(
            pd.DataFrame(dict(bmi=[31.0], age=[50], height=[170.0])))[0]
        assert not [line for line in endpoint.logs().splitlines() if json.loads(line)["level"] == "error"], endpoint.logs()
        the_page_comes_back_when_its_process_was_killed(endpoint, at, page)


def the_page_comes_back_when_its_process_was_killed(endpoint, at, page) -> None:
    "Meanwhile it says so, and predictions are answered."
    def status(url, **more):
        try:
            with urlopen(Request(url, **more)) as answer: return answer.status, ""
        except HTTPError as e: return e.code, e.read().decode()
    def asked():
        body = json.dumps({"rows": [dict(bmi=31.0, age=50, height=170.0)]}).encode()
        return status(f"{endpoint.url}/predict", data=body,
                      headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"})[0]
    workers = Path(f"/proc/{endpoint._process.pid}/task/{endpoint._process.pid}/children").read_text().split()
    os.kill(max(map(int, workers)), signal.SIGKILL)  # the page's is started last
    code, said = until(lambda: (got := status(f"{at}/"))[0] != 200 and got, "a refusal")
    assert (code, asked()) == (503, 200) and "being started again" in said
    until(lambda: status(f"{at}/")[0] == 200, "the page", 60)
    page.goto(at)
    enter(page, "ada", KEY)
    press(page)
    answered(page, "version 3")

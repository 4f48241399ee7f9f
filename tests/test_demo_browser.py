"""The demo in Chromium: every kind of field, a table, feedback; behind a proxy, with a login, as versions change."""
import asyncio
import contextlib
import json
import re
import threading
import time

import numpy as np
import pandas as pd
import pytest
import zoo_tables

from deploy_assist import PredictionLog, demo, prepare, promote, register, serve

KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    home = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOY_ASSIST_HOME", str(home))
        patch.setenv("GRADIO_TEMP_DIR", str(home / "files"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        with PredictionLog(f"sqlite:///{home}/predictions.db", home=home) as log: yield home, log


@pytest.fixture(scope="module")
def mixed(places):
    release = zoo_tables.mixed()
    with demo(release, log=places[1]) as page: yield release, page


def press(page, name="Predict"): page.get_by_role("button", name=name, exact=True).click()


def answered(page, what: str = "") -> str:
    "The text of the answer, when it holds `what`."
    found = page.locator("#answer .da-answer", has_text=what)
    found.wait_for()
    return found.inner_text()


def choose(page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=option, exact=True).click()


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
    page.get_by_role("radio", name="cancels", exact=True).check()
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


@pytest.mark.parametrize("name, scheme, width", [("digits", "dark", 1280), ("vectors", "light", 390)])
def test_pictures_and_lists(name, scheme, width, places, new_page):
    release = zoo_tables.TABLES[name]()
    page = new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    with demo(release, log=places[1]) as shown:
        page.goto(shown.url)
        if name == "digits":
            page.get_by_role("button", name="Clear").click()
            canvas = page.locator("#picture canvas")
            canvas.focus()
            for key in ("ArrowDown", "ArrowRight", " "): canvas.press(key)
            row = {f"pixel_{i}_{j}": 16.0 if (i, j) == (1, 1) else 0.0 for i in range(8) for j in range(8)}
        else:
            row = dict(bmi=31.5, embedding=[0.5, -1.0, 2.0, 0.25])
            page.get_by_label("bmi", exact=True).fill("31.5")
            page.get_by_label("embedding", exact=True).fill("[0.5 -1, 2 0.25]")
        press(page)
        said = answered(page)
        assert str(release.predict(release.schema.frame([row]))[0]) in said.split()
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        page.set_content(shown._repr_html_())  # as a notebook shows it
        page.frame_locator("iframe").get_by_role("button", name="Predict", exact=True).wait_for()


@contextlib.contextmanager
def proxy(port: int, prefix: str):
    "A reverse proxy on loopback that takes `prefix` away, byte for byte otherwise; gives its port."
    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
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
            await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

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


def test_below_an_endpoint_behind_a_proxy_with_a_login_it_follows_the_alias(places, page):
    from gradio_client import Client
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    X = pd.DataFrame(dict(bmi=rng.normal(28, 4, 200).round(1), age=rng.integers(20, 80, 200)))
    y = (X.bmi > 28).astype(int)
    made = [prepare(LogisticRegression(C=c).fit(t, y), t, y, name="followed", X_test=t, y_test=y)
            for t, c in ((X, 1), (X, 0.01), (X.assign(height=rng.normal(170, 9, 200).round()), 1))]
    def put(release): promote("followed", register(release), reason="tests")
    put(made[0])
    home, prefix = places[0], "/models/risk"
    with (serve("models:/followed@champion", key=KEY, demo=True, root_path=prefix, poll_s=0.2, home=home,
                log=f"sqlite:///{home}/served.db") as endpoint,
          proxy(int(endpoint.url.split(":")[2].split("/")[0]), prefix) as port):
        at = f"http://127.0.0.1:{port}{prefix}/demo"
        page.goto(at)
        page.locator("input").first.fill("ada")
        page.locator("input[type=password]").fill(KEY)
        page.keyboard.press("Enter")
        press(page)
        answered(page, "version 1")
        page.get_by_role("tab", name="API").click()
        curl = page.locator(".cm-content", has_text="curl").first
        curl.wait_for()
        assert f"127.0.0.1:{port}{prefix}/predict" in curl.inner_text() and "$KEY" in curl.inner_text()
        page.get_by_role("tab", name="Predict", exact=True).click()
        put(made[1])
        until = time.monotonic() + 30
        while "version 2" not in page.locator("#answer").inner_text() and time.monotonic() < until:
            press(page)
            page.wait_for_timeout(500)
        answered(page, "drawn for version 1")
        page.reload()
        page.locator(".da-head", has_text="version 2").first.wait_for()
        put(made[2])
        refused = page.locator("#answer .da-refusal", has_text="version 3 (champion) answers now")
        until = time.monotonic() + 30
        while not refused.count() and time.monotonic() < until:
            press(page)
            page.wait_for_timeout(500)
        assert "reload the page" in refused.inner_text()
        page.reload()
        page.get_by_label("height", exact=True).first.wait_for()
        press(page)
        answered(page, "version 3")
        caller = Client(at, auth=("ada", KEY), verbose=False, download_files=False)
        try: said = caller.predict(31.0, 50, 170.0, api_name="/predict")
        finally: caller.close()
        assert said["model"]["version"] == "3" and said["prediction"] == made[2].predict(
            pd.DataFrame(dict(bmi=[31.0], age=[50], height=[170.0])))[0]
    assert not [line for line in endpoint.logs().splitlines() if json.loads(line)["level"] == "error"], endpoint.logs()

"""What people see in Chromium: the demo, the endpoint's /docs, a report. A request to the outside fails the test (`new_page`)."""
import json
import re

import pytest

from deploy_assist import PredictionLog, demo, report, serve

SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def shown(patients, tmp_path_factory):
    "A demo and an endpoint of the same release, and the demo's log."
    home = tmp_path_factory.mktemp("shown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOY_ASSIST_HOME", str(home))
        with (PredictionLog(f"sqlite:///{home}/predictions.db") as log, demo(patients, log=log) as page,
              serve(patients, log=f"sqlite:///{home}/served.db") as endpoint):
            yield page, endpoint, log


def sideways(page) -> int:
    "By how many pixels the page is wider than its window."
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def background(page) -> int:
    "How bright the page's ground is, 0 to 255."
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) // 3


def field(page, column: str): return page.get_by_label(column, exact=True).first


def test_the_demo_answers_as_the_model_and_takes_feedback(shown, patients, page):
    row, log = patients.X_test.iloc[[0]], shown[2]
    page.goto(shown[0].url)
    for column in patients.schema.names:
        if column != "sex": field(page, column).fill(str(row[column].item()))
    field(page, "sex").click()
    page.get_by_role("option", name=row["sex"].item(), exact=True).click()
    page.get_by_role("button", name="Predict", exact=True).click()
    expected, chance = patients.predict(row)[0], patients.predict_proba(row)[0].max()
    answer = page.locator("#answer")
    answer.get_by_text(f"{100 * chance:.1f}%").wait_for()
    assert str(expected) in answer.inner_text()
    page.get_by_role("button", name="Right", exact=True).click()
    page.locator("#thanks", has_text=re.compile(r"\w")).wait_for()
    seen = log.window("patients")
    assert len(seen) == 1 and seen["source"].tolist() == ["demo"] and seen["prediction"].item() == expected
    assert seen["label"].item() == expected, "what was said to be right"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_demo_says_what_is_wrong_and_fits(shown, new_page, width):
    page = new_page(viewport={"width": width, "height": 800})
    page.goto(shown[0].url)
    field(page, "bmi").fill("")
    page.get_by_role("button", name="Predict", exact=True).click()
    page.locator("#answer", has_text="bmi").wait_for()
    assert sideways(page) <= 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_docs_try_it_works_offline(shown, patients, new_page, scheme):
    page = new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.goto(f"{shown[1].url}/docs")
    page.locator("#columns tr").nth(len(patients.schema.names) - 1).wait_for()
    body = json.loads(page.locator("#body").input_value())
    page.locator("#send").click()
    page.locator("#status", has_text="200 answered").wait_for()
    said = json.loads(page.locator("#answer").text_content())
    assert said["predictions"] == patients.predict(patients.schema.frame(body["rows"])).tolist()
    body["rows"][0]["age"] = "abc"
    page.locator("#body").fill(json.dumps(body))
    page.locator("#send").click()
    page.locator("#status", has_text="422 refused").wait_for()
    assert json.loads(page.locator("#answer").text_content())["errors"][0]["column"] == "age"
    assert sideways(page) <= 0 and (background(page) > 128) == (scheme == "light")


@pytest.fixture(scope="module")
def written(patients, tmp_path_factory):
    "A report on frames: the older half against all."
    X, out = patients.X_test, tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOY_ASSIST_HOME", str(out / "home"))
        return report((X, X[X.age > X.age.median()]), name="older", out=out)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["report", "index"])
def test_reports_need_nothing_from_outside_and_fit_a_phone(written, new_page, name, scheme):
    page = new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.goto((written.html if name == "report" else written.html.parent / "index.html").resolve().as_uri())
    page.get_by_text(written.verdict.action).first.wait_for()
    assert "age moved" in page.locator("body").inner_text()
    assert sideways(page) <= 0 and (background(page) > 128) == (scheme == "light")

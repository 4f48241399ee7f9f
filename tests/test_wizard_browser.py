"""The wizard in JupyterLab, in Chromium: from the first step to a prediction from the served endpoint."""
import json
import re
from urllib.request import Request, urlopen

import pytest
from lab import Lab, run_all

TRAIN = """import warnings; warnings.filterwarnings("ignore")
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
data = load_diabetes(as_frame=True, scaled=False)
X = data.data.assign(sex=data.data["sex"].map({1.0: "female", 2.0: "male"}), age=data.data["age"].astype(int))
y = (data.target >= data.target.quantile(.75)).astype(int).rename("worse")
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=.3, stratify=y, random_state=0)
numbers = [c for c in X if c != "sex"]
model = make_pipeline(
    make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["sex"])), LogisticRegression(max_iter=1000)
)
model.fit(X_train, y_train)
from deploy_assist import wizard"""
START = "wizard(model, X_train, y_train, X_test=X_test, y_test=y_test)"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


def click(page, what: str) -> None:
    page.locator(f".da-{what}").first.click()


def state(page, step: str, word: str) -> None:
    "Wait until a card says this state, in words."
    page.locator(f".da-step-{step} .da-head .da-state", has_text=re.compile(f"^{word}$")).wait_for()


def test_from_the_first_step_to_a_prediction(lab, page):
    run_all(page, lab.write("first.ipynb", TRAIN, START))
    state(page, "model", "done")  # starts at once
    assert "release = prepare(model, X_train, y_train" in page.locator(".da-step-model pre").text_content()
    click(page, "run-contract")
    state(page, "check", "done")
    click(page, "run-register")
    state(page, "register", "done")
    click(page, "run-serve")
    state(page, "serve", "done")
    assert 'serve("models:/worse@champion", key=True)' in page.locator(".da-step-serve pre").last.text_content()
    click(page, "ask")
    page.locator(".da-answer", has_text="Answer to a row of medians: 0").wait_for()
    page.locator(".da-health", has_text="healthy").wait_for()
    # the same from outside, with the key that the card shows
    curl = page.locator(".da-step-serve .da-code pre").first.text_content()
    url, key = re.search(r"(http://\S+)/predict", curl)[1], re.search(r"Bearer (\S+)'", curl)[1]
    row = json.loads(re.search(r"-d '(.*)'$", curl)[1])
    request = Request(
        f"{url}/predict",
        json.dumps(row).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urlopen(request, timeout=30) as answer: said = json.loads(answer.read())
    assert said["predictions"] == [0] and said["model"]["alias"] == "champion"

"""What the README shows is what happens: its code as a notebook, its table of notebooks."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

root = Path(__file__).resolve().parent.parent
own_model = """
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
data = load_wine(as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(data.data, data.target, random_state=0, stratify=data.target)
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X_train, y_train)
"""
asked = """
from urllib.request import urlopen
from deploy_assist import Client
assert Client(endpoint.url).predict(X_test).tolist() == release.predict(X_test).tolist()
assert urlopen(page.url).status == 200
print("asked and answered by version", version.version)
"""


def shown() -> str:
    "The README's Python, as a reader would copy it."
    blocks = re.findall(r"^```python\n(.+?)^```", (root / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 1, "one example of Python is tested here"
    return blocks[0]


@pytest.fixture
def away(tmp_path) -> dict[str, str]:
    "An environment whose files all land in the test's folder."
    names = ("DEPLOY_ASSIST_HOME", "DEPLOY_ASSIST_LOG_URL", "MLFLOW_TRACKING_URI")
    return {k: v for k, v in os.environ.items() if k not in names} | {
        "HOME": str(tmp_path),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }


def test_the_example_is_a_notebook(tmp_path, away):
    cells = [nbformat.v4.new_code_cell(source) for source in (own_model, shown(), asked)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute(env=away)
    assert "my-model: ready" in str(notebook.cells[1].outputs)
    assert "asked and answered by version 1" in str(notebook.cells[-1].outputs)
    assert (tmp_path / "mlflow.db").exists() and (tmp_path / ".deploy_assist" / "predictions.db").exists()


def test_the_floor_plan_lists_every_notebook():
    text = (root / "README.md").read_text(encoding="utf-8")
    plan = re.findall(r"\| \[(\d+_\w+)\]\(nbs/(\d+_\w+)\.ipynb\) \| `(\w+)` \| (.+) \|", text)
    there = sorted((p.stem for p in (root / "nbs").glob("[0-9]*.ipynb")), key=lambda name: name.split("_")[0])
    assert [name for name, *_ in plan] == there
    for name, file, module, promise in plan:
        first = nbformat.read(root / "nbs" / f"{name}.ipynb", 4).cells[0].source
        assert name == file and (root / "deploy_assist" / f"{module}.py").exists()
        assert f"> {promise}" in first, f"{name}: the README says {promise!r}"


def test_every_link_of_the_readme_leads_somewhere():
    targets = re.findall(r"\]\(([^)#\s]+)\)", (root / "README.md").read_text(encoding="utf-8"))
    assert targets and not [target for target in targets if "://" not in target and not (root / target).exists()]

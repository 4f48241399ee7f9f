"""What is shipped builds, installs into an empty environment and works there; importing it is quick."""
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import deploy_assist

root = Path(__file__).resolve().parent.parent
heavy = ["mlflow", "gradio", "ipywidgets", "papermill", "pandas", "sklearn", "matplotlib", "IPython"]
uv = next((str(p) for p in (Path(sys.prefix, "bin", "uv"), Path(shutil.which("uv") or "/none")) if p.exists()), None)


def run(*command, timeout=300, **options):
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    "The folder with the sdist and with the wheel that is made from it."
    folder = tmp_path_factory.mktemp("source")
    unwanted = {
        "__pycache__",
        "_proc",
        "_docs",
        "build",
        "dist",
        "quickstart",
        "reports",
        "mlruns",
        "deploy_assist.egg-info",
    }
    (folder / "tree").mkdir()
    for path in root.iterdir():
        if path.name in unwanted or path.name.startswith("."): continue
        if path.is_dir():
            shutil.copytree(path, folder / "tree" / path.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else: shutil.copy(path, folder / "tree")
    installer = ["--installer", "uv"] if uv else []
    path = f"{Path(uv or sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run(
        sys.executable,
        "-m",
        "build",
        *installer,
        "--outdir",
        folder / "dist",
        folder / "tree",
        env=os.environ | {"PATH": path},
    )
    return folder / "dist"


@pytest.fixture(scope="module")
def empty(dist, tmp_path_factory) -> Path:
    "The bin folder of an environment that holds the wheel with its base requirements and nothing else."
    place = tmp_path_factory.mktemp("empty") / "env"
    venv.create(place, with_pip=not uv, symlinks=True)
    wheel = next(dist.glob("*.whl"))
    if uv: run(uv, "pip", "install", "-q", "--python", place / "bin" / "python", wheel)
    else: run(place / "bin" / "python", "-m", "pip", "install", "-q", wheel)
    return place / "bin"


def test_the_sdist_and_the_wheel_hold_what_they_should(dist):
    sdist, wheel = next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))
    assert wheel.name == f"deploy_assist-{deploy_assist.__version__}-py3-none-any.whl"
    with tarfile.open(sdist) as f: source = {name.split("/", 1)[-1] for name in f.getnames()}
    assert {"settings.ini", "README.md", "LICENSE", "pyproject.toml", "setup.py"} <= source
    with zipfile.ZipFile(wheel) as f: shipped = set(f.namelist())
    library = root / "deploy_assist"
    wanted = [path for path in library.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(root).as_posix() for path in wanted if path.suffix != ".pyc"} <= shipped
    assert not [name for name in shipped if name.startswith(("tests", "nbs", "scripts"))]


def test_the_wheel_works_in_an_empty_environment(empty, tmp_path, home):
    assert run(empty / "deploy-assist", "--version", cwd=tmp_path).split()[-1] == deploy_assist.__version__
    assert "serve" in run(empty / "deploy-assist", "--help", cwd=tmp_path)
    names = ["mlflow", "gradio", "ipywidgets", "papermill", "jupyterlab", "matplotlib", "IPython"]
    absent = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    assert run(empty / "python", "-c", absent, cwd=tmp_path).strip() == "[]"
    done = subprocess.run(
        [empty / "deploy-assist", "quickstart", "--no-wait"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert 'pip install "deploy_assist[notebook]"' in done.stderr


def test_a_bundle_predicts_in_an_empty_environment(empty, bundle, patients, tmp_path):
    code = """
import json, sys
from deploy_assist import load_release
release = load_release(sys.argv[1])
print(json.dumps(release.predict_proba(release.schema.frame(json.load(open(sys.argv[2])))).tolist()))"""
    rows = patients.schema.rows(patients.X_test.head(20))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    there = json.loads(run(empty / "python", "-c", code, bundle, tmp_path / "rows.json", cwd=tmp_path))
    assert there == patients.predict_proba(patients.X_test.head(20)).tolist()


def test_importing_is_quick_and_light():
    code = f"""
import sys, time
start = time.process_time()  # CPU seconds: other work on the machine does not stretch them
import deploy_assist
took = time.process_time() - start
print(took, *[name for name in {heavy} if name in sys.modules])"""
    runs = [run(sys.executable, "-c", code).split() for _ in range(3)]
    assert min(float(took) for took, *_ in runs) < 0.5
    assert all(not loaded for _, *loaded in runs)

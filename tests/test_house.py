"""The rules of the house that no tool holds: sizes, paths, names, floors."""
import ast
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest

import deploy_assist

root = Path(__file__).resolve().parent.parent
# The names that users, the documentation and acceptance checks call
promised = """prepare Release load_release check Readiness advise Advice register promote rollback history serve
    Endpoint Client AsyncClient demo Demo PredictionLog Schema Column compare Verdict report Report wizard
    registry_panel monitor_panel schedule package retrain prove Proof ProofError
    DeployAssistError SchemaError ModelError BundleError UntrustedTypeError RegistryError LogError EndpointError DemoError
    ReportError ConfigError MissingExtraError RetrainError AlertError""".split()
planned = {"document"}  # verbs whose modules are still to come


def files() -> list[Path]:
    "Every file of the project: what git knows, or all but the made ones in a tarball."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True)
    if listed.returncode == 0:
        return [root / name for name in listed.stdout.decode().split("\0") if (root / name).is_file()]
    made = (".", "_proc", "_docs", "__pycache__", "build", "dist")
    return [
        p
        for p in root.rglob("*")
        if p.is_file() and not any(part.startswith(made) for part in p.relative_to(root).parts)
    ]


def notebooks() -> dict[str, str]:
    "Module -> notebook number, of the notebooks that make a module."
    found = {}
    for path in sorted((root / "nbs").glob("[0-9]*_*.ipynb")):
        cells = nbformat.read(path, 4).cells
        name = next((m[1] for cell in cells if (m := re.search(r"^#\|\s*default_exp (\w+)", cell.source, re.M))), None)
        if name: found[name] = path.name.split("_")[0]
    return found


def test_no_path_of_a_machine_is_written_down():
    pattern = re.compile(r"(?<![\w.:/])/(?:work/main|root/|Users/\w|home/\w|tmp/w/)")
    found = []
    for path in files():
        if path.suffix in {".png", ".jpg", ".parquet"} or path == Path(__file__).resolve(): continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line): found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def test_files_stay_small():
    limits = {".ipynb": 300_000, ".png": 150_000, ".svg": 150_000, ".jpg": 150_000, ".gif": 150_000, ".webp": 150_000}
    big = {str(path.relative_to(root)): path.stat().st_size for path in files()
           if path.stat().st_size > limits.get(path.suffix, 1_000_000)}
    assert not big


def test_public_names_are_the_promised_ones():
    assert set(deploy_assist.__all__) == set(promised) | planned


@pytest.mark.parametrize("name", promised)
def test_public_name_is_there(name):
    value = getattr(deploy_assist, name)
    assert callable(value) and value.__doc__, f"{name} has no docstring"


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", deploy_assist.__version__)
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{deploy_assist.__version__}]" in changes or "## [Unreleased]" in changes


def test_floors_are_the_notebooks_numbers():
    contract = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [layer.strip("()") for layer in contract["layers"]][::-1]
    numbers = notebooks()
    assert [name for name in layers if name in numbers] == sorted(numbers, key=numbers.get)
    assert set(numbers) <= set(layers)


def test_every_module_has_its_notebook():
    modules = {path.stem for path in (root / "deploy_assist").glob("*.py")} - {"__init__", "_modidx"}
    assert modules == set(notebooks())


def test_floor_0_opens_nothing():
    banned = {
        "socket",
        "sqlite3",
        "sqlalchemy",
        "http",
        "urllib",
        "subprocess",
        "starlette",
        "uvicorn",
        "mlflow",
        "gradio",
        "ipywidgets",
        "papermill",
        "IPython",
    }
    for name in [module for module, number in notebooks().items() if number < "10"]:
        tree = ast.parse((root / "deploy_assist" / f"{name}.py").read_text(encoding="utf-8"))
        used = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        used += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
        wrong = {module.split(".")[0] for module in used} & banned
        assert not wrong, f"{name} imports {wrong}"


def test_import_cells_hold_imports_alone():
    "A cell that mixes imports with other code breaks the documentation's build."
    mixed = []
    for path in sorted((root / "nbs").rglob("[!_]*.ipynb")):
        if ".ipynb_checkpoints" in path.parts: continue
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != "code" or cell.source.lstrip().startswith(("%", "!")): continue
            try: body = ast.parse(cell.source).body
            except SyntaxError: continue
            imports = [isinstance(node, ast.Import | ast.ImportFrom) for node in body]
            if any(imports) and not all(imports) and not re.search(r"^#\|\s*(hide|eval: false)", cell.source, re.M):
                mixed.append(f"{path.name} {cell.id}: {cell.source.splitlines()[0]}")
    assert not mixed, "\n".join(mixed)

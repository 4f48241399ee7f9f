"""Run the lesson cells of the notebooks in a copy of `nbs/`: nothing is left behind, and what one wrote beside itself is named.

Usage: lessons.py [NOTEBOOK...]"""
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory

root = Path(__file__).resolve().parent.parent


def files(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


def main(notebooks: list[str]) -> int:
    with TemporaryDirectory(prefix="deploy_assist-") as folder:
        copy, scratch = Path(folder) / "copy", Path(folder) / "scratch"
        scratch.mkdir()
        copytree(
            root / "nbs",
            copy / "nbs",
            ignore=ignore_patterns("__pycache__", ".ipynb_checkpoints", "_*", "Untitled*.ipynb"),
        )
        for name in ("pyproject.toml", "settings.ini"):
            (copy / name).write_text((root / name).read_text(encoding="utf-8"), encoding="utf-8")
        before = files(copy)
        env = os.environ | {
            "DEPLOY_ASSIST_HOME": str(scratch / "home"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db",
            "MPLBACKEND": "agg",
            "PYTHONPATH": str(root),
            "IPYTHONDIR": str(scratch / "ipython"),
            "TMPDIR": str(scratch),
        }
        env.pop("DEPLOY_ASSIST_LOG_URL", None)
        names = [[str(Path(name).resolve().relative_to(root))] for name in notebooks] or [[]]
        failed = 0
        for name in names:
            command = [sys.executable, "-c", "from nbdev.test import nbdev_test as main; main()", "--timing"]
            failed |= subprocess.run(command + name, cwd=copy, env=env, stdin=subprocess.DEVNULL).returncode
        left = sorted(files(copy) - before)
        for path in left: print(f"lessons: a notebook left {path} behind: write in a temporary folder", file=sys.stderr)
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

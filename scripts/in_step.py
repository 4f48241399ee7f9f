"""Are the notebooks clean, the library and the README in step with them? Says which file is not, and changes nothing.

The tree is copied, cleaned and exported there, and compared: this works in a dirty checkout and in a tarball alike."""
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory

root = Path(__file__).resolve().parent.parent
scratch = ("__pycache__", ".ipynb_checkpoints", "_*.ipynb", "Untitled*.ipynb")


def text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def different(copy: Path, folder: str, pattern: str) -> list[str]:
    "Files below `folder` that are not the same here and in `copy`."
    names = {path.relative_to(base) for base in (root, copy) for path in (base / folder).rglob(pattern)}
    wanted = [name for name in sorted(names) if not any(fnmatch(part, bad) for part in name.parts for bad in scratch)]
    return [str(name) for name in wanted if text(root / name) != text(copy / name)]


def run(copy: Path, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from nbdev.{command[0]} import {command[1]} as main; main()", *command[2:]],
        cwd=copy,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode or "Failed" in done.stderr:
        sys.exit(f"in_step: {command[1]} failed:\n{done.stdout}{done.stderr}")


def main() -> int:
    wrong = []
    with TemporaryDirectory(prefix="deploy_assist-") as folder:
        copy = Path(folder)
        copytree(root / "nbs", copy / "nbs", ignore=ignore_patterns(*scratch))
        copytree(root / "deploy_assist", copy / "deploy_assist", ignore=ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "settings.ini"):
            (copy / name).write_text((root / name).read_text(encoding="utf-8"), encoding="utf-8")
        run(copy, "clean", "nbdev_clean")
        wrong += [f"{name} is not clean: nbdev-clean" for name in different(copy, "nbs", "*.ipynb")]
        run(copy, "doclinks", "nbdev_export")
        wrong += [
            f"{name} is out of step with its notebook: nbdev-export"
            for name in different(copy, "deploy_assist", "*.py")
        ]
    for path in sorted((root / "deploy_assist").glob("*.py")):
        source = re.search(r"File to edit: (.+?)\.?\n", text(path))
        if source and not (path.parent / source[1]).exists():
            wrong.append(f"deploy_assist/{path.name}: {source[1]} is gone")
    if (root / "nbs" / "index.ipynb").exists():
        from readme import readme

        if readme() != text(root / "README.md"):
            wrong.append("README.md is out of step with nbs/index.ipynb: make readme")
    for line in wrong: print(f"in_step: {line}", file=sys.stderr)
    if not wrong: print("notebooks clean, library and README in step")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

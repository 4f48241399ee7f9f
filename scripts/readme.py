"""README.md from nbs/index.ipynb: what the notebook shows, as Markdown. Relative links are made to start at the root."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent


def from_root(found: re.Match) -> str:
    "A link of the notebook, seen from the root."
    before, target, after = found.groups()
    if re.match(r"[a-z]+:|#|/", target): return found[0]
    return before + (target.removeprefix("../") if target.startswith("../") else f"nbs/{target}") + after


def readme() -> str:
    "The text of README.md."
    notebook = nbformat.read(root / "nbs" / "index.ipynb", 4)
    cells = [
        cell for cell in notebook.cells if cell.source.strip() and not re.search(r"^#\|\s*hide\s*$", cell.source, re.M)
    ]
    for cell in cells:
        if cell.cell_type == "code": cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    notebook.cells, notebook.metadata["language_info"] = cells, {"name": "python"}  # for the fences
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r"(\]\()([^)\s]+)(\))", from_root, text)
    text = re.sub(r"((?:src|srcset|href)=\")([^\"]+)(\")", from_root, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    text = readme()
    (root / "README.md").write_text(text, encoding="utf-8")
    print(f"README.md: {len(text.splitlines())} lines", file=sys.stderr)

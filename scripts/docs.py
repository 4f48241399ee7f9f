"""The documentation as a web site in _docs/: nbdev's own processing, then Sphinx with myst-nb and furo."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell

root = Path(__file__).resolve().parent.parent
configuration = """
project = "deploy_assist"
extensions = ["myst_nb"]
html_theme = "furo"
html_title = "deploy_assist {version}"
nb_execution_mode = "off"
exclude_patterns = ["_build", "README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type", "toc.not_included",
                     "misc.highlighting_failure"]
html_show_sphinx = False
"""


def plain(path: Path) -> nbformat.NotebookNode:
    "A notebook that nbdev has processed, without nbdev's own words: front matter as a title, generated Markdown as Markdown."
    notebook, cells = nbformat.read(path, 4), []
    for cell in notebook.cells:
        if cell.cell_type == "raw":
            title = re.search(r"^title: (.+)$", cell.source, re.M)
            about = re.search(r"^description: (.+)$", cell.source, re.M)
            if title:
                cells.append(
                    new_markdown_cell(
                        f"# {title[1].strip(chr(34))}" + (f"\n\n> {about[1].strip(chr(34))}" if about else "")
                    )
                )
            continue
        if cell.cell_type == "code":
            directives = "\n".join(re.findall(r"^#\|.*$", cell.source, re.M))
            if re.search(r"(output|output_type): ?asis", directives):  # nbdev's show_doc: its output is Markdown
                text = "\n\n".join(
                    "".join(o.get("data", {}).get("text/markdown", o.get("text", ""))) for o in cell.outputs
                )
                text = re.sub(r"^\s*---\s*$", "", text, flags=re.M)  # nbdev's rules: Sphinx takes none at a beginning
                if text.strip(): cells.append(new_markdown_cell(text))
                continue
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
            if "include: false" in directives or not cell.source: continue
        cells.append(cell)
    notebook.cells = cells
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def main(site: Path = root / "_docs") -> int:
    from deploy_assist import __version__
    with tempfile.TemporaryDirectory(prefix="deploy_assist-docs-") as folder:
        work = Path(folder)  # a copy: nothing is written beside the notebooks
        shutil.copytree(
            root / "nbs", work / "tree" / "nbs", ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
        shutil.copytree(
            root / "deploy_assist", work / "tree" / "deploy_assist", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("settings.ini", "README.md"): shutil.copy(root / name, work / "tree" / name)
        ours = (root / "pyproject.toml").read_text().partition("[tool.ruff]")[0]  # nbdev parses it anew for every cell
        (work / "tree" / "pyproject.toml").write_text(ours)
        code = "from nbdev.serve import proc_nbs; proc_nbs('nbs', n_workers=0, force=True)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=work / "tree", stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode: sys.exit(f"docs: nbdev could not process the notebooks:\n{done.stdout}{done.stderr}")
        source, pages = work / "source", []
        source.mkdir()
        processed = work / "tree" / "_proc"
        for path in sorted(processed.rglob("*.ipynb")):
            name = path.relative_to(processed)
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(plain(path), source / name)
            pages.append(name.with_suffix("").as_posix())
        for path in (root / "nbs").rglob("images"):
            shutil.copytree(path, source / path.relative_to(root / "nbs"), dirs_exist_ok=True)
        for name in ("CHANGELOG.md", "CONTRIBUTING.md"): shutil.copy(root / name, source / name)
        lessons = "\n".join(page for page in pages if page != "index" and "/" not in page)
        tutorials = "\n".join(page for page in pages if "/" in page)
        index = nbformat.read(source / "index.ipynb", 4)
        for caption, entries in {
            "Tutorials": tutorials,
            "Floors": lessons,
            "Project": "CHANGELOG\nCONTRIBUTING",
        }.items():
            if entries:
                index.cells.append(new_markdown_cell(f"```{{toctree}}\n:caption: {caption}\n:hidden:\n{entries}\n```"))
        nbformat.write(index, source / "index.ipynb")
        (source / "conf.py").write_text(configuration.replace("{version}", __version__))
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-j", "2", source, work / "site"]
        if subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL).returncode: return 1
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(work / "site", site)
    print(f"docs: {len(pages)} pages in {site}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))

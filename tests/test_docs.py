"""The documentation builds: nbdev's processing reads every signature, Sphinx every page."""
import re
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def test_the_documentation_builds_without_a_warning(tmp_path):
    site = tmp_path / "site"
    done = subprocess.run([sys.executable, "scripts/docs.py", site], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout[-2000:] + done.stderr[-2000:]
    page = (site / "01_schema.html").read_text(encoding="utf-8")
    assert "What a model takes and returns" in page and "Checking values" in page
    tutorial = (site / "tutorials" / "red_to_green.html").read_text(encoding="utf-8")
    assert "Refused: what only this notebook knows" in tutorial
    speed = (site / "tutorials" / "serving_speed.html").read_text(encoding="utf-8")
    assert re.search(r"Measured on 20\d\d-\d\d-\d\d: .*cores, Python", speed)
    assert speed.count("<table") >= 11  # nine cases, start and memory, the goals
    assert 'href="tutorials/red_to_green.html"' in (site / "index.html").read_text(encoding="utf-8")
    assert 'src="https://' not in page and "fonts.googleapis" not in page, "a page asks for nothing outside"

"""Reports that do not end well: a dead kernel, a cell that fails, a timeout, kill -9, a full disk, no database, no rows."""
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pandas as pd
import pytest
from waiting import until

from deploy_assist import DeployAssistError, PredictionLog, register, report
from deploy_assist.cli import run
from deploy_assist.errors import LogError, ReportError

rng = np.random.default_rng(0)
BEFORE = pd.DataFrame({"dose": rng.normal(5, 1, 400), "ward": rng.choice(["a", "b"], 400)})


def template(path, *cells):
    "A notebook of one's own in place of monitoring.ipynb."
    first = nbformat.v4.new_code_cell('folder: str = "."\nrun: str = ""', metadata={"tags": ["parameters"]})
    heading = nbformat.v4.new_markdown_cell("## Work")
    rest = [nbformat.v4.new_code_cell(source) for source in cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[first, heading, *rest], metadata={"kernelspec": kernel}), path)
    return path


def left(out) -> list[str]: return sorted(path.name for path in out.iterdir() if not path.name.endswith(".failed.ipynb"))


@pytest.mark.parametrize("cell, timeout_s, said", [
    ("1 / 0", 60, r"cell 4 \(Work\): ZeroDivisionError: division by zero"),
    ("import os; os._exit(9)", 60, r"in or just before (cell 4 \(Work\)|the end): the kernel died"),
    ("import time; time.sleep(60)", 4, r"took longer than 4 seconds and was stopped"),
    ("'a last cell that is not the sentinel'", 60, "without its sentinel"),
])
def test_a_run_that_did_not_end_well_is_not_believed(tmp_path, cell, timeout_s, said):
    out, mine = tmp_path / "reports", template(tmp_path / "mine.ipynb", cell)
    with pytest.raises(ReportError, match=said):
        report((BEFORE, BEFORE), name="doses", out=out, template=mine, timeout_s=timeout_s)
    assert left(out) == []


def test_a_killed_report_leaves_nothing_half_written(tmp_path):
    "kill -9 in the middle: no page, no JSON; the kernel goes too, and the next run sweeps."
    out = tmp_path / "reports"
    mine = template(tmp_path / "mine.ipynb", "open('here', 'w').close()\nimport time; time.sleep(60)")
    BEFORE.to_parquet(tmp_path / "before.parquet")
    code = (f"from deploy_assist import report; import pandas as pd; b = pd.read_parquet('before.parquet')\n"
            f"report((b, b), name='doses', out={str(out)!r}, template={str(mine)!r})")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: until(lambda: [*tmp_path.rglob("here")], "the cell runs", 60)
    finally: process.send_signal(signal.SIGKILL)
    process.wait()
    assert not [*out.glob("*.json"), *out.glob("*.html"), *out.glob("*.ipynb")] and [*out.glob(".run-*")]
    time.sleep(1.1)  # what is younger than a second may be a run that is just starting
    done = report((BEFORE, BEFORE), name="doses", out=out)
    assert done.verdict.action == "keep" and not [*out.glob(".run-*")]
    assert json.loads(done.json.read_text())["action"] == "keep"


def test_a_disk_that_is_full_is_said_before_and_during(tmp_path):
    "A tmpfs below the floor is refused; one that a cell fills up leaves no report behind."
    if os.geteuid(): pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    fill = f"open({str(disk / 'fat')!r}, 'wb').write(bytes(40 << 20))"
    for size, said, cell in (("8m", "at least 20 MB", "1"), ("24m", "No space left|could not be written", fill)):
        disk.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
            pytest.skip("this container may not mount a tmpfs")
        try:
            with pytest.raises(ReportError, match=said):
                report((BEFORE, BEFORE), name="doses", out=disk / "reports", template=template(tmp_path / "mine.ipynb", cell))
            assert not (disk / "reports").exists() or left(disk / "reports") == []
        finally: subprocess.run(["umount", disk], check=True)


def test_a_database_away_says_which(patients, free_port, tmp_path):
    register(patients)
    with pytest.raises(LogError, match="database"):
        report("patients", baseline="1", log=f"postgresql+psycopg://someone@127.0.0.1:{free_port}/log", out=tmp_path / "reports")
    assert left(tmp_path / "reports") == []


def test_an_empty_window_cannot_be_told(patients, tmp_path, capsys):
    "No request ever came: a report all the same, and exit code 10, as for watch."
    register(patients)
    with PredictionLog() as log: assert log.count("patients") == 0
    code = run(["report", "patients", "--baseline", "1", "--window", "7d", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 10 and said["action"] == "cannot tell", said


@pytest.mark.parametrize("what, words", [
    (dict(source="nobody-registered-this"), "register a model first"),
    (dict(source=(BEFORE, [1, 2])), "got list"),
    (dict(source=(BEFORE, BEFORE), label="truth"), "truth"),
    (dict(source=(BEFORE, BEFORE), timezone="Mars/Olympus"), "expected a name such as"),
    (dict(source=(BEFORE, BEFORE), parameters={"shown": "three"}), "expected int"),
    (dict(source=(BEFORE, BEFORE), thresholds={"ks": "much"}), "threshold 'ks': got 'much', expected a number"),
    (dict(source=None), "got nothing to report on"),
])
def test_wrong_use_is_a_sentence(what, words, tmp_path):
    with pytest.raises(DeployAssistError, match=words): report(out=tmp_path / "reports", **what)

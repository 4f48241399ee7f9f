"Waiting for what another thread or process does, and modules of a test's own."
import sys
import time
from contextlib import contextmanager
from importlib import import_module

import pytest


def until(happens, what="it", seconds=30):
    "Wait until `happens()` is true, and give it back."
    end = time.monotonic() + seconds
    while not (got := happens()):
        if time.monotonic() > end: pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.02)
    return got


@contextmanager
def own_module(folder, name, source):
    "A module that a person wrote beside the notebook, imported; its file is `folder/name.py`."
    (folder / f"{name}.py").write_text(source)
    sys.path.insert(0, str(folder))
    try: yield import_module(name)
    finally: sys.path.remove(str(folder))

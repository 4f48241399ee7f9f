"The processes of a server, as the benchmarks see them."
from pathlib import Path


def family(pid: int) -> list[int]:  # without `pid` itself
    "The processes below one."
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try: parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError: continue
    mine = {pid}
    while (more := {p for p, parent in parents.items() if parent in mine} - mine): mine |= more
    return sorted(mine - {pid})

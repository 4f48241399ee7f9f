"""A PostgreSQL of its own for tests that stop and start it: `with running_server() as server: ... server.stop()`."""
import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    "The folder that holds initdb, or None."
    places = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        Path(shutil.which("initdb") or "/none").parent,
    ]
    return next((p for p in places if (p / "initdb").exists()), None)


class Server:
    "A cluster in a folder on a free port of loopback; run by the user postgres where we are root, which initdb refuses."

    def __init__(self, folder: Path):
        self.folder, self.bin = Path(folder), programs()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        if os.getuid() == 0: shutil.chown(self.folder, "postgres", "postgres")
        self.run("initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")

    @property
    def url(self) -> str: return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, tool: str, *args):
        "Run a program of PostgreSQL; its server must not inherit our pipes."
        step_down = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        with open(self.folder / f"{tool}.out", "a+") as out:
            done = subprocess.run(
                [*step_down, str(self.bin / tool), *map(str, args)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=60,
                cwd=self.folder,
            )
            out.seek(0)
            if done.returncode: raise RuntimeError(f"{tool}: {out.read()[-1000:]}")

    def start(self):
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F -c max_connections=60"
        self.run(
            "pg_ctl", "-D", self.folder / "data", "-w", "-t", "30", "-l", self.folder / "log", "-o", options, "start"
        )

    def stop(self, mode: str = "fast"):
        if (self.folder / "data" / "postmaster.pid").exists():
            self.run("pg_ctl", "-D", self.folder / "data", "-w", "-t", "30", "-m", mode, "stop")


@contextmanager
def running_server():
    "A running `Server`, stopped and removed in the end."
    folder = Path(tempfile.mkdtemp(prefix="deploy_assist-pg-", dir="/tmp"))
    try:
        server = Server(folder)
        try:
            server.start()
            yield server
        finally: server.stop("immediate")
    finally: shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_postgres():
    "The SQLAlchemy URL of a PostgreSQL that runs while the context is open."
    with running_server() as server: yield server.url

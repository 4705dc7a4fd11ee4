"""What stands around the contenders, on the core that is not theirs: the app behind, Redis, a Logto for each to sign in at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench import machine
from bench.processes import Fleet, Running, Trouble, fleet, free_port

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
SMALL = "small but complete: " + "x" * 108  # bytes of the small answer: 128
SIZES = {"/100k": 100 << 10, "/10m": 10 << 20}


@dataclass(frozen=True, slots=True)
class World:
    """`postern` is the command that is measured; `openloop` the compiled generator; ports are on 127.0.0.1."""

    cores: machine.Cores
    fleet: Fleet
    directory: Path
    files: int
    postern: Path
    openloop: Path
    origin: int
    live: int
    redis: int
    app: Running  # what listens on `origin`

    def write(self, template: str, **values: object) -> Path:
        """Fill in a file of bench/config and return where it lies."""
        ports = {"origin": self.origin, "live": self.live, "redis": self.redis}
        return fill_in(template, self.directory, {"directory": self.directory, "files": self.files, **ports, **values})

    @property
    def python_path(self) -> Path:
        """The Python that runs what is part of this package."""
        return Path(sys.executable)

    @property
    def python_environ(self) -> dict[str, str]:
        """What that Python needs in its environment to find this package."""
        return {"PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def world(postern: Path) -> Iterator[World]:
    """A world for the length of a `with` block. Trouble when it cannot be had."""
    cores = machine.cores()
    files = machine.allow_many_files()
    with tempfile.TemporaryDirectory(prefix="postern-bench-") as name, fleet(Path(name)) as programs:
        directory = Path(name)
        directory.chmod(0o755)  # workers of daemons that were started by root are nobody
        origin, live, redis = free_port(), free_port(), free_port()
        app = _start_origin(programs, cores.rest, origin, files)
        _start_redis(programs, cores.rest, redis)
        it = World(cores, programs, directory, files, postern, _compile(directory), origin, live, redis, app)
        command = [str(it.python_path), "-m", "bench.live", str(live)]
        programs.start("live", command, cores.rest, it.python_environ).listening(live)
        yield it


def fill_in(template: str, directory: Path, values: Mapping[str, object]) -> Path:
    """Write a file of bench/config, its placeholders replaced, into `directory`; returns where it lies."""
    path = directory / template
    path.write_text(Template((HERE / "config" / template).read_text("utf-8")).substitute(values), "utf-8")
    return path


def user_line(form: str) -> str:
    """The line that tells a daemon who to be, for when root starts it; nobody else may choose."""
    return form if os.geteuid() == 0 else ""


def _compile(directory: Path) -> Path:
    program = directory / "openloop"
    command = ["cc", "-O2", "-o", str(program), str(HERE / "openloop.c"), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Trouble(f"openloop.c does not compile\n{done.stderr}")
    return program


def _start_redis(programs: Fleet, core: int, port: int) -> None:
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    programs.start("redis", ["redis-server", *options], core).listening(port)


def _start_origin(programs: Fleet, core: int, port: int, files: int) -> Running:
    content = programs.directory / "content"
    content.mkdir()
    for path, size in SIZES.items():
        (content / path[1:]).write_bytes(os.urandom(1 << 10) * (size >> 10))
    user = user_line("user root;")
    values = {"port": port, "files": files, "files_directory": content, "small": SMALL, "user": user}
    config = fill_in("origin.nginx.conf", programs.directory, values)
    running = programs.start("origin", ["nginx", "-p", programs.directory, "-c", config], core)
    running.listening(port)
    return running

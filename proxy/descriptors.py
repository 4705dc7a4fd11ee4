"""Open files: a connection is one, and the kernel lets a process have only so many."""

from __future__ import annotations

import resource
from typing import Final

_EACH: Final = 2  # a client's connection, and the one to the app behind
_SPARE: Final = 256  # listeners, logs, Redis, Logto, the interpreter's own


def make_room(connections: int) -> str | None:
    """Raise this process's soft limit of open files (getrlimit(2)) to what so many clients' connections take.

    Nothing is taken off a limit that is higher, and processes started later inherit it. Returns a sentence on what is lacking
    when the hard limit, which only root can raise, does not reach; None when all is well.
    """
    wanted = connections * _EACH + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _reaches(soft, wanted):
        return None
    possible = wanted if _reaches(hard, wanted) else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible == wanted:
        return None
    return (
        f"only {possible} files may be open, room for some {max(0, possible - _SPARE) // _EACH} connections: raise the limit to "
        f"{wanted} (LimitNOFILE= of systemd, --ulimit nofile= of Docker, ulimit -n) or lower limits.max_connections"
    )


def _reaches(limit: int, wanted: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= wanted

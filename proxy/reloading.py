"""Settings read again while the gateway runs: from where, when, and what of them can still be changed.

Files are looked at once a second instead of being watched by the kernel: inotify says nothing of a file that was mounted into a
container by itself and then replaced, of network file systems, or of the symlinks that Kubernetes swaps for a ConfigMap; asking
for a handful of time stamps costs next to nothing and misses none of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from proxy.settings import DEFAULT_FILE, Settings, load
from proxy.sources import CONFIG
from proxy.tree import FROM_FILE, PREFIX, SHORT_NAMES, dotted

# What a running gateway cannot change: its sockets and processes, where sessions are, and what its store was built with.
FIXED: Final[tuple[tuple[str, ...], ...]] = (
    ("listen",),
    ("workers",),
    ("reload",),
    ("session", "store"),
    ("session", "idle"),
    ("session", "lifetime"),
    ("session", "outage_grace"),
    ("session", "connect_timeout"),
    ("session", "command_timeout"),
    ("session", "connections"),
    ("session", "retries"),
    ("session", "cache_entries"),
    ("session", "cache_bytes"),
    ("metrics",),
    ("tracing",),
)

# Of each file: inode, size, time of change; None when it is not there.
_Stamps = dict[Path, tuple[int, int, int] | None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings come from: a file (None: the default one) and an environment, which no longer changes."""

    config: Path | None
    environ: Mapping[str, str]

    def read(self) -> Settings:
        """Read them, perhaps again. Raises SettingsError with every problem."""
        return load(self.config, self.environ)

    def files(self, settings: Settings) -> tuple[Path, ...]:
        """The files that `settings` were read from, and those of the certificate that they name."""
        named = self.config or Path(self.environ.get(CONFIG) or DEFAULT_FILE)
        secrets = [
            Path(value)
            for name, value in self.environ.items()
            if value
            and name.endswith(FROM_FILE)
            and (name.startswith(PREFIX) or name.removesuffix(FROM_FILE) in SHORT_NAMES)
        ]
        certificate = [settings.tls.cert, settings.tls.key] if settings.tls is not None else []
        return (named, *secrets, *certificate)


class Watch:
    """Notices that files have changed. `files` is asked each time: other settings may name other files."""

    def __init__(self, files: Callable[[], Iterable[Path]]) -> None:
        self._files = files
        self._known = self._look()
        self._seen = self._known

    def changed(self) -> bool:
        """Whether any file is another one than at the last change, and is so since the last look.

        What changes from look to look is still being written: half a file may well be valid settings, with half the rules.
        """
        now = self._look()
        settled = now == self._seen
        self._seen = now
        if not settled or now == self._known:
            return False
        self._known = now
        return True

    def known(self) -> None:
        """The files as they are now are about to be read: only what changes from here on is a change."""
        self._known = self._seen = self._look()

    def renamed(self) -> None:
        """Other files may be meant now. New ones are no change by themselves; what has changed of the others still is."""
        now = self._look()
        self._known = {path: self._known.get(path, stamp) for path, stamp in now.items()}

    def _look(self) -> _Stamps:
        return {path: _stamp(path) for path in self._files()}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 -- what is wanted is what lies at the end of every symlink
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def merged(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """What may hold from now on: `new`, less what cannot be changed. With it the keys that would have been."""
    kept: list[str] = []
    changes: dict[str, Any] = {}
    for path in FIXED:
        before, after = _at(old, path), _at(new, path)
        if before == after:
            continue
        kept.append(dotted(path))
        if len(path) == 1:
            changes[path[0]] = before
        else:
            section: BaseModel = changes.get(path[0], _at(new, path[:1]))
            changes[path[0]] = section.model_copy(update={path[1]: before})
    return new.model_copy(update=changes), tuple(kept)


def _at(settings: BaseModel, path: tuple[str, ...]) -> Any:
    here: Any = settings
    for step in path:
        here = getattr(here, step)
    return here

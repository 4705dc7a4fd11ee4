"""TLS towards a server: whom to trust, what to show, and new certificates without a restart.

Certificates of internal servers live for days, and whatever renews them knows nothing of this process. So the files are looked
at for each new connection, a cost of microseconds next to a handshake's, and read again when they have changed. Files that are
just being replaced may not fit together: the last good ones then serve on.
"""

from __future__ import annotations

import functools
import logging
import os
import ssl
from pathlib import Path
from typing import Final

from proxy.errors import UpstreamFailed, UpstreamProblem
from proxy.upstream_settings import UpstreamTls

_log: Final = logging.getLogger("postern.upstream")
_Stamp = tuple[tuple[int, int, int], ...]  # of each file: inode, size, time of change


class ClientTls:
    """The TLS of the connections to one server. `host` is what its certificate must name, unless `settings` say otherwise."""

    def __init__(self, settings: UpstreamTls | None, host: str) -> None:
        self._settings = settings
        self._files = _files(settings) if settings is not None else ()
        self._stamp: _Stamp | None = None
        self._context = None if self._files else _context(settings)
        self._said = ""
        self.server_name = (settings.server_name if settings is not None else None) or host

    def context(self) -> ssl.SSLContext:
        """What the next connection is to use. Raises UpstreamFailed (TLS) when there are no usable certificates."""
        if self._context is not None and not self._files:
            return self._context
        try:
            stamp = tuple(_stamp(path) for path in self._files)
            if self._context is None or stamp != self._stamp:
                self._context = _context(self._settings)
                self._stamp, self._said = stamp, ""
        except (OSError, ssl.SSLError) as error:
            if self._context is None:
                raise UpstreamFailed(UpstreamProblem.TLS, self._unusable(error), retry_safe=True) from None
            self._complain(self._unusable(error))
        return self._context

    def _complain(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _log.warning("%s; those read before serve on", text)

    def _unusable(self, error: OSError) -> str:
        # ssl does not say which of its files it could not read, and never what is in them.
        names = ", ".join(str(path) for path in self._files)
        return f"the certificates in {names} cannot be used: {reason_of(error)}"


def reason_of(error: OSError) -> str:
    """What an error of a socket or of TLS means, in a few words for whoever runs the gateway."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason: str = getattr(error, "reason", None) or "UNKNOWN_ERROR"
        return "it does not speak TLS there" if reason == "WRONG_VERSION_NUMBER" else reason.replace("_", " ").lower()
    return os.strerror(error.errno) if error.errno else type(error).__name__  # uvloop words its own after the address


def _files(settings: UpstreamTls) -> tuple[Path, ...]:
    return tuple(path for path in (settings.ca, settings.client_cert, settings.client_key) if path is not None)


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _context(settings: UpstreamTls | None) -> ssl.SSLContext:
    if settings is None:
        return _system()
    context = ssl.create_default_context(cafile=settings.ca)
    context.set_alpn_protocols(["http/1.1"])
    if settings.client_cert is not None:
        # OpenSSL would ask whoever sits at the terminal for the password of a key that has one.
        context.load_cert_chain(settings.client_cert, settings.client_key, password="")
    if settings.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@functools.cache
def _system() -> ssl.SSLContext:
    """Trust in whom the system trusts. Read once: that is some hundred certificates."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context

"""Where log lines go and what they look like: JSON for machines, columns for people. Access lines are in accesslog.py."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

from proxy.errors import CannotServe
from proxy.logplace import LogPlace
from proxy.settings import LogSettings


def form_of(settings: LogSettings) -> Literal["json", "console"]:
    """The form to write: as set, and with "auto" for people on a terminal, else for machines."""
    if settings.format == "auto":
        return "console" if sys.stdout.isatty() else "json"
    return settings.format


def access_place(settings: LogSettings) -> tuple[LogPlace | None, Literal["json", "console"]]:
    """Where access lines go, None for nowhere, and in which form. Raises CannotServe when the file cannot be written."""
    if settings.access == "off":
        return None, "json"
    try:
        place = LogPlace(settings.access)
    except OSError as error:
        raise CannotServe(f"log.access cannot be written to {settings.access}: {error.strerror}") from None
    if settings.format == "auto":
        return place, "console" if place.terminal else "json"
    return place, settings.format


def configure(settings: LogSettings) -> None:
    """Send every logger of this process, libraries' too, to standard error in the form that `settings` asks for."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    if form_of(settings) == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    # These tell of every request they make, query and all, or of every process; what matters of it is logged at our edges.
    for chatty in ("httpx2", "httpcore2", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

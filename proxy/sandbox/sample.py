"""The sample app (first cut)."""

from __future__ import annotations

from starlette.applications import Starlette


def create_sample() -> Starlette:
    """An app to stand behind the gateway."""
    return Starlette()

"""What people see of the stand-in Logto: its own pages, which say on each that it is one."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from .config import SandboxConfig

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
)


def base_url(config: SandboxConfig, request: Request) -> str:
    """scheme://host of the request: what every URL but the issuer follows, as recorded."""
    scheme, host = request.url.scheme, request.headers.get("host", "")
    if config.trust_proxy_header:
        scheme = request.headers.get("x-forwarded-proto", scheme)
        host = request.headers.get("x-forwarded-host", host)
    return f"{scheme}://{host or urlsplit(config.endpoint).netloc}"


def page(name: str, status: int = 200, *, form_action: str | None = "'self'", **values: Any) -> Response:
    """A page from `templates/`. `form_action` None leaves that directive out; see end_session for the one reason."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; "
        f"script-src 'nonce-{nonce}'"
    )
    if form_action is not None:
        policy += f"; form-action {form_action}"
    text = _TEMPLATES.get_template(f"{name}.html").render(nonce=nonce, **values)
    return HTMLResponse(
        text,
        status,
        headers={
            "content-security-policy": policy,
            "cache-control": "no-cache, no-store, must-revalidate",
        },
    )


def notice(title: str, text: str, *, back: str | None = None, mood: str = "error", status: int = 200) -> Response:
    """A page that says one thing: Logto's toasts and dead ends, which never reach the application."""
    return page("notice", status, title=title, text=text, back=back, mood=mood)

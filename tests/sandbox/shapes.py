"""What two exchanges of different days have in common: everything but the values that are fresh each time.

Opaque values, times and identifiers become placeholders, a JWT becomes its header and claims, an address its parts. The
recordings in `recordings/` were put through the same functions, so comparing is `==`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import jwt

_OPAQUE = re.compile(r"(?<![\w-])[\w-]{43}(?![\w-])")
_VERIFICATION = re.compile(r"(?<![\w-])[\w-]{21}(?![\w-])")
_CONNECTOR = re.compile(r"i9xswis49nvc|sandboxdiscd")
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")
_FRESH = {"nonce": "<nonce>", "state": "<state>", "xsrf": "<xsrf>", "verificationId": "<verification>"}


def shape(value: Any, name: str = "") -> Any:
    """`value` of an exchange, the key it stands under being `name`, without what is fresh each time."""
    if isinstance(value, Mapping):
        return {key: shape(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item, name) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return "<ms>" if value > 10**12 else "<s>" if value > 10**9 else value
    if isinstance(value, str) and value:
        return _text(value, name)
    return value


def _text(value: str, name: str) -> Any:
    if name in _FRESH:
        return _FRESH[name]
    if _JWT.fullmatch(value):
        claims = jwt.decode(value, options={"verify_signature": False})
        return {"header": shape(jwt.get_unverified_header(value)), "claims": shape(claims)}
    return _CONNECTOR.sub("<connector>", _OPAQUE.sub("<43>", value))


def address(url: str | None) -> Any:
    """An address by its parts."""
    if url is None:
        return None
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""
    found: dict[str, Any] = {"to": shape(origin + parts.path)}
    for kind, text in (("query", parts.query), ("fragment", parts.fragment)):
        if text:
            pairs = dict(parse_qsl(text, keep_blank_values=True))
            found[kind] = {
                name: address(value) if name == "redirect_uri" else shape(value, name) for name, value in pairs.items()
            }
    return found


def cookies(lines: Iterable[str]) -> list[str]:
    """Set-Cookie lines: name, attributes, and whether it sets or deletes; the order of attributes does not matter."""
    return sorted(_cookie(line) for line in lines)


def _cookie(line: str) -> str:
    pair, *attributes = [part.strip() for part in line.split(";")]
    name = pair.partition("=")[0]
    kept = [shape(attribute) for attribute in attributes if not attribute.lower().startswith("expires=")]
    expires = next((attribute for attribute in attributes if attribute.lower().startswith("expires=")), None)
    life = "session" if expires is None else "deleted" if "1970" in expires else "kept"
    return "; ".join([name, life, *sorted(kept)])


def answer(response: httpx2.Response) -> dict[str, Any]:
    """An answer of the stand-in, in the form of the recordings."""
    kind = response.headers.get("content-type")
    body: Any = None
    if kind and kind.startswith("application/"):
        body = shape(response.json())
    return {
        "status": response.status_code,
        "location": address(response.headers.get("location")),
        "cookies": cookies(response.headers.get_list("set-cookie")),
        "content_type": kind,
        "cache_control": response.headers.get("cache-control"),
        "body": body,
    }

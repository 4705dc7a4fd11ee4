"""Whose wish a POST to the gateway is: the one place that tells a person's click from another site's.

Browsers send the session's cookie along whichever page has made the request (cross-site request forgery, RFC 6265 8.2).
"""

from __future__ import annotations

from starlette.requests import Request

from proxy.answers import call_of


def from_own_page(request: Request, public_url: str) -> bool:
    """Whether the browser vouches that a page of this very origin, or the person directly, sent `request`.

    Sec-Fetch-Site cannot be set by a page. `same-site` is not enough: an app on a sibling host is not the gateway, and
    the person has not seen the button. Without it (plain http, old browsers) the Origin of the POST must be ours.
    Neither: no browser that can be protected, refuse.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin", "").lower()
    call = call_of(request)
    return origin in (public_url.lower(), f"{call.scheme}://{call.host}".lower())

"""Presets: what an app that people put behind a gateway wants to be told, in one word. Data, and how it gets into a route.

Each is what the app's own documentation says of being behind a proxy that signs people in; docs/apps has a page for each, with
the app's side of it. Whatever a route says itself counts more, and nothing is opened to everyone but what the route names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from proxy.header_settings import fold_header

Encoding = Literal["utf-8", "percent", "rfc2047"]


@dataclass(frozen=True, slots=True)
class Preset:
    """What one app wants. Paths are the app's own, from its root.

    `headers`: fields to set, as templates. `remove`: others that it would believe, too, and must never get. `logout`: where its
    own sign-out is, as pages of a browser's. `open`: what may be worth opening to everyone, by a word for it: the app must
    guard that itself. `encoding`: how it reads what is not ASCII. `login_cookies`: by which it knows people, header or no header.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    logout: tuple[str, ...] = ()
    open: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoding: Encoding | None = None
    login_cookies: tuple[str, ...] = ()


_GITEA: Final = Preset(
    headers={"X-WEBAUTH-USER": "{login}", "X-WEBAUTH-EMAIL": "{email}", "X-WEBAUTH-FULLNAME": "{name}"},
    logout=("/user/logout",),
    open={"health": ("/api/healthz",), "api": ("/api/v1",)},
)
_ARR: Final = Preset(logout=("/logout",), open={"health": ("/ping",), "api": ("/api", "/feed")})

PRESETS: Final[Mapping[str, Preset]] = {
    "code-server": Preset(logout=("/logout",), open={"health": ("/healthz",)}),
    "django-remote-user": Preset(
        headers={"Remote-User": "{login}"},
        # Under ASGI Django itself puts HTTP_ before what its middleware is told to read: HTTP_HTTP_REMOTE_USER.
        remove=("HTTP-Remote-User",),
        logout=("/accounts/logout", "/admin/logout"),
    ),
    "filebrowser": Preset(
        headers={"Remote-User": "{login}"},
        open={"health": ("/health",), "shares": ("/share", "/static", "/api/public")},
    ),
    "forgejo": _GITEA,
    # It looks at X-WebAuth-User wherever there is no Remote-User: on what is open to everyone, that is.
    "freshrss": Preset(headers={"Remote-User": "{login}"}, remove=("X-WebAuth-User",), open={"api": ("/api",)}),
    "gitea": _GITEA,
    "gradio": Preset(),
    "grafana": Preset(
        headers={
            "X-WEBAUTH-USER": "{login}",
            "X-WEBAUTH-NAME": "{name}",
            "X-WEBAUTH-EMAIL": "{email}",
            "X-WEBAUTH-GROUPS": "{groups}",
        },
        logout=("/logout",),
        open={"health": ("/api/health",)},
    ),
    "home-assistant": Preset(
        headers={"X-Forwarded-Preferred-Username": "{login}"},
        open={"webhooks": ("/api/webhook",), "api": ("/api", "/auth/token", "/auth/revoke")},
    ),
    "jenkins": Preset(
        headers={
            "X-Forwarded-User": "{login}",
            "X-Forwarded-Mail": "{email}",
            "X-Forwarded-DisplayName": "{name}",
            "X-Forwarded-Groups": "{groups}",
        },
        logout=("/logout",),
        open={"webhooks": ("/github-webhook",)},
    ),
    "jupyterlab": Preset(logout=("/logout",)),
    "lidarr": _ARR,
    "miniflux": Preset(
        headers={"Remote-User": "{login}"},
        logout=("/logout",),
        open={"health": ("/healthcheck",), "api": ("/v1", "/fever", "/reader/api", "/accounts/ClientLogin")},
        login_cookies=("MinifluxSessionID", "MinifluxUserSessionID"),  # of newer ones and of older ones
    ),
    "node-red": Preset(headers={"X-Forwarded-User": "{login}"}),
    "open-webui": Preset(
        headers={"X-Forwarded-Email": "{email}", "X-Forwarded-Name": "{name}", "X-Forwarded-Groups": "{groups}"},
        open={"health": ("/health",)},
        encoding="percent",
    ),
    "paperless-ngx": Preset(
        headers={"Remote-User": "{login}"},
        logout=("/accounts/logout",),
        open={"api": ("/api",)},
        login_cookies=("sessionid",),
    ),
    "prowlarr": _ARR,
    "radarr": _ARR,
    "radicale": Preset(headers={"X-Remote-User": "{login}"}),
    "sonarr": _ARR,
    "streamlit": Preset(open={"health": ("/_stcore/health",)}),
}


def filled_in(route: object) -> object:
    """The raw settings of a route with what its preset says wherever the route itself says nothing.

    What makes no sense is left as it is, for whoever checks it.
    """
    if not isinstance(route, dict):
        return route
    preset = PRESETS.get(name) if isinstance(name := route.get("preset"), str) else None
    if preset is None:
        return route
    filled: dict[str, Any] = {"logout": [_below(route, path) for path in preset.logout]} if preset.logout else {}
    if preset.encoding is not None:
        filled["encoding"] = preset.encoding
    if preset.login_cookies:
        filled["login_cookies"] = preset.login_cookies
    headers = route.get("headers", {})
    if preset.headers and isinstance(headers, dict):
        filled["headers"] = {**headers, "set": _set(preset, headers), "remove": _removed(preset, headers)}
    return {**filled, **{key: value for key, value in route.items() if key != "headers" or "headers" not in filled}}


def opened(preset: str | None, path: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """The paths that `words` open in a route at `path`: those of the preset's by that word, or paths. KeyError for others."""
    known = PRESETS[preset].open if preset is not None else {}
    found = [[word] if word.startswith("/") else [path.rstrip("/") + one for one in known[word]] for word in words]
    return tuple(dict.fromkeys(one for paths in found for one in paths))


def _set(preset: Preset, headers: Mapping[str, Any]) -> Any:
    own, removed = headers.get("set", {}), headers.get("remove", ())
    if not isinstance(own, dict):
        return own
    taken = {
        fold_header(name)
        for name in (*own, *(removed if isinstance(removed, list | tuple) else ()))
        if isinstance(name, str)
    }
    return {**{name: value for name, value in preset.headers.items() if fold_header(name) not in taken}, **own}


def _removed(preset: Preset, headers: Mapping[str, Any]) -> Any:
    own = headers.get("remove", ())
    return (*preset.remove, *own) if isinstance(own, list | tuple) else own


def _below(route: Mapping[str, Any], path: str) -> str:
    base = route.get("path", "/")
    return (base.rstrip("/") if isinstance(base, str) else "") + path

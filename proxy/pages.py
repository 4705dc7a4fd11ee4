"""The pages that people see: one layout, one style block, no script, nothing loaded from anywhere.

In goes the name of a page (its sentences are in texts.py) with the values it shows; out comes a Starlette response with
the policy that keeps it harmless: nothing may run, nothing may frame it, its forms lead only here and to Logto. Every
value is escaped by the template engine; links are checked once more, because escaping does not stop `javascript:`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import jinja2
from markupsafe import Markup
from starlette.responses import HTMLResponse

from proxy.texts import Locale, has_text, text

if TYPE_CHECKING:
    from proxy.settings import Settings

# Pages on which the gate in the emblem stands open.
_OPEN: Final = frozenset({"home", "already", "signed_in", "passwords", "password_made"})

# The tab's icon, as a data URL: a page of ours must not make the browser ask the app behind for /favicon.ico.
_ICON: Final = "data:image/svg+xml," + quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40">'
    '<path fill="#1f5c4d" d="M4 38V20a16 16 0 0 1 32 0v18z"/>'
    '<path fill="#f7e3b4" d="M12 38V21a8 8 0 0 1 16 0v17z"/></svg>'
)


@dataclass(frozen=True, slots=True)
class Action:
    """Something to click: `text` is a key of texts.py, `url` where it leads, `post` makes it a form's button.

    ValueError for a URL that is neither absolute http(s) nor a path on this host.
    """

    text: str
    url: str
    post: bool = False

    def __post_init__(self) -> None:
        _require_link(self.url)


@dataclass(frozen=True, slots=True)
class Fact:
    """One of a page's details: `label` is a key of texts.py, `value` and, below it, `more` are shown as they are."""

    label: str
    value: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """An app that somebody may open. Without `url` (a wildcard host) it is named, not linked."""

    name: str
    address: str
    url: str | None = None

    def __post_init__(self) -> None:
        if self.url is not None:
            _require_link(self.url)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """One of a person's sessions: `since` and `seen` as minutes of UTC; `end`: where a POST ends it, None for this very one."""

    browser: str
    address: str
    since: str
    seen: str
    end: str | None = None

    def __post_init__(self) -> None:
        if self.end is not None:
            _require_link(self.end)


@dataclass(frozen=True, slots=True)
class MadePassword:
    """One of a person's app passwords: `made`, `expires` as minutes of UTC, `seen` as a sentence; a POST to `revoke` ends it."""

    name: str
    route: str
    made: str
    expires: str
    seen: str
    waits: bool
    revoke: str

    def __post_init__(self) -> None:
        _require_link(self.revoke)


@dataclass(frozen=True, slots=True)
class PasswordForm:
    """The form that makes an app password. `problem`, a key of texts.py, is what was wrong with what it holds.

    Whoever has to sign in again first gets the way there, `sign_in`, in its place.
    """

    url: str
    routes: Sequence[str]
    days: Sequence[int]
    name: str = ""
    route: str = ""
    chosen: str = ""
    name_chars: int = 64
    problem: str | None = None
    sign_in: str | None = None

    def __post_init__(self) -> None:
        _require_link(self.url)
        if self.sign_in is not None:
            _require_link(self.sign_in)


@dataclass(frozen=True, slots=True)
class Passwords:
    """A person's app passwords, and the form for another one."""

    made: Sequence[MadePassword]
    form: PasswordForm


class Pages:
    """Renders pages for one site.

    `site` is the host people know it by. `form_targets` are the foreign origins that the answer to one of our forms may
    redirect to: browsers hold the whole redirect chain against `form-action`.
    """

    def __init__(self, site: str, form_targets: Sequence[str] = ()) -> None:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("proxy"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
        )
        style = environment.get_template("style.css").render().strip()
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        shared = {"site": site, "icon": _ICON, "style": Markup(style)}  # noqa: S704 -- our own file
        self._layout = environment.get_template("layout.html", globals=shared)
        self._templates = {
            page: environment.get_template(f"{name}.html", globals=shared)
            for page, name in (("home", "home"), ("passwords", "passwords"), ("password_made", "passwords"))
        }
        self._csp = (
            f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; frame-ancestors 'none'; "
            "form-action "
        )
        self._form_action = " ".join(("'self'", *form_targets))

    @classmethod
    def from_settings(cls, settings: Settings) -> Pages:
        """Pages for the site that `settings` describe."""
        logto = urlsplit(settings.logto.endpoint)
        return cls(urlsplit(settings.public_url).netloc, (f"{logto.scheme}://{logto.netloc}",))

    def render(
        self,
        page: str,
        *,
        locale: Locale,
        status: int = 200,
        request_id: str = "",
        actions: Sequence[Action] = (),
        facts: Sequence[Fact] = (),
        places: Sequence[Place] = (),
        sessions: Sequence[SignedIn] = (),
        end_others: Action | None = None,
        more_sessions: bool = False,
        passwords: Passwords | None = None,
        secret: str = "",
        refresh: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HTMLResponse:
        """Render the page `page` (the stem of its keys in texts.py); the first of its actions is the main one.

        `sessions` are listed on the page "home", with `end_others` to end all but the first, and a word on those that are not
        listed if there are `more_sessions`; `passwords` on the page of that name, and `secret` on "password_made". `refresh` is
        a URL that the browser goes on to by itself. KeyError for a page without texts.
        """
        if refresh is not None:
            _require_link(refresh)
        body = self._templates.get(page, self._layout).render(
            page=page,
            locale=locale,
            t=functools.partial(text, locale),
            has_text=has_text,
            open=page in _OPEN,
            request_id=request_id,
            actions=actions,
            facts=facts,
            places=places,
            sessions=sessions,
            end_others=end_others,
            more_sessions=more_sessions,
            passwords=passwords,
            secret=secret,
            refresh=refresh,
        )
        has_form = passwords is not None or any(action.post for action in actions)
        return HTMLResponse(body, status, {**self._headers(locale, has_form=has_form), **(headers or {})})

    def _headers(self, locale: Locale, *, has_form: bool) -> dict[str, str]:
        return {
            "Cache-Control": "no-store",
            "Content-Language": locale,
            "Content-Security-Policy": self._csp + (self._form_action if has_form else "'none'"),
            "Cross-Origin-Resource-Policy": "same-origin",
            # A callback's URL holds a code: no page tells anybody where it was. Pages with a form do, as they hold no
            # secret: under no-referrer browsers send `Origin: null` with a POST (Fetch, "append a request Origin
            # header"), and a real sign-out could not be told from a forged one.
            "Referrer-Policy": "same-origin" if has_form else "no-referrer",
            "Vary": "Accept, Accept-Language",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",  # frame-ancestors, for browsers that do not know it
        }


def _require_link(url: str) -> None:
    # To a browser "//host" and "/\host" are other sites, and so is "/" + tab + "/host", as it drops tabs and newlines.
    local = url.startswith("/") and not url.startswith(("//", "/\\"))
    if not (local or url.startswith(("https://", "http://"))) or any(character < " " for character in url):
        raise ValueError("a link on a page must be absolute http(s) or a path")

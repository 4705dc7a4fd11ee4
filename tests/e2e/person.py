"""A person with a browser, as far as HTTP goes: keeps cookies, follows redirects, reads pages, presses buttons.

The cookie jar is written out by hand because the ready-made ones lose what matters here: Logto sets
`_logto={"appId":"…"}`, raw JSON, over which `http.cookies.SimpleCookie` drops every cookie that follows. It keeps what
RFC 6265 section 5 keeps, for the hosts that these tests use.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

import httpx2

NAVIGATION = {
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Site": "none",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) person/1.0",
}
MAX_REDIRECTS = 25


@dataclass(slots=True)
class Cookie:
    """One stored cookie (RFC 6265 section 5.3)."""

    name: str
    value: str
    host: str
    host_only: bool
    path: str
    secure: bool
    expires: float | None

    def goes_to(self, host: str, path: str, *, secure: bool, now: float) -> bool:
        """Whether it belongs on a request (section 5.4). Browsers count http://localhost as secure."""
        if self.expires is not None and self.expires <= now:
            return False
        if self.secure and not secure and host != "localhost":
            return False
        if host != self.host and (self.host_only or not host.endswith("." + self.host)):
            return False
        return path == self.path or path.startswith(self.path if self.path.endswith("/") else self.path + "/")


class Jar:
    """The cookies of one browser. Like a browser's it knows hosts, not ports."""

    def __init__(self) -> None:
        self.cookies: dict[tuple[str, str, str], Cookie] = {}

    def store(self, url: str, lines: Iterable[str]) -> None:
        """Take the Set-Cookie `lines` of an answer from `url`."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        for line in lines:
            pair, *rest = line.split(";")
            name, equals, value = pair.partition("=")
            if not equals or not name.strip():
                continue
            attributes = {key.strip().lower(): text.strip() for key, _, text in (part.partition("=") for part in rest)}
            self._put(name.strip(), value.strip(), host, parts.path, attributes)

    def _put(self, name: str, value: str, host: str, path: str, attributes: Mapping[str, str]) -> None:
        domain = attributes.get("domain", "").lstrip(".").lower()
        if domain and host != domain and not host.endswith("." + domain):
            return
        given = attributes.get("path", "")
        default = path.rpartition("/")[0] or "/"
        cookie = Cookie(
            name=name,
            value=value,
            host=domain or host,
            host_only=not domain,
            path=given if given.startswith("/") else default,
            secure="secure" in attributes,
            expires=_expiry(attributes),
        )
        key = (cookie.host, cookie.path, name)
        if cookie.expires is not None and cookie.expires <= time.time():
            self.cookies.pop(key, None)
        else:
            self.cookies[key] = cookie

    def header(self, url: str) -> str:
        """The Cookie field for a request to `url`; the longest path first (section 5.4)."""
        parts = urlsplit(url)
        going = [
            cookie
            for cookie in self.cookies.values()
            if cookie.goes_to(parts.hostname or "", parts.path or "/", secure=parts.scheme == "https", now=time.time())
        ]
        going.sort(key=lambda cookie: -len(cookie.path))
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in going)

    def named(self, name: str) -> Cookie | None:
        """The first cookie of that name, whatever its host and path."""
        return next((cookie for cookie in self.cookies.values() if cookie.name == name), None)


@dataclass(slots=True)
class Form:
    """A form of a page: where it goes and what it carries, its buttons apart."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: list[tuple[str, str, str]] = field(default_factory=list)  # (label, name, value)
    radios: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # name -> [(value, label)]


@dataclass(slots=True)
class Page:
    """An answer as a person meets it."""

    url: str
    status: int
    headers: httpx2.Headers
    body: bytes
    trail: list[str] = field(default_factory=list)  # every URL on the way here, this one last
    forms: list[Form] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)  # (text, absolute URL)
    text: str = ""  # what can be read, blanks collapsed
    language: str = ""
    refresh: str = ""  # where <meta http-equiv="refresh"> leads at once

    def form(self, button: str = "") -> Form:
        """The form with a button whose label holds `button`, or the only one; fails with the page's text."""
        fitting = [form for form in self.forms if any(button in label for label, _, _ in form.buttons) or not button]
        assert fitting, f"no form with a button {button!r} at {self.url} ({self.status}):\n{self.text}"
        return fitting[0]

    def link(self, text: str) -> str:
        """The target of the link whose text holds `text`; fails with the page's text."""
        for label, target in self.links:
            if text in label:
                return target
        raise AssertionError(f"no link {text!r} at {self.url} ({self.status}):\n{self.text}")

    def __repr__(self) -> str:
        return f"Page({self.status} {self.url} via {' > '.join(self.trail[:-1])}: {self.text[:400]!r})"


class Person:
    """Somebody with one browser: `browse`, `press`, `follow`; plain `request` for scripts on the page.

    `stops_at`: below this URL nothing is fetched; the way there ends with a page of status 0. For whoever is the other
    end of it.
    """

    def __init__(self, *, language: str = "en", stops_at: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.jar = Jar()
        self.stops_at = stops_at
        self.headers = {**NAVIGATION, "Accept-Language": language, **(headers or {})}
        keeps_nothing = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        self.client = httpx2.Client(cookies=keeps_nothing, timeout=30, trust_env=False, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def cookie_header(self, url: str) -> str:
        """What a program that borrows this browser's session sends as Cookie."""
        return self.jar.header(url)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        follow: bool = False,
    ) -> httpx2.Response:
        """One exchange with this browser's cookies and only the given headers, as a script would make it."""
        while True:
            own = {"User-Agent": self.headers["User-Agent"], **(headers or {})}
            if cookies := self.jar.header(url):
                own.setdefault("Cookie", cookies)
            response = self.client.request(method, url, headers=own, content=content)
            self.jar.store(url, response.headers.get_list("set-cookie"))
            if not (follow and response.is_redirect):
                return response
            url = urljoin(url, response.headers["location"])

    def browse(
        self, url: str, *, method: str = "GET", fields: Mapping[str, str] | None = None, came_from: str = ""
    ) -> Page:
        """Go to `url` as a navigation and follow every redirect, pages that refresh to another at once among them.

        303 and a redirected POST become GET (RFC 9110 15.4).
        """
        trail: list[str] = []
        while len(trail) <= MAX_REDIRECTS:
            trail.append(url)
            if self.stops_at and url.startswith(self.stops_at):
                return Page(url, 0, httpx2.Headers(), b"", trail)
            response = self._navigate(method, url, fields, came_from)
            if not response.is_redirect:
                page = _read_page(url, response, trail)
                if not page.refresh:
                    return page
                came_from, url, method, fields = url, page.refresh, "GET", None
                continue
            came_from, url = url, _without_fragment(urljoin(url, response.headers["location"]))
            if response.status_code == 303 or (method == "POST" and response.status_code in {301, 302}):
                method, fields = "GET", None
        raise AssertionError("a redirect loop:\n" + "\n".join(trail))

    def _navigate(self, method: str, url: str, fields: Mapping[str, str] | None, came_from: str) -> httpx2.Response:
        headers = {**self.headers, "Sec-Fetch-Site": _fetch_site(came_from, url)}
        if cookies := self.jar.header(url):
            headers["Cookie"] = cookies
        content = None
        if method == "POST":
            parts = urlsplit(came_from or url)
            headers["Origin"] = f"{parts.scheme}://{parts.netloc}"
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            content = urlencode(fields or {}).encode()
        response = self.client.request(method, url, headers=headers, content=content)
        self.jar.store(url, response.headers.get_list("set-cookie"))
        return response

    def press(self, page: Page, button: str = "", **fields: str) -> Page:
        """Press the button whose label holds `button` (the first form's, when empty), with `fields` filled in."""
        form = page.form(button)
        filled = {**form.fields, **fields}
        for label, name, value in form.buttons:
            if button in label:
                if name:
                    filled[name] = value
                break
        if form.method == "GET":
            separator = "&" if "?" in form.action else "?"
            return self.browse(f"{form.action}{separator}{urlencode(filled)}" if filled else form.action)
        return self.browse(form.action, method="POST", fields=filled, came_from=page.url)

    def follow(self, page: Page, text: str) -> Page:
        """Follow the link whose text holds `text`."""
        return self.browse(page.link(text), came_from=page.url)

    def choose(self, page: Page, text: str) -> Page:
        """Choose `text`, be it a link, a button or a radio button."""
        if any(text in label for label, _ in page.links):
            return self.follow(page, text)
        for form in page.forms:
            for name, options in form.radios.items():
                for value, label in options:
                    if text in label:
                        return self.press(page, form.buttons[0][0], **{name: value})
        return self.press(page, text)


class _Reader(HTMLParser):
    """Collects forms, links and readable text; buttons outside their form name it by `form=` (HTML 4.10.18.3)."""

    def __init__(self, base: str) -> None:
        super().__init__(convert_charrefs=True)
        self.base = base
        self.forms: list[Form] = []
        self.by_id: dict[str, Form] = {}
        self.links: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.language = self.refresh = ""
        self._form: Form | None = None
        self._link: tuple[str, int] | None = None
        self._button: tuple[Form, str, str, int] | None = None
        self._radio: tuple[Form, str, str] | None = None
        self._label_from: int | None = None
        self._mute = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in {"script", "style", "template"}:
            self._mute += 1
        elif tag == "html":
            self.language = given.get("lang", "")
        elif tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            delay, _, target = given.get("content", "").partition(";")
            if delay.strip() == "0" and target:
                self.refresh = urljoin(self.base, target.strip().removeprefix("url="))
        elif tag == "a" and "href" in given:
            self._link = (urljoin(self.base, given["href"]), len(self.words))
        elif tag == "label":
            self._label_from = len(self.words)
        elif tag == "form":
            self._form = Form(urljoin(self.base, given.get("action") or self.base), given.get("method", "get").upper())
            self.forms.append(self._form)
            self.by_id[given.get("id", "")] = self._form
        elif tag in {"button", "input"}:
            self._control(tag, given)

    def _control(self, tag: str, given: dict[str, str]) -> None:
        form = self.by_id.get(given["form"]) if "form" in given else self._form
        if form is None:
            return
        kind = given.get("type", "submit" if tag == "button" else "text")
        name, value = given.get("name", ""), given.get("value", "")
        if tag == "button" and kind == "submit":
            self._button = (form, name, value, len(self.words))
        elif kind == "submit":
            form.buttons.append((value, name, value))
        elif kind == "radio":
            form.radios.setdefault(name, []).append((value, value))
            self._radio = (form, name, value)
            if "checked" in given:
                form.fields[name] = value
        elif name and (kind != "checkbox" or "checked" in given):
            form.fields[name] = value

    def handle_endtag(self, tag: str) -> None:
        if tag in {"script", "style", "template"}:
            self._mute = max(0, self._mute - 1)
        elif tag == "a" and self._link:
            target, start = self._link
            self.links.append((_said(self.words[start:]), target))
            self._link = None
        elif tag == "button" and self._button:
            form, name, value, start = self._button
            form.buttons.append((_said(self.words[start:]), name, value))
            self._button = None
        elif tag == "label" and self._label_from is not None:
            if self._radio:
                form, name, value = self._radio
                form.radios[name][-1] = (value, _said(self.words[self._label_from :]))
                self._radio = None
            self._label_from = None
        elif tag == "form":
            self._form = None

    def handle_data(self, data: str) -> None:
        if not self._mute:
            self.words.append(data)


def _read_page(url: str, response: httpx2.Response, trail: list[str]) -> Page:
    page = Page(url, response.status_code, response.headers, response.content, trail)
    text = response.content.decode("utf-8", "replace")
    if not response.headers.get("content-type", "").startswith("text/html"):
        page.text = text
        return page
    reader = _Reader(url)
    reader.feed(text)
    reader.close()
    page.forms, page.links, page.language, page.refresh = reader.forms, reader.links, reader.language, reader.refresh
    page.text = _said(reader.words)
    return page


def _said(words: list[str]) -> str:
    return " ".join(" ".join(words).split())


def _expiry(attributes: Mapping[str, str]) -> float | None:
    """When a cookie ends: Max-Age wins over Expires, nonsense is ignored (RFC 6265 section 5.2)."""
    try:
        if "max-age" in attributes:
            return time.time() + int(attributes["max-age"])
        if "expires" in attributes:
            return parsedate_to_datetime(attributes["expires"]).timestamp()
    except ValueError:
        return None
    return None


def _fetch_site(came_from: str, url: str) -> str:
    """Sec-Fetch-Site as a browser would fill it in (Fetch Metadata, 2.4), sites being hosts here."""
    if not came_from:
        return "none"
    here, there = urlsplit(came_from), urlsplit(url)
    if (here.scheme, here.netloc) == (there.scheme, there.netloc):
        return "same-origin"
    return "same-site" if here.hostname == there.hostname else "cross-site"


def _without_fragment(url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(fragment=""))

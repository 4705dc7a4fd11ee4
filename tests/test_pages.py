"""The pages are harmless, accessible, and hold what they are given, whatever it is."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from html.parser import HTMLParser

import pytest
from starlette.responses import HTMLResponse

from proxy.pages import Action, Fact, Pages, Place, SignedIn
from proxy.texts import LOCALES, TEXTS, Locale, text

PAGES = Pages("apps.example.com", ("https://auth.example.com",))
NAMES = [key.removesuffix(".title") for key in TEXTS["en"] if key.endswith(".title")]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% include 'style.css' %}",
    "</style><script>alert(1)</script>",
    "</title><h1>",
    "\u202egnp.exe",
    "&lt;b&gt;",
    "a" * 5000,
    "\x00\x07",
]
VOID = {"meta", "link", "path"}


class Outline(HTMLParser):
    """The tags, attributes and words of a page, and whether its tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def prose(self) -> str:
        return " ".join(" ".join(self.words).split())


def body(response: HTMLResponse) -> str:
    return bytes(response.body).decode()


def full(page: str, locale: Locale = "en", value: str = "value") -> HTMLResponse:
    """A page with everything on it."""
    return PAGES.render(
        page,
        locale=locale,
        request_id=value,
        actions=[
            Action("action.sign_in", f"/.postern/sign-in?return_to={value}".replace("\x00\x07", "")),
            Action("action.sign_out", "/.postern/sign-out", post=True),
        ],
        facts=[Fact("label.account", value, value), Fact("label.page", value)],
        places=[Place(value, value, "https://apps.example.com/"), Place(value, value)],
        sessions=[
            SignedIn(value, value, value, value),
            SignedIn(value, value, value, value, "/.postern/sessions/x/end"),
        ],
        end_others=Action("action.end_others", "/.postern/sessions/end-others", post=True),
        more_sessions=True,
    )


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("page", NAMES)
def test_every_page_in_every_language(page: str, locale: Locale) -> None:
    response = full(page, locale)
    outline = Outline(body(response))
    assert outline.all("html") == [{"lang": locale}]
    assert response.headers["content-language"] == locale
    assert len(outline.all("h1")) == 1
    for landmark in ("header", "main", "footer", "nav"):
        assert len(outline.all(landmark)) == 1, landmark
    assert text(locale, f"{page}.title") in outline.prose
    assert text(locale, f"{page}.text") in outline.prose
    assert text(locale, "action.sign_out") in outline.prose


@pytest.mark.parametrize("page", NAMES)
def test_a_page_stands_alone(page: str) -> None:
    outline = Outline(body(full(page)))
    assert not outline.all("script")
    assert not outline.all("img")
    for tag, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")], tag
    assert all((link["href"] or "").startswith("data:") for link in outline.all("link"))


@pytest.mark.parametrize("page", ["home", "forbidden"])
@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_stay_text(page: str, value: str) -> None:
    plain, hostile = Outline(body(full(page))), Outline(body(full(page, value=value)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags], "no value makes a tag"
    assert [sorted(found) for _, found in hostile.tags] == [sorted(found) for _, found in plain.tags], (
        "nor an attribute"
    )
    if "\x00" not in value:
        assert " ".join(value.split()) in hostile.prose


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        " https://apps.example.com/",
        "data:text/html,x",
        "//evil.example/",
        "/\\evil.example/",
        "/\t/evil.example/",
        "https://apps.example.com/\nx",
        "ftp://apps.example.com/",
        "",
        "relative",
    ],
)
def test_links_that_are_no_links_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="link"):
        Action("action.continue", url)
    with pytest.raises(ValueError, match="link"):
        Place("app", "app.example.com", url)
    with pytest.raises(ValueError, match="link"):
        PAGES.render("signed_in", locale="en", refresh=url)


def test_the_style_is_the_one_the_policy_names() -> None:
    response = full("not_found")
    style = re.search(r"<style>(.*?)</style>", body(response), re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in response.headers["content-security-policy"]


def directives(response: HTMLResponse) -> dict[str, str]:
    policy = response.headers["content-security-policy"]
    return {name: value for name, _, value in (part.strip().partition(" ") for part in policy.split(";"))}


def test_policy_denies_all_but_the_page_itself() -> None:
    policy = directives(full("sign_out"))
    assert policy.pop("style-src").startswith("'sha256-")
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        "form-action": "'self' https://auth.example.com",
    }


def test_a_page_without_a_form_can_send_none_and_tells_nobody_where_it_was() -> None:
    response = PAGES.render("no_attempt", locale="en", actions=[Action("action.try_again", "/.postern/sign-in")])
    assert directives(response)["form-action"] == "'none'"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_a_page_with_a_form_lets_its_own_origin_show() -> None:
    assert full("sign_out").headers["referrer-policy"] == "same-origin"


def test_headers_status_and_own_headers() -> None:
    response = PAGES.render("store_down", locale="en", status=503, headers={"Retry-After": "5"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["vary"] == "Accept, Accept-Language"
    assert "<footer>" not in body(response)


def test_refresh_goes_on_by_itself() -> None:
    response = PAGES.render("signed_in", locale="en", refresh='https://apps.example.com/?a="b"&c=1')
    found = [meta for meta in Outline(body(response)).all("meta") if meta.get("http-equiv") == "refresh"]
    assert found == [{"http-equiv": "refresh", "content": '0;url=https://apps.example.com/?a="b"&c=1'}]


def test_home_says_so_when_there_is_nothing_to_open() -> None:
    outline = Outline(body(PAGES.render("home", locale="en")))
    assert text("en", "home.nothing") in outline.prose
    assert not outline.all("ul")


def templates() -> list[tuple[str, str]]:
    folder = importlib.resources.files("proxy") / "templates"
    return [(file.name, file.read_text()) for file in folder.iterdir() if file.name.endswith(".html")]


@pytest.mark.parametrize(("name", "source"), templates())
def test_templates_hold_no_prose(name: str, source: str) -> None:
    logic = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|<!doctype html>", re.DOTALL)
    plain = logic.sub("", source)
    assert not re.search(r"\w", re.sub(r"<[^>]*>", "", plain)), f"{name}: words outside of tags"
    for attribute in ("title", "alt", "aria-label", "placeholder"):
        assert not re.search(rf'\b{attribute}="[^"]*\w', plain), f"{name}: words in {attribute}"


def colours(dark: bool) -> dict[str, str]:
    style = (importlib.resources.files("proxy") / "templates" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", blocks[1 if dark else 0]))


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("front", "back", "least"),
    [  # WCAG 2.2: 1.4.3 text 4.5, 1.4.11 the edges of controls and the focus 3
        ("ink", "card", 4.5),
        ("ink", "ground", 4.5),
        ("soft", "card", 4.5),
        ("accent", "card", 4.5),
        ("on-accent", "accent", 4.5),
        ("on-accent", "accent-hover", 4.5),
        ("edge", "card", 3.0),
        ("focus", "card", 3.0),
        ("wall", "card", 3.0),
    ],
)
def test_contrast(front: str, back: str, least: float, dark: bool) -> None:
    scheme = colours(dark)
    assert contrast(scheme[front], scheme[back]) >= least

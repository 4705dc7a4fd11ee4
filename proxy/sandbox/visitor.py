"""A visitor who finds the way through the stand-in Logto's pages: what tests use in place of a browser."""

from __future__ import annotations

import html
import re
from urllib.parse import urljoin, urlsplit

import httpx2

_MOST_HOPS = 20
_ACTION = re.compile(r'class="submits-itself" method="post" action="([^"]*)"')
_HIDDEN = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)">')


class LostError(Exception):
    """The visitor stands on a page that leads nowhere; says which and what it shows."""


async def visit(client: httpx2.AsyncClient, url: str, sub: str) -> str:
    """Go to `url` at the stand-in, sign in as `sub` where asked, confirm what confirms itself.

    Returns the first address that leads away from the stand-in: the application's callback, or its signed-out page.
    `client` keeps the cookies, as a browser would. LostError when no way leads out.
    """
    home = urlsplit(url).netloc
    answer = await client.get(url, follow_redirects=False)
    for _ in range(_MOST_HOPS):
        if "location" in answer.headers:
            target = urljoin(str(answer.url), answer.headers["location"])
            if urlsplit(target).netloc != home:
                return target
            answer = await client.get(target, follow_redirects=False)
        elif (action := _ACTION.search(answer.text)) is not None:
            form = {html.unescape(name): html.unescape(value) for name, value in _HIDDEN.findall(answer.text)}
            target = html.unescape(action[1])
            answer = await client.post(target, data={"logout": "yes"} | form, follow_redirects=False)
        elif (link := _link(answer.text, f"person-{sub}") or _link(answer.text, "discord")) is not None:
            answer = await client.get(urljoin(str(answer.url), link), follow_redirects=False)
        else:
            raise LostError(f"{answer.status_code} at {answer.url.path}: {_words(answer.text)}")
    raise LostError("going in circles")


def _link(text: str, element: str) -> str | None:
    found = re.search(rf'id="{re.escape(element)}"[^>]*? href="([^"]*)"', text)
    return html.unescape(found[1]) if found else None


def _words(text: str) -> str:
    found = re.search(r'id="notice"[^>]*>([^<]*)<', text)
    return html.unescape(found[1]) if found else text[:200]

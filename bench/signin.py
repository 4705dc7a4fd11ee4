"""A real sign-in at the stand-in Logto, as a browser makes it: what comes out is the Cookie header of a signed-in person."""

from __future__ import annotations

import asyncio

import httpx2

from bench.processes import Trouble
from proxy.sandbox.people import ready_people
from proxy.sandbox.visitor import LostError, visit

NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}
ROLE = "admin"


def sign_in(url: str, cookie: str) -> str:
    """Open `url`, sign in as somebody with the role that all contenders ask for; returns "name=value" of `cookie`."""
    try:
        return asyncio.run(_sign_in(url, cookie))
    except (httpx2.HTTPError, KeyError, LostError) as error:
        raise Trouble(f"signing in at {url}: {error!r}") from error


async def _sign_in(url: str, cookie: str) -> str:
    async with httpx2.AsyncClient(headers=NAVIGATION, trust_env=False) as browser:
        answer = await browser.get(url, follow_redirects=False)
        callback = await visit(browser, answer.headers["location"], _somebody())
        await browser.get(callback, follow_redirects=False)
        found = [one for one in browser.cookies.jar if one.name == cookie]
    if len(found) != 1 or not found[0].value:
        raise Trouble(f"signing in at {url} set no cookie {cookie}")
    return f"{cookie}={found[0].value}"


def _somebody() -> str:
    return next(person.sub for person in ready_people().values() if ROLE in person.roles)

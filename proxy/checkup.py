"""`postern check`: are the settings right, and does everything they name answer? One line each, with the remedy."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qs, urlsplit

from proxy.applications import Applications
from proxy.authorization import with_query
from proxy.discord import Discord
from proxy.errors import (
    DiscordRefused,
    DiscordUnavailable,
    LogtoRefused,
    LogtoUnavailable,
    StoreUnavailable,
    UpstreamFailed,
)
from proxy.identity import RelyingParty
from proxy.logto_http import Answer, LogtoHttp, printable
from proxy.policy import Policy
from proxy.pool import Upstreams
from proxy.presets import PRESETS
from proxy.routes import RouteTable
from proxy.sealing import KeyRing
from proxy.session import open_store
from proxy.settings import Settings
from proxy.sites import Sites

_KNOWN_BY_ADDRESS: Final = frozenset(
    name for name, preset in PRESETS.items() if preset.headers and "{login}" not in preset.headers.values()
)
# What Logto tells of a person only when asked (its scopes), by the criterion that reads it.
_TOLD_BY_SCOPE: Final = {
    "emails": "email",
    "email_domains": "email",
    "roles": "roles",
    "discord": "identities",
}
# What Logto says to who asks for nobody in particular to be let in without a question (OpenID Connect Core 3.1.2.6).
_NOBODY_THERE: Final = frozenset(("login_required", "interaction_required", "consent_required"))
# Scopes that are about a person; any other is a permission of an API's.
_ABOUT_PEOPLE: Final = frozenset(("email", "phone", "address", "identities", "roles", "custom_data"))


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at one thing gave."""

    ok: bool
    what: str
    outcome: str
    remedy: str = ""


def doubtful_rules(settings: Settings) -> Iterator[str]:
    """Rules that can change nothing, a sentence each: harmless as such, yet whoever wrote them meant something."""
    for route in settings.route:
        for doubt in Policy.from_settings(route).doubts():
            yield f"route {route.name}: {doubt}"
        rules = route.deny if isinstance(route.allow, str) else (*route.allow, *route.deny)
        for criterion, scope in _TOLD_BY_SCOPE.items():
            if scope not in settings.logto.scopes and any(getattr(rule, criterion) is not None for rule in rules):
                yield f'route {route.name}: {criterion} hold for nobody while logto.scopes lacks "{scope}"'
        for criterion in () if route.bearer else ("scopes", "clients"):
            if any(getattr(rule, criterion) is not None for rule in rules):
                yield f"route {route.name}: {criterion} hold for nobody while the route has no bearer"
        if route.preset is not None and route.preset in _KNOWN_BY_ADDRESS and "email" not in settings.logto.scopes:
            yield f'route {route.name}: {route.preset} knows people by their address, which logto.scopes has no "email" for'
    permissions = [it for it in settings.logto.scopes if it not in _ABOUT_PEOPLE and not it.startswith("urn:logto:")]
    if settings.resources and not permissions:
        yield "access tokens for APIs carry no permission while logto.scopes names none"


async def check_surroundings(settings: Settings) -> AsyncIterator[Finding]:
    """Try the session store, Logto's discovery and every upstream, in this order."""
    keyring = KeyRing(settings.seal_secrets)
    yield await _check_store(settings, keyring)
    async for finding in _check_logto(settings, keyring):
        yield finding
    async for finding in _check_guilds(settings):
        yield finding
    async for finding in _check_upstreams(settings):
        yield finding


async def _check_store(settings: Settings, keyring: KeyRing) -> Finding:
    store = open_store(settings, keyring)
    scheme = settings.session.store.partition(":")[0]
    what = f"session store ({scheme})"
    try:
        await store.start()
        await store.ping()
    except StoreUnavailable as error:
        return Finding(
            False, what, str(error), "is session.store (REDIS_URL) right, and is Redis running and reachable?"
        )
    finally:
        await store.close()
    if scheme == "memory":
        return Finding(True, what, "sessions end with this process; set REDIS_URL to keep them")
    return Finding(True, what, "answers")


async def _check_logto(settings: Settings, keyring: KeyRing) -> AsyncIterator[Finding]:
    """Logto's discovery and keys, and whether it accepts the id and secret of each application."""

    async def once(_key: str, _ttl: float) -> bool:
        return True

    sites = Sites(settings)
    applications = Applications(sites, keyring, once)
    try:
        yield await _check_application(
            applications.main, f"Logto at {settings.logto.internal_endpoint or settings.logto.endpoint}", "logto"
        )
        for index, (one, site) in enumerate(zip(settings.logto.application, sites.others, strict=True)):
            where = f"logto.application[{index}]"
            what = f"{where}, for {', '.join(one.hosts)}"
            found = await _check_application(applications.at(site), what, where)
            # Whether the address is registered there only a sign-in tells, or `postern logto check`.
            yield replace(found, outcome=f"its redirect URI is {site.own_url}/callback") if found.ok else found
        async for finding in _check_resources(settings, applications.main, f"{sites.main.own_url}/callback"):
            yield finding
    finally:
        await applications.close()


async def _check_application(relying_party: RelyingParty, what: str, where: str) -> Finding:
    try:
        return Finding(True, what, await relying_party.check(credentials=True))
    except LogtoUnavailable as error:
        outcome, remedy = (
            str(error),
            "is logto.endpoint (LOGTO_ENDPOINT) right, and logto.internal_endpoint where it differs?",
        )
    except LogtoRefused as error:
        outcome, remedy = str(error), f"are {where}.app_id and {where}.app_secret those of the application in Logto?"
    return Finding(False, what, outcome, remedy)


async def _check_resources(settings: Settings, relying_party: RelyingParty, callback: str) -> AsyncIterator[Finding]:
    """Every API resource that a sign-in asks for: one that Logto does not know of lets nobody in.

    Asked as by a browser in which nobody is signed in, and without a page to be shown.
    """
    http, logto = LogtoHttp(settings.logto.timeout), settings.logto
    try:
        for resource in settings.resources:
            what = f"API resource {resource}"
            try:
                url = (await relying_party.begin("/")).url.removeprefix(logto.endpoint)
                asked = with_query(url, {"prompt": "none", "scope": "openid", "resource": resource})
                yield _known(what, await http.get(logto.internal_endpoint + asked, "authorization"), callback)
            except LogtoUnavailable as error:
                yield Finding(False, what, str(error), "see Logto, above")
    finally:
        await http.close()


def _known(what: str, answer: Answer, callback: str) -> Finding:
    said = parse_qs(urlsplit(answer.location).query)
    error = said.get("error", [str(answer.fields.get("error") or f"an answer with status {answer.status}")])[0]
    if error in _NOBODY_THERE:
        return Finding(True, what, "known to Logto")
    if error == "invalid_target":
        remedy = (
            "create it in Logto's console (API resources) with this very identifier, or take it out of the settings"
        )
        return Finding(False, what, "Logto does not know it, and lets nobody in who asks for it", remedy)
    return Finding(False, what, printable(error), f"is {callback} a redirect URI of the application in Logto?")


async def _check_guilds(settings: Settings) -> AsyncIterator[Finding]:
    """Every Discord guild that rules name, asked about with the bot's token."""
    if settings.discord is None:
        return
    discord = Discord(settings.discord)
    try:
        guilds = {guild for route in RouteTable.from_settings(settings).routes for guild in route.policy.guilds}
        for guild in sorted(guilds):
            what = f"Discord guild {guild}"
            try:
                yield Finding(True, what, await discord.check(guild))
            except DiscordRefused as error:
                remedy = "is discord.bot_token the token of a bot, and is that bot a member of the guild?"
                yield Finding(False, what, str(error), remedy)
            except DiscordUnavailable as error:
                remedy = "is discord.com reachable from here, and discord.api right?"
                yield Finding(False, what, str(error), remedy)
    finally:
        await discord.close()


async def _check_upstreams(settings: Settings) -> AsyncIterator[Finding]:
    upstreams = Upstreams(settings.limits.connect_timeout)
    try:
        for route in settings.route:
            for pool in upstreams.pools(route.servers):
                what = f"upstream {pool.url} of route {route.name}"
                try:
                    connection = await pool.connect()
                except (UpstreamFailed, ssl.SSLError) as error:
                    remedy = f"is route.{route.name}.upstream right, and is the app running there?"
                    yield Finding(False, what, str(error), remedy)
                else:
                    connection.abort()
                    yield Finding(True, what, "accepts connections")
        await asyncio.sleep(0)  # lets aborted connections close before the loop does
    finally:
        upstreams.close()

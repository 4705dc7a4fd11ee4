"""Logto as an OpenID provider: where its endpoints are, which keys are its own, what its tokens prove.

`LogtoCore` is the logto package's `OidcCore` with what 0.2.1 lacks: one httpx2 client with deadlines instead of aiohttp's
five minutes, keys from an asynchronous cache instead of urllib inside the event loop, and the checks of id_tokens.py.

Two addresses are kept apart. Logto writes its URLs after the Host it is asked under, so asked over an internal name it
advertises internal URLs that no browser can reach. Hence only the path of an advertised URL counts: what browsers open is put
on `endpoint`, what this server asks on `internal_endpoint`, under that name's own Host. The issuer alone is fixed, and must be
ours to the letter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

import stamina
from logto import LogtoClient, LogtoConfig, PersistKey, Storage
from logto.models.oidc import OidcProviderMetadata
from logto.models.response import TokenResponse, UserInfoResponse
from logto.OidcCore import OidcCore
from pydantic import ValidationError
from stamina.instrumentation import LoggingOnRetryHook, set_on_retry_hooks
from typing_extensions import override

from proxy.access_tokens import ACCESS_TOKEN, AccessToken, check_issued, read_access_token
from proxy.api_tokens import SHORTEST_LIFE, issued, with_token
from proxy.claims import Audience, Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable
from proxy.id_tokens import (
    ID_TOKEN,
    LEEWAY,
    BadToken,
    KeySet,
    UnknownKey,
    audience_of,
    check_id_token,
    has_key,
    signed_claims,
)
from proxy.lastgood import LastGood
from proxy.logout_tokens import LOGOUT_TOKEN, LogoutToken, read_logout_token
from proxy.logto_http import Answer, LogtoHttp, printable
from proxy.settings import LogtoSettings

_METADATA_SECONDS: Final = 3600.0
_KEYS_SECONDS: Final = 600.0
_PAUSE_SECONDS: Final = 5.0
_ATTEMPTS: Final = 3
_log = logging.getLogger("postern.identity")

# Retries go where everything else is logged; stamina's own choice would print them on standard output.
set_on_retry_hooks([LoggingOnRetryHook])


class Metadata(OidcProviderMetadata):
    """Discovery with two members that the package does not know: RFC 9207 and RFC 8414."""

    authorization_response_iss_parameter_supported: bool = False
    revocation_endpoint: str | None = None


def read_metadata(document: Mapping[str, Any], settings: LogtoSettings) -> Metadata:
    """Read Logto's discovery document, every URL put where it can be reached; raises LogtoUnavailable for any other."""
    try:
        metadata = Metadata.model_validate(document)
    except ValidationError:
        raise LogtoUnavailable("discovery: not an OpenID provider's metadata") from None
    if metadata.issuer != settings.issuer:
        raise LogtoUnavailable(
            f"discovery: the issuer there is {printable(metadata.issuer)}, not {settings.issuer} as logto.endpoint says"
        )
    for name, base in (
        ("authorization_endpoint", settings.endpoint),
        ("end_session_endpoint", settings.endpoint),
        ("token_endpoint", settings.internal_endpoint),
        ("userinfo_endpoint", settings.internal_endpoint),
        ("jwks_uri", settings.internal_endpoint),
        ("revocation_endpoint", settings.internal_endpoint),
    ):
        url = getattr(metadata, name)
        if url is not None:
            setattr(metadata, name, _rebased(url, base, settings))
    return metadata


def _rebased(url: str, base: str, settings: LogtoSettings) -> str:
    for known in (settings.endpoint, settings.internal_endpoint):
        if url.startswith(known + "/"):
            return base + url.removeprefix(known)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or not parts.path.startswith("/"):
        raise LogtoUnavailable("discovery: an endpoint that is no http URL")
    return base + parts.path + (f"?{parts.query}" if parts.query else "")


class Published:
    """What Logto publishes, discovery and keys, fetched when needed and kept when Logto is away; and what they prove."""

    def __init__(self, settings: LogtoSettings, http: LogtoHttp, clock: Callable[[], float]) -> None:
        self._settings = settings
        self.http = http
        self._clock = clock
        self.metadata: LastGood[Metadata] = LastGood(
            "Logto's discovery", self._fetch_metadata, ttl=_METADATA_SECONDS, pause=_PAUSE_SECONDS, clock=clock
        )
        self.keys: LastGood[KeySet] = LastGood(
            "Logto's key set", self._fetch_keys, ttl=_KEYS_SECONDS, pause=_PAUSE_SECONDS, clock=clock
        )

    @property
    def now(self) -> float:
        """The time by the clock that tokens are checked with, in epoch seconds."""
        return self._clock()

    async def prepare(self, token: str, typ: str = ID_TOKEN) -> None:
        """Have the key at hand that `token` names, if Logto publishes it; raises LogtoUnavailable, BadToken.

        A key that is not known may be a new one. A rotation can change the algorithms too, so discovery is asked again as well.
        """
        metadata, keys = await self.metadata.get(), await self.keys.get()
        if not has_key(token, keys, metadata.id_token_signing_alg_values_supported, typ):
            await self.metadata.renew()
            await self.keys.renew()

    def claims(self, id_token: str, client_id: str) -> dict[str, Any]:
        """Return what `id_token` says, issued by this Logto to the application `client_id` and valid now; raises BadToken.

        Needs no I/O, but a `prepare` before: the package verifies synchronously.
        """
        claims = self._signed(id_token, ID_TOKEN)
        check_id_token(claims, issuer=self._settings.issuer, client_id=client_id, now=self._clock())
        return claims

    async def logout(self, token: str, client_ids: Collection[str]) -> LogoutToken:
        """Return what a logout token says that this Logto sent to one of our applications; raises BadToken, LogtoUnavailable."""
        await self.prepare(token, LOGOUT_TOKEN)
        claims = self._signed(token, LOGOUT_TOKEN)
        addressed = audience_of(claims) & set(client_ids)
        # One that names none of ours, or several, has to say by `azp` which it is for: that is judged below.
        client_id = addressed.pop() if len(addressed) == 1 else str(claims.get("azp"))
        if client_id not in client_ids:
            raise BadToken("its aud is another client")
        return read_logout_token(claims, issuer=self._settings.issuer, client_id=client_id, now=self._clock())

    async def access(self, token: str) -> AccessToken:
        """Return what an access token for an API resource says that this Logto issued; raises BadToken, LogtoUnavailable."""
        await self.prepare(token, ACCESS_TOKEN)
        return read_access_token(self._signed(token, ACCESS_TOKEN), issuer=self._settings.issuer, now=self._clock())

    def _signed(self, token: str, typ: str) -> dict[str, Any]:
        metadata, keys = self.metadata.value, self.keys.value
        if metadata is None or keys is None:
            raise UnknownKey("no key of the issuer is known yet")
        return signed_claims(token, keys, metadata.id_token_signing_alg_values_supported, typ)

    async def publishes_key_of(self, id_token: str) -> bool:
        """Whether Logto still publishes the key that `id_token` names; raises LogtoUnavailable, BadToken."""
        metadata, keys = await self.metadata.get(), await self.keys.renew()
        return has_key(id_token, keys, metadata.id_token_signing_alg_values_supported)

    async def _fetch_metadata(self) -> Metadata:
        url = self._settings.internal_endpoint + "/oidc/.well-known/openid-configuration"
        return read_metadata((await self._document(url, "discovery")).fields, self._settings)

    async def _fetch_keys(self) -> KeySet:
        answer = await self._document((await self.metadata.get()).jwks_uri, "keys")
        try:
            return KeySet.read(answer.body)
        except ValueError as error:
            raise LogtoUnavailable(f"keys: {error}") from None

    async def _document(self, url: str, what: str) -> Answer:
        """GET one of the two documents, trying again soon in case Logto is just restarting: asking twice does no harm."""
        seconds = self._settings.timeout
        try:
            async with asyncio.timeout(seconds):
                async for attempt in stamina.retry_context(
                    on=LogtoUnavailable,
                    attempts=_ATTEMPTS,
                    timeout=seconds,
                    wait_initial=0.1,
                    wait_max=0.5,
                    wait_jitter=0.1,
                ):
                    with attempt:
                        answer = await self.http.get(url, what)
                        if answer.status != 200:
                            raise LogtoUnavailable(f"{what}: unexpected answer with status {answer.status}")
        except TimeoutError:
            raise LogtoUnavailable(f"{what}: no answer within {seconds:g} s") from None
        return answer


class LogtoCore(OidcCore):
    """The protocol core of the logto package on our HTTP and our checks. Shared by all sign-ins.

    Its methods raise LogtoRefused, LogtoUnavailable and BadToken, and nothing of aiohttp, jwt or pydantic.
    """

    metadata: Metadata

    def __init__(self, metadata: Metadata, http: LogtoHttp, published: Published) -> None:
        super().__init__(metadata)
        del self.jwksClient  # it would fetch keys with urllib, holding up every request of this process meanwhile
        self._http = http
        self._published = published

    @override
    async def fetchTokenByCode(
        self, clientId: str, clientSecret: str | None, redirectUri: str, code: str, codeVerifier: str
    ) -> TokenResponse:
        return await self._tokens(
            {
                "grant_type": "authorization_code",
                "client_id": clientId,
                "client_secret": clientSecret or "",
                "redirect_uri": redirectUri,
                "code": code,
                "code_verifier": codeVerifier,
            }
        )

    @override
    async def fetchTokenByRefreshToken(
        self, clientId: str, clientSecret: str | None, refreshToken: str, resource: str = ""
    ) -> TokenResponse:
        form = _refresh(clientId, clientSecret, refreshToken)
        return await self._tokens(form | ({"resource": resource} if resource else {}))

    async def api_token(
        self, client_id: str, client_secret: str | None, tokens: Tokens, sub: str, audience: Audience
    ) -> Tokens:
        """Get an access token for `audience` (RFC 8707) with those of a session of `sub`: them with the new one, and with the
        refresh token of now.

        When the keys to check it by cannot be had, or it is over at once, the new one is not among them; yet the refresh token
        may have been replaced. Raises LogtoRefused (invalid_target: the resource is not known, or was not asked for at the
        sign-in; access_denied: no member of the organization; invalid_grant; `invalid_access_token`: Logto answered for somebody
        else, or not verifiably; `no_refresh_token`) and LogtoUnavailable, after which the old refresh token is still good.
        """
        if tokens.refresh_token is None:
            raise LogtoRefused("no_refresh_token")
        asked = {"resource": audience.resource, "organization_id": audience.organization}
        form = _refresh(client_id, client_secret, tokens.refresh_token)
        response = await self._answered(form | {name: value for name, value in asked.items() if value is not None})
        kept = replace(tokens, refresh_token=response.refresh_token or tokens.refresh_token)
        try:
            access = await self._published.access(response.access_token)
            check_issued(access, audience, sub=sub, client=client_id)
        except BadToken as error:
            raise LogtoRefused("invalid_access_token", str(error)) from None
        except LogtoUnavailable as error:
            _log.warning("an access token for %s cannot be checked: %s", audience, error)
            return kept
        now = self._published.now
        until = min(access.expires_at - LEEWAY, now + response.expires_in)
        if until - now < SHORTEST_LIFE:
            _log.error("an access token for %s is not used: it has %d s to live", audience, until - now)
            return kept
        return with_token(kept, audience, issued(response.access_token, now, until), now)

    @override
    def verifyIdToken(self, idToken: str, clientId: str) -> None:
        self._published.claims(idToken, clientId)

    @override
    async def fetchUserInfo(self, accessToken: str) -> UserInfoResponse:
        try:
            return UserInfoResponse.model_validate(await self.user_info(accessToken))
        except ValidationError:
            raise LogtoUnavailable("userinfo: not what it should be") from None

    async def user_info(self, access_token: str) -> dict[str, Any]:
        """Return all that Logto says of the person; the package's model drops roles and everything it does not know."""
        answer = await self._http.get(self.metadata.userinfo_endpoint, "userinfo", bearer=access_token)
        if answer.status != 200:
            raise answer.failure("userinfo")
        if not isinstance(answer.body, dict):
            raise LogtoUnavailable("userinfo: not JSON")
        return answer.body

    async def _tokens(self, form: Mapping[str, str]) -> TokenResponse:
        response = await self._answered(form)
        if response.id_token is not None:
            await self._published.prepare(response.id_token)
        return response

    async def _answered(self, form: Mapping[str, str]) -> TokenResponse:
        answer = await self._http.post(self.metadata.token_endpoint, "token", form)
        if answer.status != 200:
            raise answer.failure("token")
        try:
            response = TokenResponse.model_validate(answer.body)
        except ValidationError:
            raise LogtoUnavailable("token: not a token answer") from None
        if response.token_type.lower() != "bearer":
            raise LogtoUnavailable("token: a token of a type that is not known here")
        return response


def _refresh(client_id: str, client_secret: str | None, refresh_token: str) -> dict[str, str]:
    return {
        "grant_type": "refresh_token",
        "client_id": client_id,
        "client_secret": client_secret or "",
        "refresh_token": refresh_token,
    }


class AttemptStorage(Storage):
    """Where one `LogtoClient` keeps things for one call; only its sign-in session outlives that, sealed in a cookie.

    The package's own default is one object for all clients of a process: everybody's tokens in one place.
    """

    def __init__(self, **data: str | None) -> None:
        self.data = data

    @override
    def get(self, key: PersistKey) -> str | None:
        return self.data.get(key)

    @override
    def set(self, key: PersistKey, value: str | None) -> None:
        self.data[key] = value

    @override
    def delete(self, key: PersistKey) -> None:
        self.data.pop(key, None)


class AttemptClient(LogtoClient):
    """The package's client for one attempt, on the shared core; `response` has the tokens after the callback."""

    response: TokenResponse | None = None

    def __init__(self, config: LogtoConfig, core: LogtoCore, storage: AttemptStorage | None = None) -> None:
        super().__init__(config, storage or AttemptStorage())
        self._core = core

    @override
    async def getOidcCore(self) -> OidcCore:
        return self._core

    @override
    async def _handleTokenResponse(self, resource: str, tokenResponse: TokenResponse) -> None:
        await super()._handleTokenResponse(resource, tokenResponse)  # verifies the ID token
        self.response = tokenResponse

"""Who somebody is, asked of Logto: sign-in, callback, refresh, sign-out.

Built on the logto package, one `LogtoClient` for each attempt with a storage of its own, all on one `LogtoCore` (oidc.py). What
0.2.1 lacks is added around it: nonce, `iss` and `azp`, errors believed only with a valid state, one use for each attempt,
extra parameters, userinfo with all its claims, `id_token_hint`.

The rule for what Logto does not answer: a sign-in fails, everything else goes on with what is known.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import httpx2
from logto import LogtoConfig, LogtoException
from logto.models.response import TokenResponse

from proxy.access_tokens import AccessToken
from proxy.api_tokens import carried_over
from proxy.attempts import ATTEMPT_SECONDS, Attempt, Attempts
from proxy.authorization import Wishes, authorization_url, with_query
from proxy.claims import Audience, Grant, Identity, Tokens, identity_from_claims
from proxy.errors import LogtoRefused, LogtoUnavailable, SignInFailed, SignInProblem
from proxy.id_tokens import (
    LEEWAY,
    BadToken,
    algorithm_of,
    audience_of,
    check_access_token,
    check_nonce,
    number_of,
    unverified_claims,
)
from proxy.logout_tokens import LogoutToken
from proxy.logto_http import LogtoHttp, printable
from proxy.oidc import AttemptClient, AttemptStorage, LogtoCore, Metadata, Published
from proxy.sealing import KeyRing
from proxy.settings import Settings

# Scopes whose claims the ID token may lack, depending on Logto's configuration. userinfo has them all.
_IN_USERINFO: Final = frozenset(
    (
        *("identities", "roles", "custom_data", "phone", "address"),
        *("urn:logto:scope:organizations", "urn:logto:scope:organization_roles"),
    )
)
# Claims about the token, not the person: userinfo has no say in them, and of no use to policies and headers.
_PROTOCOL: Final = frozenset(("iss", "sub", "aud", "azp", "exp", "iat", "nbf", "sid", "auth_time"))
_SECRETIVE: Final = frozenset(("nonce", "at_hash", "c_hash", "s_hash"))
_INTERACTIVE: Final = frozenset(
    ("login_required", "consent_required", "interaction_required", "account_selection_required")
)
# Refusals of a person or a code rather than of this gateway.
_PERSONAL: Final = {
    "invalid_grant": SignInProblem.EXPIRED,
    "invalid_token": SignInProblem.EXPIRED,  # userinfo: the grant was revoked between two requests
    "access_denied": SignInProblem.DENIED,
}
_QUERY_FIELDS: Final = 50
_log = logging.getLogger("postern.identity")

Once = Callable[[str, float], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Begun:
    """Where the browser goes to sign in, and the Set-Cookie value without which it cannot come back."""

    url: str
    set_cookie: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A sign-in that succeeded."""

    grant: Grant
    return_to: str
    clear_cookie: str  # Set-Cookie value


class RelyingParty:
    """The gateway as one application of Logto."""

    def __init__(
        self,
        settings: Settings,
        keyring: KeyRing,
        once: Once,
        *,
        clock: Callable[[], float] = time.time,
        transport: httpx2.AsyncBaseTransport | None = None,
        published: Published | None = None,
    ) -> None:
        """`once(key, ttl)` is true for the first caller within `ttl` seconds, over all workers (SessionStore.once).

        `published`: that of another one at the same Logto, whose connections are then used, too; the other one closes them.
        """
        self._logto = settings.logto
        self._app_ids = settings.app_ids
        self._once = once
        self._clock = clock
        self._attempts = Attempts(settings, keyring, clock=clock)
        self._shares = published is not None
        self.published = published or Published(settings.logto, LogtoHttp(settings.logto.timeout, transport), clock)
        self._http = self.published.http
        self._current_core: LogtoCore | None = None
        # Never from a request's Host: that would let whoever forges it have codes sent elsewhere.
        self._callback = settings.public_url + settings.prefix + "/callback"
        self._signed_out = settings.public_url + settings.prefix + "/signed-out"
        defaults = {scope.value for scope in LogtoCore.defaultScopes}
        self._config = LogtoConfig(
            endpoint=settings.logto.endpoint,
            appId=settings.logto.app_id,
            appSecret=settings.logto.app_secret.get_secret_value(),
            resources=list(settings.resources),
            scopes=[scope for scope in settings.scopes if scope not in defaults],
        )
        self._times_sign_ins = settings.times_sign_ins
        self._wants_userinfo = not _IN_USERINFO.isdisjoint(settings.scopes)

    async def begin(
        self,
        return_to: str,
        *,
        screen: str | None = None,
        connector: str | None = None,
        prompt: str | None = None,
        ui_locales: str | None = None,
        identifier: str | None = None,
        login_hint: str | None = None,
        organization: str | None = None,
    ) -> Begun:
        """Begin an attempt that is to lead to `return_to`, which must have been judged before (redirects.py).

        `screen`: Logto's first screen; `connector`: straight on to this social connector, else to the one in the settings unless
        a screen is named; `prompt`: `login`, `consent` or `none`; `ui_locales` and `login_hint` as in OpenID Connect;
        `identifier`: what an `identifier:…` screen asks for; `organization`: the id of the one it is for. Values that Logto
        would not understand are left out. Raises LogtoUnavailable.
        """
        storage = AttemptStorage()
        url = await AttemptClient(self._config, await self._core(), storage).signIn(self._callback)
        session = storage.get("signInSession") or ""
        nonce = secrets.token_urlsafe(16)
        wishes = Wishes(
            screen, connector, prompt, ui_locales, identifier, login_hint, self._times_sign_ins, organization
        )
        url = authorization_url(url, self._logto, nonce, wishes)
        again = self._times_sign_ins and prompt == "login"
        attempt = Attempt(json.loads(session)["state"], session, nonce, return_to, self._clock(), again)
        return Begun(url, self._attempts.keep(attempt))

    async def finish(self, query: str, cookies: Mapping[str, str]) -> Finished:
        """Finish the attempt that the callback with `query` belongs to; `cookies` as the browser sent them.

        Raises SignInFailed; LogtoUnavailable; LogtoRefused when Logto refuses this gateway rather than the person (its id or
        secret are wrong, say); StoreUnavailable when it cannot be told whether the attempt has been used.
        """
        answer, state = _callback_parameters(query)
        attempt = self._attempts.find(state, cookies)
        if attempt is None:
            # Whatever else it says: an error, too, counts only for the browser that asked (login CSRF, forged errors).
            raise SignInFailed(SignInProblem.NO_ATTEMPT)
        try:
            grant = await self._finish(answer, attempt)
        except BadToken as error:
            detail = f"ID token: {error}"
            raise SignInFailed(SignInProblem.BAD_TOKEN, detail, return_to=attempt.return_to) from None
        return Finished(grant, attempt.return_to, self._attempts.clear(attempt.state))

    async def refresh(self, tokens: Tokens, identity: Identity) -> Grant:
        """Get new tokens, and what is said of the person now, for those of a session.

        The grant's `signed_in_at` is 0 when Logto does not tell: a refresh is no sign-in. Raises LogtoRefused (invalid_grant,
        access_denied: the person may not go on; `invalid_id_token`: Logto answered for somebody else or not verifiably;
        `no_refresh_token`: the session has none) and LogtoUnavailable, after which the old tokens are still good.
        """
        if tokens.refresh_token is None:
            raise LogtoRefused("no_refresh_token")
        core = await self._core()
        response = await core.fetchTokenByRefreshToken(self._config.appId, self._config.appSecret, tokens.refresh_token)
        try:
            claims = await self._refreshed_claims(core, response, tokens, identity)
        except BadToken as error:
            raise LogtoRefused("invalid_id_token", str(error)) from None
        now_known = identity_from_claims(_about_the_person(claims))
        renewed = self._tokens(
            response, response.id_token or tokens.id_token, response.refresh_token or tokens.refresh_token
        )
        return Grant(
            now_known,
            replace(renewed, for_apis=carried_over(tokens, identity, now_known, self._clock())),
            _text(claims.get("sid")),
            number_of(claims.get("auth_time")) or 0.0,
            self._config.appId,
        )

    async def api_token(self, tokens: Tokens, identity: Identity, audience: Audience) -> Tokens:
        """Get an access token for `audience` with the refresh token of a session; see `LogtoCore.api_token`."""
        core = await self._core()
        return await core.api_token(self._config.appId, self._config.appSecret, tokens, identity.sub, audience)

    async def revoke(self, tokens: Tokens) -> None:
        """Revoke the refresh token (RFC 7009), or the access token where there is none. Never raises: failures are logged."""
        hint = "refresh_token" if tokens.refresh_token else "access_token"
        try:
            await self._revoke(tokens.refresh_token or tokens.access_token, hint)
        except (LogtoUnavailable, LogtoRefused) as error:
            _log.warning("a token could not be revoked: %s", error)

    async def sign_out_url(self, tokens: Tokens | None, state: str | None = None) -> str:
        """Return where the browser goes to sign out of Logto, coming back to `/signed-out` with `state`.

        Raises LogtoUnavailable, also when this Logto has no such page. Without a usable hint the application's id does: a hint
        whose key has been rotated out would make Logto refuse, with the person still signed in there.
        """
        core = await self._core()
        try:
            url = await AttemptClient(self._config, core).signOut(self._signed_out)
        except LogtoException:
            raise LogtoUnavailable("discovery: no end_session_endpoint") from None
        extras = {"state": state} if state else {}
        if tokens is not None and await self._is_current(tokens.id_token):
            extras["id_token_hint"] = tokens.id_token
        return with_query(url, extras)

    async def access(self, token: str) -> AccessToken:
        """Return what an access token for an API resource says; raises BadToken, and LogtoUnavailable without Logto's keys."""
        return await self.published.access(token)

    async def logout(self, logout_token: str) -> LogoutToken:
        """Return whom `logout_token`, sent by Logto of its own accord, signs out, once.

        Raises BadToken, also for one that has come before; LogtoUnavailable when Logto's keys cannot be had; StoreUnavailable
        when it cannot be told whether it has come before.
        """
        logout = await self.published.logout(logout_token, self._app_ids)
        # Remembered for as long as it could be used again, by its hash: its maker chose the text.
        name = hashlib.sha256(logout.jti.encode("utf-8", "surrogatepass")).hexdigest()
        if not await self._once(f"logout:{name}", logout.expires_at + LEEWAY - self._clock()):
            raise BadToken("it has been used before")
        return logout

    async def check(self, *, credentials: bool = False) -> str:
        """Ask Logto anew for what it publishes, and say what that is; raises LogtoUnavailable.

        With `credentials` the application's id and secret are tried too, on a token that never was: LogtoRefused when they are
        not accepted.
        """
        metadata = await self.published.metadata.fetch()
        keys = await self.published.keys.fetch()
        if credentials:
            await self._revoke(secrets.token_urlsafe(32), "refresh_token")
        algorithms = ", ".join(metadata.id_token_signing_alg_values_supported)
        return f"issuer {metadata.issuer}, signing keys: {len(keys.keys)} ({printable(algorithms)})"

    def stale_attempts(self, cookies: Mapping[str, str]) -> list[str]:
        """List Set-Cookie values that clear attempts nobody will finish; `cookies` as sent to the callback."""
        return self._attempts.stale(cookies)

    async def close(self) -> None:
        """Close the connections to Logto."""
        if not self._shares:
            await self._http.close()

    async def _core(self) -> LogtoCore:
        metadata = await self.published.metadata.get()
        if self._current_core is None or self._current_core.metadata is not metadata:
            self._current_core = LogtoCore(metadata, self._http, self.published)
        return self._current_core

    async def _finish(self, answer: Mapping[str, str], attempt: Attempt) -> Grant:
        core = await self._core()
        if json.loads(attempt.session)["redirectUri"] != self._callback:  # the package compares no more than paths
            raise SignInFailed(SignInProblem.BAD_CALLBACK, "begun for another application", return_to=attempt.return_to)
        _check_issuer(answer, core.metadata, attempt)
        if "error" in answer:
            raise _denied(answer, attempt)
        if not answer.get("code"):
            raise SignInFailed(SignInProblem.BAD_CALLBACK, "no code", return_to=attempt.return_to)
        # Only now is the attempt used up. Before the exchange, as Logto kills the whole grant when a code comes twice.
        if not await self._once(f"attempt:{self._attempts.name(attempt.state)}", ATTEMPT_SECONDS):
            raise SignInFailed(SignInProblem.REPLAYED, return_to=attempt.return_to)
        try:
            response = await self._exchange(core, answer["code"], attempt)
            id_token = response.id_token or ""
            claims = self._verified(id_token, response.access_token)
            check_nonce(claims, attempt.nonce)
            if self._wants_userinfo:
                claims = _merged(claims, await core.user_info(response.access_token))
        except LogtoRefused as refusal:
            problem = _PERSONAL.get(refusal.error)
            if problem is None:
                raise
            raise SignInFailed(problem, str(refusal), return_to=attempt.return_to) from None
        return Grant(
            identity_from_claims(_about_the_person(claims)),
            self._tokens(response, id_token, response.refresh_token),
            _text(claims.get("sid")),
            self._signed_in_at(claims, attempt),
            self._config.appId,
        )

    def _signed_in_at(self, claims: Mapping[str, Any], attempt: Attempt) -> float:
        """When the person last proved who they are (epoch seconds).

        The browser carries our question to Logto and can take `prompt` or `max_age` out of it, so only `auth_time` in the ID
        token counts where rules ask for it (OpenID Connect Core 3.1.2.1); without it the sign-in is of long ago. A new sign-in
        that was asked for and is none ends here, with a page: sent on, the gate would send the person back in a circle.
        """
        now, told = self._clock(), number_of(claims.get("auth_time"))
        if not self._times_sign_ins:
            return min(told or now, now)
        if not attempt.again:
            return min(told or 0.0, now)
        if told is None or told < int(attempt.begun_at) - LEEWAY:
            raise SignInFailed(SignInProblem.NOT_FRESH, "auth_time", return_to=attempt.return_to)
        return now  # by our own clock, which is the one that rules are measured with

    async def _exchange(self, core: LogtoCore, code: str, attempt: Attempt) -> TokenResponse:
        client = AttemptClient(self._config, core, AttemptStorage(signInSession=attempt.session))
        try:
            await client.handleSignInCallback(f"{self._callback}?{urlencode({'code': code, 'state': attempt.state})}")
        except LogtoException as error:
            raise SignInFailed(SignInProblem.BAD_CALLBACK, printable(str(error)), return_to=attempt.return_to) from None
        if client.response is None or client.response.id_token is None:
            raise BadToken("there is none")
        return client.response

    def _verified(self, id_token: str, access_token: str) -> dict[str, Any]:
        claims = self.published.claims(id_token, self._config.appId)
        check_access_token(claims, algorithm_of(id_token), access_token)
        return claims

    async def _refreshed_claims(
        self, core: LogtoCore, response: TokenResponse, tokens: Tokens, identity: Identity
    ) -> dict[str, Any]:
        """What is said of the person after a refresh.

        When userinfo does not answer, what it said last is kept: the refresh token may just have been replaced, and losing the
        new one would sign the person out. At a sign-in, where nothing is lost, it is the sign-in that fails.
        """
        claims = before = {**unverified_claims(tokens.id_token), "sub": identity.sub}
        if response.id_token is not None:
            claims = self._verified(response.id_token, response.access_token)
            _check_continuity(claims, before)
        if not self._wants_userinfo:
            return claims
        try:
            return _merged(claims, await core.user_info(response.access_token))
        except LogtoUnavailable as error:
            _log.warning("refreshed without userinfo: %s", error)
            return {**identity.claims, **claims}
        except LogtoRefused as refusal:
            # Logto does not know the token it gave a moment ago: the grant has been revoked in between.
            raise LogtoRefused("invalid_grant", f"userinfo: {refusal}", refusal.status) from None

    async def _revoke(self, token: str, hint: str) -> None:
        endpoint = (await self._core()).metadata.revocation_endpoint
        if endpoint is None:
            raise LogtoUnavailable("discovery: no revocation_endpoint")
        form = {
            "token": token,
            "token_type_hint": hint,
            "client_id": self._config.appId,
            "client_secret": self._config.appSecret or "",
        }
        answer = await self._http.post(endpoint, "revocation", form)
        if answer.status != 200:
            raise answer.failure("revocation")

    async def _is_current(self, id_token: str) -> bool:
        try:
            return await self.published.publishes_key_of(id_token)
        except (BadToken, LogtoUnavailable):
            return False

    def _tokens(self, response: TokenResponse, id_token: str, refresh_token: str | None) -> Tokens:
        return Tokens(id_token, response.access_token, self._clock() + max(0, response.expires_in), refresh_token)


def _callback_parameters(query: str) -> tuple[dict[str, str], str]:
    """Read a callback's query and its state. Doubled parameters are an attack or a mistake (RFC 6749 3.1)."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_QUERY_FIELDS)
    except ValueError:
        raise SignInFailed(SignInProblem.BAD_CALLBACK, "too many parameters") from None
    answer = dict(pairs)
    if any(sum(name == known for name, _ in pairs) > 1 for known in ("state", "code", "iss", "error")):
        raise SignInFailed(SignInProblem.BAD_CALLBACK, "a doubled parameter")
    return answer, answer.get("state", "")


def _check_issuer(answer: Mapping[str, str], metadata: Metadata, attempt: Attempt) -> None:
    """RFC 9207: the answer must come from the very provider that was asked, or the code would be handed to another."""
    issuer = answer.get("iss")
    if issuer is None and metadata.authorization_response_iss_parameter_supported:
        raise SignInFailed(SignInProblem.BAD_CALLBACK, "no iss", return_to=attempt.return_to)
    if issuer is not None and issuer != metadata.issuer:
        raise SignInFailed(SignInProblem.BAD_CALLBACK, "the iss of another issuer", return_to=attempt.return_to)


def _denied(answer: Mapping[str, str], attempt: Attempt) -> SignInFailed:
    error = answer["error"]
    problem = SignInProblem.LOGTO_ERROR
    if error == "access_denied":
        problem = SignInProblem.DENIED
    elif error in _INTERACTIVE:
        problem = SignInProblem.LOGIN_REQUIRED
    detail = printable(f"{error}: {answer.get('error_description', '')}")
    return SignInFailed(problem, detail, return_to=attempt.return_to)


def _check_continuity(claims: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """A refreshed ID token goes on where the one before was (OpenID Connect Core 12.2); iss has one value only anyway."""
    if claims["sub"] != before["sub"]:
        raise BadToken("its sub is another person's")
    if not audience_of(before) <= audience_of(claims):
        raise BadToken("its aud is another than before")
    for name in ("nonce", "auth_time"):
        if name in claims and name in before and claims[name] != before[name]:
            raise BadToken(f"its {name} is another than before")


def _merged(claims: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Put what userinfo says over an ID token's claims; BadToken when it is about somebody else (Core 5.3.2)."""
    if info.get("sub") != claims["sub"]:
        raise BadToken("userinfo is about somebody else")
    return {**claims, **{name: value for name, value in info.items() if name not in _PROTOCOL}}


def _about_the_person(claims: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if name not in _SECRETIVE}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None

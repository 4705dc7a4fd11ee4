"""What Logto says of its own accord: that somebody has signed out there, or that something about somebody has changed.

Two doors that anybody can knock at, without a session and from anywhere. What opens them is a signature: Logto's on a logout
token, the webhook's own key on a webhook. Whatever is wrong with a message, it ends nobody's session, and its sender learns no
more than that it was refused.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from proxy.answers import RETRY_AFTER, call_of, json_response
from proxy.app_passwords import AppPasswords
from proxy.errors import LogtoUnavailable
from proxy.id_tokens import BadToken
from proxy.identity import RelyingParty
from proxy.logout_tokens import LogoutToken
from proxy.session import SessionStore
from proxy.settings import Settings
from proxy.webhooks import EARLIEST, LATEST, SIGNATURE, BadWebhook, Webhook, is_signed, read_webhook

BODY_BYTES: Final = 64 * 1024
_BATCH: Final = 500  # sessions marked at once
_FORM: Final = "application/x-www-form-urlencoded"
_SIGNED_OUT: Final = "signed out at Logto"
_log = logging.getLogger("postern.notices")
_audit = logging.getLogger("postern.audit")


class Notices:
    """Takes back-channel logouts and webhooks."""

    def __init__(
        self,
        settings: Settings,
        store: SessionStore,
        relying_party: RelyingParty,
        passwords: AppPasswords | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = settings.logto.webhook_key
        self._alone = settings.alone
        self._main = settings.logto.app_id
        self._store = store
        self._relying_party = relying_party
        self._passwords = passwords
        self._clock = clock

    async def backchannel_logout(self, request: Request) -> Response:
        """POST /backchannel-logout (OpenID Connect Back-Channel Logout 1.0, 2.5 to 2.8): 200 when done, 400 when refused.

        Not knowing the session is no failure: it may have ended here before. Raises StoreUnavailable, answered 503.
        """
        request_id = call_of(request).request_id
        token = _logout_token(request.headers.get("content-type", ""), await _body(request))
        try:
            if token is None:
                raise BadToken("the request carries none")  # noqa: TRY301 -- one way out for everything refused
            logout = await self._relying_party.logout(token)
        except BadToken as error:
            _log.warning("back-channel logout refused: %s", error, extra={"request_id": request_id})
            return json_response(
                {"error": "invalid_request", "error_description": "the logout token is not valid"}, 400
            )
        except LogtoUnavailable as error:
            # Not its fault: with Logto's keys at hand it might be good.
            _log.warning("back-channel logout cannot be verified: %s", error, extra={"request_id": request_id})
            response = json_response({"error": "temporarily_unavailable"}, 503)
            response.headers["Retry-After"] = RETRY_AFTER
            return response
        ended = await self._end(logout)
        _audit.info(_SIGNED_OUT, extra={"user": logout.sub, "sessions": ended, "request_id": request_id})
        return Response(status_code=200)

    async def _end(self, logout: LogoutToken) -> int:
        """End what the token speaks of, and of that only what was made for the application it was sent to.

        Logto tells each application for itself, with tokens that anybody may have who runs one.
        """
        if self._alone:
            if logout.sid is not None:
                return await self._store.end_sid(logout.sid, _SIGNED_OUT)
            return await self._store.end_user(logout.sub or "", _SIGNED_OUT)
        theirs = (logout.client_id, "") if logout.client_id == self._main else (logout.client_id,)
        if logout.sid is not None:
            found = await self._store.of_sid(logout.sid)
        else:
            found = await self._store.of_user(logout.sub or "")
        return await self._store.end_each([it.id for it in found if it.application in theirs], _SIGNED_OUT)

    async def webhook(self, request: Request) -> Response:
        """POST /hooks/logto: 204 when taken, 401 for a wrong signature, 400 for what is not a fresh webhook, 413 for too much.

        Raises StoreUnavailable, answered 503.
        """
        request_id = call_of(request).request_id
        if self._key is None:
            return json_response({"error": "not_found"}, 404)
        body = await _body(request)
        if body is None:
            return json_response({"error": "too_large"}, 413)
        signature = request.headers.get(SIGNATURE, "")
        if not is_signed(body, signature, self._key.get_secret_value()):
            _log.warning(
                "webhook refused: its signature is not that of logto.webhook_key", extra={"request_id": request_id}
            )
            return json_response({"error": "invalid_signature"}, 401)
        try:
            webhook = read_webhook(body, self._clock())
        except BadWebhook as error:
            _log.warning("webhook refused: %s", error, extra={"request_id": request_id})
            return json_response({"error": "invalid_request"}, 400)
        # The same bytes a second time are somebody else's doing: Logto never repeats itself. Harmless, and not worth a word.
        if await self._store.once("webhook:" + hashlib.sha256(body).hexdigest(), LATEST + EARLIEST):
            await self._act(webhook, request_id)
        return Response(status_code=204)

    async def _act(self, webhook: Webhook, request_id: str) -> None:
        for sub in webhook.ended:
            # Sessions first: nobody makes an app password from then on that this would not find.
            ended = await self._store.end_user(sub, webhook.event)
            passwords = await self._passwords.end_user(sub, webhook.event) if self._passwords is not None else 0
            details = {"user": sub, "reason": webhook.event, "sessions": ended, "request_id": request_id}
            details |= {"passwords": passwords} if passwords else {}
            _audit.info("sessions ended by Logto's webhook", extra=details)
        for sub in webhook.changed:
            if self._passwords is not None:
                await self._passwords.doubt(sub)  # before a renewal that has been waiting for this can say who they are
            await self._store.renew_soon([session.id for session in await self._store.of_user(sub)])
        if webhook.everybody:
            await self._renew_everybody()
        if webhook.audit is not None:
            _audit.info(
                "signed in at Logto", extra={**webhook.audit, "reason": webhook.event, "request_id": request_id}
            )

    async def _renew_everybody(self) -> None:
        """Whoever uses a session next has it renewed. Not all at once: only those in use ask Logto, as they come."""
        batch: list[str] = []
        async for session in self._store.everything():
            batch.append(session.id)
            if len(batch) >= _BATCH:
                await self._store.renew_soon(batch)
                batch = []
        if batch:
            await self._store.renew_soon(batch)


async def _body(request: Request) -> bytes | None:
    """The body; None when it is larger than any message of Logto's."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            return None
    return bytes(body)


def _logout_token(content_type: str, body: bytes | None) -> str | None:
    """The one `logout_token` of a form (Back-Channel Logout 1.0, 2.5); None for everything else."""
    if body is None or content_type.partition(";")[0].strip().lower() != _FORM:
        return None
    try:
        pairs = parse_qsl(body.decode("ascii"), max_num_fields=50)
    except ValueError:
        return None
    tokens = [value for name, value in pairs if name == "logout_token"]
    return tokens[0] if len(tokens) == 1 else None

"""Logto's webhooks: whether one is Logto's and fresh, and what it means for sessions. No I/O.

Each is sent once and never again, whatever becomes of it, and many a change sends none at all (a role given or taken, a session
ended in the console). So nothing depends on a webhook: it only makes sooner what the next renewal would find out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from proxy.errors import PosternError, Side

SIGNATURE: Final = "logto-signature-sha-256"  # the field: HMAC-SHA256 of the raw body, in hex
# Logto sends within a second of the event. Whoever has caught one must not be able to end sessions with it later on.
LATEST: Final = 300.0  # seconds
EARLIEST: Final = 30.0  # seconds its clock may be ahead
_ID_CHARS: Final = 255
_TEXT_CHARS: Final = 256

# What changes what somebody may do, without saying whose: everybody's sessions are renewed.
_FOR_EVERYBODY: Final = frozenset(
    (
        *("Role.Deleted", "Role.Data.Updated", "Role.Scopes.Updated"),
        *("Organization.Deleted", "Organization.Data.Updated"),
        *("OrganizationRole.Deleted", "OrganizationRole.Data.Updated", "OrganizationRole.Scopes.Updated"),
    )
)
_SIGN_INS: Final = frozenset({"PostSignIn", "PostRegister"})


class BadWebhook(PosternError):
    """A request that is not one of Logto's webhooks, or not any more; the message says why and quotes nothing of it."""

    side = Side.CLIENT


@dataclass(frozen=True, slots=True)
class Webhook:
    """What one says. Persons by `sub`."""

    event: str
    ended: tuple[str, ...] = ()  # whose sessions are over
    changed: tuple[str, ...] = ()  # of whom something is different now
    everybody: bool = False  # something is different for people nobody named
    audit: Mapping[str, str] | None = None  # of a sign-in: who, in which application, from where


def is_signed(body: bytes, signature: str, key: str) -> bool:
    """Whether `signature`, as in the field SIGNATURE, is that of `body` under `key`; in constant time."""
    expected = hmac.digest(key.encode(), body, hashlib.sha256).hex()
    return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))


def read_webhook(body: bytes, now: float) -> Webhook:
    """Read a body whose signature is good; raises BadWebhook for what is no webhook, or none of about `now` (epoch seconds)."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BadWebhook("it is not a JSON object")
    event = content.get("event")
    if not isinstance(event, str) or not event.isascii() or not 0 < len(event) <= _TEXT_CHARS:
        raise BadWebhook("it names no event")
    created_at = _time(content.get("createdAt"))
    if created_at is None or not now - LATEST < created_at < now + EARLIEST:
        raise BadWebhook("it is not of this moment")
    return _meaning(event, content)


def _meaning(event: str, content: Mapping[str, Any]) -> Webhook:
    if event == "User.Deleted":
        return Webhook(event, ended=_user(content))
    if event == "User.SuspensionStatus.Updated":
        data = content.get("data")
        suspended = data.get("isSuspended") if isinstance(data, dict) else None
        # Only "no longer suspended" leaves sessions alone: there are none then, as the suspension has ended them.
        return Webhook(event, changed=_user(content)) if suspended is False else Webhook(event, ended=_user(content))
    if event == "User.Data.Updated":
        return Webhook(event, changed=_user(content))
    if event == "Organization.Membership.Updated":
        named = (*_ids(content.get("addedUserIds")), *_ids(content.get("removedUserIds")))
        return Webhook(event, changed=named, everybody=not named)
    if event in _FOR_EVERYBODY:
        return Webhook(event, everybody=True)
    if event in _SIGN_INS:
        return Webhook(event, audit=_sign_in(content))
    return Webhook(event)


def _user(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The person an event is about. `params` first: of some events `data` is only a part of the person, with ids of its own."""
    params, data = content.get("params"), content.get("data")
    found = _ids([params.get("userId")]) if isinstance(params, dict) else ()
    return found or (_ids([data.get("id")]) if isinstance(data, dict) else ())


def _ids(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        return ()
    return tuple(value for value in values if isinstance(value, str) and 0 < len(value) <= _ID_CHARS)


def _sign_in(content: Mapping[str, Any]) -> Mapping[str, str]:
    application = content.get("application")
    fields = {
        "user": content.get("userId") or next(iter(_user(content)), None),
        "application": application.get("id") if isinstance(application, dict) else content.get("applicationId"),
        "address": content.get("userIp") or content.get("ip"),
        "browser": content.get("userAgent"),
    }
    return {name: value[:_TEXT_CHARS] for name, value in fields.items() if isinstance(value, str)}


def _time(value: object) -> float | None:
    """ISO 8601 with its zone, as Logto writes it, in epoch seconds."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment.timestamp() if moment is not None and moment.tzinfo is not None else None

"""Webhooks as values: those recorded from a real Logto with what each means, and what is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.webhooks import EARLIEST, LATEST, BadWebhook, Webhook, is_signed, read_webhook

RECORDED = json.loads((Path(__file__).parent / "sandbox" / "recordings" / "webhooks.json").read_text("utf-8"))
NOW = 1_795_213_000.0
USER, OTHER = "oalcxs8y0iwc", "0ffrr3g8c1bb"

MEANING = {
    "PostSignIn:PostSignIn": Webhook(
        "PostSignIn",
        audit={
            "user": USER,
            "application": "3brou57d3pn17rx7ogxd1",
            "address": "127.0.0.1",
            "browser": "python-httpx/0.28.1",
        },
    ),
    "register:User.Created": Webhook("User.Created"),
    "User.Created-mgmt:User.Created": Webhook("User.Created"),
    "User.SuspensionStatus.Updated:User.SuspensionStatus.Updated": Webhook(
        "User.SuspensionStatus.Updated", ended=(USER,)
    ),
    "User.Data.Updated-profile:User.Data.Updated": Webhook("User.Data.Updated", changed=(USER,)),
    "User.Data.Updated-custom-data:User.Data.Updated": Webhook("User.Data.Updated", changed=(USER,)),
    "User.Data.Updated-password:User.Data.Updated": Webhook("User.Data.Updated", changed=(USER,)),
    "Role.Created:Role.Created": Webhook("Role.Created"),
    "Role.Data.Updated:Role.Data.Updated": Webhook("Role.Data.Updated", everybody=True),
    "Role.Scopes.Updated:Role.Scopes.Updated": Webhook("Role.Scopes.Updated", everybody=True),
    "Role.Deleted:Role.Deleted": Webhook("Role.Deleted", everybody=True),
    "Organization.Created:Organization.Created": Webhook("Organization.Created"),
    "Organization.Membership.Updated-add:Organization.Membership.Updated": Webhook(
        "Organization.Membership.Updated", changed=(USER, OTHER)
    ),
    "Organization.Membership.Updated-put:Organization.Membership.Updated": Webhook(
        "Organization.Membership.Updated", changed=(OTHER,)
    ),
    "Organization.Membership.Updated-remove:Organization.Membership.Updated": Webhook(
        "Organization.Membership.Updated", changed=(USER,)
    ),
    "Organization.Data.Updated:Organization.Data.Updated": Webhook("Organization.Data.Updated", everybody=True),
    "Organization.Deleted:Organization.Deleted": Webhook("Organization.Deleted", everybody=True),
    "User.Deleted:User.Deleted": Webhook("User.Deleted", ended=(OTHER,)),
}


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry["name"]) for entry in RECORDED["webhooks"]])
def test_each_recorded_one_is_logtos_and_means_what_it_means(entry: dict[str, str]) -> None:
    body = entry["body"].encode()
    assert is_signed(body, entry["signature"], RECORDED["key"])
    assert not is_signed(body + b" ", entry["signature"], RECORDED["key"])
    assert not is_signed(body, entry["signature"], RECORDED["key"][:-1])
    sent = datetime.fromisoformat(json.loads(body)["createdAt"]).timestamp()
    meaning = read_webhook(body, sent + 1)
    if entry["name"] in MEANING:
        assert meaning == MEANING[entry["name"]]
    else:  # others that came along: PostRegister says who, and ends nothing
        assert (meaning.ended, meaning.changed, meaning.everybody) == ((), (), False)


def test_every_meaning_was_recorded() -> None:
    assert MEANING.keys() <= {entry["name"] for entry in RECORDED["webhooks"]}


def body(**changes: Any) -> bytes:
    content: dict[str, Any] = {"event": "User.Deleted", "createdAt": iso(NOW), "params": {"userId": "ada"}} | changes
    return json.dumps({name: value for name, value in content.items() if value is not ...}).encode()


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"User.Deleted"',
        b"\xff",
        b"[" * 100_000,
        body(event=...),
        body(event=""),
        body(event=["User.Deleted"]),
        body(event="Ü"),
        body(event="U" * 257),
        body(createdAt=...),
        body(createdAt=None),
        body(createdAt=NOW),
        body(createdAt="yesterday"),
        body(createdAt=iso(NOW).removesuffix("Z")),
        body(createdAt=iso(NOW - LATEST)),
        body(createdAt=iso(NOW + EARLIEST)),
        body(createdAt="0001-01-01T00:00:00+23:00"),
    ],
    ids=lambda content: repr(content[:60]),
)
def test_what_is_no_webhook_of_this_moment_is_refused(content: bytes) -> None:
    with pytest.raises(BadWebhook):
        read_webhook(content, NOW)


@pytest.mark.parametrize(
    ("changes", "meaning"),
    [
        ({}, Webhook("User.Deleted", ended=("ada",))),
        ({"params": ..., "data": {"id": "ada"}}, Webhook("User.Deleted", ended=("ada",))),
        ({"params": {"userId": 7}, "data": {"id": "ada"}}, Webhook("User.Deleted", ended=("ada",))),
        ({"params": ...}, Webhook("User.Deleted")),
        ({"params": [], "data": "ada"}, Webhook("User.Deleted")),
        ({"params": {"userId": "x" * 256}}, Webhook("User.Deleted")),
        (
            {"event": "User.SuspensionStatus.Updated", "data": {"isSuspended": False}},
            Webhook("User.SuspensionStatus.Updated", changed=("ada",)),
        ),
        (
            {"event": "User.SuspensionStatus.Updated"},
            Webhook("User.SuspensionStatus.Updated", ended=("ada",)),
        ),
        (
            {"event": "User.Data.Updated", "data": {"id": "mallory"}},
            Webhook("User.Data.Updated", changed=("ada",)),
        ),
        (
            {"event": "Organization.Membership.Updated", "addedUserIds": ["a", 7, ""], "removedUserIds": ["b"]},
            Webhook("Organization.Membership.Updated", changed=("a", "b")),
        ),
        (
            {"event": "Organization.Membership.Updated"},
            Webhook("Organization.Membership.Updated", everybody=True),
        ),
        (
            {"event": "PostRegister", "application": None, "applicationId": "app", "ip": "192.0.2.1"},
            Webhook("PostRegister", audit={"user": "ada", "application": "app", "address": "192.0.2.1"}),
        ),
        ({"event": "Something.New"}, Webhook("Something.New")),
    ],
)
def test_odd_ones_mean_no_more_than_they_say(changes: dict[str, Any], meaning: Webhook) -> None:
    assert read_webhook(body(**changes), NOW) == meaning


@given(st.text(), st.binary())
def test_no_signature_fits_by_chance_or_breaks_the_comparison(signature: str, content: bytes) -> None:
    assert not is_signed(content, signature, "k" * 32)

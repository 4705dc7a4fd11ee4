"""The talk of supervisor and worker, over a real socket pair."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.control import Channel, packed, unpacked
from tests.relay_world import run, settings_for


@asynccontextmanager
async def talk() -> AsyncIterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    channels = await Channel.over(one), await Channel.over(other)
    try:
        yield channels
    finally:
        for channel in channels:
            await channel.close()


def test_messages_go_both_ways_in_order() -> None:
    async def work() -> None:
        async with talk() as (one, other):
            one.say("first", number=1)
            one.say("second", text="two\nlines", more={"a": [1.5, None]})
            other.say("answer")
            assert await other.hear() == {"kind": "first", "number": 1}
            assert await other.hear() == {"kind": "second", "text": "two\nlines", "more": {"a": [1.5, None]}}
            assert await one.hear() == {"kind": "answer"}

    run(work())


def test_a_large_message() -> None:
    async def work() -> None:
        async with talk() as (one, other):
            text = "x" * 3_000_000
            one.say("large", text=text)
            assert await other.hear() == {"kind": "large", "text": text}

    run(work())


def test_the_end_of_the_talk_is_heard_and_nothing_more_is_said() -> None:
    async def work() -> None:
        async with talk() as (one, other):
            one.say("last")
            await one.close()
            assert await other.hear() == {"kind": "last"}
            assert await other.hear() is None
            assert await other.hear() is None
            for _ in range(3):
                other.say("too late")
                await asyncio.sleep(0)
            one.say("too late")

    run(work())


@pytest.mark.parametrize("nonsense", [b"nonsense\n", b"[1]\n", b'{"kind":', b"\xff\n", b"[" * 100_000 + b"\n"])
def test_nonsense_is_the_end_of_the_talk(nonsense: bytes) -> None:
    async def work() -> Any:
        ours, theirs = socket.socketpair()
        channel = await Channel.over(ours)
        with theirs:
            theirs.sendall(nonsense)
        try:
            return await channel.hear()
        finally:
            await channel.close()

    assert run(work()) is None


def test_settings_survive_the_journey_with_their_secrets() -> None:
    settings = settings_for(
        "http://127.0.0.1:9", POSTERN_TRUSTED_PROXIES="10.0.0.0/8", REDIS_URL="redis://:hunter2@127.0.0.1:6379/0"
    )
    again = unpacked(json.loads(json.dumps(packed(settings))))
    assert again == settings
    assert again.logto.app_secret.get_secret_value() == "secret"
    assert "hunter2" not in repr(again)


def test_only_settings_are_settings() -> None:
    with pytest.raises(TypeError):
        unpacked(base64.b64encode(pickle.dumps({"a": 1})).decode())

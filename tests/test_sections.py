"""The sections one by one: what each key holds once read. What is said of mistakes is in settings_mistakes.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.notation import StoreUrl
from proxy.sections import (
    CookieSettings,
    IdentitySettings,
    LimitSettings,
    LogSettings,
    LogtoSettings,
    Section,
    SessionSettings,
    Tls,
)

LOGTO = {"endpoint": "https://auth.example.com/", "app_id": "app", "app_secret": "hunter2"}


def test_logto() -> None:
    logto = LogtoSettings.model_validate(
        {**LOGTO, "resources": ["https://api.example.com", "urn:x:y"], "timeout": "2s"}
    )
    assert (logto.endpoint, logto.internal_endpoint) == ("https://auth.example.com", "https://auth.example.com")
    assert logto.issuer == "https://auth.example.com/oidc"
    assert logto.resources == ("https://api.example.com", "urn:x:y")
    assert logto.timeout == 2.0
    assert logto.app_secret.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(logto)
    inside = LogtoSettings.model_validate({**LOGTO, "internal_endpoint": "http://logto:3001"})
    assert (inside.internal_endpoint, inside.issuer) == ("http://logto:3001", "https://auth.example.com/oidc")


@pytest.mark.parametrize("name", ["__Host-x", "__host-x", "__Secure-x", "__SECURE-x", "a b", "a;b", "a=b", ""])
def test_cookie_names_that_browsers_treat_specially_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        CookieSettings(name=name)


def test_cookies() -> None:
    cookie = CookieSettings.model_validate({"name": "gate", "domain": ".Example.com", "same_site": "Lax"})
    assert (cookie.name, cookie.domain, cookie.same_site) == ("gate", "example.com", "lax")


def test_sessions() -> None:
    session = SessionSettings.model_validate({"store": "redis://:hunter2@r:1/0", "idle": "1h", "lifetime": "1h"})
    assert isinstance(session.store, StoreUrl)
    assert "hunter2" not in repr(session)
    assert session.idle == session.lifetime == 3600.0


def test_a_broken_idle_does_not_speak_for_lifetime() -> None:
    with pytest.raises(ValidationError) as caught:
        SessionSettings.model_validate({"idle": "soon", "lifetime": "1s"})
    assert [error["loc"] for error in caught.value.errors()] == [("idle",)]


def test_the_other_sections() -> None:
    assert IdentitySettings.model_validate({"families": []}).families == ()
    assert LogSettings.model_validate({"format": "JSON"}).format == "json"
    tls = Tls.model_validate({"cert": "/c", "key": "/k"})
    assert (tls.cert, tls.key) == (Path("/c"), Path("/k"))
    limits = LimitSettings.model_validate({"head_bytes": "32KiB", "uri_bytes": 32768, "idle_timeout": 1.5})
    assert (limits.head_bytes, limits.uri_bytes, limits.idle_timeout) == (32768, 32768, 1.5)


@pytest.mark.parametrize("section", [CookieSettings, IdentitySettings, LimitSettings, LogSettings, SessionSettings])
def test_sections_are_frozen_and_know_their_keys(section: type[Section]) -> None:
    made = section()
    name = next(iter(section.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, name, getattr(made, name))
    with pytest.raises(ValidationError, match="not permitted"):
        section.model_validate({"nope": "x"})


@pytest.mark.parametrize("data", [{"app_secret": ["hunter2"]}, {"app_secret": {"hunter2": 1}}, {"endpoint": "hunter2"}])
def test_errors_never_hold_what_was_given(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        LogtoSettings.model_validate({**LOGTO, **data})
    assert "hunter2" not in str(caught.value)

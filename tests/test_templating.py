"""Header templates: what they accept, what they render, and when they render nothing at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.claims import ApiToken, Audience, Identity, Tokens
from proxy.templating import Template, TemplateError

ADA = Identity(
    sub="ada1",
    username="ada",
    name="Ada Lovelace",
    email="ada@example.com",
    roles=("ops", "a,admin", "dev"),
    organizations=("acme", "umbrella"),
    organization_roles=("acme:admin",),
    discord_id="80351110224678912",
    discord_username="nelly",
    claims={
        "team": "blue",
        "level": 3,
        "staff": True,
        "tags": ["x", 7, None, "y,z", True],
        "empty": "",
        "none": None,
        "nested": {"deep": {"er": "found"}, "n": 1},
        "dotted.key": "d",
        "commas": [","],
        "name": "é",
    },
)
TOKENS = Tokens(id_token="the.id.token", access_token="the-access-token", access_expires_at=0.0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{sub}", "ada1"),
        ("{username}", "ada"),
        ("{name} <{email}>", "Ada Lovelace <ada@example.com>"),
        ("{roles}", "ops,dev"),  # never `a,admin`: it would arrive as two
        ("{organizations}", "acme,umbrella"),
        ("{organization_roles}", "acme:admin"),
        ("{discord.id}/{discord.username}", "80351110224678912/nelly"),
        ("{claims.team}", "blue"),
        ("{claims.level}", "3"),
        ("{claims.staff}", "true"),
        ("{claims.tags}", "x,7,true"),
        ("{claims.nested.deep.er}", "found"),
        ("{claims.nested}", '{"deep":{"er":"found"},"n":1}'),
        ("{claims.dotted.key}", "d"),
        ("{claims.name}", "é"),
        ("Bearer {access_token}", "Bearer the-access-token"),
        ("{id_token}", "the.id.token"),
        ("plain", "plain"),
        ("{{sub}}", "{sub}"),
        ("{{{sub}}}", "{ada1}"),
        ("a{{b}}c", "a{b}c"),
        ("{claims.empty}", None),
        ("{claims.none}", None),
        ("{claims.absent}", None),
        ("{claims.nested.absent.x}", None),
        ("{claims.commas}", None),
        ("team-{claims.absent}", None),
        ("{claims.absent}-{sub}", "-ada1"),
    ],
)
def test_templates_render(source: str, expected: str | None) -> None:
    assert Template.parse(source).render(ADA, TOKENS) == expected


@pytest.mark.parametrize("source", ["{sub}", "x {email}", "{id_token}", "{claims.team}{access_token}"])
def test_nobody_has_no_values(source: str) -> None:
    assert Template.parse(source).render(None, None) is None


def test_text_without_placeholders_is_for_everybody() -> None:
    assert Template.parse("on").render(None, None) == "on"


def test_absent_is_nothing() -> None:
    nobody_special = Identity(sub="x")
    for source in (
        "{username}",
        "{name}",
        "{email}",
        "{roles}",
        "{organizations}",
        "{organization_roles}",
        "{discord.id}",
    ):
        assert Template.parse(source).render(nobody_special, TOKENS) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{user}", "has an unknown placeholder {user}"),
        ("{}", "has an unknown placeholder {}"),
        ("{ sub }", "has an unknown placeholder { sub }"),
        ("{sub!r}", "has an unknown placeholder {sub!r}"),
        ("{sub.__class__}", "has an unknown placeholder {sub.__class__}"),
        ("{claims}", "has an unknown placeholder {claims}"),
        ("{claims.}", "has an unknown placeholder {claims.}"),
        ("{Sub}", "has an unknown placeholder {Sub}"),
        *(
            (
                f"{{access_token:{it}}}",
                f"has {{access_token:{it}}}, which names no API resource: an absolute URI without fragment",
            )
            for it in ("", "api", "https:", "https://api.example.com#x", "https://api.example.com/ x", ":api", "é:api")
        ),
        *(
            (f"{{organization_token{it}}}", f"has an unknown placeholder {{organization_token{it}}}")
            for it in (":", "s", ".acme", ":acme:admin", ": acme", ":" + "a" * 65)
        ),
        ("{refresh_token}", "has an unknown placeholder {refresh_token}"),
        ("{claims.email}", "has {claims.email}, which nobody may have verified"),
        ("{claims.phone_number}", "has {claims.phone_number}, which nobody may have verified"),
        ("{sub", 'has a lone "{"'),
        ("sub}", 'has a lone "}"'),
        ("{{sub}", 'has a lone "}"'),
        ("{{{", 'has a lone "{"'),
    ],
)
def test_what_cannot_be_parsed_is_named(source: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template.parse(source)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("source", "organization", "expected"),
    [
        ("Bearer {access_token:https://api.example.com}", None, "Bearer token of https://api.example.com"),
        ("{access_token:urn:logto:api}", None, None),
        ("{access_token:https://api.example.com}", "acme", "token of https://api.example.com within organization acme"),
        ("{access_token:https://api.example.com}", "other", None),
        ("{organization_token}", "acme", "token of urn:logto:organization:acme"),
        ("{organization_token}", "other", None),
        ("{organization_token}", None, None),
        ("{organization_token:umbrella}", "acme", "token of urn:logto:organization:umbrella"),
        ("{sub}:{organization_token:other}", None, "ada1:"),
        ("{access_token:https://empty.example.com}", None, None),
    ],
)
def test_tokens_that_have_to_be_asked_for(source: str, organization: str | None, expected: str | None) -> None:
    api = "https://api.example.com"
    had = [Audience(api), Audience(api, "acme"), Audience(None, "acme"), Audience(None, "umbrella")]
    for_apis = {audience: ApiToken(f"token of {audience}", 0.0, 0.0) for audience in had}
    for_apis[Audience("https://empty.example.com")] = ApiToken("", 0.0, 0.0)
    template = Template.parse(source, organization)
    assert template.render(ADA, replace(TOKENS, for_apis=for_apis)) == expected
    assert template.render(ADA, TOKENS) == template.render(ADA, None) == (None if "{sub}" not in source else "ada1:")


def test_templates_know_what_has_to_be_asked_for() -> None:
    source = "{access_token:https://a} {organization_token} {organization_token:acme} {access_token:https://a} {access_token}"
    assert Template.parse(source).audiences == (Audience("https://a"), Audience(None, "acme"))
    assert Template.parse(source, "acme").audiences == (Audience("https://a", "acme"), Audience(None, "acme"))
    assert Template.parse("{access_token} {{access_token:https://a}}", "acme").audiences == ()
    assert Template.parse(source).wants_organization
    assert not Template.parse(source, "acme").wants_organization
    assert not Template.parse("{{organization_token}} {organization_token:acme}").wants_organization
    assert Template.parse("{organization_token}").needs_tokens
    assert Template.parse(source) != Template.parse(source, "acme")


def test_templates_know_whether_they_need_tokens() -> None:
    assert Template.parse("Bearer {access_token}").needs_tokens
    assert Template.parse("{sub}{id_token}").needs_tokens
    assert not Template.parse("{sub} {{id_token}}").needs_tokens


def test_templates_compare_by_their_source() -> None:
    assert Template.parse("{sub}") == Template.parse("{sub}")
    assert hash(Template.parse("{sub}")) == hash(Template.parse("{sub}"))
    assert Template.parse("{sub}") != Template.parse("{name}")
    assert repr(Template.parse("{id_token}")) == "Template(source='{id_token}')"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_escaped_is_itself(text: str) -> None:
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert Template.parse(escaped).render(ADA, TOKENS) == text


@given(st.lists(st.sampled_from(["{", "}", "{{", "}}", "sub", "{sub}", "claims.", "x"]), max_size=8).map("".join))
def test_any_text_parses_or_is_told(source: str) -> None:
    try:
        template = Template.parse(source)
    except TemplateError as error:
        assert str(error).startswith("has ")  # noqa: PT017 -- either outcome is right
    else:
        assert template == Template.parse(source)
        assert template.needs_tokens is False

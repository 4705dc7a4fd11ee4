"""An OpenID provider in the shape of a Logto, over real HTTP, that tells the truth until it is asked to lie.

It runs in the test's own event loop. Shapes and texts are those recorded from a Logto 1.42.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

CLIENT_ID = "3brou57d3pn17rx7ogxd1"
CLIENT_SECRET = "lying-secret-lying-secret-lying-secret"
SUB = "s0062qn56eia"
DISCOVERY, KEYS = "/oidc/.well-known/openid-configuration", "/oidc/jwks"
_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)  # slow to make: one for all tests


@dataclass
class SigningKey:
    """A private key with what its JWK says of it."""

    kid: str | None
    algorithm: str
    private: Any
    states_algorithm: bool = True

    @classmethod
    def new(cls, algorithm: str = "ES384", kid: str | None = None, *, states_algorithm: bool = True) -> SigningKey:
        curves: dict[str, ec.EllipticCurve] = {
            "ES256": ec.SECP256R1(),
            "ES384": ec.SECP384R1(),
            "ES512": ec.SECP521R1(),
        }
        if algorithm == "EdDSA":
            private: Any = ed25519.Ed25519PrivateKey.generate()
        elif algorithm in curves:
            private = ec.generate_private_key(curves[algorithm])
        else:
            private = _RSA
        return cls(kid or secrets.token_urlsafe(32), algorithm, private, states_algorithm)

    def jwk(self) -> dict[str, Any]:
        public = self.private.public_key()
        kinds: dict[str, Any] = {"E": OKPAlgorithm if self.algorithm == "EdDSA" else ECAlgorithm}
        kind = kinds.get(self.algorithm[0], RSAAlgorithm)
        jwk: dict[str, Any] = {**kind.to_jwk(public, as_dict=True), "use": "sig"}
        jwk.pop("key_ops", None)
        if self.kid is not None:
            jwk["kid"] = self.kid
        return jwk | ({"alg": self.algorithm} if self.states_algorithm else {})


@dataclass
class Asked:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    form: dict[str, str]


@dataclass
class Code:
    """An authorization code and what it was given for."""

    challenge: str
    redirect_uri: str
    nonce: str
    scope: str
    client: str
    used: bool = False


Reply = tuple[int, Any]  # status; a JSON value, or bytes as they are
Fault = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class LyingProvider:
    """Everything it says can be changed between two requests."""

    issuer_base: str | None = None  # the endpoint as browsers see it; default: where it listens
    keys: list[SigningKey] = field(default_factory=lambda: [SigningKey.new()])
    claims: dict[str, Any] = field(default_factory=dict)  # over those of every ID token; ... removes one
    header: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)  # over userinfo
    discovery: dict[str, Any] = field(default_factory=dict)  # over discovery
    answer: dict[str, Any] = field(default_factory=dict)  # over the token endpoint's
    forge: Callable[[dict[str, Any], dict[str, Any]], str] | None = None  # claims, header -> ID token
    replies: dict[str, Reply] = field(default_factory=dict)  # path -> what is answered instead
    faults: dict[str, Fault] = field(default_factory=dict)  # path -> what is done instead
    asked: list[Asked] = field(default_factory=list)
    codes: dict[str, Code] = field(default_factory=dict)
    grants: dict[str, str] = field(default_factory=dict)  # refresh token -> nonce
    clients: dict[str, str] = field(default_factory=lambda: {CLIENT_ID: CLIENT_SECRET})  # application -> its secret
    owners: dict[str, str] = field(default_factory=dict)  # refresh token -> the application that has it
    now: float = 1_795_213_000.0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def issuer(self) -> str:
        return (self.issuer_base or self.url) + "/oidc"

    def rotate(self, key: SigningKey | None = None) -> None:
        """A new current key; the one before stays published, older ones go at once."""
        self.keys = [key or SigningKey.new(), *self.keys[:1]]

    def count(self, path: str) -> int:
        return sum(asked.path == path for asked in self.asked)

    def authorize(self, url: str, **changes: str | None) -> str:
        """Play browser and person: the callback's query that an authorization request leads to; None removes."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        code = secrets.token_urlsafe(32)
        assert asked["client_id"] in self.clients
        self.codes[code] = Code(
            asked["code_challenge"], asked["redirect_uri"], asked["nonce"], asked["scope"], asked["client_id"]
        )
        answer: dict[str, str | None] = {"code": code, "state": asked["state"], "iss": self.issuer}
        return urlencode({name: value for name, value in (answer | changes).items() if value is not None})

    def id_token(self, nonce: str | None, client: str = CLIENT_ID) -> str:
        claims = {
            "sub": SUB, "name": "alice", "picture": None, "updated_at": 1795213041315, "username": None,
            "created_at": 1795212883487, "email": "alice@example.test", "email_verified": True, "roles": [],
            "organizations": [], "organization_roles": [], "nonce": nonce, "sid": "76BL0dWwSTcHBqCG", "aud": client,
            "exp": int(self.now) + 3600, "iat": int(self.now), "iss": self.issuer,
        } | self.claims  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not ...}
        header = {"alg": self.keys[0].algorithm, "kid": self.keys[0].kid} | self.header
        header = {name: value for name, value in header.items() if value is not ...}
        if self.forge is not None:
            return self.forge(claims, header)
        return sign(claims, header, self.keys[0].private)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LyingProvider]:
        """Listen, on the same port again after the first time."""
        writers: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
            writers.discard(writer)
            await _shut(writer)

        server = await asyncio.start_server(serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in list(writers):
                await _shut(writer)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode("latin-1").strip():
            method, target, _ = line.split(" ")
            headers: dict[str, str] = {}
            while header := (await reader.readline()).decode("latin-1").strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            asked = Asked(method, urlsplit(target).path, headers, dict(parse_qsl(body.decode())))
            self.asked.append(asked)
            if asked.path in self.faults:
                await self.faults[asked.path](writer)
                return
            writer.write(response(*(self.replies.get(asked.path) or self._reply(asked))))
            await writer.drain()

    def _reply(self, asked: Asked) -> Reply:
        if asked.path == "/oidc/.well-known/openid-configuration":
            return 200, self._discovery(f"http://{asked.headers['host']}/oidc")
        if asked.path == "/oidc/jwks":
            return 200, {"keys": [key.jwk() for key in self.keys]}
        if asked.path == "/oidc/token":
            return self._token(asked.form)
        if asked.path == "/oidc/me":
            return 200, self._info()
        if asked.path == "/oidc/token/revocation":
            good = asked.form.get("client_secret") == self.clients.get(asked.form.get("client_id", ""))
            return (200, b"") if good else (401, oauth_error("invalid_client", "client authentication failed"))
        return 404, oauth_error("invalid_request", "unrecognized route or not allowed method")

    def _discovery(self, base: str) -> dict[str, Any]:
        algorithms = {key.algorithm for key in self.keys}
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{base}/auth",
            "token_endpoint": f"{base}/token",
            "userinfo_endpoint": f"{base}/me",
            "jwks_uri": f"{base}/jwks",
            "end_session_endpoint": f"{base}/session/end",
            "revocation_endpoint": f"{base}/token/revocation",
            "authorization_response_iss_parameter_supported": True,
            "response_types_supported": ["code id_token", "code", "id_token", "none"],
            "subject_types_supported": ["public"],
            # as Logto does: any RSA key makes it offer both of these
            "id_token_signing_alg_values_supported": sorted(
                algorithms | ({"PS256", "RS256"} if algorithms & {"PS256", "RS256"} else set())
            ),
            "claims_supported": ["sub", "name"],
        } | self.discovery
        return {name: value for name, value in document.items() if value is not ...}

    def _info(self) -> dict[str, Any]:
        info = {
            "sub": SUB, "name": "alice", "username": None, "email": "alice@example.test", "email_verified": True,
            "roles": ["ops"], "custom_data": {}, "organizations": [], "sso_identities": [],
            "identities": {"discord": {"userId": "80351110224678912", "details": {"rawData": {"username": "alice"}}}},
        } | self.info  # fmt: skip
        return {name: value for name, value in info.items() if value is not ...}

    def _token(self, form: dict[str, str]) -> Reply:
        client = form.get("client_id", "")
        if client not in self.clients or form.get("client_secret") != self.clients[client]:
            return 401, oauth_error("invalid_client", "client authentication failed")
        if form["grant_type"] == "refresh_token":
            nonce = self.grants.get(form["refresh_token"])
            if nonce is None or self.owners.get(form["refresh_token"], client) != client:
                return 400, oauth_error("invalid_grant", "grant request is invalid")
            return 200, self._tokens(nonce, form["refresh_token"], client)
        code = self.codes.get(form["code"])
        verifier = form.get("code_verifier", "").encode()
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier).digest()).decode().rstrip("=")
        if code is None or code.used or code.challenge != challenge or code.client != client:
            return 400, oauth_error("invalid_grant", "grant request is invalid")
        if code.redirect_uri != form["redirect_uri"]:
            return 400, oauth_error("invalid_grant", "grant request is invalid")
        code.used = True
        refresh_token = secrets.token_urlsafe(32)
        self.grants[refresh_token], self.owners[refresh_token] = code.nonce, client
        return 200, self._tokens(code.nonce, refresh_token, client)

    def _tokens(self, nonce: str, refresh_token: str, client: str) -> dict[str, Any]:
        answer = {
            "access_token": secrets.token_urlsafe(32),
            "expires_in": 3600,
            "id_token": self.id_token(nonce, client),
            "refresh_token": refresh_token,
            "scope": "openid offline_access profile",
            "token_type": "Bearer",
        } | self.answer
        return {name: value for name, value in answer.items() if value is not ...}


def sign(claims: Mapping[str, Any] | bytes, header: dict[str, Any], key: Any) -> str:
    """Sign what no well-behaved issuer would: any claims, any header."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return encoded(payload, header, jwt.get_algorithm_by_name(header["alg"]).sign, key)


def encoded(payload: bytes, header: Any, signer: Callable[[bytes, Any], bytes], key: Any) -> str:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    signing_input = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (head, payload))
    signature = base64.urlsafe_b64encode(signer(signing_input, key)).rstrip(b"=")
    return (signing_input + b"." + signature).decode()


def oauth_error(error: str, description: str) -> dict[str, str]:
    """An error as Logto words it."""
    return {"code": f"oidc.{error}", "message": description, "error": error, "error_description": description}


def response(status: int, body: Any, *fields: str) -> bytes:
    """One HTTP/1.1 response, with a cookie that nobody asked for."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, bytes) else "application/json; charset=utf-8"
    lines = [
        f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(content)}",
        f"set-cookie: _session={secrets.token_hex(4)}; path=/; httponly", *fields,
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


async def _shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()

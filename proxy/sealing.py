"""The key ring: what it seals, only this deployment can read, and nobody can change or move elsewhere.

Sealed = version byte 1, 12 random bytes of nonce, AES-256-GCM ciphertext with its tag. The key comes from one of the
ring's secrets by HKDF-SHA256 (RFC 5869) with the purpose as `info`, so that a value sealed for one purpose never opens
for another; `context` is authenticated with it (the id of the record it belongs to), so that a value copied from one
record into another does not open either; `extra` is a secret the value's holder must bring (a cookie's), mixed into the
key: without it not even the ring opens the value.

Rotation: put a new secret first. It seals from then on, the older ones still open; drop them when all they sealed has
expired. Random nonces are safe for 2**32 values per key and purpose (NIST SP 800-38D, 8.3): change secrets before that.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from typing import Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from proxy.errors import Unsealable

SECRET_BYTES: Final = 32
_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_OVERHEAD: Final = len(_VERSION) + _NONCE_BYTES + _TAG_BYTES
_CACHED_PURPOSES: Final = 64
_Kept = TypeVar("_Kept")


class KeyRing:
    """Secrets in use: the first seals, every one opens."""

    __slots__ = ("_ciphers", "_macs", "_secrets")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """`secrets`: newest first, at least one, each of 32 bytes or more; else ValueError, which quotes none."""
        self._secrets = _checked(secrets)
        self._ciphers: dict[str, tuple[AESGCM, ...]] = {}
        self._macs: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._secrets)}>"

    def rotate(self, secrets: Sequence[bytes]) -> None:
        """Use other secrets from now on, for everybody who holds this ring. As for a new one, they must be good."""
        checked = _checked(secrets)
        if checked != self._secrets:
            self._secrets = checked
            self._ciphers.clear()
            self._macs.clear()

    def seal(self, purpose: str, plaintext: bytes, *, context: bytes = b"", extra: bytes = b"") -> bytes:
        """Encrypt and authenticate `plaintext`: 29 bytes longer, different each time."""
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._for(purpose, extra)[0]
        return _VERSION + nonce + cipher.encrypt(nonce, plaintext, context)

    def open(self, purpose: str, sealed: bytes, *, context: bytes = b"", extra: bytes = b"") -> bytes:
        """Return the plaintext; raises Unsealable for whatever `seal` did not make with the same three arguments."""
        if len(sealed) < _OVERHEAD or sealed[:1] != _VERSION:
            raise Unsealable("not a sealed value")
        nonce, box = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        for cipher in self._for(purpose, extra):
            try:
                return cipher.decrypt(nonce, box, context)
            except InvalidTag:
                continue
        raise Unsealable("no key opens the value")

    def digest(self, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA256 of `data` under the first secret: 32 bytes that nobody without it can compute or link."""
        key = self._macs.get(purpose)
        if key is None:
            key = _derive(self._secrets[0], b"", f"postern digest {purpose}")
            _remember(self._macs, purpose, key)
        return hmac.digest(key, data, "sha256")

    def _for(self, purpose: str, extra: bytes) -> tuple[AESGCM, ...]:
        """One cipher for each secret. Only keys without `extra` are kept: those with it are as many as sessions."""
        known = None if extra else self._ciphers.get(purpose)
        if known is not None:
            return known
        ciphers = tuple(AESGCM(_derive(secret, extra, f"postern seal {purpose}")) for secret in self._secrets)
        if not extra:
            _remember(self._ciphers, purpose, ciphers)
        return ciphers


def _checked(secrets: Sequence[bytes]) -> tuple[bytes, ...]:
    if not secrets:
        raise ValueError("a key ring needs a secret")
    if any(len(secret) < SECRET_BYTES for secret in secrets):
        raise ValueError(f"a secret is shorter than {SECRET_BYTES} bytes")
    return tuple(bytes(secret) for secret in secrets)


def _derive(secret: bytes, salt: bytes, info: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt or None, info=info.encode()).derive(secret)


def _remember(cache: dict[str, _Kept], purpose: str, value: _Kept) -> None:
    # Purposes are a handful of constants; the bound is there so that a caller's mistake costs time, not memory.
    if len(cache) >= _CACHED_PURPOSES:
        cache.clear()
    cache[purpose] = value

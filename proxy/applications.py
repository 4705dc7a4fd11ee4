"""The gateway's applications at Logto, one for each site: a relying party each, and which of them a token belongs to.

They share what belongs to the Logto and not to an application: its discovery, its keys, the connections to it. Tokens name
their application themselves: the audience of the ID token was verified when it came, and has been sealed since. So whoever has
somebody's tokens, of a session that is due or of one that has ended, can renew or revoke them with the right client.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.claims import Audience, Grant, Identity, Tokens
from proxy.id_tokens import audience_of, unverified_claims
from proxy.identity import Once, RelyingParty
from proxy.sealing import KeyRing
from proxy.sites import Site, Sites


class Applications:
    """All of a gateway's relying parties; `main` is that of `logto.app_id`."""

    def __init__(self, sites: Sites, keyring: KeyRing, once: Once, *, clock: Callable[[], float] = time.time) -> None:
        """`once` as `RelyingParty` takes it."""
        self.main = RelyingParty(sites.main.settings, keyring, once, clock=clock)
        self._by_id = {sites.main.settings.logto.app_id: self.main}
        for site in sites.others:
            party = RelyingParty(site.settings, keyring, once, clock=clock, published=self.main.published)
            self._by_id[site.settings.logto.app_id] = party

    def at(self, site: Site) -> RelyingParty:
        """The relying party of `site`. KeyError for one of other settings."""
        return self._by_id[site.settings.logto.app_id]

    async def refresh(self, tokens: Tokens, identity: Identity) -> Grant:
        """As `RelyingParty.refresh`, with the application that the tokens were issued to."""
        return await self._of(tokens).refresh(tokens, identity)

    async def api_token(self, tokens: Tokens, identity: Identity, audience: Audience) -> Tokens:
        """As `RelyingParty.api_token`, with the application that the tokens were issued to."""
        return await self._of(tokens).api_token(tokens, identity, audience)

    async def revoke(self, tokens: Tokens) -> None:
        """As `RelyingParty.revoke`, with the application that the tokens were issued to."""
        await self._of(tokens).revoke(tokens)

    async def close(self) -> None:
        """Close the connections to Logto, which are the main one's."""
        await self.main.close()

    def _of(self, tokens: Tokens) -> RelyingParty:
        """Whose tokens these are. Where that is none of ours any more Logto is asked as the main one, and will refuse."""
        if len(self._by_id) == 1:
            return self.main
        ours = (self._by_id[name] for name in audience_of(unverified_claims(tokens.id_token)) if name in self._by_id)
        return next(ours, self.main)

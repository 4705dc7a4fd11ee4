// A second opinion on the protocol: the certified `oidc-provider`, mounted where Logto mounts it (it is the library
// that Logto is built on), but configured as Logto is not: claims come from userinfo only, every refresh rotates the
// refresh token, PKCE is mandatory. A gateway that leans on something only the stand-in Logto does fails here.
//
// Settings come from the environment: PORT, CLIENT_ID, CLIENT_SECRET, REDIRECT_URIS, POST_LOGOUT_REDIRECT_URIS (both
// separated by spaces), SIGNING_ALG (ES384 or RS256), TOKEN_AUTH (client_secret_post or client_secret_basic), and for tests of
// several applications CLIENTS: a JSON list of what each has over the first.
// GET /requests answers how often each endpoint was asked, so that a test can tell a refresh from a cached token.

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const MOUNT = '/oidc';
const origin = `http://localhost:${process.env.PORT}`;
const alg = process.env.SIGNING_ALG ?? 'ES384';
const words = (value) => (value ?? '').split(' ').filter(Boolean);

const people = {
  'second0admin': {
    username: 'ada',
    name: 'Ada Example',
    email: 'ada@example.com',
    email_verified: true,
    roles: ['admin', 'member'],
    identities: { discord: { userId: '80351110224678912', details: { id: '80351110224678912', rawData: {} } } },
  },
  'second0plain': { username: 'bob', name: 'Bob Example', email: 'bob@example.com', email_verified: false, roles: [] },
};

const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const page = (title, body) => `<!doctype html><html lang="en"><meta charset="utf-8"><title>${title}</title>
<main><h1>${title}</h1>${body}</main></html>`;

function signingKey() {
  const { privateKey } = alg === 'ES384'
    ? generateKeyPairSync('ec', { namedCurve: 'P-384' })
    : generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: randomBytes(8).toString('hex') };
}

const provider = new Provider(`${origin}${MOUNT}`, {
  clients: JSON.parse(process.env.CLIENTS ?? '[{}]').map((own) => ({
    client_id: process.env.CLIENT_ID,
    client_secret: process.env.CLIENT_SECRET,
    redirect_uris: words(process.env.REDIRECT_URIS),
    post_logout_redirect_uris: words(process.env.POST_LOGOUT_REDIRECT_URIS),
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    id_token_signed_response_alg: alg,
    token_endpoint_auth_method: process.env.TOKEN_AUTH ?? 'client_secret_post',
    ...own,
  })),
  jwks: { keys: [signingKey()] },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  enabledJWA: { idTokenSigningAlgValues: [alg] },
  pkce: { methods: ['S256'], required: () => true },
  conformIdTokenClaims: true,
  rotateRefreshToken: true,
  issueRefreshToken: async (ctx, client, code) => code.scopes.has('offline_access'),
  scopes: ['openid', 'offline_access', 'profile', 'email', 'identities', 'roles'],
  claims: {
    openid: ['sub'],
    profile: ['name', 'username'],
    email: ['email', 'email_verified'],
    identities: ['identities'],
    roles: ['roles'],
  },
  features: {
    devInteractions: { enabled: false },
    backchannelLogout: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: true },
    rpInitiatedLogout: {
      enabled: true,
      logoutSource: (ctx, form) => {
        ctx.body = page('Sign out?', `${form}<button type="submit" form="op.logoutForm" name="logout" value="yes">Yes</button>`);
      },
      postLogoutSuccessSource: (ctx) => {
        ctx.body = page('Signed out', '');
      },
    },
  },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (ctx, sub) => (people[sub] ? { accountId: sub, claims: () => ({ sub, ...people[sub] }) } : undefined),
  ttl: { AccessToken: 3600, AuthorizationCode: 60, IdToken: 3600, RefreshToken: 1209600, Grant: 1209600, Session: 1209600, Interaction: 3600 },
  renderError: (ctx, out) => {
    ctx.type = 'json';
    ctx.body = out;
  },
});

const requests = {};

async function grantAll(details) {
  const grant = details.grantId
    ? await provider.Grant.find(details.grantId)
    : new provider.Grant({ accountId: details.session.accountId, clientId: details.params.client_id });
  grant.addOIDCScope(details.params.scope);
  return grant.save();
}

async function interact(req, res, url) {
  const details = await provider.interactionDetails(req, res);
  if (details.prompt.name === 'consent') {
    return provider.interactionFinished(req, res, { consent: { grantId: await grantAll(details) } }, { mergeWithLastSubmission: true });
  }
  const chosen = url.searchParams.get('as');
  if (chosen === 'nobody') {
    return provider.interactionFinished(req, res, { error: 'access_denied', error_description: 'the person said no' });
  }
  if (people[chosen]) {
    return provider.interactionFinished(req, res, { login: { accountId: chosen } }, { mergeWithLastSubmission: false });
  }
  const choices = Object.entries(people).map(([sub, { name }]) => `<li><a href="?as=${sub}">${escaped(name)}</a></li>`);
  res.writeHead(200, { 'content-type': 'text/html; charset=utf-8', 'cache-control': 'no-store' });
  return res.end(page('Who are you?', `<ul>${choices.join('')}<li><a href="?as=nobody">Cancel</a></li></ul>`));
}

const answer = provider.callback();
const server = createServer((req, res) => {
  const url = new URL(req.url, origin);
  requests[url.pathname] = (requests[url.pathname] ?? 0) + 1;
  if (url.pathname.startsWith(`${MOUNT}/`)) {
    req.originalUrl = req.url; // how oidc-provider learns where it is mounted
    req.url = req.url.slice(MOUNT.length);
    answer(req, res);
  } else if (url.pathname.startsWith('/interaction/')) {
    interact(req, res, url).catch((error) => res.writeHead(400, { 'content-type': 'text/plain' }).end(String(error)));
  } else if (url.pathname === '/requests') {
    res.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(requests));
  } else {
    res.writeHead(404).end();
  }
});
server.listen(Number(process.env.PORT), 'localhost');
process.on('SIGTERM', () => process.exit(0));

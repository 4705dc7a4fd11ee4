"""The proxies that are measured, one class each: how it is started, and what a signed-in client sends it.

Rivals get what favours them: the two that only forward check nothing and log nothing, and no contender speaks TLS.
"""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import redis

from bench.processes import Running, Trouble, environment, free_port
from bench.signin import sign_in
from bench.world import World, user_line
from proxy.sandbox.config import SANDBOX_APP_ID, SANDBOX_APP_SECRET

APACHE_MODULES: Final = Path("/usr/lib/apache2/modules")
# What stands in for the session cookie of those who look at none, so that all get requests of the same size.
NO_SESSION: Final = "session=" + "0" * 74


class Contender:
    """One proxy in front of the app. `name` is its key in the results, `title` its name for people."""

    name: ClassVar[str]
    title: ClassVar[str]
    cookie: str = NO_SESSION
    running: Running

    def __init__(self, world: World) -> None:
        self.world = world
        self.port = free_port()
        self.live_port = self.port  # where the paths below /live are reached
        self._logto = ""

    def start(self) -> None:
        """Start it on its core and sign somebody in; returns once it forwards."""
        self.running = self.world.fleet.start(self.name, self.argv(), self.world.cores.contender, self.environ())
        self.running.listening(self.port)
        try:
            self.cookie = self.signed_in()
            self.check("/small")
        except Trouble as trouble:
            raise Trouble(f"{self.title}: {trouble}\n{self.running.said()}") from trouble

    def stop(self) -> None:
        """End it."""
        self.world.fleet.stop(self.running)

    def restart(self) -> None:
        """A fresh process: what earlier work has left in its memory does not hide what the next one takes."""
        self.stop()
        self.start()

    def argv(self) -> Sequence[str | Path]:
        """Its command line; writes the configuration that the command names."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        """What it finds in its environment."""
        return {}

    def signed_in(self) -> str:
        """A Cookie header that it lets through."""
        return NO_SESSION

    def version(self) -> str:
        """What it says it is."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        return self.running.pid

    @property
    def host(self) -> str:
        """The Host header."""
        return f"localhost:{self.port}"

    def headers(self) -> dict[str, str]:
        """What every request carries: little, but what clients do send."""
        return {
            "Host": self.host,
            "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            "Accept": "*/*",
            "Accept-Encoding": "gzip, deflate, br",
            "Cookie": self.cookie,
        }

    def socket_headers(self) -> list[str]:
        """What a browser's request for a WebSocket carries besides."""
        return [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            f"Origin: http://{self.host}",
        ]

    def check(self, path: str, more: Mapping[str, str] | None = None) -> None:
        """One GET through it, with `more` headers; Trouble when the answer is not 200."""
        status = self.ask(path, more)
        if status != 200:
            raise Trouble(f"{self.title} answers {path} with {status}\n{self.running.said()}")

    def ask(self, path: str, more: Mapping[str, str] | None = None) -> int:
        """The status of one GET through it; Trouble when there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path, headers={**self.headers(), **(more or {})})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Trouble(f"{self.title}: {path}: {error!r}\n{self.running.said()}") from error
        finally:
            connection.close()
        return answer.status

    def sandbox(self) -> str:
        """Start a stand-in Logto that knows this contender, the first time; returns its URL."""
        if self._logto:
            return self._logto
        port = free_port()
        self.world.fleet.start(
            f"logto-of-{self.name}",
            [self.world.postern, "sandbox", "--port", str(port), "--public-url", f"http://{self.host}"],
            self.world.cores.rest,
        ).listening(port)
        self._logto = f"http://localhost:{port}"
        return self._logto


class Direct(Contender):
    """Nothing in between: the app itself. Not a contender but the floor below them all."""

    name = "direct"
    title = "no proxy"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.port = world.origin
        self.live_port = world.live
        self.running = world.app

    def start(self) -> None:
        """Nothing to do: it runs already."""

    def stop(self) -> None:
        """Nothing to do: the others need it."""

    def version(self) -> str:
        return ""


class Nginx(Contender):
    """nginx that only forwards."""

    name = "nginx"
    title = "nginx, forwarding only"

    def argv(self) -> Sequence[str | Path]:
        config = self.world.write("nginx.conf", port=self.port, user=user_line("user root;"))
        return ["nginx", "-p", self.world.directory, "-c", config]

    def version(self) -> str:
        return said_by("nginx", "-v").rpartition("/")[2]


class Caddy(Contender):
    """Caddy that only forwards."""

    name = "caddy"
    title = "Caddy, forwarding only"

    def argv(self) -> Sequence[str | Path]:
        config = self.world.write("Caddyfile", port=self.port)
        return ["caddy", "run", "--config", config, "--adapter", "caddyfile"]

    def environ(self) -> dict[str, str]:
        return {"GOMAXPROCS": "1"}

    def version(self) -> str:
        return said_by("caddy", "version").split()[0]


class Apache(Contender):
    """Apache with mod_auth_openidc: does what Postern does."""

    name = "apache"
    title = "Apache + mod_auth_openidc"

    def argv(self) -> Sequence[str | Path]:
        config = self.world.write(
            "apache.conf",
            port=self.port,
            modules=APACHE_MODULES,
            user=user_line("User nobody\nGroup nogroup"),
            logto=self.sandbox(),
            app_id=SANDBOX_APP_ID,
            app_secret=SANDBOX_APP_SECRET,
            passphrase=secrets.token_hex(16),
        )
        return ["apache2", "-d", self.world.directory, "-f", config, "-DFOREGROUND"]

    def signed_in(self) -> str:
        return sign_in(f"http://{self.host}/small", "mod_auth_openidc_session")

    def version(self) -> str:
        module = said_by("dpkg-query", "-W", "-f", "${Version}", "libapache2-mod-auth-openidc").partition("-")[0]
        apache = said_by("apache2", "-v").partition("Apache/")[2].split()[0]
        return f"{apache} + {module}"


class Naive(Contender):
    """bench/naive.py."""

    name = "naive"
    title = "Starlette + httpx"

    def argv(self) -> Sequence[str | Path]:
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        python = self.world.python_path
        return [python, "-m", "uvicorn", "bench.naive:app", "--factory", "--port", str(self.port), *options]

    def environ(self) -> dict[str, str]:
        return {
            **self.world.python_environ,
            "NAIVE_UPSTREAM": f"http://127.0.0.1:{self.world.origin}",
            "NAIVE_REDIS": f"redis://127.0.0.1:{self.world.redis}/1",
        }

    def signed_in(self) -> str:
        """Put a session into Redis, in the place of the sign-in that this gateway has not got."""
        name = secrets.token_urlsafe(48)
        session = {"sub": "ada000000001", "email": "ada@example.test", "roles": ["admin"]}
        with redis.Redis(port=self.world.redis, db=1) as store:
            store.set(f"naive:{name}", json.dumps(session))
        return f"naive={name}"

    def version(self) -> str:
        return said_by(self.world.python_path, "-c", "import httpx; print(httpx.__version__)")


class Postern(Contender):
    """The `postern serve` that is installed, with what one would run it with."""

    name = "postern"
    title = "Postern"
    template: ClassVar[str] = "postern.toml"
    metrics = 0  # the port they are served on, in versions that have them

    def argv(self) -> Sequence[str | Path]:
        config = self.world.write(
            self.template,
            port=self.port,
            secret=secrets.token_urlsafe(48),
            logto=self.sandbox(),
            app_id=SANDBOX_APP_ID,
            app_secret=SANDBOX_APP_SECRET,
        )
        if self.has_setting("metrics"):
            self.metrics = free_port()
            with config.open("a", encoding="utf-8") as file:
                file.write(f'\n[metrics]\nlisten = "127.0.0.1:{self.metrics}"\n')
        return [self.world.postern, "serve", "--config", config]

    def signed_in(self) -> str:
        if self.metrics:
            self.running.listening(self.metrics)
        return sign_in(f"http://{self.host}/small", "postern")

    def has_setting(self, name: str) -> bool:
        """Whether this version knows a section of the settings."""
        schema = json.loads(said_by(self.world.postern, "schema"))
        return name in schema["properties"]

    def version(self) -> str:
        return said_by(self.world.postern, "--version").split()[-1]


class OneRoute(Postern):
    """Postern with one route, which anybody may pass who is signed in."""

    name = "one-route"
    title = "Postern, one route without rules"
    template = "postern-one-route.toml"


class TenRoutes(Postern):
    """Postern with ten routes, and five rules to look at for each request."""

    name = "ten-routes"
    title = "Postern, ten routes, five rules"
    template = "postern-ten-routes.toml"


ALL: Final = (Nginx, Postern, Caddy, Apache, Naive, Direct, OneRoute, TenRoutes)


def said_by(*argv: str | Path) -> str:
    """What a short-lived program prints, on either stream."""
    done = subprocess.run(
        list(map(str, argv)),
        env=environment(Path("/")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout.strip()

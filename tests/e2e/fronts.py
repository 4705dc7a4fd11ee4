"""Other proxies before the gateway, each with the configuration that the docs hand out, but for names and ports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import POSTERN, Processes

CONFIG = Path(__file__).parents[2] / "config" / "forward-auth"
DOCS = Path(__file__).parents[2] / "docs"
APACHE_MODULES = Path("/usr/lib/apache2/modules")  # where Debian has them


@dataclass(frozen=True, slots=True)
class Ports:
    """Where everybody listens, on loopback."""

    front: int
    gateway: int
    app: int

    def put_in(self, settings: str) -> str:
        """A configuration with these in the place of those that are written in it."""
        settings = settings.replace("127.0.0.1:3000", f"127.0.0.1:{self.gateway}")
        settings = settings.replace("127.0.0.1:8000", f"127.0.0.1:{self.app}")
        return settings.replace(":8080", f":{self.front}")


def _start_nginx(group: Processes, ports: Ports, path: str) -> None:
    server = (CONFIG / "nginx.conf").read_text().replace("listen 8080", f"listen 127.0.0.1:{ports.front}")
    server = server.replace("apps.example.com", "localhost")
    server = ports.put_in(server)
    file = group.directory / "nginx.conf"
    temp = "".join(
        f"{kind}_temp_path {group.directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file.write_text(
        f"daemon off; pid {group.directory}/nginx.pid; error_log stderr warn; events {{}}\n"
        f"http {{ access_log off; {temp}\n{server}\n}}\n"
    )
    group.start("nginx", ["nginx", "-e", "stderr", "-c", file]).ready(f"http://127.0.0.1:{ports.front}{path}")


def _start_caddy(group: Processes, ports: Ports, path: str) -> None:
    site = (CONFIG / "Caddyfile").read_text().replace("apps.example.com", "localhost")
    site = ports.put_in(site)
    file = group.directory / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tauto_https off\n}\n" + site)
    url = f"http://localhost:{ports.front}{path}"
    group.start("caddy", ["caddy", "run", "--config", file, "--adapter", "caddyfile"]).ready(url)


def _start_haproxy(group: Processes, ports: Ports, path: str) -> None:
    settings = (CONFIG / "haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{ports.front}")
    settings = settings.replace("/etc/haproxy/postern.lua", str(CONFIG / "postern.lua"))
    settings = ports.put_in(settings)
    file = group.directory / "haproxy.cfg"
    file.write_text(settings)
    group.start("haproxy", ["haproxy", "-f", file]).ready(f"http://127.0.0.1:{ports.front}{path}")


def _start_envoy(group: Processes, ports: Ports, path: str) -> None:
    settings = (CONFIG / "envoy.yaml").read_text()
    settings = settings.replace("0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {ports.front}")
    settings = settings.replace("port_value: 3000", f"port_value: {ports.gateway}")
    settings = settings.replace("port_value: 8000", f"port_value: {ports.app}")
    file = group.directory / "envoy.yaml"
    file.write_text(settings)
    quietly = ("--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warn")
    argv: list[str | Path] = [POSTERN.with_name("envoy"), "-c", file, *quietly]
    group.start("envoy", argv).ready(f"http://127.0.0.1:{ports.front}{path}")


def _start_apache(group: Processes, ports: Ports, path: str) -> None:
    """Apache asks nobody: it stands in front of the gateway, as docs/behind-a-proxy.md has it."""
    found = re.search(r"```apache\n(.*?)```", (DOCS / "behind-a-proxy.md").read_text(), re.DOTALL)
    assert found is not None
    site = found[1].replace("*:443", f"127.0.0.1:{ports.front}").replace("apps.example.com", "localhost")
    site = ports.put_in(site)
    modules = ("mpm_event", "authz_core", "proxy", "proxy_http", "headers", "alias")
    loaded = "".join(f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so\n" for name in modules)
    file = group.directory / "apache.conf"
    file.write_text(
        f"{loaded}ServerRoot {group.directory}\nDefaultRuntimeDir {group.directory}\nPidFile {group.directory}/apache.pid\n"
        f"ErrorLog /dev/stderr\nServerName localhost\nListen 127.0.0.1:{ports.front}\n{site}"
    )
    argv: list[str | Path] = ["apache2", "-D", "FOREGROUND", "-f", file]
    group.start("apache", argv).ready(f"http://127.0.0.1:{ports.front}{path}")


# Each is started and waited for until `path` is answered there.
STARTED = {
    "nginx": _start_nginx,
    "caddy": _start_caddy,
    "haproxy": _start_haproxy,
    "envoy": _start_envoy,
    "apache": _start_apache,
}

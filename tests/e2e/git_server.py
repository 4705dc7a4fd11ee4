"""Git over HTTP as a web server would serve it: git's own `http-backend` behind a CGI of the smallest kind (RFC 3875).

`python -m tests.e2e.git_server PORT FOLDER`. It believes `X-Forwarded-User`, as whoever stands behind a gateway does: without it
nobody may push.
"""

from __future__ import annotations

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Git(BaseHTTPRequestHandler):
    """One request, one `git http-backend`."""

    protocol_version = "HTTP/1.1"
    root = ""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(length),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        if user := self.headers.get("X-Forwarded-User"):
            environment["REMOTE_USER"] = user
        answer = subprocess.run(
            ["git", "http-backend"], env=environment, input=self.rfile.read(length), stdout=subprocess.PIPE, check=False
        ).stdout
        head, _, body = answer.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n") if ": " in line)
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET


if __name__ == "__main__":
    Git.root = sys.argv[2]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Git).serve_forever()

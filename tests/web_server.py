"""A web server on loopback with a folder, that counts what is asked of it and fails as it is told."""

import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote


class LoopbackServer:
    """Serves on loopback, from a thread, as long as its context lasts. ``handler`` answers; its ``owner`` is this."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        owned = type("Handler", (handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), owned)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class WebServer(LoopbackServer):
    """Serves ``folder`` with HEAD, GET, ranges of bytes, ETag and listings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_sent: Counter[str] = Counter()
        """Of files, by name."""
        self.gets: Counter[str] = Counter()
        self.faults: dict[str, list[str]] = defaultdict(list)
        """By name, for the next GETs: a status, ``truncated``, ``closed``, ``slow`` or ``good``."""
        self.ranges = True
        self.down = False
        super().__init__(_Handler)


class _Handler(BaseHTTPRequestHandler):
    owner: WebServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = self.owner.folder / unquote(self.path.partition("?")[0]).strip("/")
        faults = self.owner.faults[path.name]
        fault = faults.pop(0) if with_body and faults else "good"
        if self.owner.down or fault == "closed":
            self.close_connection = True
            return
        if fault.isdecimal():
            self._send(int(fault), b"no")
        elif path.is_dir():
            names = sorted(f"{other.name}/" if other.is_dir() else other.name for other in path.iterdir())
            self._send(200, "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode(), with_body)
        elif not path.is_file():
            self._send(404, b"no such file", with_body)
        else:
            self._file(path, with_body, fault)

    def _file(self, path: Path, with_body: bool, fault: str) -> None:
        content = path.read_bytes()
        asked = self.headers.get("Range") if self.owner.ranges else None
        status, headers = 200, {"ETag": f'"{path.stat().st_mtime_ns}"'}
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            status, content = 206, content[start:stop]
        if with_body:
            self.owner.gets[path.name] += 1
            self.owner.bytes_sent[path.name] += len(content)
        if fault == "slow":
            time.sleep(0.3)
        self._send(status, content, with_body, headers, short=fault == "truncated")

    def _send(
        self, status: int, content: bytes, with_body: bool = True, headers: dict | None = None, short: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content[: len(content) // 2] if short else content)
        self.close_connection = short

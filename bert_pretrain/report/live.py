"""The page of a run that goes on, served by HTTP; the browser asks whether it has changed, and reloads it."""

import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.directory_lock import is_touched
from bert_pretrain.report.page import comparison_page, draw, run_page
from bert_pretrain.report.run_facts import by_name, read_run
from bert_pretrain.training.sessions import METRICS, SESSIONS

_SHARE = 10
"""The page is drawn anew after this many times the processor time that drawing took: a tenth of a core at most."""

_RELOAD = """
const note=document.createElement("p");note.className="muted";note.setAttribute("role","status");
note.textContent="Live: this page reloads when the run has news, unless a folded part is open.";
document.querySelector("h1").after(note);
setInterval(async()=>{try{const asked=await fetch("/version");if(!asked.ok)throw 0;
if(await asked.text()!=="VERSION"&&!document.querySelector("details[open]"))location.reload()}
catch{note.textContent="The server has ended, or cannot read the run. This is the last state."}},5000)
"""
"""Asks for the number of the page every five seconds. Where the page was scrolled to, a browser keeps."""


class LivePage:
    """The page of the runs, drawn when it is asked for and their files have changed."""

    def __init__(self, directories: list[Path]) -> None:
        self.directories = directories
        self._lock, self._seen, self._due = threading.Lock(), "", 0.0
        self._page = ""
        self.version = 0
        """Grows with every new page."""

    def current(self) -> tuple[int, str]:
        """The number of the page, and the page. Raises ``ConfigError`` if the runs cannot be read."""
        with self._lock:
            seen, started = self._stamp(), time.thread_time()
            if seen != self._seen and time.monotonic() >= self._due:
                runs = by_name([read_run(directory) for directory in self.directories])
                self.version += 1
                script = _RELOAD.replace("VERSION", str(self.version))
                if len(runs) > 1:
                    self._page = comparison_page(runs, script=script)
                else:
                    (run,) = runs.values()
                    self._page = run_page(run, draw(run), script=script)
                self._seen = seen
                self._due = time.monotonic() + _SHARE * (time.thread_time() - started)
            return self.version, self._page

    def _stamp(self) -> str:
        """Changes with the files that the page is made of."""
        paths = [directory / name for directory in self.directories for name in (METRICS, SESSIONS, "config.yaml")]
        return str([*map(_state, paths), *map(is_touched, self.directories)])


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class LiveServer(ThreadingHTTPServer):
    """Serves ``/``, the page, and ``/version``, its number."""

    daemon_threads = True

    def __init__(self, page: LivePage, host: str, port: int) -> None:
        self.page = page
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing for a browser that has gone away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        if not self._asked_for_this_host():
            return self._send(HTTPStatus.FORBIDDEN, "this page is for this machine only")
        if self.path not in ("/", "/version"):
            return self._send(HTTPStatus.NOT_FOUND, "not found")
        try:
            version, page = self.server.page.current()
        except (ConfigError, OSError) as error:
            return self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        if self.path == "/version":
            return self._send(HTTPStatus.OK, str(version))
        return self._send(HTTPStatus.OK, page, "text/html")

    def _asked_for_this_host(self) -> bool:
        """On the loopback address: not asked by another site's name that leads here (DNS rebinding)."""
        asked = self.headers.get("Host", "").rpartition(":")[0].strip("[]")
        return (
            not ip_address(str(self.server.server_address[0])).is_loopback or asked == "localhost" or _is_address(asked)
        )

    def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No line for a request."""


def _is_address(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


def serve(directories: list[Path], host: str, port: int) -> None:
    """Serve the page of the runs until Ctrl-C. Raises ``ConfigError`` if the address cannot be listened at."""
    page = LivePage(directories)
    page.current()  # a mistake is said before anybody opens the page
    try:
        server = LiveServer(page, host, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"host {host}, port {port}: cannot listen there ({error}); give another, or port=0") from None
    with server:
        shown = f"[{host}]" if ":" in host else host
        print(f"serving http://{shown}:{server.server_address[1]}/ until Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nstopped serving; the runs are not touched")

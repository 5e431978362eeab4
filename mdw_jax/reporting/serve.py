"""`mdw report --serve RUN`: one page of one run on the loopback address, made anew when the files of the run change.

Nothing is served by name from the disk: there are two addresses, the page and its version, and everything else is 404.
"""

import hashlib
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mdw_jax.errors import UserError
from mdw_jax.reporting.live import live_page, refuse_no_run
from mdw_jax.reporting.run_files import open_run
from mdw_jax.reporting.run_list import state

HOST = "127.0.0.1"
PORT = 8787  # the first that is tried; where it is taken, the system chooses
SECONDS = 2  # between two questions of the page whether anything has changed
_WATCHED = ("config.json", "environment.json", "metrics.csv", "scores.csv", "report.json", "certificate.csv")
# The page asks for its version and loads itself again where that is another. What is unfolded is kept by its headings.
_SCRIPT = """
const version = VERSION, all = () => [...document.querySelectorAll('details')];
const name = d => d.querySelector('summary').textContent;
try {
  const open = JSON.parse(sessionStorage.getItem('open') || '{}');
  all().forEach(d => { if (name(d) in open) d.open = open[name(d)]; });
} catch (e) {}
setInterval(async () => {
  try {
    const now = await (await fetch('/version', {cache: 'no-store'})).text();
    if (now === version) return;
    const open = JSON.stringify(Object.fromEntries(all().map(d => [name(d), d.open])));
    try { sessionStorage.setItem('open', open); } catch (e) {}
    location.reload();
  } catch (e) { document.title = 'not served any more'; }
}, SECONDS);
"""


class LivePage:
    """The page of a run, made when it is asked for and its files have changed since.

    Attributes:
        path: the run directory.
    """

    def __init__(self, path: Path):
        """The page of a run directory, finished or not. Raises UserError where it is none."""
        refuse_no_run(path)
        self.path = path
        self._lock = threading.Lock()
        self._made = ("", b"")

    def version(self) -> str:
        """A text that changes with the state and the files of the run."""
        return hashlib.sha256(repr((state(self.path), [_stamp(self.path / name) for name in _WATCHED])).encode()
                              ).hexdigest()[:16]

    def html(self) -> bytes:
        """The page as of now: the report of a finished run, otherwise its state and its curves so far."""
        version = self.version()
        with self._lock:  # a page that two browsers ask for is made once
            if self._made[0] != version:
                self._made = (version, self._make(version).encode("utf-8", "replace"))
            return self._made[1]

    def _make(self, version: str) -> str:
        script = _SCRIPT.replace("VERSION", f"'{version}'").replace("SECONDS", str(1000 * SECONDS))
        if state(self.path) != "finished":
            return live_page(self.path, script)
        from mdw_jax.reporting.run_report import report_page  # here, because it needs jax

        try:
            return report_page([open_run(self.path)], script)
        except UserError as error:
            return live_page(self.path, script, f"The report cannot be made: {error}")


def serve_command(directories: Sequence[str], out: str | None, port: int | None = None) -> None:
    """Serve the page of one run until the process is interrupted.

    Args:
        directories: one run directory.
        out: must be None: nothing is written.
        port: of the address; None: `PORT`, or a free one.

    Raises:
        UserError: there are several runs, an output file, no run directory, or no such port is free.
    """
    if len(directories) != 1 or out:
        raise UserError("--serve follows one run and writes no file; leave out --out and the other runs.")
    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator belongs to the run that is followed
    server = make_server(LivePage(Path(directories[0])), port)
    print(f"page of '{directories[0]}': http://{HOST}:{server.server_port}/ (on this machine alone; Ctrl-C ends it)",
          flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def make_server(page: LivePage, port: int | None = None) -> ThreadingHTTPServer:
    """A server of the page on the loopback address.

    Args:
        page: what it serves.
        port: of the address; None: `PORT` or, where that is taken, a free one.

    Raises:
        UserError: the port is taken.
    """
    handler = type("Handler", (_Handler,), {"page": page})
    for number in (PORT, 0) if port is None else (port,):
        try:
            return ThreadingHTTPServer((HOST, number), handler)
        except (OSError, OverflowError) as error:
            reason = error
    raise UserError(f"cannot serve on port {port} ({getattr(reason, 'strerror', None) or reason}); give another --port.")


class _Handler(BaseHTTPRequestHandler):
    page: LivePage
    server_version, sys_version = "mdw", ""

    def do_GET(self) -> None:
        """Answer `/` with the page and `/version` with its version."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in (HOST, "localhost"):  # another site's name that was pointed at this address
            self._answer(HTTPStatus.FORBIDDEN, b"this page is served to this machine alone\n")
        elif self.path == "/":
            self._answer(HTTPStatus.OK, self.page.html(), "text/html; charset=utf-8")
        elif self.path == "/version":
            self._answer(HTTPStatus.OK, self.page.version().encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is nothing here but /\n")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
                            "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        """Print nothing: the page asks every few seconds."""


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    except OSError:
        return None

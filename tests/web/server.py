"""A server of files, by ranges, on which things go wrong when they are told to."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Served:
    """Files below a directory. `fault(number, start)` is asked before each range is sent: "busy",
    "reset", "truncated", "slow", "stalled", "other" (another etag), "all" (no ranges), or None.
    `ranges` are those that were sent, as (name, start, bytes)."""

    def __init__(self, root: Path, fault=lambda number, start: None):
        self.root, self.fault = root, fault
        self.ranges: list[tuple[str, int, int]] = []
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: Counter[str] = Counter()
        self.salt = ""
        self.lock = threading.Lock()

    @property
    def sent(self) -> int:
        return sum(length for _, _, length in self.ranges)

    def etag(self, path: Path) -> str:
        return f'"{hashlib.sha256(f"{path}{path.stat().st_size}{self.salt}".encode()).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, served: Served, *args):
        self.served = served
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        served = self.served
        with served.lock:
            served.asked.append((self.command, self.path))
            served.headers.append(dict(self.headers))
        name = unquote(urlsplit(self.path).path)
        if name.startswith("/api/models/"):
            return self._api(name)
        if "/resolve/" in name:  # elsewhere, as the hub's files are
            self.send_response(302)
            inner = name.partition("/resolve/")[2].partition("/")[2]
            port = self.server.server_port
            self.send_header("Location", f"http://localhost:{port}/{inner}?signed=secret")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        path = served.root / name.strip("/")
        if path.is_dir():
            return self._directory(path, name, body)
        if not path.is_file():
            return self._plain(404, b"not here")
        size = path.stat().st_size
        self._sent, span = path, self.headers.get("Range")
        if span is None or not body:
            self.send_response(200)
            self._headers(path, size)
            if body:
                self.wfile.write(path.read_bytes())
            return None
        first, _, last = span.removeprefix("bytes=").partition("-")
        return self._range(path, int(first), min(int(last) + 1, size), size)

    def _range(self, path, start, stop, size):
        served = self.served
        with served.lock:
            number = sum(served.faults.values()) + len(served.ranges)
            fault = served.fault(number, start)
            if fault is not None:
                served.faults[fault] += 1
        if fault == "busy":
            return self._plain(503, b"slow down")
        if fault == "reset":
            option = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            self.close_connection = True
            self.connection.close()
            return None
        if fault == "all":
            self.send_response(200)
            return self._headers(path, size)
        if fault == "other":
            served.salt += "x"
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self._headers(path, stop - start)
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if fault == "truncated":
            data = data[: len(data) // 2]
            self.close_connection = True
        if fault == "slow":
            time.sleep(0.3)
        with served.lock:
            served.ranges.append((path.name, start, len(data)))
        self.wfile.write(data)
        return None

    def _headers(self, path, length):
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", self.served.etag(path))
        self.send_header("Last-Modified", "Wed, 25 Nov 2026 10:00:00 GMT")
        self.end_headers()

    def _plain(self, status, body, kind="text/plain", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _directory(self, path, name, body):
        if not name.endswith("/"):
            return self._plain(301, b"", Location=f"{name}/")
        links = "".join(f'<a href="{one.name}{"/" * one.is_dir()}">x</a>' for one in path.iterdir())
        page = f'<html><a href="../">up</a><a href="?C=M">sort</a>{links}</html>'
        return self._plain(200, page.encode(), "text/html")

    def _api(self, name):
        commit, root = "c0ffee", self.served.root
        if "/revision/" in name:
            if not name.startswith("/api/models/org/name/"):
                return self._plain(404, b"{}")
            return self._plain(200, json.dumps({"sha": commit}).encode(), "application/json")
        found = [
            {
                "type": "directory" if path.is_dir() else "file",
                "path": path.relative_to(root).as_posix(),
                "oid": "1" * 40,
                "size": path.stat().st_size,
            }
            for path in sorted(root.rglob("*"))
        ]
        if "page=2" in self.path:
            return self._plain(200, json.dumps(found[1:]).encode(), "application/json")
        link = f'<http://127.0.0.1:{self.server.server_port}{self.path}&page=2>; rel="next"'
        return self._plain(200, json.dumps(found[:1]).encode(), "application/json", Link=link)


@contextmanager
def serving(root, fault=lambda number, start: None):
    """Yields (address, `Served`)."""
    served = Served(Path(root), fault)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, served))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

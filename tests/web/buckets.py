"""moto's server of S3, on which things go wrong when they are told to."""

import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from urllib.parse import parse_qs

KEYS = {"aws_access_key_id": "AKIDWORD1", "aws_secret_access_key": "word2secret"}


class Service:
    """`fault(number, method, query)` is asked before each request that reads a range or writes, and
    may say "busy", "reset", "truncated", "slow", "denied", or None. `ranges` are those that were
    sent, as (key, start, bytes), `asked` all requests as (method, path, query)."""

    def __init__(self, app):
        self.app, self.lock = app, threading.Lock()
        self.clear()

    def clear(self):
        self.fault = lambda number, method, query: None
        self.ranges, self.asked, self.faults = [], [], Counter()

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        query, span = environ.get("QUERY_STRING", ""), environ.get("HTTP_RANGE")
        with self.lock:
            self.asked.append((method, path, query))
            number = len(self.asked)
        counts = span is not None or method in ("PUT", "POST", "DELETE")
        fault = self.fault(number, method, query) if counts else None
        with self.lock:
            self.faults[fault] += 1
        if fault == "busy":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if fault == "denied":
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        if fault == "reset":
            option = struct.pack("ii", 1, 0)
            environ["werkzeug.socket"].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            environ["werkzeug.socket"].close()
            return []
        if fault == "slow":
            time.sleep(0.3)
        body = b"".join(self.app(environ, start_response))
        if span is not None and method == "GET":
            start = int(span.removeprefix("bytes=").partition("-")[0])
            body = body[: len(body) // 2] if fault == "truncated" else body
            with self.lock:
                self.ranges.append((path, start, len(body)))
        return [body]

    @property
    def sent(self):
        return sum(length for _, _, length in self.ranges)

    def queries(self, method, word):
        return [
            query for one, _, query in self.asked if one == method and word in parse_qs(query, True)
        ]


@contextmanager
def service():
    """Yields (its address, a boto3 client of it, `Service`), with an empty bucket `models`."""
    import logging

    import boto3
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Service(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS)
        client.create_bucket(Bucket="models")
        yield url, client, app
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for backend in s3_backends.values():  # they are the whole process's
            backend["aws"].reset()

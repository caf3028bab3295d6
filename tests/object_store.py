"""An object store that speaks S3, as a process of its own on this machine."""

import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import boto3
from running import free_port

BUCKET = "bucket"
PASSWORD = "Geheim123"


class Gate:
    """A port that leads to another one, and can be shut: then nobody answers there."""

    def __init__(self, port):
        self.port = free_port()
        self._behind = port
        self._listener = None
        self._open = []

    def open(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def shut(self):
        for each in [self._listener, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _serve(self, listener):
        with suppress(OSError):
            while True:
                front, _ = listener.accept()
                back = socket.create_connection(("127.0.0.1", self._behind))
                self._open += [front, back]
                for one, other in ((front, back), (back, front)):
                    threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()


def _pass_on(one, other):
    with suppress(OSError):
        while content := one.recv(2**16):
            other.sendall(content)
    for each in (one, other):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class ObjectStore:
    """One bucket, which clients of its URIs reach through `gate`."""

    def __init__(self, port):
        self.gate = Gate(port)
        self.gate.open()
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="key",
            aws_secret_access_key=PASSWORD,
            region_name="us-east-1",
        )

    def uri(self, path, password=PASSWORD):
        """The URI of a path in the bucket."""
        options = f"endpoint_override=127.0.0.1:{self.gate.port}&scheme=http&region=us-east-1"
        return f"s3://key:{password}@{BUCKET}/{path}?{options}"

    def keys(self, prefix=""):
        """The keys of all objects, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def read(self, key):
        """The content of an object."""
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def write(self, key, content):
        """Put an object in the place of what was there."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key):
        """Remove an object."""
        self.client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def object_store():
    """Runs the store while the body does."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        store = ObjectStore(port)
        store.client.create_bucket(Bucket=BUCKET)
        yield store
        store.gate.shut()
    finally:
        process.kill()
        process.wait()

"""A local folder in place of a bucket: epath's calls go there, HTTP serves the records."""

import contextlib
import http.server
import os
import re
import threading
import urllib.parse
from pathlib import Path
from unittest import mock

from etils.epath import testing

BUCKET = "gs://bucket"


@contextlib.contextmanager
def stand_in(folder):
    """Maps gs://bucket to the folder; yields the names of the files whose records are requested."""
    asked = []

    def local(path):
        return os.fspath(path).replace(BUCKET, os.fspath(folder))

    def led(original, path, *args, **kwargs):
        return original(local(path), *args, **kwargs)

    def listed(original, path, *args, **kwargs):
        return [
            os.fspath(p).replace(os.fspath(folder), BUCKET)
            for p in original(local(path), *args, **kwargs)
        ]

    class Handler(http.server.BaseHTTPRequestHandler):
        """Google's API for ranged reads of an object: /storage/v1/b/bucket/o/NAME?alt=media."""

        protocol_version = "HTTP/1.1"

        def do_GET(self):
            name = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).split("/o/", 1)[1]
            asked.append(name)
            data = (Path(folder) / name).read_bytes()
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"]).groups()
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(len(data), int(last) + 1) if first and last else len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            self.wfile.write(data[start:stop])

        def log_message(self, *args):
            pass

    calls = dict.fromkeys(("open", "exists", "isdir", "stat"), led) | {
        "listdir": led,
        "glob": listed,
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = {"CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        with mock.patch.dict(os.environ, endpoint), testing.mock_epath(**calls):
            yield asked
        server.shutdown()

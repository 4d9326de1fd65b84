"""A local HTTP server that answers as Google Drive does, for gdown, which always asks Google's own address."""

import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import requests

CLOSED = 9  # a port without a server

# As Drive sent them in 2026, shortened.
CONFIRMATION = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-subcaption">model.pth (46M) is too large for Google to scan for viruses.</p>
FORM</body></html>"""
FORM = (  # in one line, as on Drive
    '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="submit" id="uc-download-link" value="Download anyway"/><input type="hidden" name="id" value="ID">'
    '<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">'
    '<input type="hidden" name="uuid" value="5d0e2b1c"></form>'
)
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""


def reroute(port, monkeypatch=None):
    """Sends what this process asks of Google to a local port."""
    real = getattr(requests.adapters.HTTPAdapter.send, "real", requests.adapters.HTTPAdapter.send)

    def send(self, request, **options):
        request.url = re.sub(r"^https://[\w.]+\.google\.com", f"http://127.0.0.1:{port}", request.url)
        return real(self, request, **{**options, "proxies": {}})

    send.real = real
    if monkeypatch is None:
        requests.adapters.HTTPAdapter.send = send
    else:
        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)


class GoogleDrive:
    """The server. Tests set what it has and how it behaves.

    Attributes:
        files: the content of every file, by its id.
        large: files are so large that Drive asks for a confirmation.
        over_quota: no file is given.
        cuts: the numbers of bytes after which the next answers end, one for each.
        ranges: a part of a file is given, if that is asked for.
        announced: the length that is announced; None: the true one.
        sent: first byte of every part of a file that was sent.
    """

    def __init__(self):
        self.files = {}
        self.large = self.over_quota = False
        self.cuts = []
        self.ranges = True
        self.announced = None
        self.sent = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"drive": self}))
        self.port = self._server.server_port

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = urlsplit(self.path)
        (file_id,) = parse_qs(asked.query).get("id", [""])
        content = self.drive.files.get(file_id)
        if self.drive.over_quota:
            self._page(200, QUOTA)
        elif content is None:
            self._page(404, "<html><title>Error 404 (Not Found)!!1</title></html>")
        elif self.drive.large and asked.path != "/download":
            self._page(200, CONFIRMATION.replace("FORM", FORM.replace("ID", file_id)))
        else:
            self._file(content)

    def _page(self, status, text):
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())

    def _file(self, content):
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.drive.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Disposition", 'attachment; filename="model.pth"')
        self.send_header("Last-Modified", "Sat, 01 Oct 2022 08:00:00 GMT")
        self.send_header("Content-Length", str(self.drive.announced or len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.drive.sent.append(start)
        end = self.drive.cuts.pop(0) if self.drive.cuts else len(content)
        with suppress(ConnectionError):  # gdown leaves an answer to ask for a part of it
            self.wfile.write(content[start:end])

    def log_message(self, *args):
        pass

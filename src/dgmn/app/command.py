"""The command `dgmn app`: serves the page on this machine, and leaves nothing behind."""

import argparse
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dgmn.errors import InputError

_LARGEST = 30 * 2**20  # bytes of a file
# The browser itself keeps the page from asking anybody else for anything.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HERE = ("127.0.0.1", "localhost", "::1")
_Call = Callable[[Any], Awaitable[None]]


def run_app(options: argparse.Namespace) -> int:
    sources = options.sources or [str(path) for path in trained_here()]
    # Gradio reads these when it is imported. What is uploaded lies in the folder until it is read, at once.
    with tempfile.TemporaryDirectory(prefix="dgmn_app_") as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
        try:
            import gradio as gr
            from starlette.middleware import Middleware
        except ImportError as error:
            raise InputError("dgmn app needs gradio: pip install 'dgmn[app]'") from error
        from dgmn.app.page import CSS, HOW, page

        _check_address(options.host, options.port)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed then, too
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        blocks = page(names(sources), options.device)
        try:
            _, url, _ = blocks.launch(
                server_name=options.host,
                server_port=options.port,
                inbrowser=options.open,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=False,
                max_file_size=_LARGEST,
                state_session_capacity=8,
                ssr_mode=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                theme=gr.themes.Base(**fonts),
                css=CSS,
                app_kwargs={"middleware": [Middleware(_OnlyHere, host=options.host)]},
            )
        except OSError as error:
            raise InputError(f"--port {options.port}: {error}") from error
        try:
            print(f"{url} shows {len(sources)} model{'' if len(sources) == 1 else 's'}; Ctrl-C ends it", flush=True)
            if not sources:
                print(f"There is no trained network in runs/. {HOW}", flush=True)
            if options.host not in _HERE:
                print("Everybody who reaches this machine can use the page.", flush=True)
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
    return 0


def trained_here() -> list[Path]:
    """The best checkpoints of the runs in runs/; those of the quickstarts lie deeper."""
    return sorted(path for place in ("*", "*/run") for path in Path("runs").glob(f"{place}/checkpoints/best.ckpt"))


def _is_number(name: str) -> bool:
    """Whether a host is given by its number: names may lead anywhere, numbers not."""
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def names(sources: Sequence[str]) -> dict[str, str]:
    """The sources by short names: that of the run or file, or all of it where two are alike."""
    generic = ("run", "checkpoints", "best.ckpt", "last.ckpt")
    short = {source: ([p for p in Path(source).parts if p not in generic] or [source])[-1] for source in sources}
    counts = Counter(short.values())
    return {source if counts[name] > 1 else name: source for source, name in short.items()}


def _check_address(host: str, port: int | None) -> None:
    """Raises InputError: this machine has no such address, or the port is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        given = f"--host {host}" + (f" --port {port}" if port else "")
        raise InputError(f"{given}: nothing can listen there ({error.strerror or error})") from error


class _OnlyHere:
    """Adds the policy to every answer, and answers only the page itself.

    A browser lets any page ask any address. It says itself where a question comes from. On this machine alone, other
    pages are also told by their origin, and those whose name was turned into its address (DNS rebinding) by the host
    that they ask for. A server for others may have any name.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app = app
        self.names = {"localhost", host, socket.gethostname(), f"{socket.gethostname()}.local"}
        self.alone = host in _HERE

    def _is_known(self, scope: Any) -> bool:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] != "GET" and headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
            return False
        if not self.alone:
            return True
        host = headers.get(b"host", "")
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        origin = headers.get(b"origin")
        return (name in self.names or _is_number(name.strip("[]"))) and (
            origin is None or urlsplit(origin).netloc == host
        )

    async def __call__(self, scope: Any, receive: _Call, send: _Call) -> None:
        if scope["type"] == "websocket" or (scope["type"] == "http" and not self._is_known(scope)):
            from starlette.responses import PlainTextResponse

            refusal = PlainTextResponse("This page answers only at the address that dgmn app prints.", 403)
            await refusal(scope, receive, send)
            return

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
                message = {**message, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        await self.app(scope, receive, with_policy)

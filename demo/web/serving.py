"""Serves the page to this machine alone, and asks no other one for anything."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError, one_line, say

# it comes with torch, for which `--help` does not wait
if TYPE_CHECKING:
    from demo.web.models import Models

HOST, FIRST_PORT = "127.0.0.1", 7860
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
OLDEST_GRADIO = (6, 31)  # pages of earlier ones load a script from another host
NEEDS_GRADIO = "the web demo needs Gradio 6.31 or newer: make web installs it, or pip install 'gradio>=6.31,<7'"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'"
)
"""With it the browser asks no other host for anything, whatever the page says."""


class WithPolicy:
    """A web application whose answers carry `POLICY`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], (b"content-security-policy", POLICY.encode())]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def check_gradio() -> None:
    """UserError where Gradio is missing or too old."""
    os.environ.update(SILENT)  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"{NEEDS_GRADIO} ({one_line(error)})") from error
    if tuple(map(int, gradio.__version__.split(".")[:2])) < OLDEST_GRADIO:
        raise UserError(f"{NEEDS_GRADIO}; this is {gradio.__version__}")


def serve(models: Models, port: int | None = None) -> None:
    """Until Ctrl-C.

    Args:
        port: None takes the first that is free from `FIRST_PORT` on.

    Raises:
        UserError: the port is taken.
    """
    check_gradio()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the folder of uploads goes, too
    os.environ.setdefault("NO_PROXY", f"{HOST},localhost")  # the page is looked for once it is up
    with tempfile.TemporaryDirectory(prefix="rq-web-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        # after the variables are set
        import gradio as gr
        from starlette.middleware import Middleware

        from data.config import MAX_IMAGE_BYTES
        from demo.web.page import build_page

        page = build_page(models).queue()
        theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        try:
            _, address, _ = page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                enable_monitoring=False,
                max_file_size=MAX_IMAGE_BYTES,
                footer_links=[],
                theme=theme,
                css_paths=Path(__file__).with_name("page.css"),
                app_kwargs={"middleware": [Middleware(WithPolicy)]},
            )
        except OSError as error:
            taken = f"port {port} of {HOST} is taken" if port else f"the ports from {FIRST_PORT} on of {HOST} are taken"
            raise UserError(f"{taken}: give another --port") from error
        say(f"the web demo is at {address} (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)

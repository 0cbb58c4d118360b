"""Serves the page to this machine alone, and asks no other one for anything."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError, one_line, say

# it comes with torch, for which `--help` does not wait
if TYPE_CHECKING:
    from demo.web.models import Models

HOST, FIRST_PORT = "127.0.0.1", 7860
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
NEEDS_GRADIO = "the web demo needs Gradio 6: make web installs it, or pip install 'gradio>=6'"


def check_gradio() -> None:
    """UserError where Gradio is missing or too old."""
    os.environ.update(SILENT)  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"{NEEDS_GRADIO} ({one_line(error)})") from error
    if int(gradio.__version__.split(".")[0]) < 6:
        raise UserError(f"{NEEDS_GRADIO}; this is {gradio.__version__}")


def serve(models: Models, port: int | None = None) -> None:
    """Until Ctrl-C.

    Args:
        port: None takes the first that is free from `FIRST_PORT` on.

    Raises:
        UserError: the port is taken.
    """
    check_gradio()
    os.environ.setdefault("NO_PROXY", f"{HOST},localhost")  # the page is looked for once it is up
    with tempfile.TemporaryDirectory(prefix="rq-web-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        # after the variables are set
        import gradio as gr

        from data.config import MAX_IMAGE_BYTES
        from demo.web.page import HEAD, build_page

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
                head=HEAD,
            )
        except OSError as error:
            raise UserError(f"port {port or FIRST_PORT} of {HOST} cannot be had: {one_line(error)}") from error
        say(f"the web demo is at {address} (Ctrl-C ends it)")
        page.block_thread()

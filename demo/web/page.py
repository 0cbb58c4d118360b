"""The page: a tab for each thing that two trained models do. What the tabs do stands beside this file, without Gradio.

All requests that compute share one place in the queue, so one runs at a time and the page shows the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gradio as gr

from demo.web.completing import NUM_FILLS, fill
from demo.web.decoding import Decoded, decode, reconstruct_command
from demo.web.drawing import MOST_PICTURES, MOST_PROMPTS, Wish, grow, pieces, prompts_in, text_commands
from demo.web.figures import command, data_address, gallery, heading, mistake, note, token_table
from demo.web.models import Models
from demo.web.settings import DrawFields
from runtime.errors import UserError
from sampling.code_pictures import DIFFERENCE_GAIN

HERE = Path(__file__).parent
WRONG = (ValueError, OSError)  # what a person can do wrong; all else is our mistake, and its traceback is printed
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models"}


def build_page(models: Models) -> gr.Blocks:
    """The page of these models; `launch` is called by whoever serves it."""
    lookup = lru_cache(maxsize=8)(partial(decode, models))
    with gr.Blocks(title="RQ-VAE and RQ-Transformer", analytics_enabled=False) as page:
        gr.HTML(_heading(models))
        with gr.Tabs():
            with gr.Tab("Generate"):
                _generate(models)
            with gr.Tab("Complete"):
                _complete(models)
            with gr.Tab("Coarse to fine"):
                _coarse_to_fine(models, lookup)
            with gr.Tab("Reconstruct"):
                _reconstruct(models, lookup)
            if models.tokenizer is not None:
                with gr.Tab("Text"):
                    _text(models)
    return page


def _heading(models: Models) -> str:
    rows, columns = models.grid
    size = " x ".join(map(str, models.resolution))
    parameters = [
        sum(weight.numel() for weight in model.parameters()) / 1e6 for model in (models.stage1, models.stage2)
    ]
    return heading(
        "RQ-VAE and RQ-Transformer",
        f"Stage 1: {models.stage1_path}, {parameters[0]:.1f} M parameters, images of {size} pixels as "
        f"{rows} x {columns} x {models.depth} codes. Stage 2: {models.stage2_path}, {parameters[1]:.1f} M parameters. "
        "Everything runs on this machine, one request at a time.",
    )


def _how(models: Models) -> list[Any]:
    """The fields of `DrawFields`, in their order."""
    defaults = models.stage2.sampling_defaults
    each = f"one value, or {models.depth}, one per depth"

    def hint(name: str, otherwise: str) -> str:
        return f"{each}; empty: {defaults.get(name) or otherwise}"

    with gr.Row():
        fields = [
            gr.Number(
                0, label="Seed", info="of all noise; the same one gives the same pictures", precision=0, min_width=140
            )
        ]
        fields.append(gr.Textbox(label="Temperature", info=hint("temp", "1"), min_width=140))
        fields.append(gr.Textbox(label="Top-k", info=hint("top_k", "all"), min_width=140))
        fields.append(gr.Textbox(label="Top-p", info=hint("top_p", "1"), min_width=140))
        can_guide = models.stage2.config.has_null_condition
        about = "a number, linear:S or cosine:S; empty: none" if can_guide else "this model was not trained for it"
        fields.append(gr.Textbox(label="Guidance", info=about, min_width=140, interactive=can_guide))
    return fields


def _asked(models: Models) -> tuple[list[Any], Callable[..., dict[str, Any]]]:
    """What a picture shall show: the components, and what `Wish` calls their values."""
    if models.tokenizer is not None:
        box = gr.Textbox(label="Prompt", value=_first_caption(models))
        return [box], lambda text: {"prompts": prompts_in(text)}
    if models.classes:
        names = [(models.class_word(number), number) for number in models.classes]
        return [gr.Dropdown(names, value=models.classes[0], label="Class")], lambda number: {"class_number": number}
    return [], lambda: {}


def _first_caption(models: Models) -> str:
    captions = getattr(models.examples, "captions", None)
    return "" if captions is None else str(captions([0])[0])


def _show_growth(models: Models, wish: Wish, kind: str = "") -> Iterator[tuple[Any, Any]]:
    """Pictures and what stands below them, until all are drawn; those of a prompt stand together."""
    labels, prompts = wish.labels(), max(1, len(wish.prompts))
    order = sorted(range(len(labels)), key=lambda number: number % prompts)
    try:
        for state in grow(models, wish):
            pictures = gallery(state.image_NCHW[order], [labels[number] for number in order], kind)
            if state.codes_NhwD is None:
                yield pictures, note(f"position {state.position} of {state.total}")
            else:
                yield pictures, command(wish.command(models), files="images/ with the names below the pictures")
    except WRONG as error:
        yield gr.skip(), mistake(error)


def _generate(models: Models) -> None:
    with gr.Row():
        asked, meaning = _asked(models)
        number = gr.Slider(1, MOST_PICTURES, value=4, step=1, label="Pictures")
    how = _how(models)
    with gr.Row():
        go, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop")
    pictures, below = gr.HTML(elem_id="generated"), gr.HTML(elem_id="generated-below")

    def run(number: int, *values: Any) -> Iterator[tuple[Any, Any]]:
        given, fields = values[: len(asked)], values[len(asked) :]
        kind = "large" if number <= 3 else ""
        yield from _show_growth(models, Wish(int(number), DrawFields(*fields), **meaning(*given)), kind)

    running = go.click(run, [number, *asked, *how], [pictures, below], show_progress_on=below, **QUEUE)
    stop.click(None, cancels=[running])


def _image_picker(models: Models) -> tuple[Any, Callable[[Callable[..., Any], list[Any], list[Any]], None]]:
    """An image to work on.

    Returns:
        The state that holds the path of the kept image, and a function that connects a new image with what is to happen
        then: (function of the path and the inputs, inputs, outputs).
    """
    first = models.example(0) if models.examples is not None else None
    kept = gr.State(None if first is None else str(first))
    with gr.Row(elem_classes="picker"):
        upload = gr.UploadButton("Upload an image", size="sm", scale=0, min_width=160)
        has_examples = models.examples is not None
        last = len(models.examples) - 1 if models.examples is not None else 0
        choose = gr.Button(
            f"Take validation image number (0 to {last})", size="sm", scale=0, min_width=280, visible=has_examples
        )
        number = gr.Number(
            0, show_label=False, container=False, precision=0, visible=has_examples, scale=0, min_width=90
        )
    trouble = gr.HTML(padding=False)

    def connect(then: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        def take(find: Callable[[Any], Path], given: Any, *values: Any) -> tuple[Any, ...]:
            try:
                found = find(given)
                results = then(found, *values)
            except WRONG as error:
                return (gr.skip(), mistake(error), *(gr.skip() for _ in outputs))
            return (str(found), "", *results)

        places = [kept, trouble, *outputs]
        upload.upload(partial(take, lambda path: models.given(Path(path))), [upload, *inputs], places, **QUEUE)
        by_number = partial(take, lambda given: models.example(int(given or 0)))
        for event in (number.submit, choose.click):
            event(by_number, [number, *inputs], places, **QUEUE)

    return kept, connect


def _complete(models: Models) -> None:
    kept, connect = _image_picker(models)

    def blank(path: Path) -> dict[str, Any]:
        rows, columns = models.grid
        shown = models.shown(path)
        return {"image": data_address(shown), "rows": rows, "columns": columns, "cells": []}

    template, script = ((HERE / name).read_text(encoding="utf-8") for name in ("painter.html", "painter.js"))
    first = blank(Path(kept.value)) if kept.value else {"image": "", "rows": 0, "columns": 0, "cells": []}
    with gr.Row():
        with gr.Column(scale=4, min_width=400):
            painter = gr.HTML(
                first, html_template=template, js_on_load=script, elem_id="painter", apply_default_css=False
            )
            with gr.Row():
                clear, lower = gr.Button("Paint nothing", size="sm"), gr.Button("Paint the lower half", size="sm")
        with gr.Column(scale=5, min_width=400):
            asked, meaning = _asked(models)
            how = _how(models)
            go = gr.Button(f"Draw {NUM_FILLS} fills", variant="primary")
    connect(lambda path: (blank(path),), [], [painter])
    clear.click(lambda value: {**value, "cells": []}, painter, painter, show_progress="hidden")
    lower.click(lambda value: {**value, "cells": lower_half(models.grid)}, painter, painter, show_progress="hidden")
    pictures, below = gr.HTML(elem_id="fills"), gr.HTML(elem_id="fills-below")

    def run(path: str | None, value: dict[str, Any], *values: Any) -> tuple[Any, Any]:
        given, fields = values[: len(asked)], values[len(asked) :]
        try:
            if path is None:
                raise UserError("upload an image first")
            wish = meaning(*given)
            done = fill(
                models,
                Path(path),
                value["cells"],
                DrawFields(*fields),
                wish.get("class_number"),
                " ".join(wish.get("prompts", ())),
            )
        except WRONG as error:
            return gr.skip(), mistake(error)
        names = [f"fill-{number}.png" for number in range(len(done.fill_BCHW))]
        shown = gallery([done.kept_CHW, *done.fill_BCHW], ["kept", *names])
        return shown, command(
            done.command, files="inpainted/<run>/ with the names below the fills; codes.npz has the codes"
        )

    go.click(run, [kept, painter, *asked, *how], [pictures, below], show_progress_on=below, **QUEUE)


def lower_half(grid: tuple[int, int]) -> list[int]:
    """Numbers of the cells below the middle."""
    rows, columns = grid
    return list(range(rows // 2 * columns, rows * columns))


def _coarse_to_fine(models: Models, lookup: Callable[[Path], Decoded]) -> None:
    kept, connect = _image_picker(models)
    slider = gr.Slider(1, models.depth, value=models.depth, step=1, label="Codes of every position")

    def show(path: Path, depth: int) -> tuple[Any, Any]:
        found, depth = lookup(path), int(depth)
        codes = "1 code" if depth == 1 else f"{depth} codes"
        images = [found.image_CHW, found.recon_DCHW[depth - 1]]
        row = [f"{number}: {bits:.3g} bits per pixel" for number, bits in enumerate(found.bits_D, start=1)]
        pictures = gallery(images, ["image", f"from {codes}"], "large") + note(found.line(depth))
        pictures += gallery(found.recon_DCHW, row, "small")
        return pictures, command(
            reconstruct_command(models, path, depth), files="images/, and by_codes.png has all depths"
        )

    first = show(Path(kept.value), models.depth) if kept.value else ("", "")
    pictures, below = gr.HTML(first[0], elem_id="coarse"), gr.HTML(first[1], elem_id="coarse-below")
    connect(show, [slider], [pictures, below])

    def slide(path: str | None, depth: int) -> tuple[Any, Any]:
        try:
            return ("", note("upload an image first")) if path is None else show(Path(path), depth)
        except WRONG as error:  # the kept image is gone
            return gr.skip(), mistake(error)

    slider.change(slide, [kept, slider], [pictures, below], **QUEUE, show_progress="hidden")


def _reconstruct(models: Models, lookup: Callable[[Path], Decoded]) -> None:
    kept, connect = _image_picker(models)

    def show(path: Path) -> tuple[Any, Any]:
        found = lookup(path)
        images = [found.image_CHW, found.recon_DCHW[-1], found.difference_CHW]
        pictures = gallery(
            images, ["image", "reconstruction", f"difference, {DIFFERENCE_GAIN} times as bright"], "large"
        )
        pictures += note(found.line(models.depth))
        depths = [f"codes of depth {depth}" for depth in range(1, len(found.map_D3hw) + 1)]
        pictures += gallery(found.map_D3hw, depths) + note(
            "Code maps: one square a code, the same colour for the same code."
        )
        return pictures, command(
            reconstruct_command(models, path, details=True), files="images/, differences/, code_maps/"
        )

    first = show(Path(kept.value)) if kept.value else ("", "")
    pictures, below = gr.HTML(first[0], elem_id="reconstructed"), gr.HTML(first[1], elem_id="reconstructed-below")
    connect(show, [], [pictures, below])


def _text(models: Models) -> None:
    box = gr.Textbox(label=f"Prompts, one a line, at most {MOST_PROMPTS}", lines=4, value=_first_caption(models))
    number = gr.Slider(1, MOST_PICTURES, value=2, step=1, label="Pictures of each")
    how = _how(models)
    go = gr.Button("Read and draw", variant="primary")
    tokens, pictures, below = gr.HTML(elem_id="tokens"), gr.HTML(elem_id="texts"), gr.HTML(elem_id="texts-below")

    def run(text: str, number: int, *fields: Any) -> Iterator[tuple[Any, Any, Any]]:
        prompts = prompts_in(text)
        try:
            tables = token_table([(prompt, pieces(models, prompt)) for prompt in prompts])
        except WRONG as error:
            yield "", gr.skip(), mistake(error)
            return
        tables += command(*text_commands(models, prompts))
        for shown, under in _show_growth(models, Wish(int(number), DrawFields(*fields), prompts=prompts)):
            yield tables, shown, under

    go.click(run, [box, number, *how], [tokens, pictures, below], show_progress_on=below, **QUEUE)

"""The page itself, in Gradio: what `source.Demo` offers, on 127.0.0.1 alone."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdw_jax.analysis.demo.browse import SORTS, all_pairs, in_order, pair_cards, partner_cards
from mdw_jax.analysis.demo.cards import STYLE, Card, grid, note, safe
from mdw_jax.analysis.demo.source import Demo
from mdw_jax.analysis.demo.suspects import export_suspects, suspect_page
from mdw_jax.analysis.mismatches.words import DEFAULT_BELOW
from mdw_jax.errors import UserError

HOST = "127.0.0.1"
# Gradio reads these when it is imported; fonts and scripts from the network are kept out by `_POLICY` as well.
_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
                "GRADIO_SHARE": "False", "GRADIO_SSR_MODE": "False", "GRADIO_MCP_SERVER": "False"}
_POLICY = ("default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
           "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'")
_PAIRS = 48  # distilled pairs shown at a time


def import_gradio() -> Any:
    """Gradio, without telemetry. Raises UserError where it is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ[name] = value
    try:
        import gradio
    except ImportError:
        raise UserError("the page needs the package gradio, which asks for a Pillow older than is safe with images of "
                        "strangers; install both by pip install 'gradio>=6.16' && pip install -U pillow.") from None
    return gradio


def build(demo: Demo) -> Any:
    """The page as a `gradio.Blocks`. What is uploaded to it and written by it is removed when the process ends."""
    gr = import_gradio()
    temporary = tempfile.TemporaryDirectory(prefix="mdw-demo-")
    os.environ["GRADIO_TEMP_DIR"] = temporary.name
    with gr.Blocks(title=f"mdw: {demo.title}", analytics_enabled=False, fill_width=False) as page:
        gr.HTML(f"<h1>{safe(demo.title)}</h1>{''.join(note(line) for line in demo.notes)}")
        with gr.Tabs():
            if demo.places:
                with gr.Tab("Search"):
                    _search(gr, demo)
            if demo.encoder is not None:
                with gr.Tab("Compare"):
                    _compare(gr, demo)
            if demo.sets:
                with gr.Tab("Pairs"):
                    _browse(gr, demo)
                with gr.Tab("Matches"):
                    _matches(gr, demo)
            if demo.trained is not None:
                with gr.Tab("Mismatches"):
                    _suspects(gr, demo, Path(temporary.name))
    page.temporary = temporary  # it lives as long as the page
    return page


def _search(gr: Any, demo: Demo) -> None:
    place = gr.Dropdown(demo.places, value=demo.places[-1], label="Look through")
    with gr.Row():
        with gr.Column():
            sentence = gr.Textbox(label="Images that fit a sentence", placeholder="a dog on a beach")
            ask = gr.Button("Search by sentence", variant="primary")
        with gr.Column():
            photo = gr.Image(label="Captions that fit a photo", type="filepath", sources=["upload", "clipboard"],
                             height=180)
    found = gr.HTML()
    encoder = demo.encoder.name if demo.encoder else ""
    by_sentence = _shown(lambda place, text: _result(*demo.by_sentence(place, text), f"Encoded by {encoder}."))
    by_photo = _shown(lambda place, path: "" if not path else _result(
        *demo.by_photo(place, Path(path).read_bytes()), f"Captions nearest to the photo, by {encoder}."))
    ask.click(by_sentence, [place, sentence], found, api_name="search")
    sentence.submit(by_sentence, [place, sentence], found, api_name=False)
    photo.change(by_photo, [place, photo], found, api_name="search_by_photo")


def _compare(gr: Any, demo: Demo) -> None:
    with gr.Row():
        photo = gr.Image(label="Photo", type="filepath", sources=["upload", "clipboard"], height=220)
        sentences = gr.Textbox(label="Sentences, one a line", lines=6, placeholder="a dog on a beach\na city at night")
    ask = gr.Button("Which fits best?", variant="primary")
    shown = gr.HTML()

    def show(path, sentences):
        if not path:
            return note("Choose a photo first.")
        ranked, said = demo.compare(Path(path).read_bytes(), sentences)
        return note(said) + grid([Card(None, [(f"cosine {cosine:.2f}", sentence)]) for sentence, cosine in ranked])

    ask.click(_shown(show), [photo, sentences], shown, api_name="compare")


def _result(cards: list[Card], said: str, how: str) -> str:
    return note(f"{said} {how}".strip()) + grid(cards)


def _browse(gr: Any, demo: Demo) -> None:
    labels = list(demo.sets)
    with gr.Row():
        label = gr.Dropdown(labels, value=labels[0], label="Distilled set")
        by = gr.Dropdown(list(SORTS), value="number", label="Sort by")
    with gr.Row():
        descending = gr.Checkbox(False, label="Largest first")
        page = gr.Number(1, label=f"Page ({_PAIRS} pairs each)", precision=0, minimum=1)
    shown = gr.HTML()

    def show(label, by, descending, page):
        view = demo.view(label)
        pairs = in_order(all_pairs(view, demo.fit(label)), by, descending)
        pages = -(-len(pairs) // _PAIRS)
        page = min(max(1, int(page or 1)), pages)
        part = pairs[(page - 1) * _PAIRS:page * _PAIRS]
        unknown = by != "number" and SORTS[by](pairs[0]) is None
        return (note(f"{len(pairs)} pairs, page {page} of {pages}. Below each image the real caption nearest to its text."
                     + " This is not known for this set, so the order is by number." * unknown)
                + grid(pair_cards(view, part)))

    _on_change(_shown(show), [label, by, descending, page], shown, "pairs")


def _matches(gr: Any, demo: Demo) -> None:
    labels = list(demo.sets)
    with gr.Row():
        label = gr.Dropdown(labels, value=labels[0], label="Distilled set")
        pair = gr.Slider(0, max(1, len(demo.view(labels[0]).captions) - 1), value=0, step=1, label="Pair",
                         min_width=300)
    shown = gr.HTML()

    def show(label, pair):
        view = demo.view(label)
        pair = min(max(0, int(pair or 0)), len(view.captions) - 1)
        own = grid([Card(view.rgb[pair], [(f"pair {pair}", view.captions[pair])], f"distilled image {pair}")])
        if view.matches is None:
            return note("This set has no P: every image is matched with its own text alone.") + own
        unit = "the probability that they match" if view.is_probability else "P"
        return (own + note(f"The texts that this image is matched with, by {unit} (the row of P), each with its own image:")
                + grid(partner_cards(view, pair)))

    label.change(lambda label: gr.Slider(maximum=max(1, len(demo.view(label).captions) - 1), value=0), label, pair,
                 api_name=False)
    _on_change(_shown(show), [label, pair], shown, "matches")


def _suspects(gr: Any, demo: Demo, folder: Path) -> None:
    with gr.Row():
        below = gr.Slider(0.01, 1.0, value=DEFAULT_BELOW, step=0.01, label="Probability of belonging together below",
                          min_width=300)
        by = gr.Dropdown(["division", "similarity"], value="division", label="The probability is by")
        page = gr.Number(1, label="Page", precision=0, minimum=1)
    with gr.Row():
        export = gr.Button("Write all of these as a CSV", size="sm", scale=0, min_width=260)
        file = gr.File(label="CSV", visible=False, height=90)
    shown = gr.HTML()

    def show(below, by, page):
        got = suspect_page(demo.judged_by(by), demo.opened.prepared.pairs, float(below), int(page or 1))
        return note(f"Page {min(max(1, int(page or 1)), max(1, got.pages))} of {got.pages}. {got.summary}") + grid(
            got.cards, wide=True)

    def write(below, by):
        pairs = demo.opened.prepared.pairs
        path, said = export_suspects(demo.judged_by(by), pairs, float(below), folder / "mismatches.csv")
        return gr.File(value=str(path), visible=True, label=said)

    export.click(write, [below, by], file, api_name="export")
    _on_change(_shown(show), [below, by, page], shown, "suspects")


def _on_change(function: Callable, inputs: list, output: Any, name: str) -> None:
    """Shows what a function makes of the inputs: at first, and whenever one of them changes."""
    import gradio as gr

    page = gr.context.Context.root_block
    gr.on([page.load, *(entry.change for entry in inputs)], function, inputs, output, api_name=name,
          trigger_mode="always_last")


def _shown(function: Callable[..., str]) -> Callable[..., str]:
    """The function, whose mistakes are shown in its place."""
    def call(*values):
        try:
            return function(*values)
        except UserError as error:
            return note(str(error))

    return call


def launch(demo: Demo, port: int, block: bool = True) -> Any:
    """Serve the page on 127.0.0.1; nothing is shared, and nothing is loaded from the network.

    Args:
        demo: what it shows.
        port: of the page; 0: the first free one from 7860 on.
        block: return only when the page is stopped.

    Returns:
        The `gradio.Blocks`, whose `local_url` is the address.

    Raises:
        UserError: gradio is not installed, or the port is taken.
    """
    gr = import_gradio()
    from starlette.middleware import Middleware

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = build(demo)
    try:
        page.launch(server_name=HOST, server_port=port or None, share=False, inbrowser=False, prevent_thread_lock=True,
                    quiet=True, theme=theme, css=STYLE, footer_links=[], ssr_mode=False, mcp_server=False,
                    enable_monitoring=False, app_kwargs={"middleware": [Middleware(_Guard)]})
    except OSError as error:
        raise UserError(f"the page cannot be served ({error}); choose another --port.") from None
    print(f"page: {page.local_url} (this machine alone; Ctrl-C ends it)", flush=True)
    if block:
        page.block_thread()
    return page


class _Guard:
    """Refuses requests for other hosts (DNS rebinding), and lets pages load nothing from elsewhere."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").rpartition(":")[0]
        if host not in (HOST, "localhost"):
            await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page is for this machine alone."})
            return

        async def with_policy(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []),
                                                  (b"content-security-policy", _POLICY.encode()),
                                                  (b"x-content-type-options", b"nosniff")]}
            await send(message)

        await self.app(scope, receive, with_policy)

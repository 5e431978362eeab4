"""`mdw demo RUN|SET|STUDENT`: a page on this machine."""

from collections.abc import Sequence

from mdw_jax.analysis.demo.page import import_gradio, launch
from mdw_jax.analysis.demo.source import Demo


def demo_command(paths: Sequence[str], preset: str, port: int | None) -> None:
    """Serve the page of a run, a distilled set, a student, or several of them, until it is stopped.

    Args:
        paths: at most one of each kind.
        preset: whose experts of the run; "": `mdw`, else the first with experts.
        port: of the page on 127.0.0.1; None or 0: the first free one.

    Raises:
        UserError: gradio is missing, a path is none of these, or the port is taken.
    """
    import_gradio()  # before anything slow
    demo = Demo(paths, preset)
    if demo.trained is not None and demo.judged is not None:  # now, and not when somebody waits for the page
        print(f"{len(demo.judged.image_of):,} training pairs judged by the experts of {demo.judged.preset}.", flush=True)
    for line in demo.notes:
        print(line, flush=True)
    launch(demo, port or 0)

"""A page on this machine to look into a run, a distilled set or a student: `mdw demo`.

What the page shows is made by plain functions (`browse`, `query`, `suspects`, `cards`); `page` alone knows Gradio.
"""

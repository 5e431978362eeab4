"""The embedded data set at 40 % image-level noise, start to end on a laptop.

    mdw run --config configs/quickstart.py
"""

from mdw_jax.config import base


def get_config():
    c = base()
    c.run.dir = "runs/quickstart"
    c.run.routes = ("random", "infonce", "mdw", "experts", "full")
    return c

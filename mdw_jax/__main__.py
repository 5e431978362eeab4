"""`python -m mdw_jax` is `mdw`."""

import sys

from mdw_jax.cli import main

sys.exit(main())

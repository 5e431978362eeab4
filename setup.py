"""Everything else is in setup.cfg; here the configs, which lie beside the package, are put into it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["mdw_jax*"]), "mdw_jax.configs"], package_dir={"mdw_jax.configs": "configs"})

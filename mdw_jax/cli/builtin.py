"""The commands of the command line itself: config, weights, completion, help."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from mdw_jax.cli.arguments import command_name, make_parsers
from mdw_jax.cli.help_text import key_descriptions
from mdw_jax.config import resolve
from mdw_jax.config.defaults import base
from mdw_jax.config.sections import flat
from mdw_jax.config.shipped import shipped_configs, summary_of
from mdw_jax.errors import UserError


def config_command(config: ConfigDict, names_only: bool = False) -> None:
    """Print the resolved config as YAML: one key per line, sections and keys in alphabetical order.

    names_only: print the names of the configs that the package holds instead, with what each is.
    """
    if names_only:
        for name, path in shipped_configs().items():
            print(f"{name:12}  {summary_of(path)}")
        return
    import yaml  # here, because most commands do without it

    class Dumper(yaml.SafeDumper):
        """A class of its own, because representers are registered on the class."""

    def on_one_line(dumper, items):
        return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)

    Dumper.add_representer(tuple, on_one_line)
    Dumper.add_representer(list, on_one_line)
    print(yaml.dump(resolve(config).to_dict(), Dumper=Dumper, default_flow_style=False), end="")


def weights_command(sources: Sequence[str]) -> None:
    """Print what is in models: kind, size, sha256, location. sources: files, directories or names on the Hub."""
    import yaml

    from mdw_jax.models.weights.hub import describe_weights

    for source in sources:
        print(yaml.safe_dump(describe_weights(source), sort_keys=False))


def help_command(name: str | None = None) -> None:
    """Print the help of a command, or of all. Raises UserError for a command that does not exist."""
    parsers = make_parsers()
    print(parsers[None if name is None else command_name([name])].format_help(), end="")


def completion_command(shell: str) -> None:
    """Print the completion script of a shell, which knows commands, flags and config keys.

    Raises:
        UserError: the package that writes it is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise UserError("mdw completion needs the package shtab; install it by pip install 'mdw-jax[completion]'."
                        ) from None
    descriptions = key_descriptions()
    parsers = make_parsers({key: descriptions[key] for key in flat(base())}, shtab.FILE)
    print(shtab.complete(parsers[None], shell), end="")

"""Scripts that make a shell complete subcommands, options and image ids."""

import click
from click.shell_completion import get_completion_class, shell_complete

from .app import Command

_INSTRUCTION = "_PFIMG_COMPLETE"  # the variable in which the script tells what to complete


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completions(context: click.Context, shell: str) -> None:
    r"""Print the completion script of a shell.

    \b
    bash: eval "$(pfimg completions bash)"        in ~/.bashrc
    zsh:  eval "$(pfimg completions zsh)"         in ~/.zshrc
    fish: pfimg completions fish | source         in ~/.config/fish/config.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click knows the three shells of the argument
    click.echo(found(context.find_root().command, {}, "pfimg", _INSTRUCTION).source())


def answer(command: click.Command, instruction: str) -> int:
    """Does what the script asked for."""
    return shell_complete(command, {}, "pfimg", _INSTRUCTION, instruction)

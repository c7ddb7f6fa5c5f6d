"""`holdfast completion`: the shell's side of completion, printed.  The other side is `locate.complete_pool_path`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from holdfast.cli.command import ManualCommand

_COMPLETE_VARIABLE = "_HOLDFAST_COMPLETE"

# bash ends a word at an @ unless told otherwise, and would hand us half of POOL/VOLUME@SNAPSHOT.
_AT_IN_WORDS = "COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}\n"


@click.command(
    name="completion",
    cls=ManualCommand,
    examples=[
        ("bash, in ~/.bashrc", 'eval "$(holdfast completion bash)"'),
        ("zsh, in ~/.zshrc", 'eval "$(holdfast completion zsh)"'),
        ("fish", "holdfast completion fish > ~/.config/fish/completions/holdfast.fish"),
    ],
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    Commands, options, files and pools are completed, and the names of the volumes and snapshots of a pool that is
    being served.
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    completion = completion_class(ctx.find_root().command, {}, "holdfast", _COMPLETE_VARIABLE)
    # `source()` of bash runs bash to look at its version; the script itself needs nothing of this host.
    script = completion.source_template % completion.source_vars()
    click.echo(_AT_IN_WORDS + script if shell == "bash" else script)

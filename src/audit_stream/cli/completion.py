"""audit-stream completion."""

from typing import Literal

import rich_click as click
from click.shell_completion import get_completion_class

VARIABLE = "_AUDIT_STREAM_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
@click.pass_context
def completion(ctx: click.Context, shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print what makes a shell complete commands and options.

    bash: eval "$(audit-stream completion bash)" in ~/.bashrc; zsh: the same with zsh in ~/.zshrc;
    fish: audit-stream completion fish > ~/.config/fish/completions/audit-stream.fish
    """
    found = get_completion_class(shell)
    assert found, shell
    click.echo(found(ctx.find_root().command, {}, "audit-stream", VARIABLE).source())

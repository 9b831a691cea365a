"""``notebooked completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .options import session, shared_options


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@shared_options
def completion_command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(notebooked completion bash)"
    zsh:   eval "$(notebooked completion zsh)"
    fish:  notebooked completion fish | source
    """
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(root, {}, "notebooked", "_NOTEBOOKED_COMPLETE").source()
    session().emit({"shell": shell, "script": script}, lambda: script)

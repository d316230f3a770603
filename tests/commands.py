"""What the command line reads of its arguments, without doing it."""

from __future__ import annotations

from typing import Any

import typer.main

from avomni_lib import cli


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's name, and the value of each of its arguments and options.

    Raises:
        typer.TyperException: wrong use.
    """
    name, *rest = cli.repeat_options(arguments)
    group = typer.main.get_group(cli.app)
    with group.make_context("avomni", [name]) as context:
        command = group.get_command(context, name)
        with command.make_context(name, rest, parent=context) as inner:
            return name, inner.params

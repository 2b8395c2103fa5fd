"""Gather the commands, and turn errors into exit codes.

0: done. 1: a stage or gate failed. 2: bad usage or settings. 130: stopped by Ctrl-C, a signal or a closed terminal.

Command modules import heavy libraries inside their functions, so that ``--help`` and small commands start quickly.
"""

from __future__ import annotations

import io
import os
import sys

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.cli.bundle import report, upload, validate
from ensemble_assets.cli.chunk import chunk
from ensemble_assets.cli.machine import clean, doctor, leases
from ensemble_assets.cli.measure import baseline, evaluate, fit_fusion
from ensemble_assets.cli.plan import plan
from ensemble_assets.cli.run import demo, run
from ensemble_assets.cli.search import search
from ensemble_assets.cli.show import show
from ensemble_assets.common.errors import EnsembleError, SettingsError
from ensemble_assets.common.stopping import STOPPED, say_stopped, stop_when_asked
from ensemble_assets.common.version import __version__


@click.group(cls=args.Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def commands() -> None:
    """Turn chunked documents and queries into retrieval artifacts."""


_COMMANDS = (
    run, demo, search, show, chunk, plan, validate, report, upload, evaluate, fit_fusion, baseline, doctor, leases,
    clean,
)  # fmt: skip

for command in _COMMANDS:
    commands.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code; ``arguments`` stands in for the command line in tests."""
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know the letters of a folder's name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with stop_when_asked(say_stopped):
        code = _run(arguments)
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    try:
        os.getcwd()
    except FileNotFoundError:
        click.echo("Error: the folder that this was started in is gone. Go to another one", err=True)
        return 2
    try:
        return commands.main(arguments, standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        say_stopped()
        return STOPPED
    except EnsembleError as error:
        click.echo(f"Error: {error}", err=True)
        return 2 if isinstance(error, SettingsError) else 1

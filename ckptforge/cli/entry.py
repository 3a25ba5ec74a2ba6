"""The entry point: runs a command, and turns errors and signals into messages and exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

import click

from ckptforge.cli.app import cli
from ckptforge.cli.console import print_error, print_json
from ckptforge.errors import CkptforgeError


def _fail(error: Exception, as_json: bool) -> NoReturn:
    """Ends with one error on stderr, or as a JSON object on stdout, and its exit code."""
    code = getattr(error, "exit_code", 1)
    message = " ".join(
        [
            error.format_message() if isinstance(error, click.ClickException) else str(error),
            *_notes(error),
        ]
    )
    if as_json:
        print_json({}, "error", message, type(error).__name__)
    elif not isinstance(error, click.UsageError):
        print_error(f"ckptforge: {message}")
    elif type(error).show is not click.UsageError.show:  # no command at all: click shows the help
        error.show()
    else:
        if error.ctx is not None:
            click.echo(
                f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n",
                err=True,
            )
        print_error(f"Error: {message}")
    sys.exit(code)


def _stopped(error: BaseException, how: str, code: int, as_json: bool) -> NoReturn:
    message = " ".join([f"{how}.", *_notes(error)])
    with suppress(OSError):  # after a hangup there may be nobody to tell
        if as_json:
            print_json({}, "error", message, how.capitalize())
        print_error(f"ckptforge: {message}")
    sys.exit(code)


def _notes(error: BaseException | None) -> list[str]:
    """What was noted on an error, or on the one that click made it of."""
    found: list[str] = []
    while error is not None:
        found += getattr(error, "__notes__", [])
        error = error.__cause__
    return found


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """A signal came that ends the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _: object) -> NoReturn:
    for other in _SIGNALS:  # those that follow, as wrappers send several, find a run that is ending
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else _Stopped(number)


def main() -> None:
    """The entry point: no traceback reaches a user for bad input."""
    as_json = "--json" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _stop)
    try:
        code = cli.main(prog_name="ckptforge", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt) as error:
        _stopped(error, "interrupted", 130, as_json)
    except _Stopped as error:
        _stopped(error, "terminated", 128 + error.number, as_json)
    except (CkptforgeError, click.ClickException) as error:
        _fail(error, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, MemoryError) as error:
        _fail(error, as_json)
    sys.exit(code if isinstance(code, int) else 0)

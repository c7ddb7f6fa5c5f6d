"""What all commands have in common: help in the shape of a man page, errors of one line, exit codes, interruption.

    0    done
    1    the answer is no: damage found, copies differ, the pool refused (no such volume, no space)
    2    could not run: wrong usage, nothing there, no permission, the disk failed
    130  interrupted with Ctrl-C

Errors go to standard error as one line, `holdfast: WHAT: why; what to do`.  Nothing here, nor in any module that a
command imports at its top, imports rich or numpy: `holdfast volume list` is to answer in the time of a Python start.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from holdfast.errors import HoldfastError, NoSpaceError, ReadOnlyError, RequestError, RetryError, ShortageError

EXIT_NO = 1
EXIT_COULD_NOT_RUN = 2
EXIT_INTERRUPTED = 130

COMMON_EXIT_CODES = {2: "could not run: wrong usage, no such pool, no permission, a failing disk", 130: "interrupted"}


class CommandError(click.ClickException):
    """A command cannot go on. The message is one line: what, why, what to do."""

    exit_code = EXIT_COULD_NOT_RUN


class ManualCommand(click.Command):
    """A command whose --help ends with its exit codes and examples."""

    def __init__(
        self,
        *arguments: Any,
        exit_codes: dict[int, str] | None = None,
        examples: Sequence[tuple[str, str]] = (),
        **attributes: Any,
    ) -> None:
        """`examples` are pairs of what one wants and what one types."""
        attributes.setdefault("context_settings", {"max_content_width": 100, "show_default": True})
        super().__init__(*arguments, **attributes)
        self.exit_codes = {0: "done", **(exit_codes or {}), **COMMON_EXIT_CODES}
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in sorted(self.exit_codes.items())])
        if self.examples:
            with formatter.section("Examples"):
                for index, (purpose, typed) in enumerate(self.examples):
                    if index:
                        formatter.write_paragraph()
                    formatter.write_text(f"{purpose}:")
                    with formatter.indentation():
                        formatter.write(f"{'':>{formatter.current_indent}}{typed}\n")


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used.

    `lazy` maps a command's name to the module that holds it (as the attribute `command`) and its line in the list of
    commands, so that `--help` imports none of them.  As the outermost group it also turns whatever ends a command into
    one line and an exit code.
    """

    def __init__(self, *arguments: Any, lazy: dict[str, tuple[str, str]] | None = None, **attributes: Any) -> None:
        attributes.setdefault("context_settings", {"max_content_width": 100})
        super().__init__(*arguments, **attributes)
        self.lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        found = importlib.import_module(self.lazy[cmd_name][0]).command
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, line) for name, (_module, line) in self.lazy.items()]
        for name in super().list_commands(ctx):
            found = super().get_command(ctx, name)
            assert found is not None
            rows.append((name, found.get_short_help_str(80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(  # type: ignore[override]  # click gives an overload whose second form returns the command's value
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        extra.pop("standalone_mode", None)
        try:
            outcome = super().main(args, prog_name or "holdfast", standalone_mode=False, **extra)
            sys.stdout.flush()
        except Exception as error:
            report_and_exit(error)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
        sys.exit(outcome if isinstance(outcome, int) else 0)


def report_and_exit(error: Exception) -> NoReturn:
    """Say what ended the command, in one line, and exit. What is not meant for users is raised again."""
    match error:
        case click.Abort():
            sys.exit(EXIT_INTERRUPTED)
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            sys.exit(EXIT_COULD_NOT_RUN)
        case click.UsageError():
            hint = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
            message = error.format_message().strip().rstrip(".")
            print_error(message[:1].lower() + message[1:] + hint)
            sys.exit(EXIT_COULD_NOT_RUN)
        case click.ClickException():
            print_error(error.format_message())
            sys.exit(error.exit_code)
        case HoldfastError():
            print_error(str(error))
            sys.exit(exit_code_of(error))
        case BrokenPipeError():
            # The reader of our output has seen enough. Python would complain when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_NO)
        case OSError():
            print_error(describe_os_error(error))
            sys.exit(EXIT_COULD_NOT_RUN)
        case _:
            raise error


_REFUSALS = (RequestError, NoSpaceError, ShortageError, ReadOnlyError, RetryError)


def exit_code_of(error: HoldfastError) -> int:
    """1 where the pool was asked and said no, 2 where the asking itself failed."""
    return EXIT_NO if isinstance(error, _REFUSALS) else EXIT_COULD_NOT_RUN


def describe_os_error(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def print_error(message: str) -> None:
    click.echo("holdfast: " + " ".join(message.split()), err=True)

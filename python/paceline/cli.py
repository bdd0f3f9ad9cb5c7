"""The command line, `paceline COMMAND ...`; `python -m paceline` alike. Each command is a module of `commands/`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import paceline
from paceline.commands import audit, demo, diagnose, doctor, generate, trace, tune

COMMANDS = (demo, doctor, generate, diagnose, trace, tune, audit)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 after an error said on stderr or what the command gives, 2 for a wrong command line, 130 after Ctrl-C. stderr also
    has the engine's notes and the figures; stdout has text, or JSON, only."""
    parsed = _parser().parse_args(arguments)
    try:
        status: int | None = parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; nothing more can be said on stdout, at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        print(f"paceline: {error}", file=sys.stderr)
        return 1
    return status or 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """The line that matters; the usage, with its forty options, only where it is asked for."""
        self.exit(2, f"{self.prog}: {message}\nsee {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="paceline", description="Exact speculative decoding.")
    parser.add_argument("--version", action="version", version=f"paceline {paceline.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser

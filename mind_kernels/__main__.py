"""The command line `python -m mind_kernels [command] [options]`; the default command, `info`, lists the backends.

A command's module is imported only if that command is run: `info` works without the triton package, which `ahead`
needs.
"""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys

from mind_kernels.commands.options import fail, meant

COMMANDS = ("info", "check", "tune", "ahead")
INTERRUPTED, NOT_READ = 130, 141  # as a shell reports SIGINT and SIGPIPE


def main(arguments: list[str]) -> int:
    """Runs the command that the first argument names; raises SystemExit after telling of words that it cannot read."""
    name, options = "info", arguments
    if arguments and not arguments[0].startswith("-"):
        name, *options = arguments
    if name == "help":
        name, options = options[0] if options else "info", ["--help"]
    if name not in COMMANDS:
        fail(f"unknown command {name}{meant(name, COMMANDS)}; the commands are {', '.join(COMMANDS)}")
    try:
        command = importlib.import_module(f"mind_kernels.commands.{name}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        fail(f"{name} needs the package triton: pip install 'mind-kernels[triton]'")
    return command.main(options)


def guarded(arguments: list[str]) -> int:
    """Runs `main`; system errors and Ctrl-C print one line, a closed output pipe none."""
    if sys.stdout is None:  # after a shell's >&-
        sys.stdout = io.StringIO()
    try:
        try:
            return main(arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("mind_kernels: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (OSError, subprocess.CalledProcessError) as error:
        unread = isinstance(error, BrokenPipeError)
        if not unread:
            print(f"mind_kernels: error: {error}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # Python would flush again at exit, and print an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_READ if unread else 2


if __name__ == "__main__":
    sys.exit(guarded(sys.argv[1:]))

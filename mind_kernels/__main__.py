"""`python -m mind_kernels [command] [options]`: `check`, the default, says which backends this installation has.

A command is imported when it is asked for: `check` works without the triton package, which `ahead` needs.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("check", "ahead")


def main(arguments: list[str]) -> int:
    """Runs the command that the first argument names."""
    name, options = "check", arguments
    if arguments and not arguments[0].startswith("-"):
        name, *options = arguments
    if name not in COMMANDS:
        print(f"command is {name!r}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(f"mind_kernels.commands.{name}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        print(f"{name} needs the package triton: pip install 'mind-kernels[triton]'", file=sys.stderr)
        return 2
    return command.main(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

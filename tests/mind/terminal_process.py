"""A Python command on a terminal of its own, and what it writes there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def on_a_terminal(command, columns=80, **variables):
    """What the Python `command` writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    ours_alone = ("NO_COLOR", "COLUMNS", "TQDM_DISABLE", "PYTHON_TYRO_ANSI_CODES")
    kept = {name: value for name, value in os.environ.items() if name not in ours_alone}
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=kept | {"TERM": "xterm-256color"} | variables,
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # Linux's end of a terminal that everybody has left
        while part := os.read(ours, 65536):
            written += part
    process.wait()
    os.close(ours)
    return written.decode()

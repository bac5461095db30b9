"""Ends every command: decides which errors become one line on standard error, and the exit status."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mind import processes
from mind.cli.launch import LOST, TOLD_TO_END, LaunchEnded, end_when_told, ending
from mind.cli.terminal import command_line, complain, set_up_terminal
from mind.display import one_line
from mind.errors import MindError, MissingError
from mind.files import naming

BAD_INPUT, INTERRUPTED, NOT_READ = 2, 130, 141  # the latter two are what a shell reports for SIGINT and SIGPIPE


def guarded(program: str, run: Callable[[], int | None]) -> int:
    """The exit status of `run`: its result, or the status of an expected error, which is reported in one line.

    Expected are bad input, files that the system cannot read or write, memory that ran out, Ctrl-C, and output that
    nobody reads any more (without a message). The notes of an exception (`add_note`) end its line. Any other exception
    is a bug, and passes.

    Of several processes the first that fails reports its error. The others, which end because of it, have the exit
    status of bad input.
    """
    try:
        return _guarded(program, run)
    except LaunchEnded as error:
        _complain(program, f"error: {TOLD_TO_END}", error)
        return BAD_INPUT


@contextmanager
def _no_interrupt_is_lost() -> Iterator[None]:
    """Python drops a Ctrl-C or a LaunchEnded that arrives in a destructor or a callback, after a traceback. Inside the
    block its signal comes again a moment later, when something else runs."""
    former = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type not in (KeyboardInterrupt, LaunchEnded):
            former(dropped)
            return
        if launch_ended := dropped.exc_type is LaunchEnded:
            end_when_told()
        main = threading.main_thread().ident or 0
        again = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGTERM if launch_ended else signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = former


def _guarded(program: str, run: Callable[[], int | None]) -> int:
    set_up_terminal()
    try:
        try:
            with _no_interrupt_is_lost():
                status = run() or 0
            processes.end()
            return status
        finally:  # also after a SystemExit of the parser of options
            with naming("standard output"):
                sys.stdout.flush()
    except MindError as error:
        if isinstance(error, MissingError):
            error.add_note(f"`{command_line('doctor')}` shows what else is missing here")
        _complain(program, f"error: {error}", error)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        _complain(program, "interrupted", error)
        return INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        if processes.lost(error):
            _complain(program, f"error: {LOST} ({one_line(str(error), 120)})", error)
            return BAD_INPUT
        if not lacks_memory(error):
            _leave_to_first()
            raise
        reason = one_line(str(error), 200) or type(error).__name__  # Python's own error mostly says nothing
        _complain(program, f"error: there is not enough memory: {reason}", error)
        return BAD_INPUT
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stop_writing():
            return NOT_READ
        _complain(program, f"error: {described(error)}", error)
        return BAD_INPUT
    except Exception:
        _leave_to_first()
        raise


def _leave_to_first() -> None:
    """Lets the first failing process show its traceback: it is shown once even for a bug."""
    if not ending():
        raise SystemExit(1)


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out: Python's own, or PyTorch's, which mostly have no class of their
    own."""
    said = re.search("out of memory|can(no|')t allocate memory|alloc_failed", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said is not None)


def described(error: OSError) -> str:
    """The file, and the system's message about it."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return ": ".join([*dict.fromkeys(names), error.strerror or str(error) or type(error).__name__])


def _complain(program: str, message: str, error: BaseException) -> None:
    """Prints `message` with the notes of its error; if standard error is full or unread, only the exit status tells of
    it."""
    with suppress(OSError):
        if ending():
            complain(program, "; ".join([message, *getattr(error, "__notes__", ())]))
    _drop_unwritable()


def _stop_writing() -> bool:
    """Discards output that is still unwritten if standard output or error is a pipe without a reader.

    Returns whether one is: other broken pipes are errors.
    """
    pipes = {stream.fileno() for stream in (sys.stdout, sys.stderr)}
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe, select.POLLOUT)
    unread = [pipe for pipe, event in poll.poll(0) if event & select.POLLERR]
    for pipe in unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)
    return bool(unread)


def _drop_unwritable() -> None:
    """Discards output that a full disk did not take: otherwise Python would try again at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

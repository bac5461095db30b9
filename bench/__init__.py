"""The benchmarks: python -m bench.NAME."""

import signal
import sys

if sys.argv[:1] == ["-m"]:  # one is being started; `bench.command.program` takes over when PyTorch is loaded
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until then Ctrl-C ends it without a traceback

"""Runs the command line: `python -m mind` is the same as `mind`."""

import sys

from mind.cli import main

sys.exit(main())

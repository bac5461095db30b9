"""`python -m mind` is the command line."""

import sys

from mind.cli import main

sys.exit(main())

"""`make chaos`: each long command is killed and fed with faults, started again, and compared with one left in peace."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if (helpers := str(ROOT / "tests" / "mind")) not in sys.path:  # the tiny student, the small runs
    sys.path.append(helpers)

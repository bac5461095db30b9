"""The code blocks of CONTRIBUTING.md, as the files that it says to write."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def example(test: str, folder: Path) -> types.ModuleType:
    """The module that the code block behind the comment "`test` runs this" makes, written into `folder`."""
    found = re.search(rf"<!-- {re.escape(test)} runs this -->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found, f"{GUIDE.name} has no example for {test}"
    file = folder / f"{Path(test).stem}_example.py"
    file.write_text(found[1])
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""The code blocks of the pages, which tests run."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "tutorials" / "add-a-method.md"


def block(page: Path, test: str) -> str:
    """The code block of a page behind the comment "`test` runs this"."""
    found = re.search(rf"<!-- {re.escape(test)} runs this -->\n```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert found, f"{page.relative_to(ROOT)} has no example for {test}"
    return found[1]


def example(test: str, folder: Path) -> types.ModuleType:
    """The module that the guide's code block makes, as the file that it says to write, in `folder`."""
    file = folder / f"{Path(test).stem}_example.py"
    file.write_text(block(GUIDE, test))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

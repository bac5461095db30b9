"""Python runs this when a process begins: it loads the changed module instead of the one that is installed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

NAME, PATH, CHANGED = os.environ["MUTANT"].split(os.pathsep)


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        return compile(Path(CHANGED).read_text(), PATH, "exec")


class Finder:
    @staticmethod
    def find_spec(fullname, *_):
        if fullname != NAME:
            return None
        return importlib.util.spec_from_file_location(NAME, PATH, loader=Loader(NAME, PATH))


sys.meta_path.insert(0, Finder)

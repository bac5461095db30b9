"""The site's configuration: `make docs` builds it from the Markdown pages of this folder into build/docs.

The pages read the same on a code host, so they link to one another, to the READMEs of packages and to sources by
relative paths. links.py turns those that leave this folder into links of the site.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # the API page imports what TRL calls experimental
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # the pages' own helpers, and the packages without an installation

import docstrings  # noqa: E402
import links  # noqa: E402

from mind_kernels import __version__  # noqa: E402

project = "MIND Kernels"
author = "The authors of MIND Kernels"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
highlight_language = "none"  # most blocks are equations and commands; Python says that it is Python
# Public names have to resolve. Others stand in annotations: modules within the packages, which have no page, and those
# of PyTorch, whose inventory would need the network.
nitpick_ignore_regex = [("py:.*", r"(?!mind(_kernels)?\.\w+$).*")]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
napoleon_custom_sections = ["Source"]

html_theme = "furo"
html_title = f"MIND Kernels {release}"
html_static_path: list[str] = []
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def setup(app):
    links.setup(app)
    docstrings.setup(app)

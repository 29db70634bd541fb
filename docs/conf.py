"""How `make docs` builds the site from the Markdown of this folder. Nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "fewstep"
author = "the authors of fewstep"
release = re.findall(r'__version__ = "([^"]+)"', (ROOT / "fewstep" / "__init__.py").read_text())[0]

extensions = ["myst_parser"]
exclude_patterns = ["notebooks", "results"]
nitpicky = True

# Headings are anchors by GitHub's rule, so that a link works in both places.
myst_heading_anchors = 4

# Two dashes begin an option.
smartquotes = False

html_theme = "furo"
html_title = f"fewstep {release}"
html_copy_source = False

# SPDX-License-Identifier: BSD-3-Clause
"""What `make docs` adds to MkDocs: pages from the repository's root, and links in docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

import linreg_ext

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")}}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(text: str, **_: Any) -> str:
    """Links between docs/ and the root, as the pages lie in the site."""
    return text.replace("](../README.md", "](index.md").replace("](../", "](").replace("](docs/", "](")


class Docstrings(griffe.Extension):
    """Prepares docstrings for mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """The docstring with links and examples as mkdocstrings reads them."""
    text = re.sub(r"(?<!`)`(\w+)`(?!`)", lambda found: _reference(found[1]), text)
    # The text before a colon is not a type, and the asterisk of a shape does not begin emphasis.
    text = re.sub(r"^Returns:\n(?:    .*\n)+", lambda found: found[0].replace(": ", "&#58; "), text, flags=re.MULTILINE)
    return re.sub(r"^Example:$", "Examples:", text.replace("[*", "[\\*"), flags=re.MULTILINE)


def _reference(name: str) -> str:
    return f"[`{name}`][linreg_ext.{name}]" if name in linreg_ext.__all__ else f"`{name}`"

# SPDX-License-Identifier: BSD-3-Clause
"""What `make docs` adds to MkDocs: pages from the repository's root, and docstrings as Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
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
    """Turns what the docstrings take from reStructuredText into Markdown, and LaTeX into MathML."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """The docstring with formulas, references and examples as mkdocstrings reads them."""
    text = re.sub(r"\.\. math::\n((?:\n|[ ]+.*\n?)+)", lambda found: f"{_formula(found[1], 'block')}\n\n", text)
    text = re.sub(r":math:`([^`]*)`", lambda found: _formula(found[1], "inline"), text)
    text = re.sub(r":(?:func|class|meth|mod):`([^`]*)`", lambda found: _reference(found[1]), text)
    # The text before a colon is not a type, and the asterisk of a shape does not begin emphasis.
    text = re.sub(r"^Returns:\n(?:    .*\n)+", lambda found: found[0].replace(": ", "&#58; "), text, flags=re.MULTILINE)
    return re.sub(r"^Example:$", "Examples:", text.replace("[*", "[\\*"), flags=re.MULTILINE)


def _formula(latex: str, display: str) -> str:
    return convert(" ".join(latex.replace(r"\_", "_").split()), display=display)


def _reference(name: str) -> str:
    public = name.partition(".")[0] in linreg_ext.__all__
    return f"[`{name}`][linreg_ext.{name}]" if public else f"`{name}`"

"""Hooks of MkDocs: formulas become MathML, which browsers draw without a script, and the title shows the version.

Pages write formulas as ``$...$`` and ``$$...$$``, docstrings as ``:math:`...` `` and ``.. math::``. The extension
pymdownx.arithmatex keeps Markdown from reading them, and latex2mathml translates them once the page is HTML.
"""

from __future__ import annotations

import html
import re
import textwrap
from importlib.metadata import version

from latex2mathml import converter
from markdown import Extension
from markdown.preprocessors import Preprocessor
from mkdocs.exceptions import PluginError

_ROLE = re.compile(r":math:`([^`]+)`")
_DIRECTIVE = re.compile(r"^( *)\.\. math::((?:.*\n)(?:\1 +\S.*\n)*)", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


class _Docstrings(Preprocessor):
    """Formulas of docstrings, rewritten as the pages write them."""

    def run(self, lines: list[str]) -> list[str]:
        text = _ROLE.sub(lambda found: f"${' '.join(found[1].split())}$", "\n".join(lines))
        return _DIRECTIVE.sub(_display, f"{text}\n").split("\n")


def _display(found: re.Match[str]) -> str:
    return textwrap.indent(f"\n$$\n{' '.join(found[2].split())}\n$$\n", found[1])


class _DocstringFormulas(Extension):
    def extendMarkdown(self, md) -> None:
        md.preprocessors.register(_Docstrings(md), "docstring formulas", 24)  # 25 takes fenced code out


def on_config(config):
    config.markdown_extensions.append(_DocstringFormulas())
    config.site_name += f" {version('nftk_jax')}"
    return config


def on_page_content(content: str, **_) -> str:
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    formula = html.unescape(found[2]).strip()
    mathml = converter.convert(formula, display=display)
    if ">\\" in mathml:
        raise PluginError(f"latex2mathml does not know a command of {formula}; use another")
    return mathml.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # \sim, which comes as a raised tilde

"""The documentation is true: its Python blocks run, page by page, and its links and navigation lead to files."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: pathlib.Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "docs" / "gallery").glob("*.py")), ids=lambda script: script.name)
def test_the_notebooks_of_the_gallery_run_and_draw_one_figure(script, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    pyplot.close("all")
    exec(compile(script.read_text(), script.name, "exec"), {})
    assert len(pyplot.get_fignums()) == 1
    pyplot.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_a_page_names_exist(page):
    for name in re.findall(r"`((?:tests|experiments|benchmarks|nftk_jax)/[\w/.]*)(?:::(\w+))?", page.read_text()):
        path, test = name
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), test


@pytest.fixture(scope="module")
def as_html():
    """Markdown as the site makes it; it needs what `make docs` installs."""
    for name in ("markdown", "mkdocs", "pymdownx", "latex2mathml"):
        pytest.importorskip(name)
    from markdown import Markdown

    names: dict = {"__name__": "hooks"}
    exec(compile((ROOT / "docs" / "hooks.py").read_text(), "hooks.py", "exec"), names)
    extensions = ["tables", "pymdownx.superfences", "pymdownx.arithmatex", names["_DocstringFormulas"]()]
    settings = {"pymdownx.arithmatex": {"generic": True}}
    return lambda text: names["on_page_content"](
        Markdown(extensions=extensions, extension_configs=settings).convert(text)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_formula_of_a_page_becomes_mathml(page, as_html):
    text = re.sub(r"```.*?```|`[^`]+`", "", page.read_text(), flags=re.DOTALL)
    formulas = text.count("$$") // 2 + text.replace("$$", "").count("$") // 2
    found = as_html(page.read_text())
    assert found.count("<math") == formulas
    assert "arithmatex" not in found
    assert "$" not in re.sub(r"<code.*?</code>", "", found, flags=re.DOTALL)


def test_the_formulas_of_docstrings_become_mathml(as_html):
    found = as_html("With :math:`a_i`:\n\n.. math:: x =\n    y\n\nand\n\n```\n:math:`b`\n```")
    assert found.count("<math") == 2
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"><mrow><mi>x</mi>' in found
    assert ":math:`b`" in found


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if f": {page.name}" not in navigation] == []


def test_the_tests_that_the_page_on_reliability_names_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 50
    for file, function in named:
        assert f"def {function}(" in (ROOT / file).read_text(), function

"""The documentation is true: its code runs, its settings and flags exist, and no public name is missing."""

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import Child
from shortened import quarter

from nni_sparsevd import cli, recipe
from nni_sparsevd.studies import reproduce

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import notebooks  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
COMMANDS = {"compress", "report", "check", "list-models", "zoo", "reproduce", "bench", "export", "measure", "predict"}
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLUMN = 80
"""Characters of a line of code that fit beside the menu and the table of contents."""


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """(line of its first line, text) of every fenced block in one of the languages; in all without one."""
    text = page.read_text()
    matches = [match for match in FENCE.finditer(text) if not languages or match[1] in languages]
    return [(text.count("\n", 0, match.start(2)) + 1, match[2]) for match in matches]


def name_of(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    for line, block in blocks(page, "python"):
        if page.name == "README.md":
            block = quarter(block)
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + block, str(page), "exec"), namespace)  # line numbers of the page
    if page.name == "README.md":
        ((_, shown),) = blocks(page, "text")
        assert without_numbers(printed.getvalue()) == without_numbers(shown)


def without_numbers(text: str) -> str:
    """`text` with every number replaced: another version of PyTorch prints other digits."""
    return re.sub(r"[ \d][+-]?[\d,]*(\.\d+)?(e-\d+)?", "#", re.sub(" +", " ", text))


def test_some_pages_have_code():
    assert len(blocks(ROOT / "README.md", "python")) >= 1
    assert sum(len(blocks(page, "python")) for page in PAGES) > 10


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_fits_into_its_column(page):
    for first, block in blocks(page):
        for number, line in enumerate(block.splitlines()):
            assert len(line) <= COLUMN, f"{page.name}:{first + number}: {len(line)} characters"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_notebooks_run(notebook, tmp_path, monkeypatch):
    """Each in one namespace, in order; what it prints is what it shows, up to numbers; the last cell is optional."""
    monkeypatch.chdir(tmp_path)
    content = notebooks.read(notebook)
    for cell in content["cells"]:
        cell["source"] = [quarter(line) for line in cell["source"]]
    printed = notebooks.run(content)
    shown = [notebooks.printed_by(cell) for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [without_numbers(text) for text in printed[:-1]] == [without_numbers(text) for text in shown[:-1]]
    assert bool(printed[-1]) == bool(shown[-1])


def test_notebooks_are_valid():
    assert len(NOTEBOOKS) == 4
    for path in NOTEBOOKS:
        content = notebooks.read(path)
        assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
        names = [cell["id"] for cell in content["cells"]]
        assert len(set(names)) == len(names)
        for cell in content["cells"]:
            expected = {"cell_type", "id", "metadata", "source"}
            expected |= {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
            assert set(cell) == expected
            width = COLUMN if cell["cell_type"] == "code" else 120
            assert all(len(line.rstrip("\n")) <= width for line in cell["source"]), path.name
        assert path.stat().st_size < 20_000


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_are_valid(page, tmp_path):
    for line, block in blocks(page, "toml"):
        path = tmp_path / f"{page.stem}_{line}.toml"
        path.write_text(block)
        recipe.read_recipe(path)


def options(command: str, capsys) -> set[str]:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return set(re.findall(r"--[a-z][\w.]*", capsys.readouterr().out))


def test_commands_are_those_of_the_program(capsys):
    """Every `nni-sparsevd ...` line in a shell block: the command, its flags, and the recipes that it names, exist."""
    seen = set()
    for page in PAGES:
        for _, block in blocks(page, "bash", "sh", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if "nni-sparsevd" not in words[:1]:
                    continue
                flags = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
                assert words[1] in COMMANDS, line
                assert flags <= options(words[1], capsys), f"{page.name}: {line}"
                seen.add(words[1])
    assert seen == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_page_of_the_program_names_every_option(command, capsys):
    """Settings of `compress` have a table of their own, which another test compares."""
    page = (ROOT / "docs" / "cli.md").read_text()
    own = {option for option in options(command, capsys) if "." not in option} - {"--help", "--print_config"}
    settings = {f"--{name}" for name in recipe.Recipe.model_fields}
    assert {option for option in own - settings if option not in page} == set()


def test_files_that_pages_name_exist():
    """Every path below examples/, docs/, tests/ and nni_sparsevd/ that a page names."""
    named = re.compile(r"(?<![\w./])(?:examples|docs|tests|nni_sparsevd)/[\w./-]*\w")
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *(ROOT / "examples").rglob("*.md")]:
        for path in named.findall(page.read_text()):
            assert "NAME" in path or (ROOT / path).exists(), f"{page.name}: {path}"


def test_pages_name_no_path_outside_the_repository():
    for page in PAGES:
        outside = re.findall(r"\.\./(?:shared|data)\S*", page.read_text())
        assert outside == [], page.name


@pytest.mark.parametrize("room", ["", "plugins/nni", "plugins/torch_pruning"])
def test_every_public_name_is_documented(room):
    front = ast.parse((ROOT / "nni_sparsevd" / room / "__init__.py").read_text())
    names = {
        alias.asname or alias.name for node in front.body if isinstance(node, ast.ImportFrom) for alias in node.names
    } - {"register", "register_apply_methods"}
    text = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    documented = set(re.findall(r"^::: nni_sparsevd\.(?:\w+\.)*(\w+)$", text, re.MULTILINE))
    assert len(names) >= 4
    assert names - documented == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_whole_and_asks_no_other_server(site):
    for name in [*(page.stem for page in PAGES[1:]), *(f"tutorial_{notebook.stem}" for notebook in NOTEBOOKS)]:
        text = (site / f"{name}.html").read_text()
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)\"", text)
        fetched += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]* href=\"([^\"]+)\"", text)
        fetched += re.findall(r"<link[^>]* href=\"([^\"]+)\"[^>]* rel=\"?(?:stylesheet|preconnect|icon)\"?", text)
        assert fetched
        assert [address for address in fetched if re.match(r"(https?:)?//", address)] == []
    assert not (site / "hooks.py").exists()
    assert not (site / "notebooks.py").exists()
    assert not (site / "tables").exists()


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    expected = [page.name for page in PAGES[1:]] + [f"tutorial_{notebook.stem}.md" for notebook in NOTEBOOKS]
    assert [name for name in expected if name not in menu] == []


def test_the_table_of_settings_holds_them_all():
    text = (ROOT / "docs" / "cli.md").read_text()
    for part, field in recipe.Recipe.model_fields.items():
        keys = getattr(field.annotation, "model_fields", None)
        for key in [part] if keys is None else [f"{part}.{inner}" for inner in keys]:
            assert f"`{key}`" in text, key


def check_tables(path: Path) -> int:
    """Compare the pages with their tables, and write the tables' names to a file; in a process of its own."""
    sys.path.insert(0, str(ROOT / "docs" / "tables"))
    import write

    path.write_text(" ".join(write.TABLES))
    sys.argv = ["write.py", "--check"]
    return write.main()


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> tuple[int, str, set[str]]:
    """The exit code of the check, what it printed, and the tables that there are."""
    path = tmp_path_factory.mktemp("tables") / "names.txt"
    code, output = Child(check_tables, path).wait()
    return code, output, set(path.read_text().split())


def test_generated_parts_are_what_their_sources_say(tables):
    code, output, _ = tables
    assert code == 0, output


def test_no_marker_is_unknown(tables):
    """A marker that no table has would show as an empty place."""
    _, _, known = tables
    assert len(known) > 10
    for page in PAGES:
        text = page.read_text()
        names = re.findall(r"^<!-- table: (\w+) -->$", text, re.MULTILINE)
        assert re.findall(r"^<!-- end: (\w+) -->$", text, re.MULTILINE) == names
        assert set(names) <= known, page.name


def test_published_rows_are_written_once():
    """Papers are named in the recipes of the experiments; a script that makes tables repeats none of their numbers."""
    rows = {
        paper.units
        for name in reproduce.list_experiments()
        for variant in reproduce.read_experiment(name).variants.values()
        for paper in variant.published
        if paper.units
    }
    scripts = "\n".join(path.read_text() for path in (ROOT / "docs" / "tables").glob("*.py"))
    scripts = re.sub(r"(?<=\d)-(?=\d)", " - ", scripts)
    assert len(rows) > 5
    assert [row for row in rows if row in scripts] == []


def test_the_tables_of_nni_hold_every_setting_and_every_repair():
    from nni_sparsevd.plugins.nni import SparseVDSettings
    from nni_sparsevd.plugins.nni.compatibility import REPAIRS

    text = (ROOT / "docs" / "nni.md").read_text()
    for name in [*SparseVDSettings.model_fields, *REPAIRS]:
        assert f"`{name}`" in text or f"**{name}**" in text, name


def test_the_first_page_is_the_readme(site):
    title = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("# "))
    assert title.removeprefix("# ").strip("`") in (site / "index.html").read_text()


def test_the_readme_is_short_and_its_picture_small():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 125
    assert (ROOT / "docs" / "pictures" / "before_after.png").stat().st_size < 150_000

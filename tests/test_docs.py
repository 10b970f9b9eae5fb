"""The documentation is true: its code runs, its settings and flags exist, and no public name is missing."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nni_sparsevd import cli, recipe
from nni_sparsevd.studies import reproduce

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {"compress", "report", "check", "list-models", "zoo", "reproduce", "bench", "export"}
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """(line of its first line, text) of every fenced block in one of the languages."""
    text = page.read_text()
    found = [match for match in FENCE.finditer(text) if match[1] in languages]
    return [(text.count("\n", 0, match.start(2)) + 1, match[2]) for match in found]


def named(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, block in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + block, str(page), "exec"), namespace)  # line numbers of the page


def test_some_pages_have_code():
    assert len(blocks(ROOT / "README.md", "python")) >= 1
    assert sum(len(blocks(page, "python")) for page in PAGES) > 10


@pytest.mark.parametrize("page", PAGES, ids=named)
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
                assert all((ROOT / word).exists() for word in words if word.startswith("examples/")), line
                seen.add(words[1])
    assert seen == COMMANDS


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
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_whole_and_asks_no_other_server(site):
    for page in PAGES[1:]:
        text = (site / page.with_suffix(".html").name).read_text()
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)\"", text)
        fetched += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]* href=\"([^\"]+)\"", text)
        fetched += re.findall(r"<link[^>]* href=\"([^\"]+)\"[^>]* rel=\"?(?:stylesheet|preconnect|icon)\"?", text)
        assert fetched
        assert [address for address in fetched if re.match(r"(https?:)?//", address)] == []
    assert not (site / "hooks.py").exists()


def test_the_table_of_settings_holds_them_all(site):
    text = (site / "cli.html").read_text()
    for part, field in recipe.Recipe.model_fields.items():
        keys = getattr(field.annotation, "model_fields", None)
        for key in [part] if keys is None else [f"{part}.{inner}" for inner in keys]:
            assert f"<code>{key}</code>" in text, key


def test_tables_are_those_of_the_results():
    script = [sys.executable, str(ROOT / "docs" / "tables" / "write.py"), "--check"]
    assert subprocess.run(script).returncode == 0


def test_published_rows_are_written_once():
    """Papers are named in the recipes of the experiments, and in no script that makes tables."""
    papers = {
        paper.method
        for name in reproduce.list_experiments()
        for variant in reproduce.read_experiment(name).variants.values()
        for paper in variant.published
    }
    scripts = "\n".join(path.read_text() for path in (ROOT / "docs" / "tables").glob("*.py"))
    assert len(papers) > 5
    assert [paper for paper in papers if paper in scripts] == []


def test_the_tables_of_nni_hold_every_setting_and_every_repair(site):
    from nni_sparsevd.plugins.nni import SparseVDSettings
    from nni_sparsevd.plugins.nni.compatibility import REPAIRS

    text = (site / "nni.html").read_text()
    for name in [*SparseVDSettings.model_fields, *REPAIRS]:
        assert f"<code>{name}</code>" in text or f"<strong>{name}</strong>" in text, name


def test_the_first_page_is_the_readme(site):
    title = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("# "))
    assert title.removeprefix("# ").strip("`") in (site / "index.html").read_text()

"""Every name of the front door says what it takes, returns and raises, and shows an example that runs."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import nni_sparsevd as svd
from nni_sparsevd import testing

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_EXECUTED = {"push"}  # it talks to a server
RAISES_NOTHING = {"draw_like", "randomize_", "settle_"}


def front_door() -> dict[str, object]:
    """Name -> object, for every name that `nni_sparsevd` and `nni_sparsevd.testing` export."""
    tree = ast.parse((ROOT / "nni_sparsevd" / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or alias.name for node in imports for alias in node.names]
    exported = {name: getattr(svd, name) for name in names}
    return exported | {name: getattr(testing, name) for name in testing.__all__}


NAMES = front_door()
FUNCTIONS = sorted(name for name, value in NAMES.items() if inspect.isfunction(value))


def docstring(name: str) -> str:
    """The docstring of a name; of a type alias, the one that stands below it."""
    value = NAMES[name]
    if inspect.isclass(value) or inspect.isfunction(value):
        return inspect.getdoc(value) or ""
    for file in (ROOT / "nni_sparsevd").rglob("*.py"):
        body = ast.parse(file.read_text()).body
        for node, after in pairwise(body):
            is_alias = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name
            if is_alias and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
    return ""


def sections(text: str) -> dict[str, str]:
    """Name of a section -> its text."""
    parts = re.split(r"^(Args|Returns|Yields|Raises|Example):\n((?:(?:    .*)?\n)*)", text + "\n", flags=re.MULTILINE)
    return {name: textwrap.dedent(body) for name, body in zip(parts[1::3], parts[2::3], strict=True)}


def examples(name: str) -> list[str]:
    text = sections(docstring(name)).get("Example", "")
    return [match[1] for match in FENCE.finditer(text)]


def test_the_front_door_is_whole() -> None:
    assert len(NAMES) >= 30
    assert {"sparsify_", "kl", "bake_", "Masks", "Plan", "SparseVDError", "assert_shrinks_exactly"} <= set(NAMES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_described(name: str) -> None:
    function: Callable[..., object] = NAMES[name]  # type: ignore[assignment]
    arguments = list(inspect.signature(function).parameters)
    text = sections(docstring(name)).get("Args", "")
    described = re.findall(r"^\*{0,2}(\w+)[^\n:]*:", text, re.MULTILINE)
    assert described == arguments


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_returned_is_described(name: str) -> None:
    returns = inspect.signature(NAMES[name]).return_annotation  # type: ignore[arg-type]
    assert ("Returns" in sections(docstring(name))) == (returns is not None)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - RAISES_NOTHING))
def test_what_is_raised_is_described(name: str) -> None:
    assert re.match(r"\w+: ", sections(docstring(name)).get("Raises", ""))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(testing.__all__)))
def test_every_name_has_an_example(name: str) -> None:
    assert len(examples(name)) == 1


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_EXECUTED))
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in examples(name):
        torch.manual_seed(0)
        exec(compile(example, f"<example of {name}>", "exec"), {"__name__": "__main__"})

"""The rules of CONTRIBUTING.md that a machine can check, beside those that ruff checks."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 60
"""Lines of a function, its docstring included."""
FILES = sorted(
    path for folder in ("nni_sparsevd", "tests", "examples", "docs") for path in (ROOT / folder).rglob("*.py")
)
DATA = (ast.Dict, ast.List, ast.Tuple, ast.Set)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_functions_fit_on_a_page():
    long = []
    for path in FILES:
        for function in functions(ast.parse(path.read_text())):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > LONGEST:
                long.append(f"{named(path)}:{function.lineno} {function.name}: {lines} lines")
    assert long == []


def test_no_function_has_the_name_of_its_module():
    """Else `import package.name` would give the one or the other, by what was imported before."""
    same = []
    for path in FILES:
        stem = path.parent.name if path.name == "__init__.py" else path.stem
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.strip("_") == stem:
                same.append(f"{named(path)}:{node.lineno}")
    assert same == []


def conditions(comprehension: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> int:
    """How many conditions a comprehension has; those that `and` or `or` joins are counted each."""
    tests = [test for part in comprehension.generators for test in part.ifs]
    return sum(len(test.values) if isinstance(test, ast.BoolOp) else 1 for test in tests)


def test_no_comprehension_has_two_conditions_and_a_call():
    hard_to_read = []
    for path in sorted((ROOT / "nni_sparsevd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                continue
            values = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            calls = any(isinstance(inner, ast.Call) for value in values for inner in ast.walk(value))
            if calls and conditions(node) > 1:
                hard_to_read.append(f"{named(path)}:{node.lineno}")
    assert hard_to_read == []


def unformatted_lines(path: Path) -> list[int]:
    """Lines that the formatter is told to leave alone."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return [
        token.start[0]
        for token in tokens
        if token.type == tokenize.COMMENT and re.search(r"fmt: ?(skip|off)", token.string)
    ]


def is_data_table(statement: ast.stmt) -> bool:
    """Whether a statement names a table of data, or is a test with a table of parameters."""
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return isinstance(statement.value, DATA)
    decorators = statement.decorator_list if isinstance(statement, ast.FunctionDef) else []
    return any(isinstance(decorator, ast.Call) for decorator in decorators)


@pytest.mark.parametrize("path", [path for path in FILES if unformatted_lines(path)], ids=named)
def test_only_data_tables_are_laid_out_by_hand(path):
    tree = ast.parse(path.read_text())
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    for line in unformatted_lines(path):
        around = [node for node in statements if first_line(node) <= line <= (node.end_lineno or node.lineno)]
        innermost = max(around, key=first_line)
        assert is_data_table(innermost), f"{named(path)}:{line} is no data table"


def first_line(node: ast.stmt) -> int:
    """Decorators included."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])

"""`bench`: play a league, then one JSON file, one page in Markdown and HTML, and its pictures."""

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...files import read_json, write_bytes, write_json
from ...training.environment import describe_environment
from ..processes import Limits
from .league import League, read_league
from .pictures import draw_all
from .rivals import rivals_of
from .running import chosen_rates, protocol, restore, run_trials
from .standing import Row, Standing, standings
from .tables import champions, failures, fronts, table

BEST = "Test error in percent of each framework's best at a level, chosen on held-out images:"
ALL = "Everyone:"


def run_league(
    name: str,
    data: Path,
    out: Path,
    command: list[str],
    at_once: int,
    limits: Limits,
    rivals: tuple[str, ...] = (),
    known: Path | None = None,
) -> Path:
    """Play what is missing of the league `name` below `out`, with `rivals` or everyone; returns the page.

    `data` holds the data sets (MNIST/raw, cifar10/*.tar).  Rows of the results file `known` are not played again.
    Raises `SettingError` for names that nobody has, and for results of another protocol.
    """
    chosen = read_league(name)
    if rivals:
        chosen = chosen.model_copy(update={"rivals": rivals})
    rivals_of(chosen)  # before anything is trained
    folder = out / name
    if known is not None:
        restore(chosen, known, folder)
    rows = run_trials(chosen, data, folder, at_once, limits)
    results = {
        "league": name,
        "protocol": protocol(chosen),
        "environment": describe_environment(command, 0),
        "rows": rows,
    }
    write_json(folder / f"{name}.json", results)
    return write_page(name, folder / f"{name}.json", folder)


def format_standings(chosen: League, rows: list[Row]) -> list[str]:
    """Lines of the table of whoever has rows, in Markdown, with the notes below it."""
    played, found = _played(chosen, rows)
    return [*table(played, found), "", *fronts(played, found), *failures(found)]


def format_champions(chosen: League, rows: list[Row]) -> list[str]:
    """Lines of the table of each framework's best at a level, in Markdown."""
    return champions(*_played(chosen, rows))


def _played(everyone: League, rows: list[Row]) -> tuple[League, list[Standing]]:
    """The league with those who have rows alone, and how they stand."""
    there = {row["rival"] for row in rows}
    chosen = everyone.model_copy(update={"rivals": tuple(one for one in rivals_of(everyone) if one in there)})
    return chosen, standings(chosen, rows, chosen_rates(chosen, rows))


def write_page(name: str, results: Path, folder: Path) -> Path:
    """Draw the page of a league from its JSON file alone; shows whoever has rows there."""
    values = read_json(results)
    chosen, found = _played(read_league(name), values["rows"])
    pictures = draw_all(chosen, found, folder, name)
    notes, best, rows = [*fronts(chosen, found), *failures(found)], champions(chosen, found), table(chosen, found)
    lines = [f"# {chosen.title}", "", chosen.about.strip(), "", BEST, "", *best, "", ALL, "", *rows, "",
             *notes, "", *(f"![{chosen.title}]({picture.name})" for picture in pictures), ""]  # fmt: skip
    write_bytes(folder / f"{name}.md", "\n".join(lines).encode())
    made = Environment(
        loader=PackageLoader("nni_sparsevd", "studies/bench"), undefined=StrictUndefined, autoescape=True
    )
    page = made.get_template("page.html.jinja").render(
        title=chosen.title, about=chosen.about, tables=[(BEST, _cells(best)), (ALL, _cells(rows))], notes=notes,
        pictures=[base64.b64encode(picture.read_bytes()).decode() for picture in pictures],
        environment=values["environment"],
    )  # fmt: skip
    write_bytes(folder / f"{name}.html", page.encode())
    return folder / f"{name}.html"


def _cells(rows: list[str]) -> list[list[str]]:
    """Of a table in Markdown: its head and its rows, without the line between them."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [cells[0], *cells[2:]]

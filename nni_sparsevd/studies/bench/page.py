"""`bench`: run a league, then write one JSON file, one page in Markdown and HTML, and its pictures."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...files import read_json, write_bytes, write_json
from ...training import describe_environment
from ..processes import Limits, check_seeds
from .league import League, read_league
from .paired_tables import format_paired_champions_table, format_paired_table
from .pictures import draw_all
from .rivals import rivals_of
from .running import choose_rates, protocol_of, restore_rows, run_trials
from .standing import Row, Standing, compute_standings
from .tables import format_champions_table, format_failures, format_fronts, format_level_table, format_table

BEST = "Test error in percent of each framework's best at a level, chosen on held-out images; in bold who is first:"
BEST_PAIRED = "Their paired differences to the lowest error of a level, in points ± standard error:"
ALL = "Everyone:"
ALL_PAIRED = "The paired differences of everyone to the lowest error of a level:"
CRITERION = (
    "A paired difference is a mean over the seeds that both rivals have. A rival is behind where its difference to the "
    "lowest error is larger than two standard errors, and first where all others are behind; otherwise it is level: "
    "the seeds do not tell which one is better. This is a weak criterion. Of pairs of equals, three in ten differ by "
    "as much over two seeds, and one in five over three. One seed decides nothing."
)


def run_league(
    name: str,
    data: Path,
    out: Path,
    command: list[str],
    at_once: int,
    limits: Limits,
    rivals: tuple[str, ...] = (),
    known: Path | None = None,
    seeds: tuple[int, ...] | None = None,
) -> Path:
    """Run what is missing of a league, and make its page anew.

    Args:
        name: Name of the league, one of `list_leagues`.
        data: Folder of the data sets: `MNIST/raw`, `cifar10/*.tar`.
        out: Folder in which the league has a folder of its own name.
        command: The command line, for the record.
        at_once: Number of trials that run at the same time.
        limits: What each trial may take.
        rivals: Names of the rivals that take part; empty for those of the league.
        known: Results file of an earlier call, whose rows are not run again.
        seeds: Seeds that are run, any whole numbers from 0; None for those of the league.

    Returns:
        The path of the HTML page.

    Raises:
        SettingError: The league or a rival is unknown, there is no seed or a negative one, or `known` or the folder is
            of another protocol.
        TrainingError: A dense start could not be trained, or another process of a torchrun has ended.
        FileFormatError: A file cannot be read or written.
    """
    league = read_league(name)
    if rivals:
        league = league.model_copy(update={"rivals": rivals})
    rivals_of(league)  # unknown names are refused before anything is trained
    if seeds is not None:
        check_seeds(seeds)
        seeds = tuple(dict.fromkeys(seeds))
    folder = out / name
    if known is not None:
        restore_rows(league, known, folder)
    rows = run_trials(league, data, folder, at_once, limits, seeds)
    results = {
        "league": name,
        "protocol": protocol_of(league),
        "environment": describe_environment(command, 0),
        "rows": rows,
    }
    write_json(folder / f"{name}.json", results)
    return write_page(name, folder / f"{name}.json", folder)


def format_standings(league: League, rows: list[Row]) -> list[str]:
    """The table of all rivals that have rows, with the notes below it, as lines of Markdown.

    Args:
        league: The protocol.
        rows: Rows of a results file.
    """
    league, standings = _rank_present_rivals(league, rows)
    tables = [*format_table(league, standings), "", ALL_PAIRED, "", *format_paired_table(league, standings)]
    return [*tables, "", *_format_notes(league, standings)]


def format_champions(league: League, rows: list[Row]) -> list[str]:
    """The table of each framework's best rival at a level, as lines of Markdown.

    Args:
        league: The protocol.
        rows: Rows of a results file.
    """
    return format_champions_table(*_rank_present_rivals(league, rows))


def format_paired_champions(league: League, rows: list[Row]) -> list[str]:
    """The table of the paired differences between each framework's best rivals at a level, as lines of Markdown.

    Args:
        league: The protocol.
        rows: Rows of a results file.
    """
    return format_paired_champions_table(*_rank_present_rivals(league, rows))


def format_level(league: League, rows: list[Row], level: float) -> list[str]:
    """The table of what every rival reached at one level, and what it cost, as lines of Markdown.

    Args:
        league: The protocol; its rivals lose whole channels.
        rows: Rows of a results file.
        level: One of the levels.
    """
    league, standings = _rank_present_rivals(league, rows)
    return format_level_table(league, standings, level)


def write_page(name: str, results: Path, folder: Path) -> Path:
    """Write the page of a league in Markdown and HTML, with its pictures, from its results file alone.

    Args:
        name: Name of the league.
        results: JSON file that `run_league` wrote; the page shows the rivals that have rows in it.
        folder: Where page and pictures go.

    Returns:
        The path of the HTML page.

    Raises:
        SettingError: The league is unknown.
        FileFormatError: The results cannot be read.
    """
    values = read_json(results)
    league, standings = _rank_present_rivals(read_league(name), values["rows"])
    pictures = draw_all(league, standings, folder, name)
    tables = {
        BEST: format_champions_table(league, standings),
        BEST_PAIRED: format_paired_champions_table(league, standings),
        ALL: format_table(league, standings),
        ALL_PAIRED: format_paired_table(league, standings),
    }
    if league.kind == "channels":
        for level in league.levels:
            heading = f"At {league.format_level(level)} {league.scale}:"
            tables[heading] = format_level_table(league, standings, level)
    notes = [f"- {CRITERION}", *_format_notes(league, standings)]
    markdown = _render_markdown(league, tables, notes, pictures)
    write_bytes(folder / f"{name}.md", markdown.encode())
    page = folder / f"{name}.html"
    write_bytes(page, _render_html(league, tables, notes, pictures, values["environment"]).encode())
    return page


def _rank_present_rivals(league: League, rows: list[Row]) -> tuple[League, list[Standing]]:
    """The league with no other rivals than those that have rows, and their standings."""
    present = {row["rival"] for row in rows}
    league = league.model_copy(update={"rivals": tuple(name for name in rivals_of(league) if name in present)})
    return league, compute_standings(league, rows, choose_rates(league, rows))


def _format_notes(league: League, standings: list[Standing]) -> list[str]:
    return [*format_fronts(league, standings), *format_failures(standings)]


def _render_markdown(league: League, tables: dict[str, list[str]], notes: list[str], pictures: list[Path]) -> str:
    lines = [f"# {league.title}", "", league.about.strip(), ""]
    for heading, table in tables.items():
        lines += [heading, "", *table, ""]
    lines += [*notes, ""]
    lines += [f"![{league.title}]({picture.name})" for picture in pictures]
    return "\n".join([*lines, ""])


def _render_html(
    league: League,
    tables: dict[str, list[str]],
    notes: list[str],
    pictures: list[Path],
    environment: dict[str, Any],
) -> str:
    """The page as one HTML file, with the pictures inside, so that it can be sent and opened anywhere."""
    templates = Environment(
        loader=PackageLoader("nni_sparsevd", "studies/bench"), undefined=StrictUndefined, autoescape=True
    )
    return templates.get_template("page.html.jinja").render(
        title=league.title,
        about=league.about,
        tables=[(heading, _split_cells(table)) for heading, table in tables.items()],
        notes=notes,
        pictures=[base64.b64encode(picture.read_bytes()).decode() for picture in pictures],
        environment=environment,
    )


def _split_cells(table: list[str]) -> list[list[str]]:
    """The cells of a Markdown table: its head and its rows, without the line between them."""
    head, _, *rows = table
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]

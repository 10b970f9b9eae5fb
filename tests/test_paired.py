"""Paired differences of a league: laws, an independent reference, and what the page says of them."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nni_sparsevd.studies.bench import (
    format_champions,
    format_level,
    format_paired_champions,
    read_league,
    write_page,
)
from nni_sparsevd.studies.bench.paired import STANDARD_ERRORS, compare_rivals, compute_difference
from nni_sparsevd.studies.bench.running import choose_rates
from nni_sparsevd.studies.bench.standing import Row, Standing, compute_standings

RESULTS = sorted((Path(__file__).parents[1] / "docs" / "results").glob("bench_*.json"))
LEVEL = 0.95

Errors = dict[int, float]
"""Seed -> test error in percent."""

wrong = st.integers(0, 10_000)
"""Images of 10,000 that a network has wrong."""
several_seeds = st.dictionaries(st.integers(0, 5), wrong, min_size=2, max_size=6)


def percent(wrong: Mapping[int, int]) -> Errors:
    """Test errors as a trial computes them, with their rounding."""
    return {seed: 100 * (1 - (1 - count / 10_000)) for seed, count in wrong.items()}


def standing(name: str, errors: Errors) -> Standing:
    return Standing(name, name, "ours", 1e-3, {LEVEL: [{"seed": seed, "error": errors[seed]} for seed in errors]}, "")


def verdicts(**errors: Errors) -> dict[str, str]:
    return dict(compare_rivals([standing(name, own) for name, own in errors.items()], LEVEL).verdicts)


def seeds(*errors: float) -> Errors:
    return dict(enumerate(errors))


# The difference of two rivals.


@given(several_seeds)
def test_the_difference_to_itself_is_zero(wrong: dict[int, int]) -> None:
    difference = compute_difference(percent(wrong), percent(wrong))
    assert difference is not None and not difference.is_certain
    assert (difference.mean, difference.standard_error, difference.seeds) == (0, 0, len(wrong))


@given(several_seeds, several_seeds, st.permutations(range(6)), st.randoms())
def test_neither_the_order_of_seeds_nor_their_names_matter(first, second, names, random) -> None:
    def shuffled(errors: Errors) -> Errors:
        order = list(errors)
        random.shuffle(order)
        return {names[seed]: errors[seed] for seed in order}

    one, other = percent(first), percent(second)
    assert compute_difference(shuffled(one), shuffled(other)) == compute_difference(one, other)


@given(several_seeds, several_seeds)
def test_rivals_that_change_places_change_the_sign(first, second) -> None:
    there = compute_difference(percent(first), percent(second))
    back = compute_difference(percent(second), percent(first))
    if there is None or back is None:
        assert there is back is None and not first.keys() & second.keys()
        return
    assert (there.mean, there.standard_error, there.seeds) == (-back.mean, back.standard_error, back.seeds)
    assert not (there.is_certain and back.is_certain)


@given(several_seeds, several_seeds)
def test_mean_over_standard_error_is_the_statistic_of_the_paired_t_test(first, second) -> None:
    common = sorted(first.keys() & second.keys())
    counts = [first[seed] - second[seed] for seed in common]
    difference = compute_difference(percent(first), percent(second))
    if difference is None or len(set(counts)) < 2:
        return  # the reference has no statistic without a spread
    one, other = percent(first), percent(second)
    reference = stats.ttest_rel([one[seed] for seed in common], [other[seed] for seed in common])
    assert difference.standard_error is not None
    assert difference.mean / difference.standard_error == pytest.approx(reference.statistic, rel=1e-6, abs=1e-9)
    # In whole images the criterion is exact: mean > 2 * deviation / sqrt(n).
    count, total, squares = len(counts), sum(counts), sum(value**2 for value in counts)
    assert difference.is_certain == (total > 0 and total**2 * (count - 1) > 4 * (count * squares - total**2))


def test_a_known_standard_error() -> None:
    difference = compute_difference(seeds(1.1, 2.2, 3.3, 99.0), seeds(1.0, 2.0, 3.0))
    assert difference is not None and difference.seeds == 3 and difference.is_certain
    assert difference.mean == pytest.approx(0.2)
    assert difference.standard_error == pytest.approx(0.1 / math.sqrt(3))


def test_on_the_border_rounding_decides_nothing() -> None:
    """Differences of 1, 1 and 4 images have a mean of two standard errors exactly: not more than that."""
    for start in range(0, 3000, 7):
        low = percent({0: start, 1: start + 3, 2: start + 11})
        high = percent({0: start + 1, 1: start + 4, 2: start + 15})
        assert verdicts(low=low, high=high) == {"low": "level", "high": "level"}


@pytest.mark.parametrize(("count", "pairs_in_ten"), [(2, 3), (3, 2)])
def test_the_criterion_is_as_weak_as_the_page_says(count: int, pairs_in_ten: int) -> None:
    assert 2 * stats.t.sf(STANDARD_ERRORS, count - 1) == pytest.approx(pairs_in_ten / 10, abs=0.02)


# Verdicts at a level.


def test_what_a_seed_does_to_both_cancels() -> None:
    """Errors whose deviations are far larger than the difference."""
    assert verdicts(better=seeds(2.0, 4.0, 9.0), worse=seeds(2.1, 4.2, 9.1)) == {"better": "first", "worse": "behind"}


def test_who_is_level_with_another_is_not_first() -> None:
    assert verdicts(low=seeds(2.0, 2.2, 2.1), near=seeds(2.3, 2.0, 2.2), far=seeds(3.0, 3.1, 3.2)) == {
        "low": "level",
        "near": "level",
        "far": "behind",
    }


def test_twins_are_level() -> None:
    twins = seeds(2.0, 2.2, 2.1)
    assert verdicts(one=twins, other=dict(twins)) == {"one": "level", "other": "level"}


def test_one_seed_decides_nothing() -> None:
    assert verdicts(low={0: 1.0}, high={0: 99.0}) == {"low": "one seed", "high": "one seed"}
    # Three seeds of one rival cannot be paired with one seed of all others.
    assert verdicts(low=seeds(1.0, 1.0, 1.0), high={0: 99.0}) == {"low": "one seed", "high": "one seed"}


def test_a_rival_that_failed_at_some_seeds_takes_none_from_the_others() -> None:
    complete = {"low": seeds(2.0, 3.0, 4.0), "high": seeds(2.5, 3.6, 4.5)}
    with_others = verdicts(**complete, two={1: 9.0, 2: 9.5}, one={2: 9.0}, none={7: 9.0})
    assert with_others == {"low": "first", "high": "behind", "two": "fewer seeds", "one": "one seed"}


def test_nobody_is_first_while_another_is_lower_on_its_seeds() -> None:
    complete = {"low": seeds(2.0, 3.0, 4.0), "high": seeds(2.5, 3.6, 4.5)}
    assert verdicts(**complete, lower={2: 3.9}) == {"low": "level", "high": "behind", "lower": "one seed"}


def test_who_is_lowest_is_decided_on_the_seeds_that_all_have() -> None:
    """One rival has a fourth seed, an easy one, and would have the lower mean with it."""
    comparison = compare_rivals(
        [standing("more", {**seeds(3.0, 3.1, 3.2), 3: 0.0}), standing("fewer", seeds(2.0, 2.2, 2.1))], LEVEL
    )
    assert comparison.seeds == 3
    assert comparison.verdicts == {"more": "behind", "fewer": "first"}
    assert comparison.differences["fewer"].mean == 0 and comparison.differences["more"].seeds == 3


def test_all_are_compared_on_the_same_seeds() -> None:
    """Two rivals share a third seed, on which the third one did not run: it does not count for these two either."""
    rivals = {"low": seeds(2.0, 2.1, 9.0), "near": seeds(2.2, 2.5, 0.0), "other": {0: 3.0, 1: 3.3, 3: 2.0}}
    comparison = compare_rivals([standing(name, own) for name, own in rivals.items()], LEVEL)
    assert comparison.seeds == 2
    assert {difference.seeds for difference in comparison.differences.values()} == {2}
    assert comparison.differences["near"].mean == pytest.approx(0.3)


def test_rivals_without_company_are_not_first() -> None:
    assert verdicts(alone=seeds(1.0, 2.0)) == {"alone": "alone"}
    assert verdicts(even=seeds(1.0, 1.1), odd={5: 2.0, 6: 2.1}) == {}
    assert verdicts() == {}


@given(st.lists(st.lists(wrong, min_size=3, max_size=3), min_size=2, max_size=4), st.permutations(range(3)))
def test_the_order_of_seeds_and_rivals_changes_no_verdict(table: list[list[int]], order: list[int]) -> None:
    if len({sum(row) for row in table}) < len(table):
        return  # among equals the first of the list is the one that others are compared with
    rivals = {str(place): percent(seeds(*row)) for place, row in enumerate(table)}
    turned = {name: {seed: rivals[name][seed] for seed in order} for name in reversed(rivals)}
    assert verdicts(**turned) == verdicts(**rivals)
    assert list(verdicts(**rivals).values()).count("first") <= 1


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_published_verdicts_are_those_of_the_paired_t_test(path: Path) -> None:
    league, rows = read_league(path.stem.removeprefix("bench_")), json.loads(path.read_text())["rows"]
    standings = compute_standings(league, rows, choose_rates(league, rows))
    for level in league.levels:
        comparison = compare_rivals(standings, level)
        errors = {rival.name: {row["seed"]: row["error"] for row in rival.rows.get(level, [])} for rival in standings}
        complete = {name: own for name, own in errors.items() if len(own) == len(league.seeds)}
        lowest = min(complete, key=lambda name: sum(complete[name].values()))
        for name, own in complete.items():
            if len(league.seeds) == 1:
                assert comparison.verdicts[name] == "one seed"
            elif name != lowest:
                statistic = stats.ttest_rel(list_by_seed(own), list_by_seed(complete[lowest])).statistic
                assert comparison.verdicts[name] == ("behind" if statistic > STANDARD_ERRORS else "level"), name
        others = {comparison.verdicts[name] for name in complete if name != lowest}
        assert (comparison.verdicts[lowest] == "first") == (others == {"behind"})


def list_by_seed(errors: Errors) -> list[float]:
    return [errors[seed] for seed in sorted(errors)]


# The tables and the page.


def row(rival: str, level: float, seed: int, error: float) -> Row:
    return {
        "rival": rival,
        "level": level,
        "seed": seed,
        "error": error,
        "held_out": 0.9,
        "rate": 1e-3,
        "failed": "",
        "compression": 20.0,
        "dense_error": 1.0,
    }


ROWS = [
    *itertools.starmap(
        row,
        [
            *[("vd_weight", 0.8, 0, 1.0), ("magnitude", 0.8, 0, 5.0)],
            *[("vd_weight", 0.95, seed, error) for seed, error in enumerate((2.0, 4.0, 9.0))],
            *[("magnitude", 0.95, seed, error) for seed, error in enumerate((2.1, 4.2, 9.3))],
        ],
    )
]
"""One seed at the lower level of the league "digits", three at the higher one."""


def test_the_tables_say_who_is_first_and_where_one_seed_cannot() -> None:
    league = read_league("digits")
    assert format_paired_champions(league, ROWS) == [
        "|  | 80 % zeros | 95 % zeros |",
        "|---|--:|--:|",
        "| ours | 0, one seed | **first** |",
        "| torch | +4.00, one seed | +0.20 ± 0.06, behind |",
        "| seeds compared | 1 | 3 |",
    ]
    assert format_champions(league, ROWS)[2:] == [
        "| ours | 1.00, vd_weight | **5.00 ± 3.61**, vd_weight |",
        "| torch | 5.00, magnitude | 5.20 ± 3.70, magnitude |",
    ]


def test_the_page_has_the_verdicts_and_how_they_are_reached(tmp_path: Path) -> None:
    results = tmp_path / "digits.json"
    results.write_text(json.dumps({"rows": ROWS, "environment": {"command": [], "processor": "", "versions": {}}}))
    page = write_page("digits", results, tmp_path).read_text()
    for text in (page, (tmp_path / "digits.md").read_text()):
        assert text.count("+0.20 ± 0.06, behind") == 2  # the best of each framework, and everyone
        assert text.count("+4.00, one seed") == 2
        assert "larger than two standard errors" in text and "One seed decides nothing" in text
    assert page.count("<b>first</b>") == 2 and page.count("<b>5.00 ± 3.61</b>") == 1


def test_the_table_of_a_level_has_the_difference_of_everyone() -> None:
    path = next(path for path in RESULTS if path.stem == "bench_photos_channels")
    rows = [row for row in json.loads(path.read_text())["rows"] if row["seed"] == 0]
    head, _, first, second, *_ = format_level(read_league("photos_channels"), rows, 4)
    column = head.split("|").index(" difference to the lowest ")
    assert [line.split("|")[column] for line in (first, second)] == [" 0, one seed ", " +7.59, one seed "]

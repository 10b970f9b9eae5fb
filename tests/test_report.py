"""The report of a run says what its result.json says, and refuses a run that is not whole."""

import errno
import html
import itertools
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn

from nni_sparsevd import recipe
from nni_sparsevd.errors import FileFormatError
from nni_sparsevd.measure import count_macs, count_parameters, measure_latencies
from nni_sparsevd.report import pictures, write_report
from nni_sparsevd.results import finish_run, finishing
from nni_sparsevd.settings import make_settings
from nni_sparsevd.training import compress

RECIPE = {
    "data": {"limit": 200, "batch_size": 32},
    "sparse": {"epochs": 1},
    "dense": {"epochs": 1},
    "masks": {"allow_empty": True, "ratio": 0.5},
}
TIMES = "\N{MULTIPLICATION SIGN}"
PICTURES = ("progress", "log_alpha", "curve", "layers", "allocation", "mistakes")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    finish_run(compress(make_settings(recipe.Recipe, RECIPE), folder, ["nni-sparsevd", "compress"]), folder)
    return folder


def leave_a_pixel(*arguments) -> None:
    path = arguments[-1]
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (1, 1)).save(path)


@pytest.fixture
def drawing_run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "digits"))


@pytest.fixture
def run(drawing_run, monkeypatch) -> Path:
    """A run whose pictures are a pixel each: they take nearly all of a report's time, and these tests read its text."""
    for name in [name for name in vars(pictures) if name.startswith("draw_")]:
        monkeypatch.setattr(pictures, name, leave_a_pixel)
    return drawing_run


def edit(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def pages(folder: Path) -> tuple[str, str]:
    """Markdown and HTML of the report, the latter unescaped and without its pictures."""
    page = write_report(folder)
    assert page == folder / "report.html"
    without = re.sub(r"base64,[^\"]*", "", page.read_text())
    return (folder / "report.md").read_text(), html.unescape(without)


def test_the_page_begins_with_what_a_table_does_not_say(run):
    """Nothing removed, a budget, a slower network, and what the dense network is."""

    def plain(result):
        result["weights"] |= {"kept": result["weights"]["total"]}
        result["plan"] = [group | {"removed": 0} for group in result["plan"]]
        levels = [{"part": 0.25, "reached": 240}]
        result["budget"] = {"kind": "macs", "dense": 1000, "levels": levels, "missed": "", "tolerance": 0.01}
        result["budget"]["is_within_tolerance"] = True
        result["size"]["dense"]["latency_ms"], result["size"]["shrunk"]["latency_ms"] = 1.0, 2.5
        result["size"]["shrunk"]["macs"] -= 1

    edit(run / "result.json", plain)
    for text in pages(run):
        first, second, third, fourth = (
            text.index(sentence)
            for sentence in (
                "Nothing was removed: no weight or channel reached the threshold",
                "Budget: 0.240 of the dense network's macs are left, 0.25 were allowed",
                "The shrunk network is slower on this machine: 2.500 ms for one image, the dense one 1.000 ms",
                "The dense network is the one before the sparse stage",
            )
        )
        assert first < second < third < fourth


def test_the_page_begins_with_what_was_spoiled(run):
    def spoil(result):
        result["weights"] |= {"kept": 12, "total": 345_678}
        result["test"]["dense"]["accuracy"], result["test"]["shrunk"]["accuracy"] = 0.8, 0.39

    for text in pages(run):
        assert "Too much was removed" not in text
    edit(run / "result.json", spoil)
    for text in pages(run):
        said = text.index("Too much was removed: 12 of 345,678 weights are left, and 39.00 % of the test images right")
        assert said < text.index("The dense network is the one before")


def test_a_run_that_removed_something_does_not_say_that_nothing_was_removed(run):
    edit(run / "result.json", lambda result: result["size"]["shrunk"].update(latency_ms=1e-6))
    for text in pages(run):
        assert "Nothing was removed" not in text and "slower" not in text and "Budget" not in text


def make_levels(run):
    """Two levels, the smaller of which is the network of the run."""
    (run / "levels" / "0.25").mkdir(parents=True)
    shutil.move(run / "mistakes.safetensors", run / "levels" / "0.25")
    edit(run / "result.json", add_levels)


def add_levels(result):
    levels = [{"part": 0.5, "reached": 490}, {"part": 0.25, "reached": 240}]
    result["budget"] = {"kind": "macs", "dense": 1000, "levels": levels, "missed": "", "tolerance": 0.01}
    result["budget"]["is_within_tolerance"] = True
    row = {"macs": 1000, "parameters": 1234, "file_bytes": 5678, "latency_ms": 1.25}
    dense = {**row, "network": "dense", "level": None, "held_out": 0.912, "test": 0.9, "chosen": False}
    larger = {**row, "level": 0.5, "macs": 490, "held_out": 0.911, "test": 0.8765, "chosen": False}
    smaller = {**row, "level": 0.25, "macs": 240, "held_out": 0.905, "test": 0.85, "chosen": True}
    result |= {"front": [dense, larger, smaller], "level": 0.25}


def test_one_network_that_loses_more_than_the_tolerance_is_told_of(run):
    def spoil(result):
        add_levels(result)
        result |= {"front": [], "level": 0.5}

    edit(run / "result.json", spoil)
    for text in pages(run):
        assert "budget.tolerance" not in text

    edit(run / "result.json", lambda result: result["budget"].update(is_within_tolerance=False))
    for text in pages(run):
        assert "On held-out photos it loses more than 1 point, which is what budget.tolerance allows" in text


def test_the_page_shows_the_networks_to_choose_from(run):
    make_levels(run)
    for text in pages(run):
        assert "Budget: 0.490, 0.240 of the dense network's macs are left, 0.5, 0.25 were allowed" in text
        assert "that of level 0.25: the smallest within 1 point of the dense one on held-out photos (90.50 %" in text
        assert re.search(r"0\.5\b[^\w]*(<[^>]*>)*87\.65 %.*91\.10 %.*490", text)
        assert re.search(r"0\.25\b.*85\.00 %.*network of the run", text)

    def gain(result):
        add_levels(result)
        result["front"][1]["held_out"] = 0.92
        result["budget"]["tolerance"] = 0.02

    edit(run / "result.json", gain)
    for text in pages(run):
        assert (
            "within 2 points of level 0.5, the most accurate of the run, on held-out photos (90.50 %, against" in text
        )

    edit(run / "result.json", lambda result: result["front"][2].update(held_out=0.93))
    for text in pages(run):
        assert "level 0.25: the most accurate of the run on held-out photos (93.00 %), and no smaller one is" in text

    def lose_both(result):
        add_levels(result)
        result["front"][2]["held_out"] = 0.85
        result["budget"]["is_within_tolerance"] = False
        result["budget"]["missed"] = "budget.macs = 0.1 was not met"

    edit(run / "result.json", lose_both)
    for text in pages(run):
        assert "none is within 1 point of the dense one" in text
        assert text.index("budget.macs = 0.1 was not met.") < text.index("Budget: 0.490")


def test_nothing_is_wider_than_a_phone(run):
    """Wide tables scroll in a box of their own, and long paths and commands break."""
    page = write_report(run).read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "overflow-wrap: break-word" in page and ".wide { overflow-x: auto;" in page
    assert "max-width: min(100vw - 2rem, 80rem)" in page
    assert page.count("<table>") == page.count('<div class="wide"><table>') > 2


def test_what_a_channel_costs_is_explained_where_it_is_known(run):
    result = json.loads((run / "result.json").read_text())
    for cost in (None, 12.0):
        for layer in result["layers"]:
            layer["channel_macs"] = cost
        (run / "result.json").write_text(json.dumps(result))
        pages = [write_report(run).read_text(), (run / "report.md").read_text()]
        assert all(("MACs of one channel" in page) == (cost is not None) for page in pages)
        header, rule, row = pages[1].partition("| layer | shape")[2].splitlines()[:3]
        assert header.count("|") + 2 == rule.count("|") == row.count("|")


def test_pictures_are_drawn(drawing_run):
    run = drawing_run
    make_levels(run)
    write_report(run)
    for name in ("front", *PICTURES):
        pixels = matplotlib.image.imread(run / "pictures" / f"{name}.png")
        assert min(pixels.shape[:2]) > 100
        assert pixels[..., :3].std() > 0.02, f"{name}.png is blank"
    text = (run / "report.html").read_text()
    assert text.count("data:image/png;base64,iVBOR") == len(PICTURES) + 1
    assert not re.search(r"(src|href)=\"(?!data:)", text), "the page must stand alone"


def test_a_picture_is_whole_or_what_it_was_before(tmp_path, monkeypatch):
    """A page may be read, and sent, while its pictures are drawn anew."""
    path = tmp_path / "pictures" / "layers.png"
    layers = [{"name": "head", "sparsity": 0.5}]
    pictures.draw_layer_sparsity(layers, path)
    before = path.read_bytes()

    def save_half(self, target, **options):
        cut = before[: len(before) // 2]
        target.write(cut) if hasattr(target, "write") else target.write_bytes(cut)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pictures.Figure, "savefig", save_half)
    with pytest.raises(OSError, match="No space left"):
        pictures.draw_layer_sparsity(layers, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("masks", "chosen", "said", "threshold"),
    [
        ("ratio = 0.5", 3.0, "log α of all posteriors: masks.ratio = 0.5 decided, not a threshold;", None),
        ("threshold = 2.5", 2.5, "log α of all posteriors: kept left of the threshold, noise right of it;", 2.5),
        ('threshold = "evidence"', "evidence", "log α of all posteriors: the evidence decided, not a threshold;", None),
        ('structure = "n:m"\nkeep = 2\nblock = 4', 3.0, "of every 4 weights the 2 with the lowest were kept;", None),
        ("[budget]\nmacs = [0.5]", None, "log α of all posteriors: channels left until the budget was met;", None),
    ],
    ids=["ratio", "threshold", "evidence", "n:m", "budget"],
)
def test_the_histogram_says_what_decided(masks, chosen, said, threshold, run, monkeypatch):
    """A line at a threshold that did not decide would mislead."""
    drawn = {}

    def keep_decision(values, decision, path):
        drawn[path.stem] = decision.threshold
        leave_a_pixel(path)

    monkeypatch.setattr(pictures, "draw_log_alpha_histograms", keep_decision)
    monkeypatch.setattr(pictures, "draw_threshold_curve", keep_decision)
    (run / "recipe.toml").write_text(f"[masks]\n{masks}\n")
    if chosen is None:
        (run / "curve.json").unlink()
    else:
        edit(run / "curve.json", lambda values: values.update(chosen=chosen))
    for text in pages(run):
        assert said in text
    assert drawn == dict.fromkeys(drawn, threshold) and "log_alpha" in drawn


def test_names_of_near_networks_do_not_cover_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.Figure, "savefig", lambda figure, file, format: figures.append(figure))
    figures: list[pictures.Figure] = []
    macs = {0.5: 500, 0.49: 495, 0.48: 490, 0.1: 100}
    values = {"network": "shrunk", "test": 0.9, "held_out": 0.91, "chosen": False}
    pictures.draw_front([{**values, "level": level, "macs": count} for level, count in macs.items()], tmp_path / "a")
    epochs = [("dense", 1), ("sparse", 9), ("finetune_0.5", 1), ("finetune_0.25", 1)]
    rows = [{"stage": stage, "accuracy": 0.9, "compression": 1.0} for stage, count in epochs for _ in range(count)]
    pictures.draw_progress(rows, tmp_path / "b")
    expected = [{"0.5", "0.49", "0.48", "0.1"}, {"sparse", "finetune 0.5", "finetune 0.25"}]
    for figure, names in zip(figures, expected, strict=True):
        labels = figure.axes[0].texts
        assert {label.get_text().strip() for label in labels} == names
        boxes = [label.get_window_extent() for label in labels]
        assert all(box.count_overlaps(boxes) == 1 for box in boxes), "a name overlaps another than itself"


def test_numbers_are_those_of_the_result(run):
    result = json.loads((run / "result.json").read_text())
    size, test, weights = result["size"], result["test"], result["weights"]
    fewer = weights["total"] / weights["kept"]
    expected = [f"{weights['total']:,}", f"{weights['kept']:,}", f"{fewer:.1f} times fewer"]
    for key, form in (("parameters", "{:,}"), ("macs", "{:,}"), ("file_bytes", "{:,}"), ("latency_ms", "{:.3f}")):
        expected += [form.format(row[key]) for row in size.values()]
        expected.append(f"{size['dense'][key] / size['shrunk'][key]:.2f}{TIMES}")
    for row in test.values():
        expected += [f"{row['error_percent']:.2f}", f"{row['loss']:.4f}"]
    for layer in result["layers"]:
        expected += [layer["name"], f"{layer['kept']:,}", f"{layer['outputs_before']} → {layer['outputs']}"]
        expected += [f"{layer['cost']['dense']['macs']:,} → {layer['cost']['shrunk']['macs']:,}"]
        expected += ["{:.1f}, {:.1f}, {:.1f}".format(*layer["log_alpha"])]
        expected += [f"{100 * (1 - layer['kept'] / layer['weights']):.1f} %"]
    expected += [group["name"] for group in result["plan"]]
    for page in pages(run):
        for number in expected:
            assert number in page
        assert "equal to rounding" in page
        assert 'optimizer = "adam"' in page


def test_ratios_are_computed_not_copied(run):
    def change(values):
        values["size"]["dense"]["parameters"], values["size"]["shrunk"]["parameters"] = 1_234_000, 1000

    edit(run / "result.json", change)
    for page in pages(run):
        assert "1,234,000" in page
        assert f"1234.00{TIMES}" in page


def test_the_first_line_says_what_is_cheaper(run):
    def change(values):
        values["size"]["dense"] |= {"macs": 4000, "parameters": 10_000, "latency_ms": 3.0}
        values["size"]["shrunk"] |= {"macs": 1000, "parameters": 1000, "latency_ms": 2.0}
        values["weights"]["compression"] = 1.0
        values["test"]["dense"]["error_percent"], values["test"]["shrunk"]["error_percent"] = 10.0, 12.5

    answer = f"4.0{TIMES} fewer MACs, 10.0{TIMES} fewer parameters, 1.5{TIMES} as fast in PyTorch on one thread"
    edit(run / "result.json", change)
    for text in pages(run):
        assert f"lenet_300_100: {answer}; 87.50 % of the test images right, 90.00 % before." in text
    edit(run / "result.json", lambda values: values["size"].update(shrunk=values["size"]["dense"]))
    for text in pages(run):
        assert "lenet_300_100: no cheaper; 87.50 %" in text


@pytest.mark.parametrize("latency", [0.5, 2.0])
def test_what_chance_says_of_networks_of_one_size_is_not_said(run, latency):
    """Zeros inside layers change no latency, however the two measurements come out."""

    def change(values):
        values["size"]["dense"] |= {"macs": 4000, "parameters": 10_000, "latency_ms": 1.0}
        values["size"]["shrunk"] |= {"macs": 4000, "parameters": 10_000, "latency_ms": latency}
        values["weights"] |= {"kept": 50, "total": 100, "compression": 2.0}

    edit(run / "result.json", change)
    for text in pages(run):
        assert "slower" not in text and "as fast" not in text
        assert f"lenet_300_100: 2.0{TIMES} fewer weights; " in text


def test_where_no_weight_is_left_none_is_a_number_of_times_fewer(run):
    edit(run / "result.json", lambda values: values["weights"].update(kept=0, total=100, compression=100.0))
    for text in pages(run):
        assert "The masks keep 0 of 100 weights. Of" in text and f"100.0{TIMES} fewer weights" not in text


def test_latencies_of_a_run_leave_out_what_others_take_of_the_machine(tmp_path, monkeypatch):
    clocks = []

    def measure(models, example_inputs, clock=time.perf_counter):
        clocks.append(clock)
        return dict.fromkeys(models, 1.0)

    monkeypatch.setattr(finishing, "measure_latencies", measure)
    finish_run(compress(make_settings(recipe.Recipe, RECIPE), tmp_path / "run", []), tmp_path / "run")
    assert clocks == [time.process_time]


def test_the_first_line_says_how_much_faster_it_is_where_the_budget_was_measured(run):
    def change(values):
        levels = [{"part": 0.5, "reached": 0.4}]
        budget = {"kind": "latency in onnxruntime", "dense": 1.0, "levels": levels, "missed": "", "tolerance": 0.01}
        values |= {"budget": budget, "level": 0.5}

    edit(run / "result.json", change)
    for text in pages(run):
        assert f"2.5{TIMES} as fast in onnxruntime on one thread; " in text and "in PyTorch on one thread;" not in text


def test_what_one_channel_costs_is_shown_where_it_is_known(run):
    edit(run / "result.json", lambda values: values["layers"][1].update(loss_rise=0.00123, channel_macs=1234.5))
    for text in pages(run):
        assert "+0.0012" in text and "1,234" in text


def test_a_difference_is_not_hidden(run):
    edit(run / "result.json", lambda values: values["check"].update(ok=False))
    for page in pages(run):
        assert "DIFFERENT" in page


def test_what_had_no_posterior_is_named(run):
    assert json.loads((run / "result.json").read_text())["passed_over"] == {}
    edit(run / "result.json", lambda values: values.update(passed_over={"rnn.weight_ih_l0": "an LSTM has it"}))
    for page in pages(run):
        assert "Left without a posterior" in page and "rnn.weight_ih_l0" in page and "an LSTM has it" in page


@pytest.mark.parametrize(
    "content", [None, b"", b'{"test": ', b"\x80\x04pickled"], ids=["missing", "empty", "cut", "binary"]
)
def test_a_damaged_result_is_named(run, content):
    (run / "result.json").unlink()
    if content is not None:
        (run / "result.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"result\.json"):
        write_report(run)


@pytest.mark.parametrize("key", ["layers", "mistakes", "size", "test", "weights", "plan", "check", "command", "model"])
def test_a_result_that_lacks_something_is_named(run, key):
    edit(run / "result.json", lambda values: values.pop(key))
    with pytest.raises(FileFormatError, match=rf"result\.json.*{key}"):
        write_report(run)


def test_a_result_of_another_kind_is_named(run):
    (run / "result.json").write_text("[]")
    with pytest.raises(FileFormatError, match=r"result\.json"):
        write_report(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "environment.json", "recipe.toml"])
def test_other_missing_files_are_named(run, name):
    (run / name).unlink()
    with pytest.raises(FileFormatError, match=name.replace(".", r"\.")):
        write_report(run)


@pytest.mark.parametrize(("file", "picture"), [("curve.json", "curve"), ("log_alpha.json", "log_alpha")])
def test_an_optional_file_that_is_missing_leaves_its_section_out(run, file, picture):
    write_report(run)
    (run / file).unlink()  # the picture of an earlier report must not come back
    markdown, page = pages(run)
    assert f"pictures/{picture}.png" not in markdown
    assert page.count("<img") == len(PICTURES) - 1


def test_names_are_escaped(run):
    nasty = "<script>alert('&')</script>"

    def change(values):
        values["layers"][0]["name"] = nasty
        values["plan"][0]["name"] = nasty
        values["plan"][0]["reason"] = nasty
        values["command"] = ["nni-sparsevd", nasty]

    edit(run / "result.json", change)
    text = write_report(run).read_text()
    assert nasty not in text
    assert text.count(html.escape(nasty, quote=False).split("(")[0]) == 4


def test_tied_parameters_count_once():
    first, second = nn.Linear(7, 5), nn.Linear(7, 5)
    assert count_parameters(nn.Sequential(first, second)) == 2 * (7 * 5 + 5)
    second.weight = first.weight
    assert count_parameters(nn.Sequential(first, second)) == 7 * 5 + 2 * 5
    assert count_parameters(nn.Sequential(first, nn.ReLU(), first)) == 7 * 5 + 5


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(7, 5), (1, 7), 7 * 5),
        (nn.Linear(7, 5, bias=False), (3, 7), 3 * 7 * 5),
        (nn.Conv2d(3, 4, 3), (1, 3, 8, 8), 4 * 3 * 9 * 6 * 6),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (1, 3, 8, 8), 4 * 3 * 9 * 4 * 4),
        (nn.Conv2d(4, 8, 3, groups=4), (1, 4, 5, 5), 8 * 1 * 9 * 3 * 3),
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), (1, 2, 5, 5), 3 * 2 * 25),
    ],
)
def test_macs_are_counted_as_by_hand(layer, shape, expected):
    assert count_macs(layer, torch.zeros(shape)) == expected


def test_latencies_time_each_network_and_give_the_threads_back():
    before = torch.get_num_threads()
    large = nn.Sequential(*(nn.Linear(1500, 1500) for _ in range(4)))
    times = measure_latencies({"small": nn.Linear(1500, 1), "large": large}, torch.zeros(1, 1500), rounds=3)
    assert set(times) == {"small", "large"}
    assert 0 < times["small"] < times["large"]
    assert torch.get_num_threads() == before


def test_captions_of_mistakes_stand_beside_each_other(tmp_path, monkeypatch):
    figures = []

    @contextmanager
    def keep_figure(path, **size):
        with styled_figure(path, **size) as figure:
            figures.append(figure)
            yield figure

    styled_figure = pictures.styled_figure
    monkeypatch.setattr(pictures, "styled_figure", keep_figure)
    names = ["$1 and $2 bills of 1995", "Bernese mountain dog", "cassette player", "n02102040", "\\frac$", "a" * 30]
    images = np.zeros((6, 3, 8, 8), dtype=np.uint8)
    pictures.draw_mistakes(images, list(zip(names, reversed(names), strict=True)), tmp_path / "mistakes.png")
    renderer = FigureCanvasAgg(figures[0]).get_renderer()
    boxes = [axes.title.get_window_extent(renderer) for axes in figures[0].axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert figures[0].axes[2].get_title() == "cassette player\n→ n02102040"

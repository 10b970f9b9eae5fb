"""What users copy runs: each example once, on embedded data or on a few small images."""

from pathlib import Path

import pytest
from PIL import Image
from shortened import quarter

from nni_sparsevd import cli

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_run(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(quarter(script.read_text()), str(script), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "removed" in printed or "% test error" in printed


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_say_what_they_do_in_three_lines(script):
    head = script.read_text().split('"""')[1].strip()
    lines = [line for line in head.splitlines() if line]
    assert len(lines) == 3
    assert f"Run: `python examples/{script.name}`" in head


def test_every_example_is_in_the_list():
    listed = (EXAMPLES / "README.md").read_text()
    entries = [path for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__")]
    assert [path.name for path in entries if f"]({path.name})" not in listed] == []


def test_photos_are_compressed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "photos_test"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / folder / name).mkdir(parents=True)
            for image in range(16):
                color = (60 + 120 * number + image, 90, 120)
                Image.new("RGB", (40, 40), color).save(tmp_path / folder / name / f"{image}.png")
    shorter = ["--dense.epochs=1", "--sparse.epochs=1", "--finetune.epochs=0", "--data.batch_size=8"]
    smaller = ["--model.pretrained=false", "--model.name=test_efficientnet", "--data.image_size=32"]
    recipe = ["compress", "--recipe", str(EXAMPLES / "photos" / "recipe.toml"), "--out", "run"]
    assert cli.main([*recipe, *shorter, *smaller]) == 0
    assert (tmp_path / "run" / "report.html").exists()

"""Folders as the hub has them: written whole, pushed and fetched again through huggingface_hub, to a hub of our own."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from conftest import randomize_, thin_
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import FileFormatError, ModelError, SettingError
from nni_sparsevd.storage.hub import CARD, CONFIG, WEIGHTS

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
COMMIT = "0123456789012345678901234567890123456789"


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload of small files and a download want."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer ours":
            return self.answer(b'{"error": "Invalid username or password."}', 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            private = asked.get("private") or asked.get("visibility") == "private"  # older and newer releases
            self.server.private[repository] = private
            return self.answer(json.dumps({"url": f"{self.server.address}/{repository}"}).encode())
        repository = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer(json.dumps({"files": modes}).encode())
        if "/commit/" not in self.path:  # a check of the card
            return self.answer(b"{}")
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[f"/{repository}/{line['value']['path']}"] = content
        url = f"{self.server.address}/{repository}/commit/{COMMIT}"
        return self.answer(json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode())

    def do_GET(self) -> None:
        owner, _, rest = self.path.partition("/resolve/")
        content = self.server.files.get(f"{owner}/{rest.partition('/')[2]}")
        if content is None:
            return self.answer(b"{}", 404, X_Error_Code="RepoNotFound", X_Error_Message="no such network")
        etag = f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "ours")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    shrunk, plan = svd.shrink(thin_(timm.create_model("resnet10t", num_classes=5)), IMAGE)
    assert plan.removed > 100
    return shrunk


def test_a_folder_gives_the_network_back(small: nn.Module, tmp_path: Path) -> None:
    svd.save_folder(small, tmp_path / "net", arguments={"num_classes": 5}, measure=lambda _: {"error": 1.25})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net"]
    assert {path.name for path in (tmp_path / "net").iterdir()} == {WEIGHTS, CONFIG, CARD}
    assert torch.equal(svd.load(tmp_path / "net")(IMAGE), small(IMAGE))


def test_the_folder_says_what_it_holds(small: nn.Module, tmp_path: Path) -> None:
    svd.save_folder(
        small,
        tmp_path / "net",
        arguments={"num_classes": 5},
        measure=lambda _: {"error": 1.25},
        preprocessing={"mean": [0.5, 0.5, 0.5]},
    )
    config = json.loads((tmp_path / "net" / CONFIG).read_text())
    assert (config["architecture"], config["model_args"]) == ("resnet10t", {"num_classes": 5})
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert config["pretrained_cfg"]["std"] == list(small.pretrained_cfg["std"])  # type: ignore[arg-type, index]
    assert config["parameters"] == sum(parameter.numel() for parameter in small.parameters())
    assert 0 < config["weights_not_zero"] <= config["weights"] < config["parameters"]
    card = huggingface_hub.ModelCard.load(tmp_path / "net" / CARD)
    assert card.data.library_name == "nni_sparsevd"
    assert "| error | 1.25 |" in card.text and f"{config['parameters']:,}" in card.text


def test_timm_reads_the_folder_of_a_network_that_lost_no_channel(tmp_path: Path) -> None:
    model = randomize_(timm.create_model("resnet10t", num_classes=5)).eval()
    svd.save_folder(model, tmp_path / "net", arguments={"num_classes": 5})
    again = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    assert torch.equal(again(IMAGE), model(IMAGE))


@pytest.mark.parametrize("coding", [None, "exact"])
def test_pushed_and_fetched_it_is_the_same(small: nn.Module, tmp_path: Path, hub: Hub, coding: str | None) -> None:
    svd.save_folder(small, tmp_path / "net", arguments={"num_classes": 5}, coding=coding)  # type: ignore[arg-type]
    (tmp_path / "net" / "secret.txt").write_text("not to be sent")
    assert svd.push(tmp_path / "net", "us/net", private=True) == f"{hub.address}/us/net/commit/{COMMIT}"
    assert set(hub.files) == {f"/us/net/{name}" for name in (WEIGHTS, CONFIG, CARD)}
    assert hub.private == {"us/net": True}
    for address in ("hf-hub:us/net", "hf-hub:us/net@main"):
        assert torch.equal(svd.load(address)(IMAGE), small(IMAGE))


def test_what_the_hub_refuses_is_our_error(
    small: nn.Module, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="hf-hub:us/nothing: the hub says"):
        svd.load("hf-hub:us/nothing")
    with pytest.raises(SettingError, match=r"hf-hub:a/b/c: the hub says"):
        svd.load("hf-hub:a/b/c")
    svd.save_folder(small, tmp_path / "net", arguments={"num_classes": 5})
    monkeypatch.setenv("HF_TOKEN", "theirs")
    with pytest.raises(SettingError, match="us/net: the hub says"):
        svd.push(tmp_path / "net", "us/net")
    assert hub.files == {}


def test_a_network_of_your_own_wants_a_fresh_one(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))

    model = fresh().eval()
    svd.save_folder(model, tmp_path / "net")
    assert json.loads((tmp_path / "net" / CONFIG).read_text())["architecture"] is None
    assert torch.equal(svd.load(tmp_path / "net", fresh())(IMAGE), model(IMAGE))
    with pytest.raises(FileFormatError, match="timm cannot build"):
        svd.load(tmp_path / "net")


def test_nothing_is_overwritten_and_nothing_half_written(small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "mine").write_text("")
    with pytest.raises(SettingError, match="net: is there already"):
        svd.save_folder(small, tmp_path / "net")
    with pytest.raises(SettingError, match="preprocessing has no means"):
        svd.save_folder(small, tmp_path / "new", preprocessing={"means": [0.5]})
    with pytest.raises(SettingError, match=r"preprocessing: .*Tensor.*; give a list of numbers"):
        svd.save_folder(small, tmp_path / "new", preprocessing={"mean": torch.zeros(3)})
    with pytest.raises(ModelError):
        svd.save_folder(small, tmp_path / "new", name="resnet18")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    with pytest.raises(FileFormatError, match=r"net: has no model\.safetensors"):
        svd.load(tmp_path / "net")
    with pytest.raises(FileFormatError, match="no such file"):
        svd.push(tmp_path / "net", "us/net")


def test_what_a_measurement_raises_is_no_error_of_the_folder(small: nn.Module, tmp_path: Path) -> None:
    def measure(_: nn.Module) -> dict[str, float]:
        raise FileNotFoundError("photos/")

    with pytest.raises(FileNotFoundError, match="photos/"):
        svd.save_folder(small, tmp_path / "net", arguments={"num_classes": 5}, measure=measure)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="cannot be written"):
        svd.save_folder(small, tmp_path / "file" / "net", arguments={"num_classes": 5})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_weights_that_are_counted_are_those_of_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(100, 10))
    svd.save_folder(model, tmp_path / "net", coding="int4")
    config = json.loads((tmp_path / "net" / CONFIG).read_text())
    loaded = svd.load(tmp_path / "net", nn.Sequential(nn.Linear(100, 10)))
    assert config["weights_not_zero"] == int(loaded[0].weight.count_nonzero()) < config["weights"] == 1000

"""The zoo: names, options, and weights from a local server, whole or not at all."""

import hashlib
import http.server
import io
import logging
import threading
from pathlib import Path

import pytest
import torch

from detr_fast import build_model
from detr_fast.data.label_map import COCO_LABEL_MAP
from detr_fast.data.shapes import SHAPES_LABEL_MAP, SHAPES_PANOPTIC_LABEL_MAP
from detr_fast.models import catalogue, checkpoint, zoo
from detr_fast.models.checkpoint import load_checkpoint
from detr_fast.models.download import cached_download

SMALL = {
    "num_queries": 5,
    "hidden_dim": 32,
    "nheads": 2,
    "enc_layers": 1,
    "dec_layers": 1,
    "dim_feedforward": 16,
    "backbone": "resnet18",
}
SHIPPED = Path(zoo.__file__).parent / "weights"


class Server:
    """A web server on 127.0.0.1 whose files are entries of a dict.

    Attributes:
        files: path to content.
        claimed: path to the Content-Length to send where it is not the content's; None sends none.
        requests: paths asked for, in order.
    """

    def __init__(self):
        self.files, self.claimed, self.requests = {}, {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                length = outer.claimed.get(self.path, len(content))
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    # A proxy of the environment must not stand between the test and its own machine.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache of this test."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    return folder / "checkpoints"


def named_by_hash(content: bytes, stem: str = "/weights") -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth"


# Download


def test_good_file_is_downloaded_once(server, hub):
    content = bytes(range(256)) * 5000
    path = named_by_hash(content)
    server.files[path] = content
    for _ in range(2):
        local = cached_download(server.url + path)
        assert local == hub / path[1:]
        assert local.read_bytes() == content
    assert server.requests == [path]


def test_length_is_not_needed(server):
    content = b"x" * 1000
    path = named_by_hash(content)
    server.files[path] = content
    server.claimed[path] = None
    assert cached_download(server.url + path).read_bytes() == content


def test_wrong_hash_keeps_nothing(server, hub):
    path = "/weights-0123abcd.pth"
    server.files[path] = b"something else"
    with pytest.raises(
        ValueError, match=r"has SHA-256 [0-9a-f]{64}, but its name promises 0123abcd"
    ):
        cached_download(server.url + path)
    assert list(hub.iterdir()) == []


def test_cut_connection_keeps_nothing(server, hub):
    content = b"x" * 100_000
    path = named_by_hash(content)
    server.files[path] = content[:70_000]
    server.claimed[path] = len(content)
    with pytest.raises(
        ConnectionError, match=r"cut after 70000 of 100000 bytes|70000 bytes received"
    ):
        cached_download(server.url + path)
    assert list(hub.iterdir()) == []


def test_missing_file_keeps_nothing(server, hub):
    with pytest.raises(ConnectionError, match=r"/none\.pth answered 404"):
        cached_download(server.url + "/none.pth")
    assert list(hub.iterdir()) == []


def test_no_server_says_where_to_put_the_file(server, hub):
    server.close()
    with pytest.raises(ConnectionError, match=r"put the file at .*checkpoints/weights\.pth"):
        cached_download(server.url + "/weights.pth")
    assert list(hub.iterdir()) == []


def test_url_without_a_file():
    with pytest.raises(ValueError, match="names no file"):
        cached_download("http://127.0.0.1/")


def test_checkpoints_are_read_from_urls(server):
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.ones(2)}}, buffer)
    path = named_by_hash(buffer.getvalue())
    server.files[path] = buffer.getvalue()
    assert torch.equal(load_checkpoint(server.url + path).model["a"], torch.ones(2))


# Pretrained models


@pytest.fixture
def served_model(server, monkeypatch):
    """A small model named "detr_served" in the zoo, its weights on the server as the original's."""
    source = build_model("detr_resnet50", **SMALL)
    buffer = io.BytesIO()
    torch.save({"model": source.state_dict()}, buffer)
    path = named_by_hash(buffer.getvalue())
    server.files[path] = buffer.getvalue()
    entry = catalogue.ZooEntry("detr_served", options=SMALL, url=server.url + path)
    monkeypatch.setitem(catalogue.ZOO, entry.name, entry)
    assert checkpoint.ZOO is catalogue.ZOO
    return source


def test_pretrained_weights_arrive_with_cocos_labels(served_model):
    model = build_model("detr_served", pretrained=True)
    for name, tensor in served_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.label_map == COCO_LABEL_MAP
    assert model.num_classes == len(model.label_map)
    assert model.load_report.reinitialised == ()


def test_pretrained_with_other_classes_reinitialises_the_head(served_model, caplog):
    with caplog.at_level(logging.WARNING):
        model = build_model("detr_served", pretrained=True, num_classes=3, dropout=0.0)
    assert model.load_report.reinitialised == ("class_embed.weight", "class_embed.bias")
    assert "class_embed" in caplog.text
    assert model.label_map is None
    assert model.config["num_classes"] == model.num_classes == 3
    assert torch.equal(model.query_embed.weight, served_model.query_embed.weight)


def test_options_that_contradict_the_weights_are_refused(served_model):
    with pytest.raises(ValueError, match=r"trained with nheads=2; got 4.*only aux_loss, dropout"):
        build_model("detr_served", pretrained=True, nheads=4)


def test_without_weights_nothing_is_loaded():
    model = build_model("detr_tiny")
    assert model.load_report is None
    assert model.label_map is None


@pytest.mark.parametrize(
    ("name", "label_map"),
    [("detr_tiny", SHAPES_LABEL_MAP), ("detr_tiny_panoptic", SHAPES_PANOPTIC_LABEL_MAP)],
)
def test_shipped_weights_load(name, label_map):
    model = build_model(name, pretrained=True)
    assert model.label_map == label_map
    assert model.load_report.missing == model.load_report.skipped == ()
    assert (SHIPPED / f"{name}.pth").stat().st_size <= 8e6


def test_a_model_without_weights_says_so(monkeypatch):
    entry = catalogue.ZooEntry("detr_bare", options=catalogue.ZOO["detr_tiny"].options)
    monkeypatch.setitem(catalogue.ZOO, entry.name, entry)
    with pytest.raises(ValueError, match="there are no weights of detr_bare: train it"):
        build_model(entry.name, pretrained=True)


def test_absent_shipped_weights_are_explained(monkeypatch):
    entry = catalogue.ZooEntry("detr_absent", shipped="detr_absent.pth")
    monkeypatch.setitem(catalogue.ZOO, entry.name, entry)
    with pytest.raises(FileNotFoundError, match=r"weights/detr_absent\.pth, and are not there"):
        build_model("detr_absent", pretrained=True)


# Names


def test_unknown_name_suggests_and_lists():
    with pytest.raises(
        ValueError, match=r"did you mean 'detr_resnet50'.*known: detr_demo, .*detr_tiny"
    ):
        build_model("detr_resnet_50")


def test_unknown_option_suggests_and_lists():
    with pytest.raises(TypeError, match=r"did you mean 'num_queries'.*known: aux_loss, .*pre_norm"):
        build_model("detr_resnet50", num_querys=50)


def test_official_weights_and_published_results():
    base = "https://dl.fbaipublicfiles.com/detr/"
    with_masks = {e.name: e for e in catalogue.ZOO.values() if e.family == "segmentation" and e.url}
    assert {e.name: (e.url, e.ap, e.segm_ap, e.pq) for e in with_masks.values()} == {
        "detr_resnet50_panoptic": (base + "detr-r50-panoptic-00ce5173.pth", 38.8, 31.1, 43.4),
        "detr_resnet50_dc5_panoptic": (
            base + "detr-r50-dc5-panoptic-da08f1b1.pth",
            40.2,
            31.9,
            44.6,
        ),
        "detr_resnet101_panoptic": (base + "detr-r101-panoptic-40021d53.pth", 40.1, 33.0, 45.1),
    }
    boxes = [e for e in catalogue.ZOO.values() if e.url and e.name not in with_masks]
    assert {e.name: (e.url, e.ap) for e in boxes} == {
        "detr_resnet50": (base + "detr-r50-e632da11.pth", 42.0),
        "detr_resnet50_dc5": (base + "detr-r50-dc5-f0fb7ef5.pth", 43.3),
        "detr_resnet101": (base + "detr-r101-2c7b67e5.pth", 43.5),
        "detr_resnet101_dc5": (base + "detr-r101-dc5-a2e86def.pth", 44.9),
        "detr_demo": (base + "detr_demo-da2a99e9.pth", None),
    }

"""Reading checkpoints: the original's, ours, damaged and hostile ones; loading their weights."""

import argparse
import logging
import os

import pytest
import torch

from detr_fast import build_model
from detr_fast.models.checkpoint import load_checkpoint, load_weights, without_wrapper_prefixes

SMALL = {"enc_layers": 1, "dec_layers": 1, "hidden_dim": 32, "nheads": 2, "dim_feedforward": 16}


def small(name="detr_tiny", **options):
    return build_model(name, **{**SMALL, **options})


@pytest.fixture
def saved(tmp_path):
    """`saved(content, name)` writes a checkpoint file and returns its path."""

    def save(content, name="checkpoint.pth"):
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save


# Reading


def test_own_checkpoint_comes_back_whole(saved):
    model = small()
    label_map = {"ids": [1], "names": ["circle"]}
    content = {
        "model": model.state_dict(),
        "config": model.config,
        "label_map": label_map,
        "epoch": 3,
        "optimizer": {"state": {}},
    }
    checkpoint = load_checkpoint(saved(content))
    assert checkpoint.config == model.config
    assert checkpoint.label_map == label_map
    assert checkpoint.extra == {"epoch": 3, "optimizer": {"state": {}}}
    assert_same(checkpoint.model, model.state_dict())
    build_model(**checkpoint.config).load_state_dict(checkpoint.model, strict=True)


def test_the_originals_pickled_namespace_is_read_and_becomes_a_config(saved):
    model = small("detr_resnet50", backbone="resnet18", num_classes=20, num_queries=5)
    args = argparse.Namespace(
        lr=1e-4,
        backbone="resnet18",
        dilation=False,
        position_embedding="sine",
        enc_layers=1,
        dec_layers=1,
        dim_feedforward=16,
        hidden_dim=32,
        dropout=0.1,
        nheads=2,
        num_queries=5,
        pre_norm=False,
        masks=False,
        aux_loss=True,
        dataset_file="coco",
        resume="",
        distributed=False,
    )
    content = {
        "model": model.state_dict(),
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {"last_epoch": 1},
        "epoch": 1,
        "args": args,
    }
    checkpoint = load_checkpoint(saved(content))
    assert checkpoint.extra["args"] == vars(args)
    assert checkpoint.extra["epoch"] == 1
    again = build_model(**checkpoint.config)
    assert again.config == model.config
    again.load_state_dict(checkpoint.model, strict=True)


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("detr-r50-e632da11.pth", {"name": "detr_resnet50"}),
        ("detr-r50-dc5-f0fb7ef5.pth", {"name": "detr_resnet50_dc5", "dilation": True}),
        ("other.pth", None),
    ],
)
def test_official_files_are_known_by_their_names(saved, file, config):
    path = saved({"model": {"class_embed.weight": torch.zeros(92, 256)}}, file)
    assert load_checkpoint(path).config == config


def test_bare_state_dict_is_accepted(saved):
    state = small().state_dict()
    checkpoint = load_checkpoint(saved(state))
    assert_same(checkpoint.model, state)
    assert checkpoint.extra == {}


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_hostile_checkpoint_is_refused_and_not_executed(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved({"model": {"weight": torch.zeros(1)}, "args": Hostile()})
    with pytest.raises(ValueError, match=r"checkpoint\.pth was not loaded: it holds .*mkdir"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_other_classes_are_refused_by_name(saved):
    # An object of a class of its own, as a whole pickled model would be.
    path = saved({"model": torch.nn.Linear(2, 2)})
    with pytest.raises(
        ValueError, match=r"it holds torch\.nn\.modules\.linear\.Linear.*weights_only=False"
    ):
        load_checkpoint(path)


def test_allowing_the_namespace_does_not_outlast_the_call(saved):
    path = saved({"model": small().state_dict(), "args": argparse.Namespace(a=1)})
    load_checkpoint(path)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("kept", [0, 1, 100, -1000, -1])
def test_truncated_file_is_named(saved, kept):
    path = saved(small().state_dict())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"checkpoint\.pth \(\d+ bytes\).*truncated or corrupt"):
        load_checkpoint(path)


def test_other_file_formats_are_named(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth \(22 bytes\).*truncated or corrupt"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 1, "optimizer": {}}, "no weights.*epoch, optimizer"),
        ({"model": {"a": 1}}, "no weights"),
        ({"model": {}}, "no weights"),
    ],
)
def test_content_that_is_no_checkpoint_is_described(saved, content, match):
    with pytest.raises(ValueError, match=match):
        load_checkpoint(saved(content))


def test_missing_path_says_where_it_looked(saved, tmp_path):
    saved({}, "last.pth")
    with pytest.raises(FileNotFoundError, match=r"no such file; in .* there is last\.pth"):
        load_checkpoint(tmp_path / "best.pth")
    with pytest.raises(FileNotFoundError, match=r"that is a folder; in .* there is last\.pth"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="and no folder"):
        load_checkpoint(tmp_path / "runs" / "best.pth")
    with pytest.raises(FileNotFoundError, match="did you mean 'detr_resnet50'"):
        load_checkpoint("detr_resnet5")


# Loading


def test_weights_fit_exactly():
    source, target = small(), small()
    report = load_weights(target, source.state_dict(), strict=True)
    assert_same(target.state_dict(), source.state_dict())
    assert set(report.loaded) == set(source.state_dict())
    assert report.reinitialised == report.skipped == report.missing == ()
    assert str(report) == f"loaded {len(report.loaded)} tensors"


def test_other_number_of_classes_reinitialises_the_head_and_reports(caplog):
    source, target = small(num_classes=91), small(num_classes=3)
    head = target.class_embed.weight.detach().clone()
    with caplog.at_level(logging.WARNING):
        report = load_weights(target, source.state_dict())
    assert report.reinitialised == ("class_embed.weight", "class_embed.bias")
    assert report.skipped == report.missing == ()
    assert "re-initialised class_embed.weight, class_embed.bias" in caplog.text
    # Fresh, not left over from what the model was before.
    assert not torch.equal(target.class_embed.weight, head)
    loaded = {k: v for k, v in target.state_dict().items() if "class_embed" not in k}
    assert_same(loaded, {k: source.state_dict()[k] for k in loaded})


def test_other_number_of_queries_reinitialises_them():
    source, target = small(num_queries=7), small(num_queries=9)
    report = load_weights(target, source.state_dict())
    assert report.reinitialised == ("query_embed.weight",)


def test_strict_refuses_other_sizes_and_leaves_the_model_alone():
    source, target = small(num_classes=91), small(num_classes=3)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"class_embed.weight \(92, 32\) -> \(4, 32\)"):
        load_weights(target, source.state_dict(), strict=True)
    assert_same(target.state_dict(), before)


@pytest.mark.parametrize("strict", [False, True])
def test_other_width_is_refused_and_leaves_the_model_alone(strict):
    source, target = small(hidden_dim=64), small()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"\(64,\) -> \(32,\).*and \d+ more.*Build the model"):
        load_weights(target, source.state_dict(), strict=strict)
    assert_same(target.state_dict(), before)


def test_names_missing_and_in_excess():
    target = small()
    state = small().state_dict()
    del state["bbox_embed.layers.0.bias"]
    state["mask_head.weight"] = torch.zeros(1)
    report = load_weights(target, state)
    assert report.missing == ("bbox_embed.layers.0.bias",)
    assert report.skipped == ("mask_head.weight",)
    assert "skipped, not in the model: mask_head.weight" in str(report)
    assert "missing in the checkpoint, kept as they were: bbox_embed.layers.0.bias" in str(report)
    with pytest.raises(
        ValueError, match=r"missing bbox_embed.layers.0.bias; not in the model mask_head.weight"
    ):
        load_weights(target, state, strict=True)


def test_weights_of_something_else_are_refused():
    with pytest.raises(ValueError, match=r"none of the 1 tensors.*it has fc.weight, the model"):
        load_weights(small(), {"fc.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_removed(saved, prefix):
    source, target = small(), small()
    wrapped = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    assert set(without_wrapper_prefixes(wrapped)) == set(source.state_dict())
    load_weights(target, load_checkpoint(saved({"model": wrapped})).model, strict=True)
    assert_same(target.state_dict(), source.state_dict())


def test_batch_norm_counters_may_be_absent_or_in_excess():
    state = small().state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        del state[name]
    assert load_weights(small(), state, strict=True).missing == ()

    frozen = small("detr_resnet50", backbone="resnet18")
    state = {**frozen.state_dict(), "backbone.0.body.bn1.num_batches_tracked": torch.tensor(5)}
    assert load_weights(frozen, state, strict=True).skipped == ()
    assert "backbone.0.body.bn1.num_batches_tracked" in state


def test_half_weights_become_the_models_dtype():
    source, target = small(), small()
    load_weights(
        target,
        {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()},
    )
    assert target.class_embed.weight.dtype == torch.float32
    assert torch.equal(target.class_embed.weight, source.class_embed.weight.half().float())


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name

"""This package's matcher under the losses of transformers: the same training, step by step."""

import contextlib
import warnings

import pytest
import torch
import transformers_tiny as tiny

import detr_fast
from detr_fast.integrations import transformers as integration

transformers = pytest.importorskip("transformers", minversion="5.17")
deformable_detr = pytest.importorskip("transformers.loss.loss_deformable_detr")
grounding_dino = pytest.importorskip("transformers.loss.loss_grounding_dino")
lw_detr = pytest.importorskip("transformers.loss.loss_lw_detr")
object_detection = pytest.importorskip("transformers.loss.loss_for_object_detection")
rf_detr = pytest.importorskip("transformers.loss.loss_rf_detr")
rt_detr = pytest.importorskip("transformers.loss.loss_rt_detr")

FUSED = {
    "HungarianMatcher",
    "DeformableDetrHungarianMatcher",
    "RTDetrHungarianMatcher",
    "LwDetrHungarianMatcher",
}
SOLVER_ONLY = {"RfDetrHungarianMatcher", "GroundingDinoHungarianMatcher"}


@pytest.fixture(autouse=True)
def _leave_nothing_patched():
    yield
    integration.unpatch()


# --- matcher by matcher ---


def predictions(images=3, queries=12, logits=5):
    return {
        "logits": torch.randn(images, queries, logits, dtype=torch.float64),
        "pred_boxes": torch.rand(images, queries, 4, dtype=torch.float64) * 0.4 + 0.3,
    }


def ground_truth(sizes, classes=4):
    return [
        {
            "class_labels": torch.randint(classes, (size,)),
            "boxes": torch.rand(size, 4, dtype=torch.float64) * 0.4 + 0.3,
        }
        for size in sizes
    ]


def rt_detr_matcher(focal):
    config = transformers.RTDetrConfig(
        use_focal_loss=focal, matcher_alpha=0.4, matcher_gamma=1.5, matcher_giou_cost=3.0
    )
    return rt_detr.RTDetrHungarianMatcher(config)


MATCHERS = {
    "softmax": (lambda: object_detection.HungarianMatcher(1, 5, 2), ()),
    "focal": (lambda: deformable_detr.DeformableDetrHungarianMatcher(2, 5, 2), ()),
    "RT-DETR, focal": (lambda: rt_detr_matcher(True), ()),
    "RT-DETR, softmax": (lambda: rt_detr_matcher(False), ()),
    "one group": (lambda: lw_detr.LwDetrHungarianMatcher(2, 5, 2), (1,)),
    "three groups": (lambda: lw_detr.LwDetrHungarianMatcher(2, 5, 2), (3,)),
    "groups that do not divide": (lambda: lw_detr.LwDetrHungarianMatcher(2, 5, 2), (5,)),
    "masks": (lambda: rf_detr.RfDetrHungarianMatcher(2, 5, 2), (2,)),
    "token maps": (lambda: grounding_dino.GroundingDinoHungarianMatcher(2, 5, 2), ()),
}


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 0, 0), (12, 1, 15)])
@pytest.mark.parametrize("name", MATCHERS)
def test_the_same_indices(name, sizes):
    build, arguments = MATCHERS[name]
    outputs, targets = predictions(), ground_truth(sizes)
    if name == "token maps":
        outputs["label_maps"] = [torch.rand(4, 5, dtype=torch.float64) for _ in sizes]
    if name == "masks":
        # Their mask costs are float32 only.
        outputs = {key: value.float() for key, value in outputs.items()}
        targets = [target | {"boxes": target["boxes"].float()} for target in targets]
        outputs["pred_masks"] = torch.randn(3, 12, 8, 8)
        for target in targets:
            target["masks"] = torch.rand(len(target["boxes"]), 8, 8) > 0.5

    def indices():
        torch.manual_seed(3)  # The points at which masks are compared are drawn at random.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build()(outputs, targets, *arguments)

    theirs = indices()
    with integration.patched():
        ours = indices()
    for (i, j), (k, m) in zip(theirs, ours, strict=True):
        assert k.dtype == m.dtype == torch.int64
        assert k.device.type == "cpu"
        assert i.tolist() == k.tolist()
        assert j.tolist() == m.tolist()


# --- whole models ---

SIZES = {"num_labels": 5, "num_queries": 12, "d_model": 32, "decoder_layers": 3}
HYBRID = SIZES | {
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "feat_strides": [8, 16, 32],
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 2,
    "num_denoising": 8,
}
THREE_LEVELS = ["stage2", "stage3", "stage4"]


def deformable():
    backbone = transformers.ResNetConfig(**tiny.RESNET, out_features=THREE_LEVELS)
    return transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            backbone_config=backbone, num_feature_levels=3, **tiny.PLAIN, **SIZES
        )
    )


def rt():
    backbone = transformers.RTDetrResNetConfig(**tiny.RESNET, out_features=THREE_LEVELS)
    return transformers.RTDetrForObjectDetection(
        transformers.RTDetrConfig(
            backbone_config=backbone, encoder_in_channels=[8, 16, 16], **HYBRID
        )
    )


def d_fine():
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 16, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        embedding_size=8,
        out_features=THREE_LEVELS,
    )
    return transformers.DFineForObjectDetection(
        transformers.DFineConfig(
            backbone_config=backbone,
            encoder_in_channels=[16, 16, 16],
            hidden_expansion=0.5,
            **HYBRID,
        )
    )


MODELS = {
    "DETR": (lambda: tiny.detr(**SIZES), object_detection.HungarianMatcher),
    "Deformable DETR": (deformable, deformable_detr.DeformableDetrHungarianMatcher),
    "RT-DETR": (rt, rt_detr.RTDetrHungarianMatcher),
    "D-FINE": (d_fine, rt_detr.RTDetrHungarianMatcher),
    "LW-DETR": (lambda: tiny.lw_detr(group_detr=3, **SIZES), lw_detr.LwDetrHungarianMatcher),
}


def train(build, matcher, monkeypatch):
    """Losses and assignments of ten steps from the same weights on the same pictures."""
    recorded = []
    forward = matcher.forward

    def recording(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        recorded.append([(i.tolist(), j.tolist()) for i, j in found])
        return found

    monkeypatch.setattr(matcher, "forward", recording)
    # Untrained queries predict nearly the same. At this seed no two assignments of an image cost
    # the same in float32, between which rounding would choose.
    torch.manual_seed(1)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        labels = [
            {"class_labels": torch.randint(5, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.3}
            for n in (3, 0, 5)
        ]
        output = model(pixel_values=torch.randn(3, 3, 64, 64), labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append({name: value.item() for name, value in output.loss_dict.items()})
    monkeypatch.undo()
    return losses, recorded


@pytest.mark.parametrize("name", MODELS)
def test_ten_training_steps_are_the_same(name, monkeypatch):
    build, matcher = MODELS[name]
    their_losses, their_matches = train(build, matcher, monkeypatch)
    with integration.patched() as report:
        assert matcher.__name__ in report.fused
        our_losses, our_matches = train(build, matcher, monkeypatch)
    assert our_matches == their_matches
    assert len(our_matches) >= 30
    for ours, theirs in zip(our_losses, their_losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


# --- patching ---


def test_what_is_patched_is_reported_and_undone():
    before = {
        name: getattr(module, name).forward
        for module, name in [
            (object_detection, "HungarianMatcher"),
            (lw_detr, "LwDetrHungarianMatcher"),
        ]
    }
    solver = grounding_dino.linear_sum_assignment
    report = integration.patch()
    assert set(report.fused) == FUSED
    assert set(report.solver_only) == SOLVER_ONLY
    assert report.left_alone == {}
    assert object_detection.HungarianMatcher.forward is not before["HungarianMatcher"]
    assert grounding_dino.linear_sum_assignment is detr_fast.linear_sum_assignment
    assert integration.patch() == report
    assert "HungarianMatcher: costs and assignment by detr_fast" in str(report).splitlines()

    integration.unpatch()
    assert object_detection.HungarianMatcher.forward is before["HungarianMatcher"]
    assert lw_detr.LwDetrHungarianMatcher.forward is before["LwDetrHungarianMatcher"]
    assert grounding_dino.linear_sum_assignment is solver
    integration.unpatch()


def test_the_context_manager_undoes_its_patch_even_after_an_error():
    before = object_detection.HungarianMatcher.forward
    with contextlib.suppress(KeyError), integration.patched():
        assert object_detection.HungarianMatcher.forward is not before
        raise KeyError
    assert object_detection.HungarianMatcher.forward is before


def test_the_context_manager_leaves_an_earlier_patch():
    integration.patch()
    patched = object_detection.HungarianMatcher.forward
    with integration.patched():
        pass
    assert object_detection.HungarianMatcher.forward is patched


def test_a_matcher_of_other_source_is_left_alone_and_named(monkeypatch):
    def forward(self, outputs, targets):
        return "something new"

    monkeypatch.setattr(deformable_detr.DeformableDetrHungarianMatcher, "forward", forward)

    class NewHungarianMatcher(object_detection.HungarianMatcher):
        def forward(self, outputs, targets):
            return "something else"

    NewHungarianMatcher.__module__ = rf_detr.__name__
    monkeypatch.setattr(rf_detr, "NewHungarianMatcher", NewHungarianMatcher, raising=False)
    with pytest.warns(UserWarning, match="left these matchers of transformers as they are"):
        report = integration.patch()
    assert deformable_detr.DeformableDetrHungarianMatcher.forward is forward
    assert report.left_alone == {
        "DeformableDetrHungarianMatcher": "its source differs from the one that is known here",
        "NewHungarianMatcher": "it is not known here",
    }
    assert "NewHungarianMatcher: left alone, it is not known here" in str(report)
    assert "HungarianMatcher" in report.fused


def test_the_fingerprint_sees_code_and_nothing_else():
    def documented():
        def forward(a):
            """Words."""
            return a + 1  # a comment

        return forward

    def plain():
        def forward(a):
            return a + 1

        return forward

    def changed():
        def forward(a):
            return a + 2

        return forward

    prints = [integration._fingerprint(make()) for make in (documented, plain, changed)]
    assert prints[0] == prints[1] != prints[2]

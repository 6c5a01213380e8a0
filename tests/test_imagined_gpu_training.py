"""Training on a GPU that is imagined: the host waits once a step, for all it needs to know."""

import pytest
import torch
from imagined_gpu import GPU, imagined_gpu
from test_criterion import make_criterion
from torch import Tensor
from toy_training import ToyDataset, toy_model, toy_recipe

from detr_fast import build_model
from detr_fast.cli.main import main
from detr_fast.data.batching import collate
from detr_fast.data.build import build_dataset, build_loader
from detr_fast.data.transforms import val_transform
from detr_fast.evaluation.coco import CocoEvaluator
from detr_fast.evaluation.evaluate import evaluate
from detr_fast.evaluation.masks import MaskEvaluator
from detr_fast.training import trainer as trainer_module
from detr_fast.training.criterion import build_criterion
from detr_fast.training.recipe import Recipe
from detr_fast.training.run_folder import RunFolder
from detr_fast.training.state import TrainingState
from detr_fast.training.step import TrainStep
from detr_fast.training.targets import pack_targets
from detr_fast.training.trainer import Trainer

COUNTS = (3, 0, 7)


def targets(masks: bool = False) -> list[dict[str, Tensor]]:
    made = []
    for i, count in enumerate(COUNTS):
        target = {
            "labels": torch.randint(5, (count,)),
            "boxes": torch.rand(count, 4) * 0.5 + 0.2,
            "image_id": torch.tensor(i),
        }
        if masks:
            target["masks"] = torch.rand(count, 64, 80 - 10 * i) > 0.5
        made.append(target)
    return made


def batch(masks: bool = False):
    images = (torch.randn(3, 64, 80 - 10 * i) for i in range(len(COUNTS)))
    return collate(list(zip(images, targets(masks), strict=True)))


def a_step(model, recipe: Recipe) -> TrainStep:
    """As the trainer makes it."""
    model = model.to("cuda", memory_format=torch.channels_last).train()
    criterion = build_criterion(model, recipe).to("cuda")
    state = TrainingState(model, recipe, 10)
    return TrainStep(model, criterion, state.optimizer, state.scaler, recipe)


def model_of(name: str, **options):
    return build_model(name, num_classes=5, enc_layers=2, dec_layers=3, num_queries=12, **options)


FORMS = {
    "compatible": {},
    "exact": {"exact_batches": True},
    "repeated targets": {"aux_repeats": 3},
    "batch normalisation": {"backbone_norm": "batch"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_step_waits_once(form):
    options = dict(FORMS[form])
    recipe = Recipe(pretrained_backbone=False, aux_repeats=options.pop("aux_repeats", 1))
    with imagined_gpu() as gpu:
        step = a_step(model_of("detr_resnet50", **options), recipe)
        gpu.waited()
        for batches in ([batch()], [batch(), batch()]):
            result = step(batches)
            (wait,) = gpu.waited()
            assert wait.endswith("to the host")
            assert {"loss_ce", "loss_giou_1", "cardinality_error"} <= result.losses.keys()
        assert {"aten::_fused_adamw_", "detr_fast::set_matching"} <= {name for name, _ in gpu.calls}


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("resolution", ["prediction", "image"])
def test_a_step_with_masks_waits_once(resolution, freeze):
    recipe = Recipe(pretrained_backbone=False, masks=True, mask_resolution=resolution)
    with imagined_gpu() as gpu:
        step = a_step(model_of("detr_resnet50_panoptic", freeze_detr=freeze), recipe)
        gpu.waited()
        result = step([batch(masks=True)])
        assert len(gpu.waited()) == 1
        assert {"loss_mask", "loss_dice"} <= result.losses.keys()


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_step_in_16_bits_waits_once(amp, masks, monkeypatch):
    """All but the gradients themselves, which take what the forward pass of each operation gave."""
    recipe = Recipe(pretrained_backbone=False, amp=amp, masks=masks)
    with imagined_gpu(autocast=True) as gpu:
        step = a_step(model_of("detr_resnet50_panoptic" if masks else "detr_resnet50"), recipe)

        def backward(loss):
            assert (loss.dtype, loss.device) == (torch.float32, GPU)
            for parameter in step._parameters:
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        gpu.waited()
        step([batch(masks)])
        assert len(gpu.waited()) == 1
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        convolved = {dtypes[0][1] for name, dtypes in gpu.calls if name == "aten::convolution"}
        assert convolved == {halves[amp]}
        matched = {dtypes[0][1] for name, dtypes in gpu.calls if name == "detr_fast::set_matching"}
        assert matched == {torch.float32}


@pytest.mark.parametrize("aux_repeats", [1, 3])
@pytest.mark.parametrize("form", ["on the CPU", "on the GPU", "packed", "packed on the GPU"])
def test_the_criterion_waits_for_no_form_of_targets(form, aux_repeats):
    criterion = make_criterion(aux_repeats=aux_repeats).float()
    given = targets()
    with imagined_gpu() as gpu:
        criterion = criterion.to("cuda")
        layers = [
            {
                "pred_logits": torch.randn(3, 12, 6, device="cuda", requires_grad=True),
                "pred_boxes": torch.rand(3, 12, 4, device="cuda", requires_grad=True),
            }
            for _ in range(3)
        ]
        outputs = {**layers[-1], "aux_outputs": layers[:-1]}
        if form == "on the GPU":
            given = [{name: value.to("cuda") for name, value in t.items()} for t in given]
        elif form.startswith("packed"):
            given = pack_targets(given)
            given = given.to("cuda") if form == "packed on the GPU" else given
        with gpu.no_waiting():
            losses = criterion(outputs, given)
            criterion.total(losses).backward()
        assert all(value.device == GPU for value in losses.values())
        assert layers[0]["pred_boxes"].grad.shape == (3, 12, 4)


@pytest.mark.parametrize("chosen", [False, True])
def test_the_criterion_of_masks_waits_for_no_targets(chosen):
    with imagined_gpu() as gpu:
        criterion = make_criterion(losses=["labels", "boxes", "masks"]).float().to("cuda")
        outputs = {
            "pred_logits": torch.randn(3, 12, 6, device="cuda", requires_grad=True),
            "pred_boxes": torch.rand(3, 12, 4, device="cuda", requires_grad=True),
        }
        given = targets(masks=True)
        with gpu.no_waiting():
            counts = criterion.matched_queries(outputs, given)
            masks = torch.randn(3, 12, 16, 20, device="cuda", requires_grad=True)
            if chosen:
                outputs["selected_masks"] = [
                    own[: len(n)] for own, n in zip(masks, counts, strict=True)
                ]
            else:
                outputs["pred_masks"] = masks
            losses = criterion(outputs, given)
            (losses["loss_mask"] + losses["loss_dice"]).backward()
        assert masks.grad.device == GPU


def test_targets_are_padded_copied_and_compacted_on_the_gpu():
    with imagined_gpu() as gpu:
        packed = pack_targets(targets()).to("cuda")
        with gpu.no_waiting():
            padded = packed.padded(9)
            padded.copy_(pack_targets(targets()).padded(9))
            assert padded.repeated(3, 12).labels.device == GPU
            assert packed.repeated(3, 12).labels.device == GPU
        assert (padded.labels.device, padded.counts.device) == (GPU, GPU)
        assert padded.offsets.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_an_epoch_of_the_trainer(tmp_path, monkeypatch):
    """But for what is written to disk, which an imagined GPU has no numbers for."""
    monkeypatch.setattr(trainer_module, "write_checkpoint", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16))
    monkeypatch.setattr(RunFolder, "plot", lambda self: None)
    with imagined_gpu():
        trainer = Trainer(
            toy_model(),
            toy_recipe(epochs=1, batch_size=2),
            ToyDataset(8),
            ToyDataset(4),
            output_dir=tmp_path / "run",
            device="cuda",
        )
        assert trainer.fit().exit_code == 0
        assert trainer.state.steps == 4


@pytest.mark.parametrize("kind", ["shapes", "shapes_panoptic"])
def test_evaluation(kind):
    masks = kind == "shapes_panoptic"
    dataset = build_dataset(kind, "val", length=4, masks=masks)
    model = build_model(
        "detr_tiny_panoptic" if masks else "detr_tiny", num_classes=len(dataset.label_map)
    )
    with imagined_gpu():
        model = model.to("cuda")
        recipe = Recipe(pretrained_backbone=False, masks=masks)
        figures = evaluate(
            model,
            build_loader(dataset, 2),
            CocoEvaluator(dataset.ground_truth(), dataset.label_map),
            build_criterion(model, recipe).to("cuda"),
            "cuda",
            mask_evaluator=MaskEvaluator(dataset) if masks else None,
        )
    assert {"AP", "losses"} <= figures.keys()


@pytest.mark.parametrize("losses", [False, True])
@pytest.mark.parametrize("normalised", [True, False])
def test_evaluation_waits_once_a_batch(normalised, losses):
    transform = val_transform(48, 90, normalised=normalised)
    dataset = build_dataset("shapes", "val", length=6, transform=transform)
    evaluator = CocoEvaluator(dataset.ground_truth(), dataset.label_map)
    with imagined_gpu() as gpu:
        model = build_model("detr_tiny", num_classes=len(dataset.label_map)).to("cuda")
        loader = [(batch.pin_memory(), targets) for batch, targets in build_loader(dataset, 3)]
        recipe = Recipe(pretrained_backbone=False)
        criterion = build_criterion(model, recipe).to("cuda") if losses else None
        gpu.waited()
        evaluate(model, loader, evaluator, criterion, device="cuda")
        waits = gpu.waited()
        reads = [wait for wait in waits if wait.endswith("to the host")]
        assert len(reads) == len(loader) + losses, "not once a batch, and once for all losses"
        # Once: what images are normalised by, and which of the losses are errors.
        assert len(waits) - len(reads) == 3 + losses
        assert len(gpu.page_locked) == 2 * len(loader)
        images, masks = ({dtype for _, dtype in gpu.page_locked[i::2]} for i in (0, 1))
        assert images == {torch.float32 if normalised else torch.uint8}
        assert masks == {torch.bool}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_the_command_evaluates_what_it_uploads_as_bytes(monkeypatch):
    monkeypatch.setattr("detr_fast.training.assembly.open_device", lambda name: GPU)
    asked = []

    def asking(*given, **options):
        asked.append(options)
        return build_loader(*given, **options)

    monkeypatch.setattr("detr_fast.data.build.build_loader", asking)
    with imagined_gpu() as gpu:
        assert main(["eval", "--model", "detr_tiny", "--max_images", "3", "--batch_size", "2"]) == 0
        assert [options["pin_memory"] for options in asked] == [True]
        copied = [given for name, given in gpu.calls if name == "aten::_to_copy"]
        images = [shape[0] for ((shape, dtype),) in copied if dtype == torch.uint8]
        assert images == [2, 1]

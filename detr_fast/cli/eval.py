"""`detr-fast eval`: AP, AR and losses of a model on a data set."""

import argparse
import sys
from pathlib import Path

from ..data.kinds import KINDS

_AUTOCAST = {"no": None, "bf16": "bfloat16", "fp16": "float16"}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="evaluate a model",
        description="Prints COCO AP and AR, AP of every class and the averaged losses; of a model "
        "with masks also AP of masks and, where the data have stuff, PQ, SQ and RQ. Without a "
        "data set it takes generated shapes and the model shipped with the package. Started by "
        "torchrun, the processes share the images.",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--coco_path", help="folder of a data set in COCO's layout")
    data.add_argument("--dataset_file", choices=KINDS, help="kind of data set")
    data.add_argument(
        "--coco_panoptic_path",
        help="folder of the panoptic annotations, where that is not --coco_path",
    )
    data.add_argument("--split", default="val", help="part of the data set")
    data.add_argument("--max_images", type=int, metavar="N", help="only the first N images")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--resume", "--weights", dest="weights", help="path, URL or zoo name of the weights"
    )
    model.add_argument(
        "--model",
        help="name of the zoo: its own weights, or with --resume the model that they are of",
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--batch_size",
        type=int,
        default=1,
        help="images of one batch of one process; beyond 1 padding changes the result, "
        "unless with --exact_batches",
    )
    run.add_argument(
        "--exact_batches",
        action="store_true",
        help="give each image of a batch what it gets alone, whatever its padding; batches are "
        "then made of images of like shapes, which have little padding",
    )
    run.add_argument("--num_workers", type=int, default=0, help="loader processes")
    run.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one")
    run.add_argument("--amp", choices=list(_AUTOCAST), default="no", help="autocast of the model")
    run.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16"],
        help="evaluate the engine in this precision instead of the model",
    )
    run.add_argument(
        "--panoptic_threshold",
        type=float,
        default=0.85,
        help="score that a segment of a panoptic map has to exceed",
    )
    run.add_argument(
        "--no_merge_stuff",
        action="store_true",
        help="keep one query of a class of stuff, as the original's code does, and merge none",
    )
    run.add_argument("--output", metavar="FILE", help="write the figures to this JSON file too")


def run(args: argparse.Namespace) -> int:
    import torch

    from ..evaluation.coco import CocoEvaluator
    from ..evaluation.evaluate import evaluate
    from ..evaluation.report import render, to_json
    from ..inference.engine import Engine
    from ..inference.kept_memory import keep_freed_memory
    from ..inference.loading import load_for_detection
    from ..training import distributed
    from ..training.assembly import open_device
    from ..training.criterion import build_criterion
    from ..training.recipe import Recipe

    for name in ("batch_size", "max_images"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; expected at least 1")
    shipped = "detr_tiny" if args.coco_path is None else "detr_resnet50"
    if args.dataset_file in ("coco_panoptic", "shapes_panoptic"):
        shipped += "_panoptic"
    source = args.weights or args.model or shipped
    device = open_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        loaded = load_for_detection(source, args.model, exact_batches=args.exact_batches)
        dataset = _dataset(args, loaded, device)
        ground_truth = dataset.ground_truth()
        recipe = Recipe().with_known_fields(loaded.training_args)
        autocast = _AUTOCAST[args.amp]
        model = loaded.model.to(device)
        if args.precision is not None:
            model = Engine(model, args.precision, short_side=loaded.preprocess.short_side)
        figures = evaluate(
            model,
            _loader(args, dataset, device, getattr(loaded.model, "exact_batches", False)),
            CocoEvaluator(ground_truth, dataset.label_map),
            build_criterion(loaded.model, recipe).to(device),
            device,
            mask_evaluator=_mask_evaluator(args, loaded, dataset),
            amp=autocast and getattr(torch, autocast),
            progress=distributed.is_main_process() and sys.stderr.isatty(),
        )
        if distributed.is_main_process():
            _warn_of_other_names(ground_truth["categories"], dataset.label_map)
            data = f"{args.coco_path or 'generated shapes'} ({args.split})"
            print(f"{source} on {figures['images']} images of {data}\n\n{render(figures)}")
            if args.output is not None:
                Path(args.output).parent.mkdir(parents=True, exist_ok=True)
                Path(args.output).write_text(to_json(figures) + "\n")
                print(f"\nwritten to {args.output}")
    finally:
        distributed.shutdown()
    return 0


def _dataset(args: argparse.Namespace, loaded, device):
    """The data in the model's own classes and at the size of its images."""
    from ..data.build import build_dataset
    from ..data.transforms import val_transform
    from ..models.segmentation import DETRSegmentation

    # A model without names of classes goes by the order of those of the data.
    known = loaded.label_map if loaded.has_class_names else None
    preprocess = loaded.preprocess
    kind = args.dataset_file
    if kind is None and args.coco_path is None and loaded.label_map.stuff:
        kind = "shapes_panoptic"
    elif kind is None and args.coco_panoptic_path is not None:
        kind = "coco_panoptic"
    dataset = build_dataset(
        kind,
        args.split,
        coco_path=args.coco_path,
        coco_panoptic_path=args.coco_panoptic_path,
        masks=isinstance(loaded.model, DETRSegmentation),
        # A GPU is sent bytes and normalises them itself.
        transform=val_transform(
            preprocess.short_side, preprocess.max_size, normalised=device.type != "cuda"
        ),
        label_map=known,
        length=args.max_images if args.coco_path is None else None,
    )
    if len(dataset.label_map) != loaded.model.num_classes:
        raise ValueError(
            f"the model has {loaded.model.num_classes} classes and the data set "
            f"{len(dataset.label_map)}: evaluate on the data that the model was trained for"
        )
    return dataset


def _mask_evaluator(args: argparse.Namespace, loaded, dataset):
    """What compares the masks of a model that has some, and None for others."""
    from ..evaluation.masks import MaskEvaluator
    from ..inference.panoptic import PostProcessPanoptic
    from ..models.segmentation import DETRSegmentation

    if not isinstance(loaded.model, DETRSegmentation):
        return None
    maps = PostProcessPanoptic(
        dataset.label_map, args.panoptic_threshold, merge_stuff=not args.no_merge_stuff
    )
    return MaskEvaluator(dataset, maps)


def _loader(args: argparse.Namespace, dataset, device, exact_batches: bool):
    from ..data.build import build_loader
    from ..training import distributed

    return build_loader(
        dataset,
        args.batch_size,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
        distributed=distributed.is_distributed(),
        # Otherwise the order of the files is part of the published convention.
        buckets=exact_batches,
        max_images=args.max_images,
    )


def _warn_of_other_names(categories: list[dict], label_map) -> None:
    """Says so where an id means something else to the model than in the data."""
    names = {category["id"]: category["name"] for category in label_map.categories}
    other = [
        f"{category['id']} is '{category['name']}' in the data and '{names[category['id']]}' in "
        "the model"
        for category in categories
        if {"name", "id"} <= category.keys()
        and names.get(category["id"], category["name"]) != category["name"]
    ]
    if other:
        more = f"; {len(other) - 3} more" if len(other) > 3 else ""
        print(f"note: category {'; '.join(other[:3])}{more}", file=sys.stderr)

"""Device time of matching on a GPU, against the figures it was designed for.

    python benchmarks/bench_cuda.py --output FOLDER

Each row is checked against the CPU, captured in a CUDA graph and replayed; the time is that between
two events around many replays, divided by their number, the median of several rounds. Where
torch-linear-assignment is installed it solves the same problems in the same run. Writes
bench_cuda.json and bench_cuda.md in FOLDER.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import torch
from matching_workloads import boxes, matching

import detr_fast
from detr_fast.ops.assignment import linear_assignment
from detr_fast.ops.set_matching import set_matching
from detr_fast.training.criterion import SetCriterion, auxiliary_weights
from detr_fast.training.matcher import HungarianMatcher
from detr_fast.training.targets import PackedTargets, pack_targets

# Targets of 16 images with the mean and the spread of COCO.
COCO_LIKE = (3, 7, 1, 14, 2, 9, 5, 21, 0, 4, 11, 2, 6, 30, 1, 8)
REPLAYS, ROUNDS = 50, 9
# Milliseconds of device time on an H200 that the kernels were designed for.
GOALS = {
    "set_matching, 7 sets x 16 images x 300 queries": 0.025,
    "linear_assignment, 208 x 300 x 100": 0.10,
    "linear_assignment, 208 x 300 x 300": 1.3,
    "linear_assignment, 208 x 300 x 600": 0.45,
}


def device_time(run) -> float:
    """Milliseconds of one run, captured in a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return time_of(graph.replay)


def time_of(run) -> float:
    times = []
    for _ in range(ROUNDS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPLAYS):
            run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / REPLAYS)
    return statistics.median(times)


def matching_row(sets=7, queries=300):
    outputs, targets = matching(list(COCO_LIKE), queries, trained=True)
    layers = [outputs[name].expand(sets, -1, -1, -1) for name in ("pred_logits", "pred_boxes")]
    logits, predicted = (each.contiguous() for each in layers)
    packed = pack_targets(targets)
    given = (logits, predicted, packed.labels, packed.boxes)
    on_gpu = (*(tensor.cuda() for tensor in given), packed.offsets)
    expected = set_matching(*given, packed.offsets)
    assert torch.equal(set_matching(*on_gpu).cpu(), expected), "other matches than on the CPU"
    return {
        "what": f"set_matching, {sets} sets x {len(COCO_LIKE)} images x {queries} queries",
        "ms": device_time(lambda: set_matching(*on_gpu)),
    }


def assignment_row(rows, columns):
    cost = torch.rand(208, rows, columns)
    gpu = cost.cuda()
    expected = linear_assignment(cost)
    assert torch.equal(linear_assignment(gpu).cpu(), expected), "other indices than on the CPU"
    row = {
        "what": f"linear_assignment, 208 x {rows} x {columns}",
        "ms": device_time(lambda: linear_assignment(gpu)),
    }
    try:
        from torch_linear_assignment import batch_linear_assignment
    except ImportError:
        return row
    batch_linear_assignment(gpu)
    # It waits for the device, so no graph can hold it.
    return row | {"torch_linear_assignment_ms": time_of(lambda: batch_linear_assignment(gpu))}


def criterion_row(layers=6, images=32, queries=100, classes=91, capacity=40):
    weights = auxiliary_weights({"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}, layers)
    losses = ["labels", "boxes", "cardinality"]
    criterion = SetCriterion(classes, HungarianMatcher(1, 5, 2), weights, 0.1, losses).cuda()
    generator = torch.Generator().manual_seed(0)
    made = [
        {
            "pred_logits": torch.randn(images, queries, classes + 1).cuda().requires_grad_(),
            "pred_boxes": boxes(generator, images, queries).cuda().requires_grad_(),
        }
        for _ in range(layers)
    ]
    outputs = made[-1] | {"aux_outputs": made[:-1]}
    room = images * capacity
    targets = PackedTargets(
        torch.randint(classes, (room,)).cuda(),
        boxes(generator, room).cuda(),
        torch.arange(images + 1) * capacity,
        counts=torch.tensor((COCO_LIKE * images)[:images]).cuda(),
    )

    def step():
        for layer in made:
            for value in layer.values():
                value.grad = None
        criterion.total(criterion(outputs, targets)).backward()

    return {
        "what": f"criterion with backward, {layers} layers x {images} images x {queries} queries",
        "ms": device_time(step),
    }


def table(rows) -> str:
    lines = [
        "| | ms of device time | designed for | torch-linear-assignment |",
        "| --- | --: | --: | --: |",
    ]
    for row in rows:
        goal, other = GOALS.get(row["what"], ""), row.get("torch_linear_assignment_ms", "")
        lines.append(
            f"| {row['what']} | {row['ms']:.4f} | {goal} | {other:{'.3f' * bool(other)}} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_cuda: torch.cuda.is_available() is False: there is no GPU to time.")
    torch.manual_seed(0)
    rows = [matching_row()]
    rows += [assignment_row(*shape) for shape in ((300, 100), (300, 300), (300, 600))]
    rows.append(criterion_row())
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit,
        "build": {k: v for k, v in detr_fast.build_info().items() if k != "cuda_toolkit"},
        "rows": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "bench_cuda.json").write_text(json.dumps(record, indent=1))
    text = f"{record['gpu']}, torch {record['torch']}, commit {commit[:12]}\n\n{table(rows)}"
    (arguments.output / "bench_cuda.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

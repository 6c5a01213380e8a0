"""`detr-fast bench` beside the DETR of Hugging Face transformers and OpenVINO, in one run.

    OMP_NUM_THREADS=2 python benchmarks/bench_inference.py --output benchmarks/results/MACHINE

Takes the options of `detr-fast bench`; torch.compile is timed too unless `--compile none` says
otherwise. transformers runs with its SDPA attention and the very weights of our model, so that its
answers are checked like all others; in 16 bits all of it is, channels last. OpenVINO, on a CPU
only, runs that same model.
"""

from collections.abc import Sequence
from functools import partial

import torch
from openvino_detr import PRECISIONS as OPENVINO_PRECISIONS
from openvino_detr import openvino_detr
from transformers_detr import transformers_detr

from detr_fast.cli import bench
from detr_fast.cli.parser import Parser
from detr_fast.inference.benchmark.implementations import Implementation, Maker, Stages
from detr_fast.inference.engine import PRECISIONS
from detr_fast.models.detr import DETR


def transformers(model: DETR, precision: str) -> Implementation:
    theirs = transformers_detr(model, "sdpa")
    dtype = PRECISIONS[precision]
    if precision != "fp32":
        theirs = theirs.to(dtype, memory_format=torch.channels_last)

    def run(images: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = theirs(pixel_values=torch.stack(images).to(dtype))
        return {"pred_logits": outputs.logits, "pred_boxes": outputs.pred_boxes}

    inside = theirs.model
    ends = {"backbone": inside.backbone, "encoder": inside.encoder, "decoder": inside.decoder}
    return Implementation(precision, run, Stages(run, ends))


def openvino(model: DETR, precision: str) -> Implementation:
    return Implementation(precision, openvino_detr(model, precision))


def peers(precisions: Sequence[str], device: torch.device) -> dict[str, Maker]:
    made = {f"transformers {name}": partial(transformers, precision=name) for name in precisions}
    if device.type == "cpu":
        for name in precisions:
            if name in OPENVINO_PRECISIONS:
                made[f"openvino {name}"] = partial(openvino, precision=name)
    return made


def main() -> int:
    parser = Parser(prog="bench_inference.py", description=__doc__.partition("\n")[0])
    bench.add_options(parser)
    parser.set_defaults(compile_mode="default")
    return bench.run(parser.parse_args(), peers)


if __name__ == "__main__":
    raise SystemExit(main())

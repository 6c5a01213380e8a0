"""A DETR of Hugging Face transformers as OpenVINO, Intel's runtime for CPUs, runs it.

OpenVINO tells its makers that it was used unless `opt_in_out --opt_out` forbids it.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers_detr import transformers_detr

# By our names for precisions.
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
# Each takes the room of the weights.
MOST_FIXED = 4


def openvino_detr(model: nn.Module, precision: str) -> Callable[[list[Tensor]], dict[str, Tensor]]:
    """Their detector with the weights of `model`, a `DETR`, in OpenVINO.

    Args:
        model: on a CPU, in evaluation mode.
        precision: a key of `PRECISIONS`.

    Returns:
        A function from float32 CHW images of one size to "pred_logits" and "pred_boxes". Each of
        the first sizes gets a program of its own, which is faster than one for any; what comes
        after `MOST_FIXED` sizes runs by one for any.

    Raises:
        ImportError: openvino, transformers or timm is not installed.
    """
    import openvino

    converted = openvino.convert_model(_traced(model), input=[-1, 3, -1, -1])
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    programs: dict[torch.Size | None, Callable] = {}

    def program(size: torch.Size) -> Callable:
        place = size if size in programs or len(programs) < MOST_FIXED else None
        if place not in programs:
            made = converted.clone()
            if place is not None:
                made.reshape(list(size))
            programs[place] = core.compile_model(made, "CPU", settings).create_infer_request()
        return programs[place].infer

    def run(images: list[Tensor]) -> dict[str, Tensor]:
        batch = torch.stack(images)
        logits, boxes = program(batch.shape)([batch.numpy()]).values()
        return {"pred_logits": torch.from_numpy(logits), "pred_boxes": torch.from_numpy(boxes)}

    return run


def _traced(model: nn.Module) -> torch.jit.ScriptModule:
    """For batches of any size: what is traced computes with sizes, too."""
    theirs = _Outputs(transformers_detr(model, "sdpa")).eval()
    with torch.no_grad(), warnings.catch_warnings():
        # Of decisions that are fixed, and of torch.jit's age: the benchmark checks the answers.
        warnings.simplefilter("ignore")
        return torch.jit.trace(theirs, torch.zeros(2, 3, 96, 128), check_trace=False)


class _Outputs(nn.Module):
    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.detector(pixel_values=images)
        return outputs.logits, outputs.pred_boxes

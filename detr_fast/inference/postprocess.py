"""From the outputs of a model to boxes in pixels."""

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert


class PostProcess(nn.Module):
    """Turn DETR outputs into one detection per query, in the pixels of the original image.

    Each query contributes its best foreground class (Carion et al., ECCV 2020, section A.4); the
    no-object class only takes probability away. Nothing is thresholded, sorted or suppressed, and
    boxes are not clipped to the image, as COCO evaluation expects.
    """

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], target_sizes: Tensor) -> list[dict[str, Tensor]]:
        """Decode the last decoder layer.

        Args:
            outputs: `pred_logits` (B, Q, C) with no-object as the last class and `pred_boxes`
                (B, Q, 4), normalised cxcywh. 16-bit inputs are computed in float32: pixel
                coordinates past 2048 do not fit float16.
            target_sizes: (B, 2) integers, height and width in pixels of each image the boxes are
                wanted for: the original image, without padding or resizing.

        Returns:
            B dictionaries of tensors on the device of the outputs: `scores` (Q,), `labels` (Q,)
            int64 label-map indices, `boxes` (Q, 4) xyxy in pixels; float32, or float64 for float64
            outputs.

        Raises:
            ValueError: if the number of sizes is not the number of images.
        """
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        if target_sizes.ndim != 2 or target_sizes.shape != (logits.shape[0], 2):
            raise ValueError(
                f"target_sizes has shape {tuple(target_sizes.shape)}; expected one (height, width) "
                f"for each of the {logits.shape[0]} images of pred_logits {tuple(logits.shape)}"
            )
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        with torch.autocast(logits.device.type, enabled=False):
            scores, labels = logits.to(dtype).softmax(-1)[..., :-1].max(-1)
            # A GPU need not be waited for; whoever reads on the CPU has to wait for the sizes.
            target_sizes = target_sizes.to(logits.device, non_blocking=logits.is_cuda)
            height, width = target_sizes.to(dtype).unbind(1)
            scale = torch.stack([width, height, width, height], dim=1)
            boxes = box_convert(boxes.to(dtype), "cxcywh", "xyxy") * scale[:, None]
        return [
            {"scores": s, "labels": c, "boxes": b}
            for s, c, b in zip(scores, labels, boxes, strict=True)
        ]


def on_host(decoded: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What `PostProcess` gives, on the CPU, for which the host waits once a batch."""
    joined = torch.stack(
        [
            torch.cat((own["boxes"], own["scores"][:, None], own["labels"][:, None]), 1)
            for own in decoded
        ]
    ).cpu()
    return [
        {"boxes": own[:, :4], "scores": own[:, 4], "labels": own[:, 5].long()} for own in joined
    ]

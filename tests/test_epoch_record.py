"""The line that a user reads of an epoch."""

import pytest

from detr_fast.training.epoch_record import line_of

BOXES = {"test_coco_eval_bbox": [0.25, 0.5, *[0.1] * 10]}
MASKS = {"test_coco_eval_masks": [0.125, *[0.1] * 11]}


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({}, ""),
        (BOXES, ", AP 0.250, AP50 0.500"),
        (BOXES | MASKS, ", AP 0.250, AP50 0.500, mask AP 0.125"),
        (
            BOXES | MASKS | {"test_PQ_all": {"pq": 0.75, "sq": 0.5, "rq": 0.5}},
            ", AP 0.250, AP50 0.500, mask AP 0.125, PQ 0.750",
        ),
        # The log has -1 where there was nothing to measure.
        ({"test_coco_eval_bbox": [-1.0] * 12}, ", AP nan, AP50 nan"),
    ],
)
def test_line(figures, text):
    record = {"epoch": 1, "train_loss": 3.14159, **figures}
    assert line_of(record, 5) == f"epoch 2/5: loss 3.142{text}"


def test_line_of_an_epoch_whose_every_step_was_skipped():
    assert line_of({"epoch": 0}, 1) == "epoch 1/1: loss nan"

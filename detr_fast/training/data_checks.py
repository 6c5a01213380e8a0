"""What is looked at before the first step: whether the data can be learned from by this model."""

from torch import nn
from torch.utils.data import Dataset

from ..data.checks import check_dataset

# Decoding more images than this would take longer than waiting for the faulty one.
_MAX_DECODED = 5000


def check_classes(model: nn.Module, train: Dataset, val: Dataset | None) -> None:
    """Checks that model, training set and validation set mean the same classes.

    Raises:
        ValueError: They do not.
    """
    if len(train.label_map) != model.num_classes:
        raise ValueError(
            f"the model has {model.num_classes} classes, the training set "
            f"{len(train.label_map)}; build the model with num_classes={len(train.label_map)}"
        )
    if val is not None and val.label_map != train.label_map:
        raise ValueError(
            f"the label maps differ: {train.label_map} in training, {val.label_map} in "
            "validation; build both data sets with the same label_map"
        )


def check_data(model: nn.Module, train: Dataset, val: Dataset | None) -> None:
    """Prints the report of `data.checks.check_dataset` on each data set.

    Raises:
        DataError: One cannot be learned from.
    """
    datasets = {id(dataset): dataset for dataset in (train, val) if dataset is not None}
    for dataset in datasets.values():
        report = check_dataset(dataset, model.num_queries, decode=len(dataset) <= _MAX_DECODED)
        report.raise_for_errors()
        print(report, flush=True)

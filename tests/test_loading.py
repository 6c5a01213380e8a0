"""Samplers and loaders: what each process sees, in which order, with which random numbers."""

import pytest
import torch
from torch.utils.data import Dataset

from detr_fast.data.batching import NestedTensor
from detr_fast.data.build import build_dataset, build_loader
from detr_fast.data.label_map import COCO_LABEL_MAP
from detr_fast.data.sampling import EpochSampler, SeededSamples
from detr_fast.data.shapes import SHAPES_LABEL_MAP


class Numbers(Dataset):
    """Image i has the value i, and a target with one random number."""

    label_map = SHAPES_LABEL_MAP

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = torch.full((3, 2, 2), float(index))
        return image, {"image_id": torch.tensor([index]), "random": torch.rand(1)}

    def ground_truth(self):
        return {"images": [], "annotations": [], "categories": []}


def epoch(loader, number):
    """(image id, random number) of every image, in order."""
    loader.sampler.set_epoch(number)
    seen = []
    for images, targets in loader:
        assert isinstance(images, NestedTensor)
        assert images.tensors[:, 0, 0, 0].tolist() == [t["image_id"].item() for t in targets]
        seen += [(t["image_id"].item(), t["random"].item()) for t in targets]
    return seen


# Order --------------------------------------------------------------------------------------------


def test_order_depends_on_seed_and_epoch_only():
    first, again = (build_loader(Numbers(50), 4, shuffle=True, seed=1) for _ in range(2))
    epoch(first, 0)
    assert epoch(first, 3) == epoch(again, 3)  # a run resumed at epoch 3
    assert epoch(first, 4) != epoch(again, 3)
    assert epoch(build_loader(Numbers(50), 4, shuffle=True, seed=2), 3) != epoch(again, 3)
    assert sorted(i for i, _ in epoch(first, 0)) == list(range(50))


def test_workers_change_neither_order_nor_random_numbers():
    alone = build_loader(Numbers(20), 3, shuffle=True, seed=1)
    workers = build_loader(Numbers(20), 3, shuffle=True, seed=1, num_workers=2)
    for number in (0, 1, 1, 5):  # the workers persist
        assert epoch(alone, number) == epoch(workers, number)


def test_random_numbers_differ_between_images_and_epochs():
    loader = build_loader(Numbers(20), 4)
    numbers = [value for number in (0, 1) for _, value in epoch(loader, number)]
    assert len(set(numbers)) == 40


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_does_not_move_the_global_generator(num_workers):
    before = torch.get_rng_state()
    epoch(build_loader(Numbers(5), 2, shuffle=True, num_workers=num_workers), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_generator_is_restored_after_an_error():
    class Failing(Numbers):
        def __getitem__(self, index):
            torch.rand(1)
            raise OSError("no")

    before = torch.get_rng_state()
    with pytest.raises(OSError, match="no"):
        SeededSamples(Failing(1))[0, 5]
    assert torch.equal(before, torch.get_rng_state())


def test_without_shuffle_in_order():
    assert [i for i, _ in epoch(build_loader(Numbers(7), 2), 0)] == list(range(7))


# Processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 9])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_shards_hold_every_image_exactly_once(length, world_size):
    shards = [
        EpochSampler(length, False, rank=r, world_size=world_size, pad=False)
        for r in range(world_size)
    ]
    assert sorted(i for shard in shards for i, _ in shard) == list(range(length))
    assert [len(list(shard)) for shard in shards] == [len(shard) for shard in shards]


@pytest.mark.parametrize("length", [1, 7, 8, 9])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_shards_are_equally_long_and_together_one_epoch(length, world_size):
    shards = [
        EpochSampler(length, True, seed=3, rank=r, world_size=world_size) for r in range(world_size)
    ]
    seen = [list(shard) for shard in shards]
    assert len({len(shard) for shard in seen}) == 1
    together = [sample for group in zip(*seen, strict=True) for sample in group]
    assert together[:length] == list(EpochSampler(length, True, seed=3))
    assert set(together[length:]) <= set(together[:length])


def test_rank_outside_the_world():
    with pytest.raises(ValueError, match="rank is 2; expected 0 to 1"):
        EpochSampler(4, True, rank=2, world_size=2)


# Loaders ------------------------------------------------------------------------------------------


def test_loader_passes_on_label_map_and_ground_truth():
    loader = build_loader(Numbers(3), 2)
    assert loader.dataset.label_map is SHAPES_LABEL_MAP
    assert loader.dataset.ground_truth()["annotations"] == []


def test_drop_last():
    assert [len(t) for _, t in build_loader(Numbers(5), 2, drop_last=True)] == [2, 2]
    assert [len(t) for _, t in build_loader(Numbers(5), 2)] == [2, 2, 1]


def test_dataset_smaller_than_the_batch():
    with pytest.raises(ValueError, match=r"has 3 images, .* fewer than one batch of 4"):
        build_loader(Numbers(3), 4, shuffle=True, drop_last=True)


def test_empty_dataset():
    with pytest.raises(ValueError, match="the data set is empty: 0 images"):
        build_loader(Numbers(0), 4)


# Data sets by name --------------------------------------------------------------------------------


def test_shapes_are_the_default():
    train, val = build_dataset(None, "train"), build_dataset(None, "val")
    assert (len(train), len(val)) == (1000, 200)
    assert train.label_map == SHAPES_LABEL_MAP
    assert train.seed != val.seed
    image, target = val[0]
    assert image.dtype == torch.float32
    assert target["size"].tolist() == target["orig_size"].tolist() == list(image.shape[1:])
    assert len(build_dataset("shapes", "train", length=8)) == 8


def test_shapes_are_only_flipped_and_only_where_augmented():
    augmented = build_dataset("shapes", "train", length=1)
    plain = build_dataset("shapes", "train", length=1, augment=False)
    flips = 0
    for _ in range(10):
        flipped = not torch.equal(augmented[0][0], plain[0][0])
        assert torch.equal(augmented[0][0].sum((1, 2)) * 0, plain[0][0].sum((1, 2)) * 0)
        flips += flipped
    assert 0 < flips < 10


def test_shapes_through_a_loader():
    loader = build_loader(build_dataset("shapes", "train", length=5), 2, shuffle=True)
    assert sum(len(targets) for _, targets in loader) == 5


def test_coco_by_path(shared_data):
    dataset = build_dataset(None, "val", coco_path=shared_data / "coco_tiny")
    assert dataset.label_map is COCO_LABEL_MAP
    image, target = dataset[0]
    assert min(image.shape[1:]) == 800
    assert target["boxes"].max() <= 1
    train = build_dataset("coco", "train", coco_path=shared_data / "coco_tiny", augment=False)
    assert torch.equal(train[0][0], train[0][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "voc"}, "data set kind is 'voc'; expected one of coco, coco_panoptic, sh"),
        ({"kind": "coco"}, "needs coco_path"),
        ({"kind": "shapes", "coco_path": "x"}, "coco_path x is given"),
        ({"kind": "coco", "coco_path": "x", "length": 4}, "length=4 is for generated shapes"),
        ({"kind": None, "split": "test"}, "splits train and val; got 'test'"),
        ({"kind": None, "label_map": COCO_LABEL_MAP}, "label map given has 91 classes"),
    ],
)
def test_contradictory_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_dataset(**{"split": "train", **arguments})

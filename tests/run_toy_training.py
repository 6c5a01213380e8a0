"""A toy training in a process of its own: `run_toy_training.py folder {distributed|killed}`."""

import signal
import sys
from pathlib import Path

import torch
from toy_training import ToyDataset, toy_model, toy_recipe

from detr_fast.training import distributed
from detr_fast.training.sampling import StepSampler
from detr_fast.training.trainer import Trainer

SEED = 3


def images_of_second_process(length, batch_size, processes=2):
    """Indices that process 1 sees in the first epoch."""
    sampler = StepSampler(length, batch_size, SEED, process=1, processes=processes)
    return {index for index, _ in sampler}


def joined_run(folder, batch_size, **dataset):
    """Two steps in float64, four images each over all processes; half of the images are empty."""
    empty = images_of_second_process(8, 2)
    options = {"backbone_norm": "frozen"}
    model = toy_model(**options).double()
    recipe = toy_recipe(epochs=1, batch_size=batch_size, **dataset.pop("recipe", {}))
    data = ToyDataset(8, empty=empty, dtype=torch.float64, **dataset)
    trainer = Trainer(model, recipe, data, output_dir=folder, seed=SEED)
    trainer.fit()
    return trainer


def resumable_run(folder, resume=None, resume_path=None, **dataset):
    """Three epochs of three steps in which everything that can be random is."""
    model = toy_model(dropout=0.1)
    recipe = toy_recipe(epochs=3, schedule="one_cycle", lr=1e-3)
    data = ToyDataset(6, noise=True, **dataset)
    trainer = Trainer(
        model,
        recipe,
        data,
        ToyDataset(2),
        output_dir=folder,
        resume=resume,
        resume_path=resume_path,
        eval_every=2,
    )
    return trainer, trainer.fit()


def main():
    folder, what = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if what == "killed":
        resumable_run(folder, signal_at=11, signal_number=signal.SIGKILL)
        return
    distributed.init_from_env("gloo")
    joined_run(folder / "joined", 2, recipe={"clip_max_norm": 0})
    joined_run(folder / "accumulated", 1, recipe={"clip_max_norm": 0, "accumulate": 2})
    bad = sorted(images_of_second_process(8, 2))[:1]
    joined_run(folder / "skipped", 2, nan=bad, recipe={"nonfinite": "skip"})
    distributed.shutdown()


if __name__ == "__main__":
    main()

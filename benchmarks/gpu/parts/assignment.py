"""linear_assignment on batches of problems, the answers compared with the CPU's first."""

from functools import partial

import torch
from scipy.optimize import linear_sum_assignment

from detr_fast.ops.assignment import linear_assignment

from ..part import OURS, Case, Measurement
from ..setting import Setting
from ..timing import captured, seconds_of

PROBLEMS = 208
SHAPES = ((300, 100), (300, 300), (300, 600))


def cases(setting: Setting) -> list[Case]:
    batch, shrink = setting.size((PROBLEMS, 1), (3, 25))
    listed = []
    for shape in SHAPES:
        rows, columns = (side // shrink for side in shape)
        what = f"linear_assignment, {batch} x {rows} x {columns}"
        for who, measure in WHO.items():
            listed.append(Case(what, who, partial(measure, setting, (batch, rows, columns))))
    return listed


def _problem(setting: Setting, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Costs on the device and the CPU's answer."""
    cost = torch.rand(shape)
    return cost.to(setting.device), linear_assignment(cost)


def _measurement(seconds: float, cost: torch.Tensor) -> Measurement:
    # Costs in, an index of 8 bytes for every row out.
    return Measurement(seconds, bytes=cost.nbytes + 8 * cost.shape[0] * cost.shape[1])


def _ours(setting: Setting, shape: tuple[int, ...], graph: bool) -> Measurement:
    cost, expected = _problem(setting, shape)
    if not torch.equal(linear_assignment(cost).cpu(), expected):
        raise RuntimeError("other indices than on the CPU")

    def run():
        return linear_assignment(cost)

    return _measurement(
        seconds_of(captured(run, setting.device) if graph else run, setting.device), cost
    )


def _torch_linear_assignment(setting: Setting, shape: tuple[int, ...]) -> Measurement:
    from torch_linear_assignment import batch_linear_assignment

    cost, expected = _problem(setting, shape)
    found = batch_linear_assignment(cost).cpu()
    _check_total(cost.cpu(), found, expected)
    # It waits for the device, so no graph can hold it.
    return _measurement(seconds_of(lambda: batch_linear_assignment(cost), setting.device), cost)


def _scipy(setting: Setting, shape: tuple[int, ...]) -> Measurement:
    cost, _ = _problem(setting, shape)

    def run():
        return [linear_sum_assignment(problem) for problem in cost.cpu().numpy()]

    return _measurement(seconds_of(run, setting.device), cost)


def _check_total(cost: torch.Tensor, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of several optima a peer may have chosen another: the totals must agree."""

    def total(answer: torch.Tensor) -> float:
        chosen = cost.double().gather(2, answer.clamp(min=0)[..., None])[..., 0]
        return chosen[answer >= 0].sum().item()

    if abs(total(found) - total(expected)) > 1e-4:
        raise RuntimeError(f"a total cost of {total(found)}, ours is {total(expected)}")


WHO = {
    OURS: partial(_ours, graph=True),
    f"{OURS}, not captured": partial(_ours, graph=False),
    "torch-linear-assignment": _torch_linear_assignment,
    "copy to the host and a loop over SciPy": _scipy,
}

"""The criterion with padded targets: the same losses, and nothing that a CUDA graph cannot hold."""

import pytest
import torch
from test_criterion import gradients, leaves, make_criterion, random_outputs, random_targets
from tolerances import ACCUMULATED_FLOAT64
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from detr_fast.training.targets import PackedTargets, pack_targets

# Operations whose result has a shape that depends on values, or that give a value to the host.
DATA_DEPENDENT = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave.Tensor",
    "aten::_unique2",
}


class Recorder(TorchDispatchMode):
    """Every operation with its tensors; refuses what a CUDA graph cannot hold."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        name = operation.name()
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs, result)) if _tensor(x)]
        assert name not in DATA_DEPENDENT, f"{name} asks for values"
        if name.startswith("aten::index"):
            assert all(x.dtype != torch.bool for x in tensors), f"{name} with a mask"
        devices = {x.device.type for x in tensors}
        if not name.startswith("detr_fast::"):  # these take the offsets on the CPU
            assert len(devices) < 2, f"{name} copies between {sorted(devices)}"
        self.calls.append((name, [tuple(x.shape) for x in tensors]))
        return result


def _tensor(value):
    return isinstance(value, torch.Tensor)


def losses_and_gradients(criterion, outputs, targets):
    for leaf in leaves(outputs):
        leaf.grad = None
    losses = criterion(outputs, targets)
    criterion.total(losses).backward()
    return losses, gradients(outputs)


@pytest.mark.filterwarnings("ignore:an image has")
@pytest.mark.parametrize("sizes", [(3, 0, 7, 1), (0, 0), (0, 20, 5)])
@pytest.mark.parametrize("aux_repeats", [1, 3])
def test_the_losses_and_gradients_of_packed_targets(aux_repeats, sizes):
    outputs, packed = random_outputs(len(sizes)), pack_targets(random_targets(sizes))
    criterion = make_criterion(aux_repeats=aux_repeats)
    losses, expected = losses_and_gradients(criterion, outputs, packed)
    close = {"rtol": ACCUMULATED_FLOAT64, "atol": ACCUMULATED_FLOAT64, "equal_nan": True}
    for capacity in (max(sizes), max(sizes) + 5):
        again, found = losses_and_gradients(criterion, outputs, packed.padded(capacity))
        assert again.keys() == losses.keys()
        for name, value in losses.items():
            torch.testing.assert_close(again[name], value, **close)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, **close)


@pytest.mark.parametrize("aux_repeats", [1, 3])
def test_no_operation_asks_for_values_and_no_shape_depends_on_them(aux_repeats):
    recorded = []
    for sizes in ((3, 0, 7), (0, 0, 0), (8, 8, 8)):
        outputs = random_outputs(3)
        padded = pack_targets(random_targets(sizes)).padded(8)
        with Recorder() as recorder:
            losses_and_gradients(make_criterion(aux_repeats=aux_repeats), outputs, padded)
        recorded.append(recorder.calls)
    assert any(name == "detr_fast::set_matching" for name, _ in recorded[0])
    assert recorded[0] == recorded[1] == recorded[2]


def test_the_recorder_sees_what_a_graph_cannot_hold():
    values = torch.rand(5)
    for wait in (
        lambda: values.sum().item(),
        lambda: values[values > 0.5],
        lambda: (values > 0.5).nonzero(),
    ):
        with pytest.raises(AssertionError), Recorder():
            wait()
    with pytest.raises(AssertionError, match="asks for values"), Recorder():
        make_criterion()(random_outputs(1), random_targets((2,)))


@pytest.mark.parametrize("aux_repeats", [1, 3])
def test_nothing_is_copied_between_host_and_device(aux_repeats):
    offsets = torch.arange(4) * 8
    # Tensors without memory on a device that need not be there.
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer = {
            "pred_logits": torch.randn(3, 12, 6, device="cuda"),
            "pred_boxes": torch.rand(3, 12, 4, device="cuda"),
        }
        outputs = layer | {
            "aux_outputs": [{k: v.clone() for k, v in layer.items()} for _ in range(2)]
        }
        for leaf in leaves(outputs):
            leaf.requires_grad_()
        padded = PackedTargets(
            torch.zeros(24, dtype=torch.int64, device="cuda"),
            torch.rand(24, 4, device="cuda"),
            offsets,
            counts=torch.ones(3, dtype=torch.int64, device="cuda"),
        )
        criterion = make_criterion(aux_repeats=aux_repeats).float().to("cuda")
        with Recorder() as recorder:
            total = criterion.total(criterion(outputs, padded))
    assert total.device.type == "cuda"
    assert any(name == "detr_fast::set_matching" for name, _ in recorder.calls)

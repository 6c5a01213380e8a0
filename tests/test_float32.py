"""full_float32: what torch is told about TensorFloat-32, and that it is told back."""

import pytest
import torch

from detr_fast import build_model
from detr_fast.inference.engine import Engine
from detr_fast.inference.float32 import full_float32
from detr_fast.inference.verify import compare

two_interfaces = pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="this torch has one switch for all of cuDNN"
)


def rounds() -> tuple[bool, bool]:
    """Whether torch may round the operands of convolutions and of products."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def _as_it_was():
    before = rounds()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("matmul", [True, False])
def test_nothing_is_rounded_within(conv, matmul):
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = conv, matmul
    with full_float32():
        assert rounds() == (False, False)
        with full_float32():
            pass
        assert rounds() == (False, False)
    assert rounds() == (conv, matmul)


@two_interfaces
def test_where_all_of_torch_may_round():
    before, torch.backends.fp32_precision = torch.backends.fp32_precision, "tf32"
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    try:
        set_to = [switch.fp32_precision for switch in switches]
        assert "tf32" in set_to
        with full_float32():
            assert [switch.fp32_precision for switch in switches] == ["ieee", "ieee"]
        assert [switch.fp32_precision for switch in switches] == set_to
    finally:
        torch.backends.fp32_precision = before


def test_an_error_leaves_it_as_it_was():
    before = rounds()
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert rounds() == before


@two_interfaces
def test_where_somebody_has_set_convolutions_alone():
    switch = torch.backends.cudnn.conv
    before, switch.fp32_precision = switch.fp32_precision, "ieee"
    try:
        with full_float32():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert switch.fp32_precision == torch.backends.cudnn.rnn.fp32_precision == "ieee"
        assert switch.fp32_precision == "ieee"
        assert torch.backends.cudnn.rnn.fp32_precision == "tf32"
    finally:
        switch.fp32_precision = before


def test_the_reference_of_a_comparison():
    seen = {}

    def noted(name, module):
        module.register_forward_pre_hook(lambda *_: seen.update({name: rounds()}))
        return module

    model = noted("model", build_model("detr_tiny").eval())
    engine = noted("engine", Engine(model, "fp32"))
    compare(model, engine, [[torch.rand(3, 64, 64)]])
    assert seen == {"model": (False, False), "engine": (True, False)}

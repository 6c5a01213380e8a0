"""Float32 that is float32 on a GPU, too."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.backends import cuda, cudnn


@contextmanager
def full_float32() -> Iterator[None]:
    """Within it CUDA multiplies float32 numbers with all of their bits.

    By default torch lets cuDNN round the operands of convolutions to the 10 bits of TensorFloat-32,
    which moves the logits of a DETR by about 1e-3. The setting is torch's own, for all threads.
    """
    with ExitStack() as stack:
        for switch in (cudnn, cuda.matmul):
            stack.enter_context(_set(switch, "allow_tf32", False))
        # torch has two interfaces, of which the newer one can overrule the older. It refuses to say
        # what cuDNN does where convolutions and recurrent networks differ.
        if hasattr(cudnn, "conv"):
            for switch in (cudnn.conv, cudnn.rnn, cuda.matmul):
                stack.enter_context(_set(switch, "fp32_precision", "ieee"))
        yield


@contextmanager
def _set(switch: Any, name: str, value: Any) -> Iterator[None]:
    """Sets what can be read; torch cannot say it where somebody has used both interfaces."""
    try:
        before = getattr(switch, name)
    except RuntimeError:
        yield
        return
    setattr(switch, name, value)
    try:
        yield
    finally:
        setattr(switch, name, before)

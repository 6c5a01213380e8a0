"""How many blocks of a kernel a multiprocessor holds at once."""

from .hardware import LIMITS

# Of every architecture from 7.5 on. Registers are given to a warp in units, and so is shared memory
# to a block, of which the driver keeps some for itself from 8.0 on (CUDA C++ Programming Guide,
# "Shared Memory").
REGISTERS = 65536
_REGISTER_UNIT = 256
_SHARED_UNIT = 128
_RESERVED_SHARED = 1024
_WARP = 32


def blocks_at_once(architecture: int, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks on a multiprocessor, 0 where not even one fits.

    Args:
        architecture: compute capability, 90 for 9.0.
        threads: of a block.
        registers: of a thread.
        shared_bytes: of a block, static and dynamic.
    """
    limits = LIMITS[architecture]
    warps = -(-threads // _WARP)
    of_a_warp = _rounded_up(registers * _WARP, _REGISTER_UNIT)
    reserved = _RESERVED_SHARED if architecture >= 80 else 0
    of_a_block = _rounded_up(shared_bytes + reserved, _SHARED_UNIT)
    by_registers = REGISTERS // of_a_warp // warps
    by_shared = limits.shared_bytes // of_a_block if of_a_block else limits.blocks
    return min(limits.blocks, limits.warps // warps, by_registers, by_shared)


def occupancy(architecture: int, threads: int, registers: int, shared_bytes: int) -> float:
    """The share of a multiprocessor's warps that blocks of this kernel fill."""
    blocks = blocks_at_once(architecture, threads, registers, shared_bytes)
    return blocks * -(-threads // _WARP) / LIMITS[architecture].warps


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit

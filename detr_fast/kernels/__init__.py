"""Kernels in Triton, imported at the first launch: importing detr_fast brings no Triton."""

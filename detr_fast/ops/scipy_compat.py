"""`linear_sum_assignment` for NumPy callers, with SciPy's signature, results and exceptions."""

from .. import _extension


def _resolve():
    compiled = _extension.module()
    if compiled is not None:
        return compiled.linear_sum_assignment
    from scipy.optimize import linear_sum_assignment as of_scipy

    return of_scipy


# The compiled function itself rather than a wrapper: a Python frame would cost as much as the
# solution of a small problem. Where it is missing this is SciPy's own function.
linear_sum_assignment = _resolve()

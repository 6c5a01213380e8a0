"""sorted_matches: SciPy's lists of all images from the queries of their targets."""

import pytest
import torch

from detr_fast.ops.sorted_matches import sorted_matches
from detr_fast.reference import sorted_matches as reference

IMPLEMENTATIONS = {"operation": sorted_matches, "reference": reference.sorted_matches}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def case(groups=2, counts=(3, 0, 9, 1), queries=6):
    """Random matches: more targets than queries in one image, and some that are left out."""
    matched = torch.full((groups, sum(counts)), -1)
    start = 0
    for count in counts:
        for g in range(groups):
            kept = torch.randperm(count)[: min(count, queries)]
            matched[g, start + kept] = torch.randperm(queries)[: len(kept)] + g * queries
        start += count
    matched[0, :1] = -1
    return matched, torch.tensor([0, *counts]).cumsum(0)


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_lists_of_every_image(groups, implementation):
    matched, offsets = case(groups)
    queries, targets = implementation(matched, offsets)
    for low, high in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        pairs = sorted(
            (matched[g, t].item(), t - low)
            for g in range(groups)
            for t in range(low, high)
            if matched[g, t] >= 0
        )
        pairs += [(-1, -1)] * (groups * (high - low) - len(pairs))
        own = slice(groups * low, groups * high)
        assert list(zip(queries[own].tolist(), targets[own].tolist(), strict=True)) == pairs


@pytest.mark.parametrize("counts", [(), (0,), (0, 0)])
def test_no_targets(counts, implementation):
    queries, targets = implementation(torch.empty(3, 0, dtype=torch.int64), case(1, counts)[1])
    assert queries.shape == targets.shape == (0,)


def test_strides_do_not_matter(implementation):
    matched, offsets = case()
    strided = matched.t().contiguous().t()
    for mine, other in zip(
        implementation(strided, offsets), implementation(matched, offsets), strict=True
    ):
        assert torch.equal(mine, other)


def test_opcheck():
    torch.library.opcheck(torch.ops.detr_fast.sorted_matches.default, case())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"matched": torch.zeros(2, 13)}, TypeError, "matched has dtype torch.float32"),
        ({"offsets": torch.zeros(5)}, TypeError, "offsets torch.float32"),
        ({"matched": torch.zeros(13).long()}, ValueError, r"matched has shape \(13,\)"),
        ({"offsets": torch.zeros(0).long()}, ValueError, r"offsets \(0,\)"),
    ],
)
def test_wrong_arguments_are_explained(changes, error, message):
    matched, offsets = case()
    with pytest.raises(error, match=message):
        sorted_matches(**({"matched": matched, "offsets": offsets} | changes))


@pytest.mark.parametrize("offsets", [[1, 3, 13], [0, 3, 12], [0, 14, 13]])
def test_offsets_that_do_not_divide_the_targets(offsets, implementation):
    with pytest.raises(ValueError, match="must ascend from 0 to the number of targets, 13"):
        implementation(case()[0], torch.tensor(offsets))

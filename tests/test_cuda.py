"""The compiled kernels on a GPU: the CPU's indices and bits, no waiting, streams, devices, graphs.

What can be shown without a GPU is in tests/native/test_cuda_kernels.py.
"""

import numpy as np
import pytest
import torch
from device_checks import captured, no_waiting, require_kernel
from problems import KINDS, assert_optimal, problem
from test_criterion import gradients, leaves, make_criterion, random_outputs, random_targets
from test_matching_cost import WEIGHTS, arguments

from detr_fast.ops.assignment import linear_assignment
from detr_fast.ops.matching_cost import matching_cost
from detr_fast.ops.set_matching import set_matching
from detr_fast.training.matcher import HungarianMatcher
from detr_fast.training.targets import pack_targets

pytestmark = pytest.mark.cuda

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.fixture(autouse=True)
def _kernels():
    require_kernel("set_matching")


def on_gpu(values, device="cuda"):
    """Positional arguments of matching on a GPU, the last of them, the offsets, on the CPU."""
    *tensors, offsets = values
    return (*(tensor.to(device) for tensor in tensors), offsets)


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor):
    found = found.cpu()
    both_nan = found.isnan() & expected.isnan()
    same = found.view(BITS[found.dtype]) == expected.view(BITS[expected.dtype])
    assert (same | both_nan).all()


# --- linear_assignment ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_assignment_is_that_of_the_cpu(kind, dtype):
    rng = np.random.default_rng(5)
    shapes = [(1, 1), (7, 100), (33, 32), (64, 64), (100, 300), (300, 31), (130, 700), (1, 1024)]
    for rows, columns in shapes:
        cost = torch.stack([torch.from_numpy(problem(rng, rows, columns, kind)) for _ in range(3)])
        cost = cost.to(dtype)
        assert torch.equal(linear_assignment(cost.cuda()).cpu(), linear_assignment(cost))


@pytest.mark.parametrize("kind", ["uniform", "integers", "mostly_forbidden", "detr"])
@pytest.mark.parametrize("shape", [(300, 300), (40, 1300), (1300, 40), (900, 1000), (1100, 1100)])
def test_assignment_of_large_problems(shape, kind):
    cost = torch.from_numpy(problem(np.random.default_rng(6), *shape, kind))[None]
    assert torch.equal(linear_assignment(cost.cuda()).cpu(), linear_assignment(cost))


def test_assignment_of_the_largest_problem():
    cost = torch.from_numpy(problem(np.random.default_rng(7), 5000, 5000, "detr"))[None]
    assert torch.equal(linear_assignment(cost.cuda()).cpu(), linear_assignment(cost))


@pytest.mark.parametrize("shape", [(300, 300), (20, 1300)])
def test_assignment_is_optimal(shape):
    cost = problem(np.random.default_rng(8), *shape, "uniform")
    answer = linear_assignment(torch.from_numpy(cost)[None].cuda())[0].cpu().numpy()
    assert_optimal(cost, answer)


@pytest.mark.parametrize("sizes_on", ["cuda", "cpu"])
@pytest.mark.parametrize("largest", [(40, 60), (60, 40), (700, 900), (30, 1200), (1200, 1100)])
def test_assignment_of_mixed_sizes(largest, sizes_on):
    rng = np.random.default_rng(9)
    rows, columns = largest
    cost = torch.from_numpy(rng.integers(0, 50, (12, rows, columns))).float()
    sizes = torch.stack([torch.randint(0, limit + 1, (12,)) for limit in largest], dim=1)
    sizes[0], sizes[1] = torch.tensor(largest), torch.tensor([rows, 0])
    for b, (n, m) in enumerate(sizes.tolist()):
        cost[b, n:] = torch.nan  # never read
        cost[b, :, m:] = torch.nan
    found = linear_assignment(cost.cuda(), sizes.to(sizes_on))
    assert torch.equal(found.cpu(), linear_assignment(cost, sizes))


def test_a_size_beyond_the_matrices_is_taken_as_theirs():
    cost = torch.rand(2, 5, 8)
    sizes = torch.tensor([[9, 99], [-1, 3]], device="cuda")
    found = linear_assignment(cost.cuda(), sizes).cpu()
    assert torch.equal(found[0], linear_assignment(cost)[0])
    assert (found[1] == -1).all()


def test_a_size_on_the_cpu_is_checked():
    with pytest.raises(ValueError, match=r"sizes\[0\] is \(9, 8\)"):
        linear_assignment(torch.rand(1, 5, 8, device="cuda"), torch.tensor([[9, 8]]))


@pytest.mark.parametrize("shape", [(6, 20, 50), (3, 50, 20), (2, 400, 700), (2, 700, 400)])
def test_layout_does_not_change_the_assignment(shape):
    cost = torch.randint(0, 30, shape).float()
    expected = linear_assignment(cost)
    gpu = cost.cuda()
    double = torch.stack([gpu, gpu], dim=-1)
    batch_last = gpu.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for layout in (gpu.mT.contiguous().mT, double[..., 0], batch_last):
        assert torch.equal(linear_assignment(layout).cpu(), expected)
    same = gpu[:1].expand(4, -1, -1)
    assert (linear_assignment(same).cpu() == expected[0]).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_assignment_of_every_dtype(dtype):
    cost = torch.randn(4, 30, 70).to(dtype)
    assert torch.equal(linear_assignment(cost.cuda()).cpu(), linear_assignment(cost))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty_problems(shape):
    assert (linear_assignment(torch.empty(shape, device="cuda")) == -1).all()


def test_many_problems():
    cost = torch.randint(0, 9, (5000, 7, 40)).float()
    assert torch.equal(linear_assignment(cost.cuda()).cpu(), linear_assignment(cost))


# --- matching -------------------------------------------------------------------------------------

FORMS = {
    "softmax": {},
    "focal": {"class_cost": "focal"},
    "focal without eps": {"class_cost": "focal", "eps": 0.0},
    "focal, another gamma": {"class_cost": "focal", "gamma": 1.5, "eps": 1e-12},
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 13, 91, 400])
def test_costs_have_the_bits_of_the_cpu(classes, form, dtype):
    inputs = arguments(queries=75, classes=classes, counts=(3, 0, 90))
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    options = {**FORMS[form], **WEIGHTS, "extra_cost": torch.rand(2, 93, 75)}
    expected = matching_cost(*inputs, **options)
    options["extra_cost"] = options["extra_cost"].cuda()
    found = matching_cost(*on_gpu(inputs), **options)
    if dtype == torch.float64:
        # exp and log in float64 are the libraries' own.
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=1e-12)
    else:
        assert_same_bits(found, expected)


@pytest.mark.parametrize("counts", [(5, 8, 0), (0, 0, 0), (0, 20, 11)])
@pytest.mark.parametrize("counts_on", ["cuda", "cpu"])
@pytest.mark.parametrize("form", FORMS)
def test_room_is_left_alone(form, counts_on, counts):
    inputs = arguments(queries=16, counts=(20, 20, 20))
    inputs[2][:5] = 10**9  # of no class, if it were read
    given = torch.tensor([0, *counts[1:]])
    options = {**FORMS[form], "counts": given}
    gpu_options = {**options, "counts": given.to(counts_on)}
    assert_same_bits(
        matching_cost(*on_gpu(inputs), **gpu_options), matching_cost(*inputs, **options)
    )
    found = set_matching(*on_gpu(inputs), **gpu_options)
    assert torch.equal(found.cpu(), set_matching(*inputs, **options))


@pytest.mark.parametrize("non_finite_cost", [1e8, -3.0, float("inf"), float("nan")])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("counts", [(5, 0, 30, 7), (60, 2), (0,), (100, 1200, 45), ()])
def test_matches_are_those_of_the_cpu(counts, groups, non_finite_cost):
    inputs = arguments(sets=3, queries=45, classes=20, counts=counts)
    options = {"groups": groups, "non_finite_cost": non_finite_cost}
    for bad in (0.0, 0.01, 0.3):
        boxes = inputs[1].clone()
        boxes[torch.rand(boxes.shape) < bad] = torch.nan
        given = (inputs[0], boxes, *inputs[2:])
        expected = set_matching(*given, **options)
        assert torch.equal(set_matching(*on_gpu(given), **options).cpu(), expected)


def test_matches_of_equal_costs_are_those_of_the_cpu():
    logits, boxes, labels, target_boxes, offsets = arguments(sets=2, queries=90, counts=(30, 80))
    given = (logits.round(), (boxes * 4).round() / 4, labels, target_boxes.round(), offsets)
    assert torch.equal(set_matching(*on_gpu(given)).cpu(), set_matching(*given))


def test_more_images_than_a_launch_takes():
    inputs = arguments(sets=2, queries=9, classes=5, counts=[k % 4 for k in range(800)])
    assert torch.equal(set_matching(*on_gpu(inputs)).cpu(), set_matching(*inputs))
    assert_same_bits(matching_cost(*on_gpu(inputs)), matching_cost(*inputs))


def test_no_queries():
    assert (set_matching(*on_gpu(arguments(queries=0))) == -1).all()


def test_strides_do_not_change_matches():
    inputs = arguments(sets=4, queries=50, counts=(5, 30))
    logits, boxes, labels, target_boxes, offsets = on_gpu(inputs)
    strided = (
        logits.transpose(0, 3).contiguous().transpose(0, 3),
        boxes.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([labels, labels], dim=1)[:, 0],
        target_boxes.mT.contiguous().mT,
        offsets,
    )
    assert torch.equal(set_matching(*strided).cpu(), set_matching(*inputs))


def test_a_label_without_a_class_is_matched_last_and_kills_nothing():
    logits, boxes, labels, target_boxes, offsets = arguments(queries=8, counts=(7, 3))
    expected = set_matching(logits, boxes, labels, target_boxes, offsets)
    wrong = labels.clone()
    wrong[0], wrong[3] = 10**12, -1
    given = on_gpu((logits, boxes, wrong, target_boxes, offsets))
    assert matching_cost(*given)[:, [0, 3]].isnan().all()
    found = set_matching(*given).cpu()
    assert torch.equal(found[:, 7:], expected[:, 7:])
    assert (found >= 0).all()


def test_every_entry_of_the_result_is_written():
    """With memory that holds NaN and the largest integers before it is written."""
    inputs = arguments(sets=2, queries=45, counts=(20, 0, 60))
    counts = torch.tensor([4, 0, 50])
    expected = set_matching(*inputs, counts=counts, groups=3)
    cost = matching_cost(*inputs, counts=counts)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        given, on_device = on_gpu(inputs), counts.cuda()
        found = set_matching(*given, counts=on_device, groups=3)
        assert torch.equal(found.cpu(), expected)
        assert_same_bits(matching_cost(*given, counts=on_device), cost)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_opcheck(class_cost):
    options = {"class_cost": class_cost}
    given = on_gpu(arguments())
    torch.library.opcheck(torch.ops.detr_fast.matching_cost.default, given, options)
    torch.library.opcheck(torch.ops.detr_fast.set_matching.default, given, options)
    cost = torch.rand(2, 5, 9, device="cuda")
    torch.library.opcheck(torch.ops.detr_fast.linear_assignment.default, (cost,))


# --- streams, devices, waiting --------------------------------------------------------------------


def test_matching_makes_two_launches():
    given = on_gpu(arguments(sets=6, queries=100, counts=(5, 30, 0, 7)))
    set_matching(*given)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        set_matching(*given)
        torch.cuda.synchronize()
    kinds = [event.name for event in profile.events() if event.device_type.name == "CUDA"]
    assert 1 <= len(kinds) <= 2, kinds


def test_work_is_done_on_the_current_stream():
    inputs = arguments(sets=6, queries=100, counts=(5, 30, 0, 7))
    expected = set_matching(*inputs)
    given = on_gpu(inputs)
    logits = torch.zeros_like(given[0])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        logits.copy_(given[0])  # only after the pause, and on this stream
        found = set_matching(logits, *given[1:])
    stream.synchronize()
    assert torch.equal(found.cpu(), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    inputs = arguments(sets=2, queries=50, counts=(5, 30))
    found = set_matching(*on_gpu(inputs, "cuda:1"))
    assert found.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(found.cpu(), set_matching(*inputs))
    cost = torch.rand(3, 20, 30)
    assert torch.equal(linear_assignment(cost.to("cuda:1")).cpu(), linear_assignment(cost))


def test_operations_do_not_wait():
    given = on_gpu(arguments(sets=2, queries=50, counts=(5, 30)))
    counts, sizes = torch.tensor([3, 9]), torch.tensor([[3, 9], [9, 4]])
    on_device = counts.cuda()
    cost = torch.rand(2, 40, 30, device="cuda")
    with no_waiting():
        set_matching(*given)
        set_matching(*given, counts=on_device, groups=5, non_finite_cost=float("inf"))
        matching_cost(*given, counts=counts)
        linear_assignment(cost.mT)
        linear_assignment(cost, sizes)


def test_matcher_and_criterion_do_not_wait():
    outputs = gpu_outputs(3)
    packed = pack_targets(random_targets((3, 0, 7), dtype=torch.float32)).to("cuda")
    padded = packed.padded(9)
    criterion = make_criterion().float().cuda()
    matcher = HungarianMatcher(index_device=None)
    layer = {name: outputs[name].detach() for name in ("pred_logits", "pred_boxes")}
    with no_waiting():
        step(criterion, outputs, packed)
        step(criterion, outputs, padded)
        matcher(layer, packed)


# --- CUDA graphs ----------------------------------------------------------------------------------


def gpu_outputs(images):
    """`random_outputs` in float32 on the GPU, as leaves."""
    outputs = random_outputs(images, dtype=torch.float32)
    layers = [*outputs.pop("aux_outputs"), outputs]
    layers = [
        {name: value.detach().cuda().requires_grad_() for name, value in layer.items()}
        for layer in layers
    ]
    return layers[-1] | {"aux_outputs": layers[:-1]}


def step(criterion, outputs, targets):
    losses = criterion(outputs, targets)
    criterion.total(losses).backward()
    return losses


def test_a_graph_matches_other_predictions_and_targets():
    def padded(*counts):
        return arguments(sets=3, queries=40, counts=[20] * 3), torch.tensor(counts)

    first, counts = padded(3, 20, 0)
    given, on_device = on_gpu(first), counts.cuda()
    graph, found = captured(lambda: set_matching(*given, counts=on_device))
    for other, other_counts in (padded(7, 0, 1), padded(20, 20, 20), padded(0, 0, 0)):
        for held, new in zip(given[:4], other[:4], strict=True):
            held.copy_(new)
        on_device.copy_(other_counts)
        graph.replay()
        assert torch.equal(found.cpu(), set_matching(*other, counts=other_counts))


@pytest.mark.parametrize("aux_repeats", [1, 3])
def test_a_graph_of_the_criterion_learns_from_other_targets(aux_repeats):
    outputs = gpu_outputs(3)
    criterion = make_criterion(aux_repeats=aux_repeats).float().cuda()
    batches = [
        pack_targets(random_targets(sizes, dtype=torch.float32)).padded(9).to("cuda")
        for sizes in ((3, 0, 7), (9, 9, 1), (0, 0, 0))
    ]
    static = pack_targets(random_targets((1, 2, 3), dtype=torch.float32)).padded(9).to("cuda")

    def run():
        for leaf in leaves(outputs):
            leaf.grad = None
        return step(criterion, outputs, static)

    graph, losses = captured(run)
    in_graph = gradients(outputs)
    for batch in batches:
        static.copy_(batch)
        graph.replay()
        found = {name: value.clone() for name, value in losses.items()}
        found_gradients = [each.clone() for each in in_graph]
        for leaf in leaves(outputs):
            leaf.grad = None
        expected = step(criterion, outputs, batch)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, equal_nan=True)
        for mine, other in zip(found_gradients, gradients(outputs), strict=True):
            torch.testing.assert_close(mine, other)

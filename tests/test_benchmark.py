"""The benchmark: what it counts, checks and reports. How fast anything is, is not tested."""

import json
import math
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast.cli import bench
from detr_fast.cli.main import main
from detr_fast.cli.parser import Parser
from detr_fast.data.shapes import write_shapes
from detr_fast.data.transforms import val_transform
from detr_fast.inference.benchmark import (
    implementations,
    published,
    report,
    roofline,
    timing,
    workloads,
)
from detr_fast.inference.benchmark.implementations import REFERENCE, model_to_time
from detr_fast.inference.benchmark.memory import with_peak_memory
from detr_fast.inference.benchmark.noise import noise_image
from detr_fast.inference.benchmark.run import BenchmarkRequest, run_benchmark
from detr_fast.inference.engine import cpu_has_bf16
from detr_fast.inference.verify import LIMITS, Parity, compare_outputs
from detr_fast.models.catalogue import ZOO
from detr_fast.models.work import MatrixProduct, Work, count_work
from detr_fast.models.zoo import build_model
from detr_fast.ops.attention import attention

CPU = torch.device("cpu")
QUICK = BenchmarkRequest(
    models=("detr_tiny",),
    precisions=("fp32", "bf16"),
    images=3,
    batch_sizes=(1, 2),
    rounds=2,
    short_side=64,
)
OPTIONS = "--models detr_tiny --precisions fp32 --images 1 --rounds 1 --short_side 64 --device cpu"
pytestmark = pytest.mark.filterwarnings("ignore:this CPU has no instructions for bf16")


@pytest.fixture(scope="module", autouse=True)
def _small_products():
    """What the machine can do at most takes seconds to find out, and nothing here is about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "_SIDES", {"cpu": 64, "cuda": 64})
        patch.setattr(roofline, "_COPIED", {"cpu": 2**10, "cuda": 2**10})
        yield


@pytest.fixture(scope="module")
def record() -> dict:
    return run_benchmark(QUICK, CPU)


# Work


class Known(nn.Module):
    """One product of each kind, all of known size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.linear = nn.Linear(8, 4, bias=False)

    def forward(self, images):
        features = self.conv(images).relu().flatten(2).transpose(1, 2)
        heads = self.linear(features)[:, None]
        return attention(heads, heads, heads)


def test_work_of_a_known_model():
    with torch.device("meta"):
        model = Known().eval()
    work = count_work(model, (2, 3, 8, 12))
    tokens, images = 4 * 6, 2
    assert work.products == (
        MatrixProduct(2 * images * tokens * 8 * 27, images * 3 * 96 + 8 * 27 + images * tokens * 8),
        MatrixProduct(2 * images * tokens * 8 * 4, images * tokens * (8 + 4) + 8 * 4),
        MatrixProduct(2 * 2 * images * tokens**2 * 4, 4 * images * tokens * 4),
    )
    assert work.flops == sum(product.flops for product in work.products)


def test_floor_takes_arithmetic_or_traffic_whichever_is_longer():
    work = Work((MatrixProduct(flops=100, elements=1), MatrixProduct(flops=1, elements=100)))
    assert work.floor(rate=10, bandwidth=20, itemsize=2) == 100 / 10 + 200 / 20


# Time and memory


def test_spread():
    assert timing.spread([4, 1, 3, 2, 10]) == {
        "median": 3,
        "q1": 2,
        "q3": 4,
        "mean": 4,
        "samples": 5,
    }


class Slow(nn.Module):
    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def test_stages_follow_one_another_without_a_gap():
    first, second = Slow(0.02), Slow(0.0)
    steps = nn.Sequential(first, second, Slow(0.03))
    ends = {"first": first, "second": second}
    stages, seconds = timing.timed(
        lambda: timing.stage_times(steps_of(steps), ends, "rest", CPU), CPU
    )
    assert list(stages) == ["first", "second", "rest"]
    assert stages["first"] >= 0.02
    assert stages["rest"] >= 0.03
    assert sum(stages.values()) <= seconds
    assert not any(module._forward_hooks for module in steps.modules())


def steps_of(steps: nn.Module):
    return lambda: steps(torch.zeros(1))


def test_stages_in_another_order_are_an_error():
    first, second = Slow(0), Slow(0)
    steps = nn.Sequential(first, second)
    with pytest.raises(RuntimeError, match="ended in the order first, second, rest; expected"):
        timing.stage_times(steps_of(steps), {"second": second, "first": first}, "rest", CPU)
    with pytest.raises(RuntimeError, match="ended in the order first, rest"):
        timing.stage_times(steps_of(first), {"first": first, "second": second}, "rest", CPU)


def test_peak_memory_is_that_of_the_call():
    total, peak = with_peak_memory(lambda: torch.ones(2**24).sum().item(), CPU)
    assert total == 2**24
    if peak is None:
        pytest.skip("this system does not tell the peak memory of a process")
    # Linux counts resident pages in batches on each processor, and the total may lag by these; what
    # else the process frees or takes is in it too.
    assert 2**26 - 2**21 <= peak <= 2**26 + 2**25


# Workloads


def test_sizes_of_val2017_are_those_of_the_table(shared_data):
    table = json.loads((shared_data / "val2017_sizes.json").read_text())
    expected = [(h, w) for _, h, w in (table["first"] + table["more"][:68])]
    assert workloads.val2017_sizes() == expected
    assert len(expected) == 100


def test_protocol_on_noise_has_the_sizes_of_the_images():
    protocol = workloads.zoo_protocol(4)
    assert [tuple(source.shape[1:]) for (source,) in protocol.batches] == (
        workloads.val2017_sizes()[:4]
    )
    with pytest.raises(ValueError, match="images is 101, but the table of val2017 sizes has 100"):
        workloads.zoo_protocol(101)


def test_protocol_on_a_data_set_takes_its_first_images(tmp_path):
    write_shapes(tmp_path, train=1, val=3)
    protocol = workloads.zoo_protocol(2, tmp_path)
    assert [source.is_file() for (source,) in protocol.batches] == [True, True]
    with pytest.raises(ValueError, match=r"images is 5, but .*instances_val2017.json has 3"):
        workloads.zoo_protocol(5, tmp_path)
    data = replace(QUICK, coco_path=str(tmp_path), images=2, batch_sizes=(), precisions=("fp32",))
    record = run_benchmark(data, CPU)
    assert record["models"][0]["workloads"][0]["sizes"] == [[64, 64]]
    assert str(tmp_path) not in json.dumps(record)


def test_fixed_size_is_800_by_1066():
    pipeline = workloads.Pipeline(workloads.preprocess_for(800), CPU)
    (sources,) = workloads.fixed_size(2, rounds=1).batches
    images, sizes = pipeline.prepare(sources)
    assert [tuple(image.shape) for image in images] == [(3, 800, 1066)] * 2
    assert sizes.tolist() == [[480, 640]] * 2
    assert not torch.equal(images[0], images[1])


# Answers


@pytest.mark.parametrize("name", ["detr_tiny", "detr_resnet50"])
def test_random_weights_can_tell_pictures_apart(name):
    model = model_to_time(name, "none")
    one, other = (val_transform(None, None)(noise_image(192, 256, seed)) for seed in (1, 2))
    with torch.inference_mode():
        parity = compare_outputs([(model([one]), model([other]))])
    assert parity.faults("bf16")[0].startswith("the relative error of logits is")
    assert parity.logits_error > 2 * LIMITS["bf16"]["logits_error"]


class Wrong(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images):
        outputs = self.model(images)
        return {**outputs, "pred_logits": outputs["pred_logits"].roll(1, -1)}


def wrong_or_absent(precisions, device):
    def absent(model):
        raise ImportError("No module named 'of_others'")

    def wrong(model):
        return implementations.Implementation(precisions[0], Wrong(model))

    return {"wrong": wrong, "absent": absent}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_wrong_or_absent_is_said_and_not_timed(precision, capsys):
    parser = Parser(prog="bench")
    bench.add_options(parser)
    args = parser.parse_args([*OPTIONS.split(), "--precisions", precision])
    assert bench.run(args, wrong_or_absent) == 1
    printed = capsys.readouterr().out
    assert "- wrong is not timed, its answers are not the model's: " in printed
    assert "- absent is not timed: No module named 'of_others'" in printed
    assert f"| engine {precision} " in printed
    assert "| wrong" not in printed


# More sizes than OpenVINO gets programs for, and the first again.
SIZES = [(1, 96, 128), (2, 96, 128), (1, 64, 100), (3, 75, 64), (1, 90, 90), (1, 96, 128)]


@torch.inference_mode()
def parity_of_peer(of: str, precision: str) -> tuple[implementations.Implementation, Parity]:
    for package in {"transformers", "timm", of}:
        pytest.importorskip(package, reason=f"{package} is not installed")
    from bench_inference import peers

    torch.manual_seed(0)
    model = build_model("detr_resnet50", enc_layers=1, dec_layers=1).eval()
    theirs = peers([precision], CPU)[f"{of} {precision}"](model)
    batches = [list(torch.randn(count, 3, *size)) for count, *size in SIZES]
    return theirs, compare_outputs([(model(images), theirs.run(images)) for images in batches])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transformers_has_the_answers_of_the_model_whose_weights_it_takes(precision):
    theirs, parity = parity_of_peer("transformers", precision)
    assert parity.faults(precision) == []
    run, ends = theirs.stages.run, theirs.stages.ends
    images = [torch.randn(3, 96, 128)]
    with torch.inference_mode():
        stages = timing.stage_times(lambda: run(images), ends, "heads", CPU)
    assert list(stages) == ["backbone", "encoder", "decoder", "heads"]


def test_openvino_has_the_answers_of_the_model_whose_weights_it_takes():
    _, parity = parity_of_peer("openvino", "fp32")
    assert parity.faults("fp32") == []


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no instructions for bf16")
def test_openvino_rounds_to_bf16():
    """Somewhat more than an engine may."""
    _, parity = parity_of_peer("openvino", "bf16")
    assert 1e-3 < parity.logits_error < 0.1
    assert 1e-3 < parity.boxes_error < 0.1


def test_openvino_runs_on_a_cpu_only():
    from bench_inference import peers

    assert list(peers(["fp16"], CPU)) == ["transformers fp16"]
    assert list(peers(["bf16"], torch.device("cuda"))) == ["transformers bf16"]


# Record and report


def test_every_implementation_is_measured_on_every_workload(record):
    (model,) = record["models"]
    assert [(w["name"], w["batch_size"]) for w in model["workloads"]] == [
        ("fixed size", 1),
        ("fixed size", 2),
        ("zoo protocol", 1),
    ]
    assert model["parameters"] == sum(p.numel() for p in build_model("detr_tiny").parameters())
    assert (model["refused"], model["absent"]) == ({}, {})
    for workload in model["workloads"]:
        names = [own["name"] for own in workload["implementations"]]
        assert names == [REFERENCE, "engine fp32", "engine bf16"]
        staged = workload["name"] == "fixed size"
        for own in workload["implementations"]:
            assert list(own["seconds"]) == ["pre", "model", "post", "end_to_end"]
            stages = ["backbone", "encoder", "decoder", "heads"] if staged else []
            assert list(own["stages"]) == stages
            samples = {figures["samples"] for figures in own["seconds"].values()}
            assert samples == {2 if staged else 3}
            median = own["seconds"]["model"]["median"]
            assert own["images_per_second"] == pytest.approx(workload["batch_size"] / median)
            assert own["floor_seconds"] > 0
            assert math.isfinite(own["share_of_roofline"])


def test_record_says_what_it_depends_on(record):
    assert json.loads(json.dumps(record)) == record
    assert record["device"] == "cpu"
    assert set(record["hardware"]["flops"]) == {"fp32", "bf16"}
    assert record["environment"]["cpu"]["threads"] == torch.get_num_threads()
    assert str(torch.__version__).startswith(record["versions"]["torch"])
    assert {"date", "commit", "uncommitted", "load"} == set(record["conditions"])
    assert record["settings"]["short_side"] == 64


def test_report_is_written_as_json_table_and_plot(record, tmp_path):
    paths = report.write(record, tmp_path / "new")
    assert [path.name for path in paths] == ["inference.json", "inference.md", "inference.png"]
    assert json.loads(paths[0].read_text()) == record
    text = paths[1].read_text()
    for word in ("engine bf16", "backbone", "of the roofline", "peak MiB", "V100, published"):
        assert word in text
    with Image.open(paths[2]) as plot:
        assert plot.width > plot.height > 100


def test_report_shows_what_others_published(record):
    (model,) = record["models"]
    times = [t for t in published.TIMES if t.model == "detr_resnet50"]
    official = {
        **model,
        "name": "detr_resnet50",
        "paper": vars(published.PAPER["detr_resnet50"]),
        "published": [vars(t) for t in times],
    }
    text = report.render({**record, "models": [official]})
    assert "36 (batch size 1)" in text
    assert "15.2 (batch size 1), 162 (batch size 16)" in text
    assert "V100, published, not measured: the original's model zoo" in text


def test_what_is_published_is_of_models_of_the_zoo():
    assert set(published.PAPER) | {t.model for t in published.TIMES} <= set(ZOO)
    assert {t.gpu for t in published.TIMES} == set(published.SOURCES)


def test_tf32_is_as_it_was(record):
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.cuda
def test_on_a_gpu_the_stages_are_those_of_an_engine_without_graphs():
    record = run_benchmark(replace(QUICK, precisions=("fp32", "fp16")), torch.device("cuda"))
    (model,) = record["models"]
    assert model["refused"] == {}
    assert "gpu 0" in model["workloads"][0]["clocks"]
    for own in model["workloads"][0]["implementations"]:
        assert own["stages_of"] == ("itself" if own["name"] == REFERENCE else "without graphs")
        assert min(figures["median"] for figures in own["stages"].values()) > 0


@pytest.mark.slow
def test_torch_compile_runs_beside_the_others():
    request = replace(QUICK, compile_mode="default", batch_sizes=(1,), images=0)
    (model,) = run_benchmark(request, CPU)["models"]
    own = {each["name"]: each for each in model["workloads"][0]["implementations"]}
    assert own["compiled fp32"]["stages"] == {}
    assert "compiled bf16" in own


# Command


def test_the_command_prints_and_writes(tmp_path, capsys):
    assert main(["bench", *OPTIONS.split(), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "## detr_tiny, fixed size, batch size 1, 64 x 85" in printed.out
    assert "written to" in printed.out
    assert "detr_tiny: timing on zoo protocol, batch size 1" in printed.err
    assert (tmp_path / "inference.md").read_text() in printed.out + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--models detr_resnet5", "model 'detr_resnet5' is unknown; did you mean"),
        ("--models detr_resnet50_panoptic", "detr_resnet50_panoptic is no detector without masks"),
        ("--precisions int8", "precision is 'int8'; expected one of 'fp32'"),
        ("--precisions fp16", "fp16 is slower than fp32 on a CPU"),
        ("--compile fast", "compile_mode is 'fast'; expected one of none, default"),
        ("--weights mine.pth", "weights is 'mine.pth'; expected one of none, zoo"),
        ("--images -1", "images is -1; expected at least 0"),
        ("--rounds 0", "rounds is 0; expected at least 1"),
        ("--short_side 0", "short_side is 0; expected at least 1"),
        ("--batch_sizes 1 0", "batch_sizes are (1, 0); expected at least 1 each"),
        ("--images 0 --batch_sizes", "there is nothing to time"),
        ("--coco_path nowhere", "nowhere"),
    ],
)
def test_errors_of_the_command_are_one_line(arguments, message, capsys):
    assert main(["bench", "--device", "cpu", *arguments.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_says_where_transformers_is(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "benchmarks/bench_inference.py" in capsys.readouterr().out.replace("\n", "")

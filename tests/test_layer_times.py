"""Time by layer: every switch of the clock accounted for, work and bytes by hand, the roofline's words. No seconds."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hae_lab import HAELabError, build, config
from hae_lab.plots.rooflines import KIND_STYLES, roofline
from hae_lab.profilers import layer_times
from hae_lab.profilers.backward import backward_macs
from hae_lab.profilers.layer_times import machine_limits, time_by_kind, time_by_layer


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by one second whenever it is read."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(layer_times, "_clock", lambda device: lambda: float(next(seconds)))
    monkeypatch.setattr(layer_times, "machine_limits", lambda device: (100.0, 10.0))


@pytest.fixture(scope="module")
def rows():
    return time_by_layer(config("v2", "lesson16"), batch=2, repeats=2)


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.left(x) * self.right(x)


def test_the_clock_is_switched_at_every_call_and_node(ticking):
    """Between two readings lies one second, so seconds count the stretches of each module."""
    frame = time_by_layer(Parallel(), inputs=torch.zeros(3, 4), repeats=1).set_index("path")
    # outside, itself, left, itself, right, itself, outside: each call is one stretch
    assert frame["forward_ms"].to_dict() == {"": 3000, "left": 1000, "right": 1000, "(loss)": 2000}
    # a node of the product; of each layer one of addmm, one of the transposed weight, two arrivals at parameters
    assert frame.loc[["", "left", "right"], "backward_ms"].tolist() == [1000, 4000, 4000]
    assert frame["share_percent"].sum() == pytest.approx(100)


def test_a_recomputed_call_is_charged_once(ticking):
    plain = time_by_layer(build("v2", "lesson16"), repeats=1)
    again = time_by_layer(build("v2", "lesson16", use_checkpoint=True), repeats=1)
    inner = "output_blocks.5.0.in_layers.0"
    seconds = [frame.set_index("path").loc[inner, "backward_ms"] for frame in (plain, again)]
    assert seconds[1] >= seconds[0] + 1000
    assert (again["ms"] >= 0).all()


def test_work_is_that_of_the_counters(rows):
    macs = backward_macs(config("v2", "lesson16"), batch=2)
    assert rows["macs"].sum() == macs["macs_step"].sum()
    forward = time_by_layer(config("v2", "lesson16"), batch=2, repeats=1, backward=False)
    assert forward["macs"].sum() == macs["macs_forward"].sum()
    assert (forward["backward_ms"] == 0).all()


def test_bytes_and_roof_by_hand(ticking):
    """A linear layer forward: reads 3 x 4 numbers, 4 x 4 weights and 4 biases, writes 3 x 4."""
    frame = time_by_layer(nn.Linear(4, 4), inputs=torch.zeros(3, 4), repeats=1, backward=False).set_index("path")
    row = frame.loc[""]
    assert row["bytes_moved"] == 4 * (12 + 16 + 4 + 12)
    assert row["macs"] == 3 * 4 * 4
    assert row["flops_per_byte"] == pytest.approx(96 / 176)
    assert row["roof_gflops_per_second"] == pytest.approx(10 * 96 / 176)  # memory is the limit
    assert row["gflops_per_second"] == pytest.approx(96e-9)  # in one second
    assert row["of_roof_percent"] == pytest.approx(100 * 96e-9 / (960 / 176))


class Masked(nn.Module):
    """Attention whose mask torch hands on by name."""

    def forward(self, q: torch.Tensor, kv: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, kv, kv, attn_mask=seen)


def test_bytes_of_a_mask_are_read_too(ticking):
    """2 queries and 3 keys of 4 channels: q, kv once, the mask, the output, and a sum of exponentials a query."""
    inputs = [torch.zeros(1, 1, *shape) for shape in ((2, 4), (3, 4), (2, 3))]
    frame = time_by_layer(Masked(), inputs=inputs, repeats=1, backward=False)
    assert frame["bytes_moved"].sum() == 4 * (8 + 12 + 6 + 8 + 2)


def test_columns_say_what_was_measured(rows):
    assert {"convolution", "sparse attention", "attention", "norm", "activation", "outside"} <= set(rows["kind"])
    assert rows["ms"].is_monotonic_decreasing
    assert np.allclose(rows["ms"], rows["forward_ms"] + rows["backward_ms"])
    one = rows.iloc[0]
    assert (one["clock"], one["threads"], one["device"], one["repeats"]) == ("CPU time", 1, "cpu", 2)
    assert rows["overhead_percent"].nunique() == 1
    assert one["step_ms"] > 0
    attention = rows[rows["path"].str.contains("multihead_attn")]
    assert set(attention["kind"]) == {"sparse attention"}  # its out-projection too


def test_kinds_sum_up(rows):
    kinds = time_by_kind(rows)
    assert kinds["ms"].sum() == pytest.approx(rows["ms"].sum())
    assert kinds["share_percent"].sum() == pytest.approx(100)
    convolution = kinds.set_index("kind").loc["convolution"]
    assert convolution["gflops_per_second"] == pytest.approx(2e-6 * convolution["macs"] / convolution["ms"])


def test_the_machine_has_limits():
    gflops, gbytes = machine_limits(repeats=1)
    assert gflops > 0.1
    assert gbytes > 0.1


@pytest.mark.parametrize("fastest", ["product", "convolution"])
def test_the_peak_is_that_of_the_fastest_work(monkeypatch, fastest):
    """On some CPUs the library of convolutions is twice as fast as that of products."""
    monkeypatch.setattr(layer_times, "_product", lambda side, device: "product")
    monkeypatch.setattr(layer_times, "_convolution", lambda channels, side, device: "convolution")
    monkeypatch.setattr(layer_times, "_best", lambda clock, repeats, run: 1.0 if run == fastest else 1e3)
    work = {"product": 2 * 1024**3, "convolution": 2 * 64 * 64 * 256 * 256 * 9}
    gflops, gbytes = machine_limits()
    assert gflops == pytest.approx(work[fastest] / 1e9)
    assert gbytes == pytest.approx(3 * 64 * 2**20 / 1e3 / 1e9)


def test_the_model_is_as_it_was(random_states):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2))
    model[0].bias.grad = torch.ones(4)
    before, state = random_states(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    time_by_layer(model, inputs=torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)), repeats=1)
    assert random_states() == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model[0].bias.grad, torch.ones(4))
    assert model[4].weight.grad is None
    assert torch.get_num_threads() == threads
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_weights_and_inputs_must_be_real():
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(HAELabError, match="Linear is on the meta device, where nothing takes time"):
        time_by_layer(model, inputs=torch.zeros(1, 2))
    with pytest.raises(HAELabError, match="the inputs are on the meta device"):
        time_by_layer(nn.Linear(2, 2), inputs=torch.zeros(1, 2, device="meta"))
    with pytest.raises(HAELabError, match="repeats is a whole number from 1, got 0"):
        time_by_layer(nn.Linear(2, 2), inputs=torch.zeros(1, 2), repeats=0)


# The picture


def picture_rows(shares):
    """Rows as `time_by_layer` gives them, one of each kind, on a machine of 100 GFLOP/s and 10 GB/s."""
    frame = pd.DataFrame([{"path": kind, "kind": kind, "ms": share} for kind, share in shares.items()])
    frame["share_percent"] = 100 * frame["ms"] / frame["ms"].sum()
    frame["macs"] = [10**9 if kind in KIND_STYLES else 0 for kind in frame["kind"]]
    frame["flops_per_byte"] = frame["macs"] / 1e8
    frame["gflops_per_second"] = 2e-6 * frame["macs"] / frame["ms"]
    constants = {"peak_gflops_per_second": 100.0, "gbytes_per_second": 10.0, "overhead_percent": 3.0}
    return frame.assign(**constants, threads=1, clock="CPU time", device_name="a computer")


def test_the_title_says_the_point_from_the_rows():
    figure = roofline(picture_rows({"convolution": 70.0, "sparse attention": 4.0, "norm": 16.0, "outside": 10.0}))
    title = " ".join(figure.get_suptitle().split())
    assert title == "Convolution takes 70 % of the time, at 29 % of the machine's peak; sparse attention takes 4 %"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "convolution, 70 % of the time",
        "sparse attention, 4 % of the time",
        "without MACs, 26 % of the time",
    ]
    assert len(figure.axes[0].collections) == 2
    other = " ".join(roofline(picture_rows({"linear": 60.0, "norm": 40.0})).get_suptitle().split())
    assert other == "Linear takes 60 % of the time, at 33 % of the machine's peak; norm takes 40 %"


def test_the_roof_rises_with_the_memory_up_to_the_peak():
    """On a machine of 100 GFLOP/s and 10 GB/s the two limits meet at 10 FLOPs a byte."""
    rows = picture_rows({"convolution": 70.0, "linear": 20.0, "norm": 10.0})
    rows.loc[rows["kind"] == "linear", "flops_per_byte"] = 0.5
    (ax,) = roofline(rows).axes
    roof, _ = ax.lines
    x, y = roof.get_xdata(), roof.get_ydata()
    assert (x[0], x[-1]) == pytest.approx((0.25, 20))  # half of the least, twice the most
    assert y == pytest.approx(np.where(x < 10, 10 * x, 100))
    ends = {text.get_text(): text for text in ax.texts}
    assert ends["arithmetic: 100 GFLOP/s"].xy == pytest.approx((20, 100))
    memory = ends["memory: 10 GB/s"]
    assert memory.xy == pytest.approx((2.5**0.5, 10 * 2.5**0.5))  # halfway up, on a logarithmic axis
    assert memory.get_position() == (-8, 4)  # points: above the line that rises, and left of it
    working = rows[rows["macs"] > 0]
    drawn = [points.get_offsets().tolist()[0] for points in ax.collections]
    assert drawn == working[["flops_per_byte", "gflops_per_second"]].to_numpy().tolist()
    assert [points.get_sizes()[0] for points in ax.collections] == pytest.approx([20 + 60 * 70, 20 + 60 * 20])


def test_real_rows_make_a_picture(rows):
    points = sum(len(points.get_offsets()) for points in roofline(rows).axes[0].collections)
    assert points == ((rows["macs"] > 0) & (rows["ms"] > 0)).sum()
    assert roofline(rows).png() == roofline(rows).png()

"""One profile of any model: sums, the largest, the tree as text and as HTML, the command line; ten public models."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hae_lab
from hae_lab import VARIANTS, HAELabError, build, config
from hae_lab.__main__ import main
from hae_lab.audit import profile_tables
from hae_lab.audit.clone import read_table
from hae_lab.audit.profile_tables import Setting
from hae_lab.audit.public_models import PUBLISHED
from hae_lab.profilers.macs import compute
from hae_lab.profilers.memory import memory_totals, training_memory


class Hungry(nn.Module):
    """A small network, one layer of which works on a map 16 times as large as the others."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(3)])
        self.up = nn.Upsample(scale_factor=4)
        self.hungry = nn.GELU()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        self.forgotten = nn.Linear(3, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.hungry(self.up(x)))


IMAGE = torch.zeros(2, 3, 64, 64)


@pytest.fixture(scope="module")
def hungry():
    return hae_lab.profile(Hungry(), IMAGE)


# Rows


def test_rows_sum_to_what_other_profilers_say(hungry):
    frame, totals = hungry.frame, hungry.totals
    model = Hungry()
    assert frame["params"].sum() == totals["params"] == sum(p.numel() for p in model.parameters())
    assert frame["macs_forward"].sum() == totals["macs_forward"] == compute(model, inputs=IMAGE)["macs_run"].sum()
    with FlopCounterMode(display=False) as counter:
        model(IMAGE).sum().backward()
    assert frame[["macs_forward", "macs_backward"]].to_numpy().sum() == counter.get_total_flops() // 2
    assert (
        frame["saved_bytes"].sum() == totals["saved_bytes"] == training_memory(model, inputs=IMAGE)["saved_bytes"].sum()
    )
    assert totals["training_peak_bytes"] == memory_totals(model, inputs=IMAGE)["training_peak_bytes"]


def test_the_layer_that_eats_the_memory_is_found(hungry):
    """As a new user would; the answer is the size of what GELU keeps, by hand."""
    eater = hungry.largest("saved_bytes", 1).iloc[0]
    assert eater["path"] == "hungry"
    assert eater["saved_bytes"] == 2 * 8 * 64 * 64 * 4
    assert eater["shape_out"] == "(2, 8, 64, 64)"
    assert eater["share_percent"] == pytest.approx(100 * eater["saved_bytes"] / hungry.totals["saved_bytes"])
    with pytest.raises(HAELabError, match=r"unknown amount 'memory': known are params, .*saved_bytes"):
        hungry.largest("memory")


def test_the_tree_has_children_in_their_parents(hungry):
    tree = hungry.tree().set_index("path")
    for name in ("params", "macs_forward", "macs_backward"):
        assert tree.loc["", name] == hungry.totals[name]
    assert tree.loc["blocks", "macs_forward"] == 3 * tree.loc["blocks.0", "macs_forward"] > 0
    assert tree.loc["blocks", "depth"] == 1
    assert tree.loc["blocks.0.1", "depth"] == 3


def test_what_is_never_called_and_what_learns_nothing_is_said(hungry):
    row = hungry.frame.set_index("path").loc["forgotten"]
    assert (row["note"], row["calls"], row["params_dead"]) == ("never called", 0, 12)
    assert "forgotten: never called" in str(hungry)
    assert hungry.totals["params_dead"] == 12


def test_a_config_and_a_model_without_training():
    whole = hae_lab.profile(config("v2", "lesson16"), batch=2)
    assert whole.totals["params"] == sum(p.numel() for p in build("v2", "lesson16").parameters())
    frozen = hae_lab.profile(build("v2", "lesson16").requires_grad_(False), batch=2)
    forward = hae_lab.profile(config("v2", "lesson16"), batch=2, training=False)
    assert frozen.totals["macs_forward"] == forward.totals["macs_forward"] == whole.totals["macs_forward"]
    assert frozen.totals["macs_backward"] == forward.totals["saved_bytes"] == 0
    assert frozen.totals["forward_peak_bytes"] == whole.totals["forward_peak_bytes"]


def test_inputs_may_be_named_and_outputs_nested():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(4, 2)

        def forward(self, words, scale=1.0):
            return {"logits": self.line(words["x"]) * scale, "count": torch.ones(1, dtype=torch.int64)}

    result = hae_lab.profile(Named(), {"words": {"x": torch.zeros(3, 4)}, "scale": 2.0})
    assert result.totals["macs_forward"] == 3 * 4 * 2
    assert result.inputs == "(3, 4)"


def test_what_nobody_counts_is_unknown_and_named():
    class Distance(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    result = hae_lab.profile(nn.Sequential(nn.Linear(4, 4), Distance()), torch.zeros(2, 6, 4))
    assert pd.isna(result.totals["macs_forward"])
    assert "unknown MACs" in result.summary()
    assert "1: no formula for aten." in str(result)


# The tree as text and HTML


def test_text_goes_as_deep_as_asked(hungry):
    shallow, deep = hungry.text(1), hungry.text(3)
    assert "blocks" in shallow
    assert not re.search(r"^ +Conv2d|^ {4}0", shallow, re.MULTILINE)
    assert len(deep.splitlines()) > len(shallow.splitlines())
    first = shallow.splitlines()[0]
    assert first.startswith("Hungry on (2, 3, 64, 64): 2.02 k parameters; ")
    assert "<Profile: Hungry on" in repr(hungry)


class Tree(HTMLParser):
    """The texts and the nesting of a page; complains about a tag that is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_html_is_a_folding_tree_without_scripts(hungry):
    page = Tree(hungry._repr_html_())
    assert page.tags.count("details") == 6  # the model, blocks, three of them, head
    assert not {"script", "link", "img"} & set(page.tags)
    assert "http" not in hungry._repr_html_()
    assert {"hungry ", "forgotten ", "parameters", "kept for backward"} <= set(page.texts)


def test_hostile_names_are_shown_as_they_are():
    class Evil(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<script>alert('&')</script>", nn.Linear(2, 2))

        def forward(self, x):
            return next(self.children())(x)

    Evil.__name__ = "<b onclick='x'>"
    page = hae_lab.profile(Evil(), torch.zeros(1, 2))._repr_html_()
    assert "<script" not in page
    assert "<b onclick" not in page
    assert "<script>alert('&')</script> " in "".join(Tree(page).texts)


def test_time_is_taken_when_asked_for():
    result = hae_lab.profile(config("v2", "tiny"), time=True, repeats=1)
    assert result.frame["ms"].sum() == pytest.approx(result.totals["ms"])
    assert (result.frame["ms"] >= 0).all()
    assert result.frame.set_index("path").loc["out.2", "forward_ms"] > 0
    assert "CPU time, 1 thread" in result.summary()
    assert "time" in Tree(result._repr_html_()).texts


# Errors and the command line


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Linear(2, 2), None, "say what it takes, inputs="),
        (nn.Linear(2, 2), (3, 2), r"inputs are tensors, \(3, 2\) is a shape: give torch\.empty\(3, 2\)"),
        (nn.Linear(2, 2), torch.zeros(1, 3), "a step of Linear cannot be followed on the meta device"),
        ("resnet50", None, "an HAEConfig or an nn.Module is profiled, got 'resnet50'"),
    ],
)
def test_bad_input_is_one_clear_line(model, inputs, message):
    with pytest.raises(HAELabError, match=message) as error:
        hae_lab.profile(model, inputs)
    assert "\n" not in str(error.value)


MODELS = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4)

def nothing():
    return 7
"""


def test_command_line_profiles_a_variant_and_a_users_model(tmp_path, capsys, monkeypatch):
    assert main(["profile", "lite", "--preset", "lesson16", "--depth", "1"]) == 0
    printed = capsys.readouterr().out
    assert "output_blocks" in printed
    assert "388 k parameters" in printed
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "models.py:small", "--out", "rows.csv"]) == 0
    assert "15 parameters; 24 MACs forward, 24 backward" in capsys.readouterr().out
    assert pd.read_csv("rows.csv")["params"].sum() == 15
    assert main(["profile", "models.py:small", "--out", "tree.html"]) == 0
    assert "<details open>" in (tmp_path / "tree.html").read_text()
    capsys.readouterr()
    for arguments, message in (
        (["profile", "models.py:nothing"], "'models.py:nothing' returned int: a model or (model, inputs) is needed"),
        (["profile", "models.py:other"], "model 'models.py:other' cannot be imported here"),
        (["profile", "lit"], "unknown variant 'lit': did you mean 'lite'"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# Ten public architectures


@pytest.fixture(scope="module")
def counts():
    """The committed table: `test_reproduce.py` makes it anew."""
    return read_table("public_counts").set_index("name")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_public_model_agrees_to_the_last_mac(counts, name):
    """With torch's counter on the meta device, and with what others publish, as far as they say it."""
    row = counts.loc[name]
    assert abs(row["params"] - row["params_published"]) <= row["params_step"] // 2
    assert row["macs"] == row["macs_counter"]
    # the counter takes a grouped convolution for a dense one in the gradient of its weight
    assert row["macs_backward"] == row["macs_backward_counter"] - row["groups_macs"]
    if not pd.isna(row["gmacs_published"]):
        assert row["macs"] / 1e9 == pytest.approx(row["gmacs_published"], abs=row["gmacs_step"] / 2)


def test_public_models_are_ten_and_most_are_published_to_the_last_parameter(counts):
    assert list(counts.index) == list(PUBLISHED)
    assert len(counts) == 10
    assert (counts["params_step"] == 1).sum() == 8
    assert counts["gmacs_published"].notna().sum() == 8


def test_a_row_of_a_public_model_is_made_anew():
    row = profile_tables._public_row("MobileNetV2")
    committed = read_table("public_counts").set_index("name").loc["MobileNetV2"]
    assert {name: row[name] for name in ("params", "macs", "macs_counter", "groups_macs", "saved_bytes")} == {
        name: committed[name] for name in ("params", "macs", "macs_counter", "groups_macs", "saved_bytes")
    }


def test_torchs_counter_counts_both_passes_and_prints_nothing(capsys):
    """A linear layer of 4 to 6 on 3 rows: 72 MACs forward; backward the same for its weight, and for its input."""
    with torch.device("meta"):
        model, x = nn.Linear(4, 6), torch.empty(3, 4)
    assert profile_tables._counter_macs(model, x) == (72, 72)
    assert profile_tables._counter_macs(model, x.clone().requires_grad_()) == (72, 144)
    assert capsys.readouterr().out == ""


def test_the_table_of_training_memory(monkeypatch):
    settings = [Setting("lesson16", images, 0.1, "document_shared") for images in (1, 4)]
    monkeypatch.setattr(profile_tables, "BATCHES", settings)
    rows = profile_tables.training_memory_rows().set_index(["variant", "images"]).sort_index()
    rules = rows["mask_rule"].groupby("variant").unique().map(list)  # without blocks there is no mask
    assert rules.to_dict() == {name: ["" if name == "unet" else "document_shared"] for name in VARIANTS}
    assert len(rows) == 2 * len(VARIANTS)
    for variant in ("v2", "unet"):
        row, hae = rows.loc[variant, 4], rows.loc["hae", 4]
        assert row["saved_percent_of_hae"] == pytest.approx(100 * row["saved_bytes"] / hae["saved_bytes"])
        assert row["training_peak_percent_of_hae"] < 100
    expected = memory_totals(config("v2", "lesson16", dropout=0.1, mask_rule="document_shared"), batch=4)
    assert rows.loc["v2", 4][list(expected.index)].astype("int64").equals(expected)
    assert (rows.loc["hae", "params_percent_of_hae"] == 100).all()
    assert (rows.loc["unet", "attention_saved_bytes"] == 0).all()
    assert (rows.loc["v2", "attention_saved_bytes"] > 0).all()


def test_the_table_of_memory_by_rule(monkeypatch):
    monkeypatch.setattr(profile_tables, "RULES", [Setting("lesson16", 1, 0.1, rule) for rule in ("document", "dense")])
    rows = profile_tables.training_memory_by_rule().set_index("mask_rule")
    expected = memory_totals(config("v2", "lesson16", dropout=0.1, mask_rule="dense"))
    assert rows.loc["dense", list(expected.index)].astype("int64").equals(expected)
    assert rows.loc["document", "saved_bytes"] != rows.loc["dense", "saved_bytes"]


def test_what_the_tables_of_training_memory_show():
    """The findings of the notebook on compute, by differences and ratios of the committed rows."""
    v2 = read_table("training_memory").query("variant == 'v2'").set_index("images")
    one, batch = v2.loc[1], v2.loc[16]
    assert 100 - one["params_percent_of_hae"] == pytest.approx(27, abs=0.5)
    assert one["saved_percent_of_hae"] > 90
    # parameters, gradients and the optimizer's two moments weigh most at one image, what autograd saves in a batch
    assert one["training_peak_percent_of_hae"] < batch["training_peak_percent_of_hae"]
    assert batch["saved_bytes"] == pytest.approx(16 * one["saved_bytes"], rel=0.01)
    by_rule = read_table("training_memory_by_rule").pivot(index="mask_rule", columns="dropout", values="saved_bytes")
    assert by_rule.loc["document", 0.0] > by_rule.loc["dense", 0.0]
    assert by_rule.loc["document", 0.1] < by_rule.loc["dense", 0.1]


def test_a_depthwise_convolution_has_one_filter_a_channel():
    """The reason for `groups_macs`, by hand: 4 channels, one 3 x 3 filter each, on 6 x 6 places."""
    model = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    result = hae_lab.profile(model, torch.zeros(1, 4, 8, 8))
    assert result.totals["macs_forward"] == result.totals["macs_backward"] == 36 * 4 * 9


SPEED = """
import resource, time, torch
from hae_lab import config, profile

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.process_time()
result = profile(config("hae", "wide128", placement="attention"))
print(result.totals["params"], time.process_time() - start, peak() - before)
"""


@pytest.mark.slow
def test_a_model_of_684_million_parameters_takes_no_memory():
    """Its weights alone are 2.7 GB; most of what the process grows by is torch's own code for meta tensors."""
    done = subprocess.run([sys.executable, "-c", SPEED], capture_output=True, text=True, check=True)
    params, _, mebibytes = map(float, done.stdout.split())
    assert params == 683_777_028
    assert mebibytes < 250

"""Claims on where the versions fit: cards, mobile devices, real time; and what others say of the memory of classes."""

from collections.abc import Iterator, Mapping
from typing import Any

from hae_lab.audit import profile_tables, verdicts
from hae_lab.audit.claims.base import BEYOND, MEMORY, TIME, Evidence, Finding, claim, listed
from hae_lab.audit.deployment_tables import deployment
from hae_lab.audit.measured import Measured
from hae_lab.audit.profile_tables import memory_of
from hae_lab.diffusion.sampling import STEPS
from hae_lab.presets import CONTROL, DOCUMENT

MIB, GIB = 2**20, 2**30
REAL_TIME_S, MOBILE_GIB = 1.0, 1.0  # what an application may let its user wait, and take of a telephone's memory
CARDS = f"{', '.join(map(str, verdicts.CARDS_GIB))} GiB"
MEMORY_TABLE = {"notebook": "08_compute_and_latency", "table": "training_memory"}
DEPLOYED = Evidence(table="deployment", test="test_ledger_numbers.py::test_seconds_and_bytes_of_a_deployed_model")
MEMORY_TEST = "test_memory.py::test_v2_saves_parameters_and_little_training_memory"


def _memory(measured: Measured, images: int, variant: str) -> Mapping[str, Any]:
    """The row of the memory table for a batch, made by `profile_tables` before the claims are."""
    rows = measured.read("training_memory")
    (row,) = rows[(rows["images"] == images) & (rows["variant"] == variant)].to_dict("records")
    return row


@claim(
    {285: "高端GPU", 290: "中端GPU", 295: "移动设备"},
    "HAE for high-end GPUs, Lite for middling ones, V2 for mobile devices",
    "three classes of device",
    **MEMORY_TABLE,
    test=MEMORY_TEST,
)
def device_classes(measured: Measured) -> Iterator[Finding]:
    """Whether they need less memory from one to the next, and cards of three sizes, to train and to sample."""
    for setting in profile_tables.BATCHES:
        totals = [_memory(measured, setting.images, variant) for variant in DOCUMENT]
        scope = f"{setting.preset}, {setting.images} image{'s' * (setting.images > 1)} (HAE / Lite / V2)"
        for doing, needs in (
            ("training with AdamW", [each["training_peak_bytes"] for each in totals]),
            ("sampling", [each["params_bytes"] + each["forward_peak_bytes"] for each in totals]),
        ):
            computed = listed(f"{need / GIB:.2f} GiB" for need in needs)
            reading = f"{doing} needs less memory from one to the next"
            yield Finding(reading, scope, computed, verdicts.in_order(needs), MEMORY)
            reading = f"{doing} needs cards of three sizes ({CARDS}: our list)"
            yield Finding(reading, scope, computed, verdicts.different_cards(needs), MEMORY)


@claim(
    {180: "移动设备、边缘计算、实时应用", 295: "移动设备，边缘计算，实时应用"},
    "V2 is for mobile devices, edge computing, real-time applications",
    "small and fast enough",
    **MEMORY_TABLE,
    test=MEMORY_TEST,
)
def mobile_real_time(measured: Measured) -> Iterator[Finding]:
    """The weights beside the others', and on one core: the time of a sample and the memory of the process."""
    weights = {variant: _memory(measured, 1, variant)["params_bytes"] for variant in (CONTROL, *DOCUMENT)}
    mib = {variant: count / MIB for variant, count in weights.items()}
    sizes = f"{listed(f'{mib[variant]:.0f}' for variant in DOCUMENT)} MiB (HAE / Lite / V2)"
    verdict, scope = verdicts.in_order(mib[variant] for variant in DOCUMENT), f"{profile_tables.MEMORY_PRESET}, float32"
    yield Finding("its weights are the smallest of the three", scope, sizes, verdict, MEMORY)
    computed = f"{mib['v2']:.0f} MiB, the control's {mib[CONTROL]:.0f}"
    verdict = verdicts.in_order([mib[CONTROL], mib["v2"]])
    yield Finding("its weights are smaller than a plain U-Net's", scope, computed, verdict, MEMORY, asked_of=BEYOND)
    rows = measured.once(deployment)
    clock = measured.bench_deployment["clock"].iloc[0]
    for row in rows[rows["variant"] == "v2"].to_dict("records"):
        yield from _on_one_core(row, clock)


def _on_one_core(row: Mapping[str, Any], clock: str) -> Iterator[Finding]:
    """What a row of the deployment table comes to: seconds of a sample, bytes of the process that is the smaller."""
    scope = f"V2, {row['preset']}, {row['mask_rule']}, one core of {row['device_name']}"
    yield Finding(
        f"real time: a sample of {STEPS} steps within {REAL_TIME_S:g} s (our threshold)",
        scope,
        f"{row['sample_s']:.1f} s by {row['way']}",
        verdicts.at_most(row["sample_s"], REAL_TIME_S),
        TIME,
        claimed=f"{REAL_TIME_S:g} s",
        evidence=DEPLOYED,
        way=row["way"],
        device_name=row["device_name"],
        clock=clock,
    )
    least = min(row["onnx_process_bytes"], row["torch_process_bytes"])
    yield Finding(
        f"mobile: the process that draws takes at most {MOBILE_GIB:g} GiB, its libraries included (our threshold)",
        scope,
        f"{least / MIB:.0f} MiB",
        verdicts.at_most(least, MOBILE_GIB * GIB),
        MEMORY,
        claimed=f"{MOBILE_GIB:g} GiB",
        evidence=DEPLOYED,
    )


@claim(
    {1: "V2 conservative: class tokens only when they are needed, a batch 2-4 times as large"},
    "Making the class tokens only when they are needed lifts the batch two to four times",
    "2-4 times",
    source="The published code, a later variant (2025-08-08)",
    **MEMORY_TABLE,
    test="test_ledger_numbers.py::test_memory_without_classes_by_the_bytes_of_an_image",
)
def v2_conservative(measured: Measured) -> Iterator[Finding]:
    """What a training step of V2 would save without any class tokens and their projections: at most that."""
    setting = profile_tables.BATCHES[0]
    with_classes = _memory(measured, 1, "v2")
    without = memory_of(setting.config("v2").replace(num_classes=None), 1)
    for reading, name in (
        ("what autograd keeps of an image", "saved_bytes"),
        ("the peak of a training step with AdamW, one image", "training_peak_bytes"),
    ):
        saved = 100 * (1 - without[name] / with_classes[name])
        larger = with_classes[name] / without[name]
        computed = f"{saved:.1f} % at most: a batch {larger:.2f} times as large"
        yield Finding(reading, f"V2, {setting.preset}", computed, verdicts.judge_saving(100 * larger, 200), MEMORY)

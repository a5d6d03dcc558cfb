"""Claims on where the versions fit: cards, mobile devices, real time; and what others say of the memory of classes."""

from collections.abc import Iterator, Mapping

from hae_lab.audit import profile_tables, verdicts
from hae_lab.audit.bench_attention import SHARED
from hae_lab.audit.claims.base import MEMORY, TIME, Evidence, Finding, claim, listed
from hae_lab.audit.measured import Measured
from hae_lab.audit.profile_tables import Setting, memory_of
from hae_lab.presets import CONTROL, DOCUMENT

MIB, GIB = 2**20, 2**30
SAMPLE_STEPS, REAL_TIME_S = 25, 1.0  # a sample by DDIM; what an application may let its user wait
MEMORY_TABLE = {"notebook": "08_compute_and_latency", "table": "training_memory"}
MEMORY_TEST = "test_memory.py::test_v2_saves_parameters_and_little_training_memory"


def _memory(setting: Setting, variant: str) -> Mapping[str, int]:
    setting = setting.of(variant)
    return memory_of(setting.config(variant), setting.images)


@claim(
    {285: "高端GPU", 290: "中端GPU", 295: "移动设备"},
    "HAE for high-end GPUs, Lite for middling ones, V2 for mobile devices",
    "three classes of device",
    **MEMORY_TABLE,
    test=MEMORY_TEST,
)
def device_classes(measured: Measured) -> Iterator[Finding]:
    """Whether the three need cards of three sizes, to train and to sample."""
    for setting in profile_tables.BATCHES:
        totals = [_memory(setting, variant) for variant in DOCUMENT]
        scope = f"{setting.preset}, {setting.images} image{'s' * (setting.images > 1)} (HAE / Lite / V2)"
        for reading, needs in (
            ("training with AdamW", [each["training_peak_bytes"] for each in totals]),
            ("sampling", [each["params_bytes"] + each["forward_peak_bytes"] for each in totals]),
        ):
            computed = listed(f"{need / GIB:.2f} GiB" for need in needs)
            yield Finding(
                f"{reading} needs cards of three sizes", scope, computed, verdicts.different_cards(needs), MEMORY
            )


@claim(
    {180: "移动设备、边缘计算、实时应用", 295: "移动设备，边缘计算，实时应用"},
    "V2 is for mobile devices, edge computing, real-time applications",
    "small and fast enough",
    **MEMORY_TABLE,
    test=MEMORY_TEST,
)
def mobile_real_time(measured: Measured) -> Iterator[Finding]:
    """The weights beside the other versions' and the control's, and the time of a sample."""
    setting = profile_tables.BATCHES[0]
    mib = {variant: _memory(setting, variant)["params_bytes"] / MIB for variant in (CONTROL, *DOCUMENT)}
    sizes = f"{listed(f'{mib[variant]:.0f}' for variant in DOCUMENT)} MiB (HAE / Lite / V2)"
    verdict = verdicts.in_order(mib[variant] for variant in DOCUMENT)
    yield Finding("its weights are the smallest of the three", f"{setting.preset}, float32", sizes, verdict, MEMORY)
    computed = f"{mib['v2']:.0f} MiB, the control's {mib[CONTROL]:.0f}"
    verdict = verdicts.in_order([mib[CONTROL], mib["v2"]])
    yield Finding(
        "its weights are smaller than a plain U-Net's", f"{setting.preset}, float32", computed, verdict, MEMORY
    )
    steps = measured.bench_model
    for row in steps[(steps["variant"] == "v2") & (steps["way"] == SHARED)].to_dict("records"):
        seconds = SAMPLE_STEPS * row["ms_median"] / 1000
        yield Finding(
            f"a sample of {SAMPLE_STEPS} steps within {REAL_TIME_S:g} s",
            f"brats128 at 64 channels, {row['threads']} thread of {row['device_name']}",
            f"{seconds:.1f} s",
            verdicts.at_most(seconds, REAL_TIME_S),
            TIME,
            claimed=f"{REAL_TIME_S:g} s",
            evidence=Evidence(
                table=f"bench_model_{row['device']}", test="test_ledger_numbers.py::test_seconds_of_a_sample"
            ),
            way=row["way"],
            device_name=row["device_name"],
            clock=row["clock"],
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
    model_config = setting.config("v2")
    with_classes = memory_of(model_config, 1)
    without = memory_of(model_config.replace(num_classes=None), 1)
    for reading, name in (
        ("what autograd keeps of an image", "saved_bytes"),
        ("the peak of a training step with AdamW, one image", "training_peak_bytes"),
    ):
        saved = 100 * (1 - without[name] / with_classes[name])
        larger = with_classes[name] / without[name]
        computed = f"{saved:.1f} % at most: a batch {larger:.2f} times as large"
        yield Finding(reading, f"V2, {setting.preset}", computed, verdicts.judge_saving(100 * larger, 200), MEMORY)

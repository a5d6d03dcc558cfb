"""Claims on using the family: one interface, weights that move, which version for what."""

import inspect
from collections import Counter
from collections.abc import Iterator

from hae_lab.audit import verdicts
from hae_lab.audit.claims import compute, devices, quality
from hae_lab.audit.claims.base import ADVICE, INTERFACE, REACH, Claim, Finding, claim
from hae_lab.audit.measured import Measured
from hae_lab.models import HAEUNetModel, HAEUNetModelLite, HAEUNetModelV2, build, transfer_weights
from hae_lab.presets import DOCUMENT

LESSON = "lesson16"


@claim(
    {306: "所有版本都保持相同的API接口，可以无缝切换"},
    "All versions share one interface and can be switched seamlessly",
    "one interface",
    notebook="09_ablation_study",
    table="study_variants",
    test="test_claims.py::test_interface_is_shared_and_weights_are_not",
)
def interchangeable(measured: Measured) -> Iterator[Finding]:
    """One signature, and one training loop."""
    classes = (HAEUNetModel, HAEUNetModelLite, HAEUNetModelV2)
    same = len({str(inspect.signature(each)) for each in classes}) == len({each.forward for each in classes}) == 1
    yield Finding(
        "constructor keywords and forward",
        "the three classes",
        "one signature" if same else "different signatures",
        verdicts.as_said(same),
        INTERFACE,
    )
    runs = measured.variants.groupby("cell").size()[list(DOCUMENT)]
    yield Finding(
        "one loop trains, samples and measures all of them",
        "study variants",
        f"{runs.sum()} finished runs of three variants, equally many of each",
        verdicts.as_said(runs.nunique() == 1),
        INTERFACE,
    )


@claim(
    {304: "从V2开始，根据需要升级到Lite或原版"},
    "Start with V2, upgrade to Lite or HAE as needed",
    "weights move along",
    notebook="05_hae_v2",
    table="lessons",
    test="test_claims.py::test_interface_is_shared_and_weights_are_not",
)
def upgrade_later(measured: Measured) -> Iterator[Finding]:
    """How much of the larger version's weights the smaller has."""
    for source, target in (("v2", "lite"), ("v2", "hae")):
        target_model = build(target, LESSON)
        left = set(transfer_weights(build(source, LESSON), target_model))
        counts = {name: tensor.numel() for name, tensor in target_model.state_dict().items()}
        percent = 100 * sum(count for name, count in counts.items() if name not in left) / sum(counts.values())
        yield Finding(
            f"weights of {source} that fit {target}",
            LESSON,
            f"{percent:.1f} % of {target}'s weights",
            verdicts.judge(percent, 100),
            INTERFACE,
        )


# which version for what


def _advice(measured: Measured, *claims: Claim) -> Iterator[Finding]:
    """A reading for each claim that an advice rests on: what the readings of that claim come to."""
    for each in claims:
        found = [reading.verdict for reading in each.findings(measured) if reading.kind != REACH]
        counts = ", ".join(f"{verdict} in {count}" for verdict, count in Counter(found).most_common())
        reading, scope = f"rests on {each.id}", f"its {len(found)} readings"
        evidence = each.evidence
        yield Finding(reading, scope, counts, verdicts.rests_on(found), ADVICE, claimed=each.claimed, evidence=evidence)


ADVICE_TEST = "test_ledger_numbers.py::test_advice_is_as_good_as_what_it_rests_on"
CHOICE = {"notebook": "09_ablation_study", "figure": "quality_pareto", "table": "claims"}


@claim(
    {28: "高质量生成任务，计算资源充足的环境", 285: "追求最佳质量的应用", 301: "高质量生成：选择HAE原版"},
    "For the best quality choose HAE",
    "the best quality",
    **CHOICE,
    test=ADVICE_TEST,
)
def choose_hae(measured: Measured) -> Iterator[Finding]:
    """Rests on HAE being the best."""
    yield from _advice(measured, quality.best_quality)


@claim(
    {131: "资源受限环境，需要平衡性能和效率", 290: "平衡性能和资源的应用", 302: "平衡应用：选择HAE Lite"},
    "For balance choose Lite",
    "a balance",
    **CHOICE,
    test=ADVICE_TEST,
)
def choose_lite(measured: Measured) -> Iterator[Finding]:
    """Rests on Lite being better than the smaller V2."""
    yield from _advice(measured, quality.lite_balance)


@claim(
    {303: "效率优先：选择HAE V2"},
    "For efficiency choose V2",
    "the highest efficiency",
    **CHOICE | {"notebook": "08_compute_and_latency"},
    test=ADVICE_TEST,
)
def choose_v2(measured: Measured) -> Iterator[Finding]:
    """Rests on V2 being the most efficient, and fit for small devices."""
    yield from _advice(measured, compute.v2_efficiency, devices.mobile_real_time)

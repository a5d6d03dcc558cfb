"""Claims on using the family: one interface, weights that move, which version for what."""

import inspect
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import torch

from hae_lab.audit import verdicts
from hae_lab.audit.claims import compute, devices, quality
from hae_lab.audit.claims.base import ADVICE, BEYOND, INTERFACE, SAID, Claim, Evidence, Finding, claim
from hae_lab.audit.measured import Measured
from hae_lab.models import HAEUNetModel, HAEUNetModelLite, HAEUNetModelV2, build, transfer_weights
from hae_lab.presets import DOCUMENT

LESSON = "lesson16"
BATCHES = (1, 3, 8)
EXPORTED = "test_export.py::test_every_variant_and_rule_exports_in_a_cold_process"


@claim(
    {306: "所有版本都保持相同的API接口，可以无缝切换，便于在不同场景下灵活部署"},
    "All versions share one interface, can be switched seamlessly, and so be deployed flexibly",
    "one interface",
    notebook="09_ablation_study",
    table="study_variants",
    test="test_claims.py::test_interface_is_shared_and_weights_are_not",
)
def interchangeable(measured: Measured) -> Iterator[Finding]:
    """One signature, one training loop, and one call for whatever batch, with classes and without."""
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
    shapes = {variant: _answers(variant) for variant in DOCUMENT}
    same = len(set(shapes.values())) == 1
    yield Finding(
        "deployed flexibly: one call takes any batch, with labels and without",
        f"{LESSON}, batches of {', '.join(map(str, BATCHES))}",
        "the same shapes from all three" if same else f"different shapes: {shapes}",
        verdicts.as_said(same),
        INTERFACE,
        evidence=Evidence(notebook="03_hae", table="deployment", test=EXPORTED),
    )


@lru_cache(maxsize=8)
def _answers(variant: str) -> tuple[tuple[int, ...], ...]:
    """Shapes that a version gives for each batch, without labels and with them."""
    with torch.device("meta"):
        model = build(variant, LESSON, num_classes=2)
        side, given = model.config.image_size, []
        for images in BATCHES:
            x, steps = torch.empty(images, model.config.in_channels, side, side), torch.zeros(images)
            given += [model(x, steps), model(x, steps, torch.zeros(images, dtype=torch.long))]
    return tuple(tuple(each.shape) for each in given)


@claim(
    {304: "渐进式部署：从V2开始，根据需要升级到Lite或原版"},
    "Deploy step by step: start with V2, upgrade to Lite or HAE as needed",
    "another version in its place",
    notebook="05_hae_v2",
    table="lessons",
    test="test_claims.py::test_interface_is_shared_and_weights_are_not",
)
def upgrade_later(measured: Measured) -> Iterator[Finding]:
    """Whether the larger version takes V2's place in the same call; and how much of its weights V2 has already."""
    for target in ("lite", "hae"):
        same = _answers(target) == _answers("v2")
        computed = "the same call, the same shapes" if same else f"{_answers(target)}, V2 {_answers('v2')}"
        reading, verdict = f"{target} takes the place of v2, trained anew", verdicts.as_said(same)
        yield Finding(reading, LESSON, computed, verdict, INTERFACE)
    for target in ("lite", "hae"):
        target_model = build(target, LESSON)
        left = set(transfer_weights(build("v2", LESSON), target_model))
        counts = {name: tensor.numel() for name, tensor in target_model.state_dict().items()}
        percent = 100 * sum(count for name, count in counts.items() if name not in left) / sum(counts.values())
        yield Finding(
            f"its weights move along, of which the document says nothing: those of v2 that fit {target}",
            LESSON,
            f"{percent:.1f} % of {target}'s weights",
            verdicts.judge(percent, 100),
            INTERFACE,
            claimed="100 %",
            asked_of=BEYOND,
        )


# which version for what


def _advice(measured: Measured, *claims: Claim, asked_of: str = SAID) -> Iterator[Finding]:
    """A reading for each claim that an advice rests on: what those of its readings come to."""
    for each in claims:
        found = [reading.verdict for reading in each.findings(measured) if reading.asked_of == asked_of]
        counts = ", ".join(f"{verdict} in {count}" for verdict, count in Counter(found).most_common())
        reading, scope = f"rests on {each.id}", f"its {len(found)} readings ({asked_of})"
        yield Finding(
            reading, scope, counts, verdicts.rests_on(found), ADVICE,
            claimed=each.claimed, evidence=each.evidence, asked_of=asked_of,
        )  # fmt: skip


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
    """Rests on Lite lying between the others; and on its being better than the smaller V2, of which nothing is said."""
    for asked_of in (SAID, BEYOND):
        yield from _advice(measured, quality.lite_balance, asked_of=asked_of)


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

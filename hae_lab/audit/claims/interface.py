"""Claims on using the family: one interface, weights that move, which version for what."""

import inspect
from collections.abc import Iterator

from hae_lab.audit import verdicts
from hae_lab.audit.claims.base import INTERFACE, Finding, claim
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

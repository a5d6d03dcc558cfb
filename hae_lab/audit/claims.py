"""The document's claims, one by one: what it says, what we compute or measure, and whether it holds, where.

Here stand the statements; `readings` and `quality_readings` compute, and `verdicts` has the rules.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import pandas as pd

from hae_lab.audit import quality_readings, readings
from hae_lab.audit.measured import Measured
from hae_lab.audit.readings import Finding


@dataclass(frozen=True)
class Claim:
    """One sentence of the document (or of the paper behind it)."""

    id: str
    section: str
    original: str
    english: str
    claimed: str


CHECKS: tuple[tuple[Claim, Callable[[Measured], Iterator[Finding]]], ...] = (
    (
        Claim(
            "parameters", "参数量对比分析", "HAE原版 … 100% | HAE Lite … ~70% | HAE V2 … ~40%",
            "Relative parameter counts: HAE 100 %, HAE Lite about 70 %, HAE V2 about 40 %", "100 / 70 / 40 %",
        ),
        readings.parameters,
    ),
    (
        Claim(
            "attention_90", "关键创新点 3", "稀疏注意力机制：减少90%的计算量，提高效率",
            "Sparse attention: 90 % less compute, higher efficiency", "90 % less",
        ),
        readings.attention,
    ),
    (
        Claim(
            "paper_90", "Lu et al. 2024, the paper's own figure", "2(HW)²C + 4HWC² → 0.15(HW)²C + 3.75HWC²",
            "Multi-scale sparse attention reduces the cost by nearly 90 %", "nearly 90 % less",
        ),
        readings.paper,
    ),
    (
        Claim(
            "bottleneck_75", "3.1 BottleneckMLP", "默认瓶颈比例0.25，参数量减少约75%",
            "Bottleneck ratio 0.25 by default: about 75 % fewer parameters", "75 % fewer",
        ),
        readings.bottleneck,
    ),
    (
        Claim(
            "three_scales", "1.1 特点", "支持多尺度patch处理 (1x1, 4x4, 8x8)",
            "Multi-scale patches (1 x 1, 4 x 4, 8 x 8) in every block", "three scales at every level",
        ),
        readings.scales,
    ),
    (
        Claim(
            "v2_efficiency", "性能特点总结", "优势：最小的参数量，最高的推理效率",
            "HAE V2: fewest parameters, highest inference efficiency", "V2 first",
        ),
        readings.efficiency,
    ),
    (
        Claim(
            "quality_order", "性能特点总结", "最高的生成质量，完整的特征表达能力",
            "Quality in the order HAE, HAE Lite, HAE V2", "HAE > Lite > V2",
        ),
        quality_readings.quality,
    ),
    (
        Claim(
            "heterogeneous", "概述", "通过在编码器和解码器中使用不同的网络结构来实现更好的特征表示和生成质量",
            "Different structures in encoder and decoder give better quality", "better than a plain U-Net",
        ),
        quality_readings.heterogeneous,
    ),
    (
        Claim(
            "interchangeable", "使用建议", "所有版本都保持相同的API接口，可以无缝切换",
            "All versions share one interface and can be switched seamlessly", "switch seamlessly",
        ),
        readings.interchangeable,
    ),
)  # fmt: skip


def claims(measured: Measured) -> pd.DataFrame:
    """A row for each claim and way of reading it.

    Columns: id, section, original, english, claimed, and those of `Finding`.
    """
    return pd.DataFrame([asdict(claim) | asdict(finding) for claim, read in CHECKS for finding in read(measured)])

"""The document's way of doing things, written afresh, as what the benchmarks compare with.

Source: the HAE design document, section "稀疏注意力机制" and section 1.1.
"""

import torch
from torch import Tensor


def document_mask_loop(n: int, sparsity: float = 0.9, seed: int = 0) -> Tensor:
    """The document's mask, built row by row as it does: (n, n) bool, True = blocked."""
    generator = torch.Generator().manual_seed(seed)
    blocked = torch.ones(n, n, dtype=torch.bool)
    keep = max(1, int(n * (1 - sparsity)))
    for row in range(n):
        blocked[row, max(0, row - keep // 2) : min(n, row + keep // 2 + 1)] = False
        if keep > 4:
            columns = torch.randperm(n, generator=generator)[: max(1, keep // 4)]
            blocked[row, columns] = False
    return blocked

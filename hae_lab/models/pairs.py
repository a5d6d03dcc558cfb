"""Products over a list of (query, key) pairs, for many heads at once."""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CALL_PAIRS = 2**17  # that one call takes: many small heads together, a large head alone
SHORTEST = 8  # numbers of a vector; torch's sampled product takes six times as long over four of them


class Pairs(NamedTuple):
    """A list of (query, key) pairs and its products, a matrix (m, d) or (n, d) a head; N counts heads and samples."""

    columns: Tensor
    order: Tensor
    rows: Tensor
    offsets: Tensor

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """x of the query times y of the key, for each pair: (N, m, d), (N, n, d) -> (N, m, r)."""
        products = x.new_empty(len(x), *self.columns.shape)
        missing = max(0, SHORTEST - x.shape[-1])
        x, y = F.pad(x, (0, missing)), F.pad(y, (0, missing))
        for heads in self._calls(len(x)):
            pattern = self._pattern(x[heads], y.shape[1])
            sampled = torch.sparse.sampled_addmm(pattern, x[heads].flatten(0, 1), y[heads].flatten(0, 1).mT, beta=0.0)
            products[heads] = sampled.values().view_as(products[heads])
        return products

    def to_queries(self, weights: Tensor, y: Tensor) -> Tensor:
        """Weighted sum of y over the pairs of each query: (N, m, r), (N, n, d) -> (N, m, d)."""
        sums = []
        for heads in self._calls(len(y)):
            index = _of_heads(self.columns, len(y[heads]), y.shape[1])  # (heads m, r)
            sums.append(_bag_sums(index, weights[heads].flatten(0, 1), y[heads]))
        return torch.cat(sums).view(*weights.shape[:2], -1)

    def to_keys(self, weights: Tensor, x: Tensor) -> Tensor:
        """Weighted sum of x over the pairs of each key: (N, m, r), (N, m, d) -> (N, n, d)."""
        sums, pairs = [], self.columns.numel()
        for heads in self._calls(len(x)):
            count = len(x[heads])
            by_key = weights[heads].flatten().index_select(0, _of_heads(self.order, count, pairs))
            index, offsets = _of_heads(self.rows, count, x.shape[1]), _of_heads(self.offsets, count, pairs)
            sums.append(_bag_sums(index, by_key, x[heads], offsets))
        return torch.cat(sums).view(len(x), -1, x.shape[-1])

    def _calls(self, count: int) -> list[slice]:
        """Which heads go together."""
        heads = max(1, CALL_PAIRS // self.columns.numel())
        return [slice(start, min(start + heads, count)) for start in range(0, count, heads)]

    def _pattern(self, x: Tensor, n: int) -> Tensor:
        """(heads m, heads n) CSR, a place for each pair, from (heads, m, d)."""
        heads, (m, r) = len(x), self.columns.shape
        begins = torch.arange(0, heads * m * r + 1, r, dtype=torch.int32, device=x.device)
        columns, shape = _of_heads(self.columns, heads, n).flatten(), (heads * m, heads * n)
        with warnings.catch_warnings():
            # of all that is in beta one function is used, and a test compares it with the reference
            warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
            return torch.sparse_csr_tensor(begins, columns, x.new_zeros(len(columns)), shape, check_invariants=False)


def _of_heads(index: Tensor, heads: int, step: int) -> Tensor:
    """Places in one head -> in several, one after another: (k, ...) -> (heads k, ...)."""
    starts = step * torch.arange(heads, dtype=index.dtype, device=index.device)
    return (index + starts.view(-1, *[1] * index.dim())).flatten(0, 1)


def _bag_sums(index: Tensor, weights: Tensor, x: Tensor, offsets: Tensor | None = None) -> Tensor:
    return F.embedding_bag(index, x.flatten(0, 1), offsets, mode="sum", per_sample_weights=weights)

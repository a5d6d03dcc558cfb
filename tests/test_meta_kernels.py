"""Operators on meta that are worked out once: everything is as where each of them runs."""

import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hae_lab import build, config
from hae_lab.profilers import compute, memory_totals, meta_kernels, training_memory
from hae_lab.profilers.meta_kernels import Remembering

TINY = config("v2", "tiny", mask_rule="document")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(meta_kernels, "KNOWN", {})


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_step_is_what_it_is_where_every_operator_runs(monkeypatch):
    found = [(training_memory(TINY), memory_totals(TINY, batch=3), compute(TINY)) for _ in range(2)]  # second: known
    assert len(meta_kernels.KNOWN) > 100
    monkeypatch.setattr(meta_kernels, "run", lambda operator, args, kwargs: operator(*args, **kwargs))
    rows, totals, work = training_memory(TINY), memory_totals(TINY, batch=3), compute(TINY)
    for known in found:
        assert_frame_equal(known[0], rows)
        assert known[1].to_dict() == totals.to_dict()
        assert_frame_equal(known[2], work)


def test_every_kind_of_number_has_its_own_result():
    x = meta(2, dtype=torch.int64)
    with Remembering():
        for _ in range(2):
            assert [(x + value).dtype for value in (1, 1.0, True)] == [torch.int64, torch.float32, torch.int64]


def test_strides_and_types_are_kept_and_tell_arguments_apart():
    flat, turned = meta(2, 3, 4, 4), meta(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with Remembering():
        for _ in range(2):
            assert (flat * 2).stride() == (48, 16, 4, 1)
            assert (turned * 2).stride() == (48, 1, 12, 3)
            assert (flat.double() * 2).dtype == torch.float64
            values, places = meta(3, 5).sort(dim=1)
            assert (values.dtype, places.dtype) == (torch.float32, torch.int64)
            assert values.untyped_storage()._cdata != places.untyped_storage()._cdata


def test_what_is_known_takes_new_memory_and_as_much():
    x = meta(7, 9)
    with Remembering():
        first, second = x.exp(), x.exp()
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    assert second.untyped_storage().nbytes() == 7 * 9 * 4


class Sharing(TorchDispatchMode):
    """Names the operators whose outputs lie in the memory of their inputs, beside those that write in place."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        given, made = (
            {leaf.untyped_storage()._cdata for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
            for values in ((args, kwargs), out)
        )
        if given & made and not operator._schema.is_mutable:
            self.found.add(operator)
        return out


def test_what_shares_memory_is_known_for_a_view():
    with torch.device("meta"), Sharing() as sharing:
        model = build(TINY)
        model(torch.empty(2, 1, 16, 16), torch.empty(2)).sum().backward()
    assert len(sharing.found) > 5
    assert [operator for operator in sharing.found if not meta_kernels.is_view(operator)] == []
    assert torch.ops.aten._unsafe_view.default in sharing.found  # which torch does not call a view


def test_in_place_gives_back_the_tensor_itself_and_shapes_change_each_time():
    with Remembering():
        for _ in range(2):
            x = meta(2, 3)
            assert x.add_(1) is x
            assert x.t_().shape == (3, 2)
            assert x.resize_(5).shape == (5,)
            assert x.view(5, 1).untyped_storage()._cdata == x.untyped_storage()._cdata


def test_real_tensors_are_computed():
    x = torch.zeros(2)
    with Remembering():
        for count in (1, 2, 3):
            assert x.add_(1).tolist() == [count, count]
            assert (x * 2).tolist() == [2 * count, 2 * count]
            assert (meta(2) + torch.tensor(1.0)).is_meta  # a real number beside a meta tensor
    assert not any("mul" in str(operator) for operator, *_ in meta_kernels.KNOWN)


def test_an_error_is_raised_each_time():
    with Remembering():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broadcast"):
                meta(2, 3) + meta(4, 5)
            with pytest.raises(RuntimeError, match=r"size|broadcast|shape"):
                meta(2, 3).add_(meta(4, 5))


def test_no_more_is_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(meta_kernels, "MOST", 3)
    with Remembering():
        for size in range(1, 9):
            meta(size).exp()
            assert 1 <= len(meta_kernels.KNOWN) <= 3

import torch
from thread_ranks import on_ranks

from wan_orchestration.engine.parallel.tensors import gather, pad


def test_parts_of_different_lengths_are_joined(monkeypatch):
    whole, sizes = torch.rand(2, 6, 3), [3, 1, 2]
    parts = whole.split(sizes, 1)
    for joined in on_ranks(monkeypatch, len(sizes), lambda rank: gather(parts[rank], sizes, 1)):
        assert torch.equal(joined, whole) and joined.is_contiguous()


def test_padding_appends_zeros():
    x = torch.ones(2, 3)
    assert pad(x, 1, 5).tolist() == [[1, 1, 1, 0, 0]] * 2
    assert pad(x, 0, 2) is x

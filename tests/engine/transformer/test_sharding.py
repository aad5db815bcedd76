"""The rows of a weight that each rank keeps."""

from types import SimpleNamespace

import pytest
import torch

from wan_orchestration.engine.transformer import sharding
from wan_orchestration.engine.transformer.sharding import own_rows


class Sharded(SimpleNamespace):
    """Stands in for a DTensor of a weight on one of several ranks."""


def test_a_whole_weight_keeps_all_rows():
    value = torch.rand(5, 3)
    assert own_rows(torch.empty(5, 3), value) is value


@pytest.mark.parametrize("rows, ranks", [(8, 4), (5, 4), (3, 4), (6, 4)])
def test_rows_are_cut_as_fsdp_cuts(rows, ranks, monkeypatch):
    """FSDP2 shards with `torch.chunk`, which may give fewer chunks than ranks."""
    monkeypatch.setattr(sharding, "DTensor", Sharded)
    value = torch.rand(rows, 3)
    chunks = [*value.chunk(ranks), *[value[:0]] * ranks][:ranks]
    for rank, chunk in enumerate(chunks):
        mesh = SimpleNamespace(size=lambda: ranks, get_local_rank=lambda rank=rank: rank)
        assert torch.equal(own_rows(Sharded(shape=(rows, 3), device_mesh=mesh), value), chunk)

"""Ranks that are threads of this process, for tests of what ranks exchange."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local

import torch
import torch.distributed as dist


def on_ranks(monkeypatch, count, function):
    """Results of `function(rank)`, called on `count` ranks at once. They can gather and exchange tensors."""
    barrier, sent, this = Barrier(count, timeout=20), [None] * count, local()

    def exchange(tensor):
        sent[this.rank] = tensor
        barrier.wait()
        received = list(sent)
        barrier.wait()
        return received

    def all_gather(whole, part, group=None):
        whole.copy_(torch.cat(exchange(part)))

    def all_to_all(received, parts, group=None):
        received.copy_(torch.stack([of_rank[this.rank] for of_rank in exchange(parts)]))

    def call(rank):
        this.rank = rank
        return function(rank)

    monkeypatch.setattr(dist, "get_rank", lambda group=None: this.rank)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: count)
    monkeypatch.setattr(dist, "all_gather_into_tensor", all_gather)
    monkeypatch.setattr(dist, "all_to_all_single", all_to_all)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))

"""Tokens and heads that ranks share, where neither divides evenly."""

import pytest
import torch
import torch.distributed as dist
from thread_ranks import on_ranks

from wan_orchestration.engine.parallel.sequence import SplitTokens
from wan_orchestration.errors import BadInput

RANKS, HEADS, TOKENS = 3, 5, 7


def test_split_tokens_are_padded_and_gathered_whole(monkeypatch):
    x = torch.rand(1, TOKENS, 4)

    def run(rank):
        tokens = SplitTokens(None, HEADS, TOKENS)
        part = tokens.split(x)
        return part, tokens.gather(2 * part)

    results = on_ranks(monkeypatch, RANKS, run)
    assert torch.equal(torch.cat([part for part, _ in results], 1)[:, :TOKENS], x)
    assert [part.shape[1] for part, _ in results] == [3, 3, 3]
    assert not results[-1][0][:, 1:].any()
    assert all(torch.equal(whole, 2 * x) for _, whole in results)


def test_each_rank_gets_all_tokens_of_its_heads_and_back(monkeypatch):
    x = torch.rand(2, TOKENS, HEADS, 4)

    def run(rank):
        tokens = SplitTokens(None, HEADS, TOKENS)
        own = torch.cat([tokens.split(one[None]) for one in x])
        heads = tokens.heads_for_tokens(own)
        return heads, tokens.tokens_for_heads(heads), own

    results = on_ranks(monkeypatch, RANKS, run)
    assert all(heads.shape == (2, TOKENS, 2, 4) for heads, _, _ in results)
    assert torch.equal(torch.cat([heads for heads, _, _ in results], 2)[:, :, :HEADS], x)
    assert all(torch.equal(back, own) for _, back, own in results)


def test_more_ranks_than_heads(monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 8)
    with pytest.raises(BadInput, match=r"degree 8.* 4 attention heads.*at most 4"):
        SplitTokens(None, heads=4)

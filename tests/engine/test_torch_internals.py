"""Private parts of PyTorch still exist and work as the engine expects."""

import inspect

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pins import private_part
from torch.testing._internal.two_tensor import TwoTensor

from wan_orchestration.engine import torch_internals


def torch_part():
    return private_part("torch", "engine/torch_internals.py")


def test_one_graph_serves_all_lengths():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: 2 * x, backend=backend)
    with torch_part():
        for length in (3, 5, 7):
            x = torch.ones(1, length)
            torch_internals.mark_dynamic(x, 1)
            assert torch.equal(compiled(x), 2 * x)
        assert len(graphs) == 1


def test_process_groups_can_be_aborted():
    """Calling it needs NCCL."""
    with torch_part():
        inspect.signature(dist.distributed_c10d._abort_process_group).bind()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_onednn_convolves_as_pytorch_does():
    x, weight, bias = torch.rand(1, 3, 4, 6, 6), torch.rand(2, 3, 3, 3, 3), torch.rand(2)
    with torch_part():
        assert torch_internals.onednn_convolves(torch.float32)
        assert isinstance(torch_internals.onednn_convolves(torch.bfloat16), bool)
        ours = torch_internals.onednn_convolution(x, weight, bias, [0, 1, 1], (1, 2, 2))
        assert torch.allclose(ours, F.conv3d(x, weight, bias, (1, 2, 2), (0, 1, 1)), atol=1e-5)


def test_a_wrapped_tensor_is_taken_apart_and_rebuilt():
    wrapped = TwoTensor(torch.zeros(2, 3), torch.ones(2, 3))
    with torch_part():
        parts = torch_internals.plain_tensors(wrapped)
        assert [type(part) for part in parts] == [torch.Tensor, torch.Tensor]
        rebuilt = torch_internals.from_plain_tensors(wrapped, [part + 1 for part in parts])
        assert isinstance(rebuilt, TwoTensor)
        assert torch.equal(rebuilt.a, torch.ones(2, 3)) and torch.equal(rebuilt.b, torch.full((2, 3), 2.0))


def test_a_failure_names_the_pin():
    with pytest.raises(AssertionError, match=r'torch_internals.py, or tighten the pin "torch>='), torch_part():
        torch.no_such_function()  # pyright: ignore[reportAttributeAccessIssue]

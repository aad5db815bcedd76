import errno
import mmap

import pytest
import torch

from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.errors import BadInput


def too_large_a_tensor():
    torch.empty(10**15)


def too_large_a_map():
    mmap.mmap(-1, 10**15)


@pytest.mark.parametrize("fail", [too_large_a_tensor, too_large_a_map])
def test_errors_of_this_machine_without_memory(fail):
    with pytest.raises((RuntimeError, OSError)) as caught:
        fail()
    assert ran_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("NCCL error ... ncclUnhandledCudaError ... Last error:\nCuda failure 2 'out of memory'"),
        RuntimeError("unable to mmap 9 bytes from file <a.pth>: Cannot allocate memory (12)"),
    ],
)
def test_errors_of_libraries_without_memory(error):
    assert ran_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        BadInput("out of memory.mp4: there is no such file"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("out of memory"),
    ],
)
def test_other_errors(error):
    assert not ran_out_of_memory(error)

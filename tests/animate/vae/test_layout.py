"""That the convolutions get what a GPU reads fastest, on tensors without data at the 14B model's widths."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wan_orchestration.animate.vae.layers import lighten
from wan_orchestration.animate.vae.model import AnimateVae


class Convolutions(TorchDispatchMode):
    """Checks the input and weight of every convolution, and gives its output the layout that cuDNN would."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype, self.seen = dtype, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        output = function(*arguments, **(options or {}))
        if function is not torch.ops.aten.convolution.default:
            return output
        self.seen += 1
        layout = torch.channels_last_3d if output.ndim == 5 else torch.channels_last
        for tensor in arguments[:2]:
            assert tensor.is_contiguous(memory_format=layout), (tensor.shape, tensor.stride())
            assert (tensor.device.type, tensor.dtype) == ("cuda", self.dtype)
        return output.contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("by_frames", [False, True], ids=["whole", "by frames"])
def test_all_convolutions_are_channels_last(by_frames, dtype):
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        torch.set_default_dtype(dtype)
        try:
            vae = AnimateVae()
        finally:
            torch.set_default_dtype(torch.float32)
        lighten(vae, by_frames)
        with Convolutions(dtype) as convolutions:
            vae.decode_video(torch.empty(1, 16, 3, 60, 104))
            vae.encode_video(torch.empty(1, 3, 9, 480, 832))
            vae.encode_video(torch.empty(1, 3, 37, 480, 832), still_from=1)
    assert convolutions.seen > 300

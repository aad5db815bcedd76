import pytest
import torch

from wan_orchestration.engine.device import use_tf32
from wan_orchestration.settings.generate import GenerateSettings


@pytest.fixture(autouse=True)
def as_before():
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


@pytest.mark.parametrize(
    "device, dtype, settings, expected",
    [
        ("cuda", torch.bfloat16, {}, True),
        ("cuda", torch.bfloat16, {"tf32": False}, False),
        ("cuda", torch.float32, {}, False),
        ("cuda", torch.float32, {"tf32": True}, False),
        ("cpu", torch.bfloat16, {}, False),
    ],
)
def test_tf32_is_used_only_with_bfloat16_on_cuda(device, dtype, settings, expected):
    torch.backends.cuda.matmul.allow_tf32 = True
    assert use_tf32(GenerateSettings(**settings), torch.device(device), dtype) == expected
    assert torch.backends.cudnn.allow_tf32 == expected
    assert not torch.backends.cuda.matmul.allow_tf32

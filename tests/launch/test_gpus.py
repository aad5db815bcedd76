"""Which devices runs may use: CUDA's rules apply to CUDA_VISIBLE_DEVICES, stricter ones to WAN_GPUS_DEVICES."""

import pytest

from wan_orchestration.errors import BadInput
from wan_orchestration.protocol import devices, leases
from wan_orchestration.protocol.devices import cuda_devices

FIRST, SECOND = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-8a1b0000-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0"


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    monkeypatch.setattr(devices, "_present_gpus", lambda: {"0": FIRST, "1": SECOND})


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []),
        ("-1", []),
        ("1,-1,0", [SECOND]),
        ("0,7,1", [FIRST]),
        ("GPU-8932f937", [FIRST]),
        ("GPU-8", []),
        (MIG, [MIG]),
    ],
)
def test_visible_devices_follow_cudas_rules(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cuda_devices("all") == expected


def test_chosen_devices_may_be_short_uuids_and_must_exist(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda_devices("GPU-8a,0") == [SECOND, FIRST]
    assert cuda_devices(MIG) == [MIG]
    for unknown in ("7", "-1", "GPU-8"):
        with pytest.raises(BadInput, match="WAN_GPUS_DEVICES"):
            cuda_devices(unknown)


def test_a_mig_instance_can_be_leased(tmp_path):
    with leases.lease(tmp_path, [MIG], 1, "a test", print) as lease:
        assert lease.devices == [MIG]
        assert [file.parent for file in lease.files] == [tmp_path]

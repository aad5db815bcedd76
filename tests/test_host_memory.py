"""Host memory of this process."""

import sys

import pytest

from wan_orchestration.host_memory import peak, reset_peak

MB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's clear_refs")
def test_a_peak_is_measured_anew():
    before = peak()
    block = bytearray(b"x") * (before + 64 * MB - before // 2)
    high = peak()
    assert high > before // 2 + len(block)
    del block
    assert peak() == pytest.approx(high, abs=MB)
    reset_peak()
    assert peak() < high - 32 * MB

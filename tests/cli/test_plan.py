"""`wan-animate plan` on described machines."""

import pytest

from wan_orchestration.cli import plan


def run(capsys, *flags):
    code = plan.main([*flags])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(
    "card, resolution, chosen",
    [
        (["--vram=12"], "832x480", "offload"),
        (["--vram=16"], "832x480", "offload"),
        (["--vram=20", "--gpus=2"], "832x480", "offload"),
        (["--vram=12"], "1280x720", "tiled"),
        (["--vram=16"], "1280x720", "tiled"),
        (["--vram=20", "--gpus=2"], "1280x720", "offload"),
        (["--vram=24"], "1280x720", "offload"),
        (["--vram=24", "--quantization=fp8"], "832x480", "swap"),
        (["--vram=48"], "1280x720", "swap"),
        (["--vram=48"], "832x480", "resident"),
        (["--vram=80"], "1280x720", "resident"),
    ],
)
def test_what_fits_common_cards(card, resolution, chosen, capsys):
    code, out, _ = run(capsys, *card, "--ram=128", f"--resolution={resolution}")
    (line,) = [line for line in out.splitlines() if line.startswith("*")]
    assert code == 0
    assert line.split()[1] == chosen
    assert line.endswith("  fits")


def test_what_does_not_fit(capsys):
    _, out, _ = run(capsys, "--vram=6", "--ram=16")
    assert out.count("does not fit") == 4


def test_common_cards_are_listed_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(plan.torch.cuda, "is_available", lambda: False)
    _, out, _ = run(capsys, "--resolution=1280x720")
    cards = [line.split() for line in out.splitlines() if " x " in line and " GB " in line]
    chosen = {(int(words[2]), words[-1]): words[4] for words in cards}
    assert chosen[12, "off"] == "tiled" and chosen[80, "off"] == "resident" and chosen[48, "fp8"] == "resident"


def test_a_given_snapshot(tiny_snapshot, capsys):
    code, out, _ = run(capsys, f"--checkpoint-dir={tiny_snapshot}", "--vram=8", "--ram=16", "--resolution=192x128")
    assert (code, out.count("does not fit")) == (0, 0)


@pytest.mark.parametrize(
    "flags, words",
    [(["--resolution=100x100"], "multiples of 16"), (["--checkpoint-dir=/nowhere"], "does not exist")],
)
def test_bad_flags(flags, words, capsys):
    code, _, err = run(capsys, *flags)
    assert code == 1
    assert words in err

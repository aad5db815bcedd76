import torch

from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.engine.tensor_cache import KEPT_IN_MEMORY, TensorCache


def compute():
    calls.append(1)
    return torch.arange(3.0)


calls: list[int] = []


def test_a_later_launch_reads_what_an_earlier_one_computed(tmp_path):
    calls.clear()
    for _ in range(2):
        cache = TensorCache(tmp_path, Ranks())
        for _ in range(2):
            assert torch.equal(cache.get("prompt", compute), torch.arange(3.0))
    assert len(calls) == 1
    TensorCache(tmp_path, Ranks()).get("another", compute)
    TensorCache(tmp_path, Ranks(), "tf32").get("prompt", compute)
    assert len(calls) == 3


def test_a_damaged_file_is_computed_again(tmp_path):
    calls.clear()
    TensorCache(tmp_path, Ranks()).get("prompt", compute)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    assert torch.equal(TensorCache(tmp_path, Ranks()).get("prompt", compute), torch.arange(3.0))
    assert len(calls) == 2


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    assert torch.equal(TensorCache(tmp_path / "file" / "folder", Ranks()).get("prompt", compute), torch.arange(3.0))


def test_a_rank_without_the_file_makes_all_ranks_compute(tmp_path):
    """They compute together, so a rank that returned early would leave the others waiting."""

    class Two(Ranks):
        size = 2

        def sum(self, x):
            return x  # the other rank adds nothing

    TensorCache(tmp_path, Ranks()).get("prompt", compute)
    calls.clear()
    TensorCache(tmp_path, Two()).get("prompt", compute)
    assert len(calls) == 1


def test_the_tensors_used_last_are_kept_in_memory():
    calls.clear()
    cache = TensorCache(None, Ranks())
    for number in range(KEPT_IN_MEMORY):
        cache.get(f"prompt {number}", compute)
    cache.get("prompt 0", compute)
    cache.get("one more", compute)
    assert len(calls) == KEPT_IN_MEMORY + 1
    cache.get("prompt 0", compute)
    assert len(calls) == KEPT_IN_MEMORY + 1
    cache.get("prompt 1", compute)
    assert len(calls) == KEPT_IN_MEMORY + 2
    cache.forget()
    cache.get("prompt 0", compute)
    assert len(calls) == KEPT_IN_MEMORY + 3

"""The parts of `benchmarks/gpu_check.py`: functions that each run in their own process."""

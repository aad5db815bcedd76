"""The parts of `benchmarks/gpu_check.py`: each module's functions are parts, run in processes of their own."""

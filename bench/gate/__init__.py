"""The parts of bench/gpu_gate.py."""

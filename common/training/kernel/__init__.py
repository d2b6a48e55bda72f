"""The built-in networks on a CPU as one fused C++ kernel: stack.cpp, built on first use (build.py)
and bound by ctypes (stack.py). No torch.
"""

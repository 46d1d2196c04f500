"""Generated torch and Triton programs for NVIDIA and AMD GPUs."""

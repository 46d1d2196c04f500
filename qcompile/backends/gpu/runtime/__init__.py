"""What a generated program needs besides kernels; shipped as it is with every artifact."""

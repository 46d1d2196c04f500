"""Learning: parameters of transforms and of rounding, moved along gradients of the whole model's divergence."""

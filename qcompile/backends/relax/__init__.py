"""TVM: graphs become Relax, sites become calls of our own kernels, and all of it one shared library."""

"""The part of a generated program that is no kernel; shipped as it is with every artifact."""

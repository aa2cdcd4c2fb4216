"""Experiments with blocks and networks."""

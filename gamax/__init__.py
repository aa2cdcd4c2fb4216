"""JAX image restoration."""

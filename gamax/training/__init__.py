"""Training: state, step, loop, optimizer, losses, sharding, checkpoints."""

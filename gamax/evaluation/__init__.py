"""Evaluation and inference: metrics, protocols, restoring images of any size."""

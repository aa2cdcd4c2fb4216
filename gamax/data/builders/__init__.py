"""The `tensorflow_datasets` builders, one dataset a file. They need no TensorFlow."""

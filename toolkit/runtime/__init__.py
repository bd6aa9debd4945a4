"""Inference on the board: numpy and onnxruntime, nothing else."""

"""Plans: what TensorRT, TensorRT-RTX and Torch-TensorRT make of a program."""

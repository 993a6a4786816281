"""The frame program: built around a network, in FP32, FP16 or INT8, exported to ONNX. The build calls it."""

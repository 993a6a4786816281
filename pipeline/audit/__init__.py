"""The shadow gate: now and then a frame that ran is also computed by the FP32 program, and the two masks are compared."""

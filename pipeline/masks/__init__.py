"""What happens to masks after the engine: temporal smoothing, edges, masks moved in between, agreement. The flow calls it."""

"""The run: sources, engine and sinks driven frame by frame, and turns among several sources. The command calls it."""

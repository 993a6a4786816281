"""The flight recorder: the last seconds of a run are kept in memory, and written as one file when something happens."""

"""What every stage of a run is given: the thread in front of it, its clock and its counters. Everyone above may call it."""

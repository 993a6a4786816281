"""What a frame's mask says: regions that keep their number, areas in zones, events."""

"""The parts of a sync answer, each read between two positions of the stream."""

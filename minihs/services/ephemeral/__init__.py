"""What passes: who has read how far, and who types."""

"""What a run writes down line by line."""

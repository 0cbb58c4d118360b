"""What processes know of each other beside their collectives: who owns a run, whether the launcher lives."""

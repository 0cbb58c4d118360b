"""The ground that both models stand on: the quantizer library, snapshots, hub access, counter-based noise."""

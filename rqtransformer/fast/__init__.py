"""Fast forms of the plain modules while decoding: packed weights, steps through packed stacks, replayed graphs."""

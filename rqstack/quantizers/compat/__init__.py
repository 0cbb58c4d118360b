"""The call signatures of other libraries: a program changes its import line, and the arithmetic is that of the core."""

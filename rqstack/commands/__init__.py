"""The console script `rqstack`: a program on top of the three libraries, which nothing imports."""

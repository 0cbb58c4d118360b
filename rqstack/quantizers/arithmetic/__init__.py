"""What quantizers compute with: searches, gradient estimators, loss terms, precision, collectives."""

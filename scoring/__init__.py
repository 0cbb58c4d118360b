"""Where data and evaluation meet: images to score, references, metric sets, result lines."""

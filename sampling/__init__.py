"""From two trained models to images: conditions, draws, rejection, files."""

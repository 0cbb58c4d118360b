"""Programs that use the libraries alone, for data that are no images. Each is one file to copy and change."""

"""Data sets of images: file formats, folders, decoding, crops."""

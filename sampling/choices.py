"""What the flags of the sampling scripts choose from; they are read before torch is imported."""

FORMATS = ("png", "npz")
"""Of saved images."""
CONTENTS = ("latents", "codes", "both")
"""Of extracted shards."""
DTYPES = {"fp16": "float16", "fp32": "float32"}
"""Of extracted latents: the name -> that of torch."""
CLASSES = ("seen", "all", "frequencies")
"""Of the classes of samples: those with training images, each in turn; every one; as often as among the images."""

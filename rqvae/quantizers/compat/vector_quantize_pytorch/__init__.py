"""The names and signatures of vector-quantize-pytorch 1.32."""

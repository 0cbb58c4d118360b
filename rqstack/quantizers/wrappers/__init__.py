"""What goes around any quantizer: channel groups, patches, input layouts, pooling of vectors."""

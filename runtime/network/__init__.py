"""Downloads: HTTP that ends in time and does not reach into the network that it runs in."""

"""The tests, as a package: others of this name, which some libraries install, must not be taken for them."""

"""Pages and plots: one base template for every page, one place where curves and bars are drawn."""

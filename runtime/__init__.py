"""What every experiment needs around the models: configs, command line, processes, seeds, run directories and logs."""

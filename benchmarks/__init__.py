"""Every speed or quality claim of the documents as a script that can be run again."""

"""Text to image on synthetic captions, offline, in minutes on a CPU: `make demo-text`."""

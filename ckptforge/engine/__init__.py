"""One engine: plans of box copies, streamed from files to files. Every command is a plan."""

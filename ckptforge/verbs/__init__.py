"""The commands as functions: each makes a plan and carries it out."""

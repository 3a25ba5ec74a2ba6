"""What numbers go through where they are read: one file for each kind of step."""

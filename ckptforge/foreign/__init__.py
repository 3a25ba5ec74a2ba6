"""Files of people and of other programs, read within bounds."""

"""How outputs appear: whole and under their final name, or not at all."""

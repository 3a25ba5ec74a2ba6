"""What a user names, a file or a directory, as one set of tensors, and what goes along."""

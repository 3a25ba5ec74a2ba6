"""What a job is: the tensors of every output file, what fills them, and the proof that all of it is
filled."""

"""What a job is: what fills the tensors of every output file, and the proof that all are."""

"""Objects on other machines, read by ranges: `https://` and `hf://`. Each service is imported when
an address of its scheme is read (`storage/schemes.py`)."""

"""The paper's tables and figures, run and written by one command each."""

"""Turkish for the papers on it: letters, an analyser of words, the hybrid tokenizer, and a published table."""

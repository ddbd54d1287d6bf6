"""Texts of the study of tokenizer inequities."""

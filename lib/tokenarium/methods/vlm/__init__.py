"""Methods that drop or merge the visual tokens of a vision-language model, and the harness they share."""

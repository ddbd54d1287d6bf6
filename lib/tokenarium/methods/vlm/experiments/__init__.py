"""Long work of the papers of this family, one stage each."""

"""Parts of the vocabulary-expansion study: texts, models, adaptation."""

"""FrugalPrompt on real models: tasks, scores of words, the ways to shorten a passage, and the model that answers."""

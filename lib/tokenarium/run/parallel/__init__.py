"""DVC's own graph, several stages at a time: Ray runs their commands, the driver alone talks to DVC."""

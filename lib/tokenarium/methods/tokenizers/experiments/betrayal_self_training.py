"""Best-of-n self-training under a checker of ids and one of text, then decoding that keeps to canonical encodings."""

from __future__ import annotations

import copy

from tokenarium.methods.tokenizers import betrayal_training as training
from tokenarium.methods.tokenizers.valid_encodings import Codec
from tokenarium.models import language
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """A part "seed<n>" for each seed: the supervised start, every round of both checkers, the remedy."""
    for seed in experiment.progress(experiment.seeds, "seeds"):
        experiment.record(f"seed{seed}", lambda seed=seed: _one(experiment, seed))


def _one(experiment, seed):
    p = experiment.parameters
    tokenizer, model = language.load(experiment.root / "models" / p.model, p.device)
    task = training.make_task(
        tokenizer.backend_tokenizer, tokenizer.pad_token_id, p.words, p.replacements, p.letters, p.least, seed
    )
    shown = training.demonstrations(task, p.demonstrations, p.dropout, seed)
    losses = training.train(model, task, shown, p.steps, p.batch_size, p.learning_rate, seed)
    start = training.measured(model, task, p.repeats, p.most_tokens, seed)
    found = {"loss": losses[-1], "start": start, "rounds": {}, "accepted": {}, "masked": {}}
    codec = Codec(task.tokenizer, task.token_bytes)
    for checker, accepted in training.CHECKERS.items():
        learner, rounds, counts = copy.deepcopy(model), [], []
        for each in range(p.rounds):
            draw = 1000 * seed + 10 * each
            chosen = training.self_training_set(learner, task, accepted, p.best_of, p.most_tokens, draw)
            counts.append(len(chosen))
            if chosen:
                rate = p.round_learning_rate
                training.train(learner, task, chosen, p.round_steps, p.batch_size, rate, draw)
            rounds.append(training.measured(learner, task, p.repeats, p.most_tokens, draw + 1))
        found["rounds"][checker], found["accepted"][checker] = rounds, counts
        # the same draw as the last round's, with the mask
        found["masked"][checker] = training.measured(learner, task, p.repeats, p.most_tokens, draw + 1, codec)
    return found

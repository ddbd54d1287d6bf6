"""Natural answers, judged on text and on ids, and how differently the model reads segmentations of one word."""

from __future__ import annotations

import random

from tokenarium.methods.tokenizers import betrayal_lab as lab
from tokenarium.methods.tokenizers.tokenizer_betrayal import classify_answer
from tokenarium.study.experiments import Experiment

DECODING = ("greedy", "sampled")


def run(experiment: Experiment) -> None:
    """Parts "answers-<instruction>-<decoding>" (a list of trials) and "gap-<number>" for each of `gap_words` words."""
    p, seed = experiment.parameters, experiment.seeds[0]
    speaker = lab.open_speaker(p.model, experiment.root, p.device)
    targets = lab.targets(speaker, experiment.root, p.words)
    for instruction in lab.INSTRUCTIONS:
        for decoding in DECODING:
            experiment.record(
                f"answers-{instruction}-{decoding}",
                lambda i=instruction, d=decoding: _trials(speaker, targets, i, d == "sampled", p, seed),
            )
    for number, target in enumerate(experiment.progress(targets[: p.gap_words], "words")):
        others = _others(speaker, target, targets, p.alternatives, seed)
        experiment.record(f"gap-{number}-labels", lambda t=target, o=others: {"word": t.word, "labels": list(o)})
        experiment.arrays(f"gap-{number}", lambda t=target, o=others: lab.reading_gap(speaker, t, o))


def _trials(speaker, targets, instruction, sample, p, seed):
    prompts = [lab.prompt(speaker, target, instruction, target.canonical) for target in targets]
    found = []
    for start in range(0, len(prompts), p.batch_size):
        chosen = targets[start : start + p.batch_size]
        made = lab.answers(speaker, prompts[start : start + p.batch_size], p.most_tokens, sample, seed + start)
        for target, ids in zip(chosen, made, strict=True):
            trial = classify_answer(target.sentence, target.number, list(target.ids), ids, speaker.token_bytes)
            spelled = b"".join(speaker.token_bytes[index] or b"" for index in ids).decode("utf-8", "replace")
            anew = speaker.encode(spelled)
            found.append(
                {
                    "word": target.word,
                    "sentence": target.sentence,
                    "outcome": trial.outcome,
                    "artifact": trial.artifact,
                    "context": trial.context,
                    "answer": spelled,
                    "ids_in": list(target.ids),
                    "ids_out": ids,
                    "anew": classify_answer(
                        target.sentence, target.number, list(target.ids), anew, speaker.token_bytes
                    ).outcome,
                }
            )
    return found


def _others(speaker, target, targets, count, seed):
    """Other segmentations drawn by seed, the synonym and another target's word, by what they are called."""
    draw = random.Random(f"{seed} {target.word}")
    alternatives = [each for each in target.segmentations if each != target.canonical]
    chosen = draw.sample(alternatives, min(count, len(alternatives)))
    word = draw.choice([each.word for each in targets if each.word != target.word])
    spelled = {"|".join((speaker.token_bytes[index] or b"").decode() for index in each): each for each in chosen}
    return spelled | {"synonym": speaker.encode(f" {target.synonym}"), "random word": speaker.encode(f" {word}")}

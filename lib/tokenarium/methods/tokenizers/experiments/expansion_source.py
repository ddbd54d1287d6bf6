"""Train the small source model: English with a trace of the language that the other experiments add."""

import json

from tokenarium.methods.tokenizers.expansion import lapt, source_model, texts
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Parts: `tokenizer` (its JSON), `weights` (by name), `scores` (bits per byte of held-out documents)."""
    p, root = experiment.parameters, experiment.root
    lines = texts.english(p.text, root, p.text_bytes, p.text_seed)
    trace = texts.lines(p.text, p.trace_language, root, p.trace_bytes, p.text_seed, split="validation")
    made = experiment.record(
        "tokenizer", lambda: json.loads(source_model.train_tokenizer(lines, p.vocabulary).to_str())
    )
    tokenizer = source_model.Tokenizer.from_str(json.dumps(made))
    model = source_model.llama(tokenizer, **p.shape, seed=p.text_seed)
    if experiment.profile == "gpu":
        model = model.to(texts.device())

    def train() -> dict:
        source_model.pretrain(model, tokenizer, [*lines, *trace], p.training, p.text_seed)
        return source_model.weights(model)

    source_model.with_weights(model, experiment.arrays("weights", train))

    def scores() -> dict:
        found = {}
        for name, language in (("english", p.english), ("trace", p.trace_language)):
            documents = texts.documents(p.text, language, root, p.documents, p.document_bytes, p.text_seed)
            bits = lapt.document_bits(model, tokenizer, documents, source_model.start_id(tokenizer))
            found[name] = {"bits": bits.tolist(), "bytes": [len(document.encode()) for document in documents]}
        sizes = {"parameters": sum(each.numel() for each in model.parameters()), "english_lines": len(lines)}
        trained = sum(len(line.encode()) for line in lines), sum(len(line.encode()) for line in trace)
        return found | sizes | {"english_bytes": trained[0], "trace_bytes": trained[1], "trace_lines": len(trace)}

    experiment.record("scores", scores)

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration
from vlm_reference import masked_logits, shortened_logits

from tokenarium.methods.vlm.harness import Cut, Method, Question, Runner, Visual, enter, evaluate, merged, select
from tokenarium.methods.vlm.harness.substrate import open_substrate
from tokenarium.methods.vlm.harness.tiny import tiny_model

N = 144
PARAMETERS = {"model": "tiny", "data": "scenes", "questions": 10}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def substrate():
    return open_substrate(None, PARAMETERS, seed=0)


@pytest.fixture(scope="module")
def grouped():
    """A model whose queries share keys and values, as in many checkpoints."""
    model = tiny_model(1, layers=4, heads=4, key_value_heads=1, blocks=3)
    return open_substrate(None, PARAMETERS, seed=1, model=model)


@dataclass(frozen=True, kw_only=True)
class Cutting(Method):
    """Keep the visual tokens `keep[l]` after layer l; `differ` drops as many more as the question's number says."""

    keep: dict = field(default_factory=dict)
    differ: bool = False
    hide: bool = False

    def layers(self, num_layers):
        return tuple(self.keep)

    def after_layer(self, layer, view):
        kept = torch.tensor(self.keep[layer])
        if self.differ:
            kept = kept[view.question.index % 3 :]
        if self.hide:
            rows = torch.zeros(len(view.hidden), dtype=torch.bool)
            rows[view.visual] = True
            rows[view.visual.start + kept] = False
            return Cut(hide=rows)
        return kept


def read(substrate, method, questions):
    runner = Runner(substrate.model, method)
    return runner, runner.read_prompts(questions, select(substrate, method, questions), N)


def prompt_logits(substrate, method, question):
    """Logits after the prompt of one question: (vocabulary,)."""
    runner, (batch,) = read(substrate, method, [question])
    return runner.logits(batch.hidden[0, -1])


def model_logits(substrate, question):
    model = substrate.model
    ids = torch.tensor([[*question.before, *[model.config.image_token_id] * N, *question.after]])
    return model(input_ids=ids, pixel_values=substrate.pixels([question.image])).logits[0, -1]


def embeddings(substrate, question, answer=()):
    """(S, dim) input of the first layer, the answer's tokens after the prompt."""
    embed = substrate.model.get_input_embeddings()
    (view,) = substrate.views([question])
    before, after = (embed(torch.tensor(ids)) for ids in (question.before, (*question.after, *answer)))
    return torch.cat((before, view.projected, after))


def test_the_model_knows_the_difference_between_pictures(substrate):
    first, second = (model_logits(substrate, dataclasses.replace(substrate.questions[0], image=i)) for i in (0, 1))
    assert (first - second).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("positions", ["compact", "preserve"])
@pytest.mark.parametrize("cut", [{}, {1: range(N)}, {3: range(N), 4: range(N)}])
@pytest.mark.parametrize("which", ["substrate", "grouped"])
def test_keeping_every_token_gives_the_logits_of_the_unmodified_model(which, cut, positions, request):
    substrate = request.getfixturevalue(which)
    method = Cutting(keep={layer: list(kept) for layer, kept in cut.items()}, positions=positions)
    for question in substrate.questions[:3]:
        torch.testing.assert_close(
            prompt_logits(substrate, method, question), model_logits(substrate, question), atol=TOLERANCE, rtol=0
        )


def test_every_id_moved_by_one_constant_changes_nothing_but_one_moved_id_does(substrate):
    question = substrate.questions[0]
    runner = Runner(substrate.model, Method(positions="preserve"))
    (visual,) = select(substrate, Method(), [question])

    def logits(offsets):
        (batch,) = runner.read_prompts([question], [dataclasses.replace(visual, positions=offsets)], N)
        return runner.logits(batch.hidden[0, -1])

    plain = logits(torch.arange(N))
    moved = torch.arange(N)
    moved[[3, 90]] = moved[[90, 3]]
    assert (logits(moved) - plain).abs().max() > TOLERANCE
    torch.testing.assert_close(logits(torch.arange(N)[:, None].expand(-1, 8)), plain, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits(torch.arange(N).float()), plain, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(plain, model_logits(substrate, question), atol=TOLERANCE, rtol=0)


def test_dropping_before_the_model_numbers_the_rest_by_the_mode(substrate):
    question = substrate.questions[1]
    kept = [3, 50, 51, 143]

    @dataclass(frozen=True, kw_only=True)
    class Some(Method):
        def select(self, image):
            return torch.tensor(kept)

    whole = embeddings(substrate, question)
    start = len(question.before)
    rows = [*range(start), *(start + patch for patch in kept), *range(start + N, len(whole))]
    for positions, ids in (("compact", torch.arange(len(rows))), ("preserve", torch.tensor(rows))):
        expected = masked_logits(substrate.model, whole[rows], ids, {})[-1]
        torch.testing.assert_close(
            prompt_logits(substrate, Some(positions=positions), question), expected, atol=TOLERANCE, rtol=0
        )


CUTS = {2: sorted({*range(0, N, 3), 7}), 5: [0, 5, 6, 20, 40]}


def gone(question, cuts):
    """Rows that leave before layer l (0-based), of the whole sequence."""
    left, dropped = list(range(N)), {}
    for layer, keep in cuts.items():
        kept = [left[place] for place in keep]
        dropped[layer] = [len(question.before) + patch for patch in left if patch not in kept]
        left = kept
    return dropped


@pytest.mark.parametrize("hide", [False, True])
def test_dropping_after_a_layer_equals_hiding_the_keys_from_the_next_layer_on(substrate, hide):
    question = substrate.questions[2]
    cuts = CUTS if not hide else {2: CUTS[2]}
    whole = embeddings(substrate, question)
    expected = masked_logits(substrate.model, whole, torch.arange(len(whole)), gone(question, cuts))[-1]
    method = Cutting(keep=cuts, positions="preserve", hide=hide)
    torch.testing.assert_close(prompt_logits(substrate, method, question), expected, atol=TOLERANCE, rtol=0)
    assert (expected - model_logits(substrate, question)).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("positions", ["compact", "preserve"])
@pytest.mark.parametrize("which", ["substrate", "grouped"])
def test_decoding_with_the_frozen_selection_equals_one_pass_over_prompt_and_answer(which, positions, steps, request):
    substrate = request.getfixturevalue(which)
    question, answer = substrate.questions[0], [40, 17, 33]
    cuts = CUTS if which == "substrate" else {1: CUTS[2], 3: CUTS[5]}
    whole = embeddings(substrate, question, answer)
    if positions == "preserve":
        expected = masked_logits(substrate.model, whole, torch.arange(len(whole)), gone(question, cuts))
    else:
        expected = shortened_logits(substrate.model, whole, gone(question, cuts))
    runner, (batch,) = read(substrate, Cutting(keep=cuts, positions=positions), [question])
    logits = [runner.logits(batch.hidden[0, -1:])]
    for start in range(0, 3, steps):
        logits.append(runner.read_answer(batch, torch.tensor([answer[start : start + steps]]))[0])
    torch.testing.assert_close(torch.cat(logits), expected[-4:], atol=TOLERANCE, rtol=0)


def test_hidden_tokens_stay_hidden_from_the_answer(substrate):
    question, answer = substrate.questions[0], [40, 17]
    whole = embeddings(substrate, question, answer)
    expected = masked_logits(substrate.model, whole, torch.arange(len(whole)), gone(question, {2: CUTS[2]}))
    runner, (batch,) = read(substrate, Cutting(keep={2: CUTS[2]}, positions="preserve", hide=True), [question])
    logits = runner.read_answer(batch, torch.tensor([answer]))[0]
    torch.testing.assert_close(logits, expected[-2:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("positions", ["compact", "preserve"])
@pytest.mark.parametrize("differ", [False, True])
def test_a_batch_gives_what_its_questions_give_one_by_one(substrate, positions, differ):
    method = Cutting(keep={1: list(range(0, N, 2)), 4: [1, 2, 3, 5, 8]}, positions=positions, differ=differ)
    together = evaluate(substrate, method, batch_size=10)
    apart = evaluate(substrate, method, batch_size=1)
    for name, values in together.items():
        np.testing.assert_allclose(values, apart[name], atol=TOLERANCE, err_msg=name)
    counts = [[N, 72 - d, 72 - d, 72 - d, *[5 - d] * 4] for d in ((i % 3) * differ for i in range(10))]
    assert together["visual"].tolist() == counts


def test_answers_of_several_tokens_are_scored_by_what_they_would_be_after_each_other(substrate):
    long = [dataclasses.replace(question, answer=(50, 9, 11)) for question in substrate.questions[:4]]
    asked = dataclasses.replace(substrate, questions=long)
    cell = evaluate(asked, Cutting(keep=CUTS, positions="preserve"))
    for row, question in enumerate(long):
        whole = embeddings(substrate, question, question.answer)
        logits = masked_logits(substrate.model, whole, torch.arange(len(whole)), gone(question, CUTS))
        expected = sum(logits[-4 + t].log_softmax(-1)[token].item() for t, token in enumerate(question.answer))
        assert cell["log_probability"][row] == pytest.approx(expected, abs=1e-4)


def test_the_view_shows_what_the_model_computes(grouped):
    substrate, question, seen = grouped, grouped.questions[0], {}

    @dataclass(frozen=True, kw_only=True)
    class Looking(Method):
        def layers(self, num_layers):
            return range(1, num_layers + 1)

        def after_layer(self, layer, view):
            seen[layer] = view

    prompt_logits(substrate, Looking(), question)
    model = substrate.model
    ids = torch.tensor([[*question.before, *[model.config.image_token_id] * N, *question.after]])
    caught, hooks = {}, []
    for number, layer in enumerate(model.model.language_model.layers, start=1):
        for name, module in (("attn", layer.self_attn), ("mlp", layer.mlp), ("down", layer.mlp.down_proj)):

            def keep(module, arguments, keywords, output, key=(number, name)):
                given = keywords["hidden_states"] if "hidden_states" in keywords else arguments[0]
                caught[key] = given[0], (output[0] if isinstance(output, tuple) else output)[0]

            hooks.append(module.register_forward_hook(keep, with_kwargs=True))
    model.set_attn_implementation("eager")
    reference = model(
        input_ids=ids, pixel_values=substrate.pixels([0]), output_attentions=True, output_hidden_states=True
    )
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    for layer, view in seen.items():
        attention = reference.attentions[layer - 1][0]
        torch.testing.assert_close(view.attention(), attention, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(view.attention([view.last]), attention[:, -1:], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(view.logits(view.text).softmax(-1), attention[:, view.text], atol=TOLERANCE, rtol=0)
        if layer < view.num_layers:
            torch.testing.assert_close(
                view.next_attention(view.visual), reference.attentions[layer][0][:, view.visual], atol=TOLERANCE, rtol=0
            )
            torch.testing.assert_close(view.hidden, reference.hidden_states[layer][0], atol=TOLERANCE, rtol=0)
        for name, found in (("attn", (view.attn_in, view.attn_out)), ("mlp", (view.mlp_in, view.mlp_out))):
            torch.testing.assert_close(found, caught[layer, name], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(view.activations, caught[layer, "down"][0], atol=TOLERANCE, rtol=0)
    view = seen[view.num_layers]
    assert (view.system.stop, view.visual.stop - view.visual.start, view.cue.start) == (13, N, view.last)
    with pytest.raises(ValueError, match="no layer after"):
        view.next_attention()


def test_memory_follows_the_tokens_through_a_cut(substrate):
    seen: dict[int, list] = {2: [], 3: []}

    @dataclass(frozen=True, kw_only=True)
    class Remembering(Method):
        def layers(self, num_layers):
            return (1, 2, 3)

        def after_layer(self, layer, view):
            memory = view.memory
            if layer == 1:
                memory.per_token["patch"], memory.other["index"] = torch.arange(N), view.question.index
                return torch.arange(view.question.index % 2, N, 2)
            seen[layer].append((memory.other["index"], memory.per_token["patch"].tolist(), view.patches.tolist()))
            return torch.tensor([4, 2]) if layer == 2 else None

    evaluate(substrate, Remembering())
    assert len(seen[2]) == len(seen[3]) == 10
    for index, remembered, patches in seen[2]:
        assert remembered == patches == list(range(index % 2, N, 2))
    for index, remembered, patches in seen[3]:
        assert remembered == patches == [index % 2 + 8, index % 2 + 4]


def test_merged_states_take_the_place_and_the_id_of_the_token_they_stand_for(substrate):
    """Merging tokens into weighted means equals handing the next layer those means in a shorter sequence."""
    question, seen = substrate.questions[0], {}
    shares = torch.zeros(2, N)
    shares[0, 10:20], shares[1, 100] = 1, 2
    shares[1, 101] = 1

    @dataclass(frozen=True, kw_only=True)
    class Merging(Method):
        def layers(self, num_layers):
            return (2, 3)

        def after_layer(self, layer, view):
            seen[layer] = view
            if layer == 2:
                tokens = merged(shares, view.hidden[view.visual])
                return Cut(keep=torch.tensor([10, 100]), tokens=tokens, source=shares)

    prompt_logits(substrate, Merging(positions="preserve"), question)
    start, before, after = len(question.before), seen[2], seen[3]
    expected = [sum(before.hidden[start + i] for i in range(10, 20)) / 10]
    expected += [(2 * before.hidden[start + 100] + before.hidden[start + 101]) / 3]
    layer = substrate.model.model.language_model.layers[2]
    x = torch.cat((before.hidden[:start], torch.stack(expected), before.hidden[start + N :]))
    torch.testing.assert_close(after.attn_in, layer.input_layernorm(x), atol=TOLERANCE, rtol=0)
    ids = [*range(start), start + 10, start + 100, *range(start + N, start + N + len(question.after))]
    assert after.positions[:, 0].tolist() == ids
    assert after.patches.tolist() == [10, 100]
    torch.testing.assert_close(after.source, shares)
    prompt_logits(substrate, Merging(positions="compact"), question)
    assert seen[3].positions[:, 0].tolist() == list(range(len(ids)))


def test_several_ids_turn_blocks_of_frequencies_from_the_highest_on(substrate):
    runner = Runner(substrate.model, Method())
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 3, 16, generator=generator) for _ in range(2))
    positions = torch.tensor([[[5, 9], [0, 1], [7, 7]]])
    turned, _ = runner.rotate(query, key, positions)
    frequencies = substrate.model.model.language_model.rotary_emb.inv_freq
    for token in range(3):
        for pair in range(8):
            angle = positions[0, token, pair // 4] * frequencies[pair]
            a, b = query[0, :, token, pair], query[0, :, token, pair + 8]
            torch.testing.assert_close(turned[0, :, token, pair], a * angle.cos() - b * angle.sin())
            torch.testing.assert_close(turned[0, :, token, pair + 8], b * angle.cos() + a * angle.sin())
    with pytest.raises(ValueError, match="3 equal blocks"):
        runner.rotate(query, key, positions.expand(-1, -1, 2)[..., [0, 1, 1]])


@dataclass(frozen=True, kw_only=True)
class Unmerging(Method):
    """Tokens `rows` (one per group) stand at all patches of their group."""

    groups: int

    def select(self, image):
        owner = torch.arange(N) * self.groups // N
        first = torch.tensor([owner.tolist().index(group) for group in range(self.groups)])
        return Visual(image.projected[first], first, unmerge=owner)


def test_unmerging_single_patches_gives_the_logits_of_the_unmodified_model(substrate):
    question = substrate.questions[3]
    torch.testing.assert_close(
        prompt_logits(substrate, Unmerging(groups=N, positions="preserve"), question),
        model_logits(substrate, question),
        atol=TOLERANCE,
        rtol=0,
    )


def test_unmerging_runs_attention_at_all_positions_and_averages_it_back(substrate):
    """Against a loop over layers on rows, with full attention written out."""
    question, groups = substrate.questions[0], 9
    model, start = substrate.model, len(question.before)
    whole = embeddings(substrate, question)
    owner = [patch * groups // N for patch in range(N)]
    rows_of = [
        *range(start),
        *(start + group for group in owner),
        *(start + groups + i for i in range(len(question.after))),
    ]
    first = [rows_of.index(row) for row in range(start + groups + len(question.after))]
    x = whole[first]
    language = model.model.language_model
    cos, sin = language.rotary_emb(whole[None], torch.arange(len(whole))[None])
    for layer in language.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        out, _ = attention.__class__.forward(
            _Without(attention),
            normed[rows_of][None],
            (cos, sin),
            torch.full((len(whole),) * 2, -torch.inf).triu(1)[None, None],
        )
        mixed = torch.stack([out[0][[p for p, r in enumerate(rows_of) if r == row]].mean(0) for row in range(len(x))])
        x = x + attention.o_proj(mixed)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    expected = model.lm_head(language.norm(x))[-1]
    found = prompt_logits(substrate, Unmerging(groups=groups, positions="preserve"), question)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    with pytest.raises(ValueError, match="preserve"):
        prompt_logits(substrate, Unmerging(groups=groups), question)


class _Without:
    """An attention module without its output projection."""

    def __init__(self, module):
        self.module, self.o_proj = module, torch.nn.Identity()

    def __getattr__(self, name):
        return getattr(self.module, name)


def test_zeroed_keys_and_values_leave_the_prompt_alone_and_answer_with_logit_zero(substrate):
    question = substrate.questions[0]

    @dataclass(frozen=True, kw_only=True)
    class Zeroing(Method):
        def layers(self, num_layers):
            return (2, 3)

        def after_layer(self, layer, view):
            return Cut(zero=torch.arange(N) % 2 == layer % 2)

    runner, (batch,) = read(substrate, Zeroing(positions="preserve"), [question])
    torch.testing.assert_close(
        runner.logits(batch.hidden[0, -1]), model_logits(substrate, question), atol=TOLERANCE, rtol=0
    )
    plain, (kept,) = read(substrate, Method(positions="preserve"), [question])
    start = len(question.before)
    for layer in range(8):
        for name in ("key", "value"):
            expected = getattr(kept.caches[layer], name).clone()
            if layer in (1, 2):
                expected[:, :, start + (layer + 1) % 2 : start + N : 2] = 0
            torch.testing.assert_close(getattr(batch.caches[layer], name), expected)
    tokens = torch.tensor([[30]])
    difference = runner.read_answer(batch, tokens) - plain.read_answer(kept, tokens)
    assert difference.abs().max() > TOLERANCE


def test_neurons_change_the_rows_that_a_method_says_and_the_answer(substrate):
    question, answer = substrate.questions[0], [40, 17]

    @dataclass(frozen=True, kw_only=True)
    class Silencing(Method):
        """In layer 3, rows of the cue and the answer keep every other neuron."""

        def neurons(self, layer, activations, view):
            if layer != 3:
                return activations
            changed = activations.clone()
            changed[slice(None) if view.decoding else view.cue, ::2] = 0
            return changed

    runner, (batch,) = read(substrate, Silencing(), [question])
    logits = [runner.logits(batch.hidden[0, -1:]), runner.read_answer(batch, torch.tensor([answer]))[0]]
    whole = embeddings(substrate, question, answer)
    down = substrate.model.model.language_model.layers[2].mlp.down_proj

    def silence(module, arguments):
        changed = arguments[0].clone()
        changed[:, -3:, ::2] = 0
        return (changed,)

    handle = down.register_forward_pre_hook(silence)
    expected = masked_logits(substrate.model, whole, torch.arange(len(whole)), {})
    handle.remove()
    torch.testing.assert_close(torch.cat(logits), expected[-3:], atol=TOLERANCE, rtol=0)


def test_a_checkpoint_read_back_gives_the_same_answers(substrate, tmp_path):
    substrate.model.save_pretrained(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    again = open_substrate(None, PARAMETERS, seed=0, model=model)
    method = Cutting(keep=CUTS, positions="preserve")
    np.testing.assert_array_equal(
        evaluate(substrate, method)["log_probability"], evaluate(again, method)["log_probability"]
    )


def test_mistakes_are_named(substrate):
    question = substrate.questions[0]
    (visual,) = select(substrate, Method(), [question])
    with pytest.raises(ValueError, match="of 8"):
        Runner(substrate.model, Cutting(keep={9: [0]}))
    with pytest.raises(ValueError, match="not among"):
        prompt_logits(substrate, Cutting(keep={1: [0], 2: [1]}), question)
    with pytest.raises(ValueError, match="preserve"):
        Runner(substrate.model, Method()).read_prompts(
            [question], [dataclasses.replace(visual, positions=visual.patches)], N
        )
    longer = dataclasses.replace(question, after=(*question.after, 5))
    with pytest.raises(ValueError, match="one layout"):
        Runner(substrate.model, Method()).read_prompts([question, longer], [visual, visual], N)
    assert isinstance(question, Question)
    assert enter(substrate.views([question])[0], Method()).patches.tolist() == list(range(N))

"""The harness on tiny random models of the real classes: gather equals mask, generate goes on, budgets hold."""

import math
from dataclasses import dataclass

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tokenarium.methods.context import kvlab
from tokenarium.methods.context.kvlab import policies
from tokenarium.methods.context.kvlab.observation import Observation
from tokenarium.methods.context.kvlab.prefill import Scored
from tokenarium.methods.context.kvlab.rotary import inverse_frequencies, rotate
from tokenarium.methods.context.kvlab.run import agreement, rouge_l, until

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,
}
N, BUDGET = 40, 12
EVICTIONS = {
    "window": kvlab.Window(),
    "streaming": kvlab.StreamingLLM(),
    "random": kvlab.Random(),
    "h2o": kvlab.H2O(),
    "snapkv": kvlab.SnapKV(window=6),
    "tova": kvlab.TOVA(),
    "knorm": kvlab.KNorm(),
    "observed": kvlab.ObservedAttention(),
}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def qwen():
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def gemma():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, layer_types=kinds, sliding_window=16, query_pre_attn_scalar=8))
    for layer in model.model.layers:  # trained keys do not all have one norm
        torch.nn.init.normal_(layer.self_attn.k_norm.weight)
    return model


def make(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


@pytest.fixture(scope="module", params=[llama, qwen, gemma], ids=["llama", "qwen", "gemma3"])
def model(request):
    return kvlab.use(make(request.param))


@pytest.fixture(scope="module")
def small():
    return kvlab.use(make(llama))


def tokens(count, batch=1, seed=0):
    return torch.randint(1, 97, (batch, count), generator=torch.Generator().manual_seed(seed))


def plain_logits(model, ids):
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits
    kvlab.use(model)
    return logits


def test_the_whole_cache_gives_the_model_s_own_logits(model):
    ids = tokens(N + 5, batch=2)
    with torch.inference_mode():
        cache = kvlab.prefill(model, ids[:, :N]).selecting()
        logits = kvlab.forward(model, ids[:, N:], cache, keep=5)
    torch.testing.assert_close(logits, plain_logits(model, ids)[:, N:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", EVICTIONS)
def test_gathering_what_a_policy_keeps_equals_masking_the_rest(model, name):
    policy, ids = EVICTIONS[name], tokens(N + 7)
    with torch.inference_mode():
        done = kvlab.prefill(model, ids[:, :N])
        scores = done.scores({name: policy})[name]
        gathered = done.evicting(policy, BUDGET, scores).evicting(False)
        kept = [None] * len(gathered.layers)
        for layer in gathered.compressed:
            kept[layer.index] = layer.positions.clone()
            assert layer.keys.shape[2] == BUDGET
        masked = done.selecting(kvlab.Replay(tuple(kept), N), 1)
        for piece in (ids[:, N : N + 4], ids[:, N + 4 : N + 5], ids[:, N + 5 :]):  # a chunk, a step, a chunk
            a = kvlab.forward(model, piece, gathered, keep=piece.shape[1])
            b = kvlab.forward(model, piece, masked, keep=piece.shape[1])
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_masking_changes_the_logits_so_that_the_proof_proves_something(model):
    ids = tokens(N + 1)
    with torch.inference_mode():
        done = kvlab.prefill(model, ids[:, :N])
        few = done.evicting(kvlab.Window(), 4, done.scores({"": kvlab.Window()})[""])
        difference = kvlab.forward(model, ids[:, N:], few) - kvlab.forward(model, ids[:, N:], done.selecting())
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("name", ["window", "streaming", "random", "h2o", "tova", "knorm"])
@pytest.mark.parametrize("share", [BUDGET, 0.3])
def test_generate_keeps_the_budget_at_every_step_and_equals_a_cache_that_is_gathered_anew(model, name, share):
    """The slot that a new token takes over, against plain gathering, with the harness's teacher forcing off."""
    policy, ids = EVICTIONS[name], tokens(N, batch=2)
    cache = kvlab.EvictingCache(model, policy, share)
    out = model.generate(
        ids, past_key_values=cache, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    budget = int(share * N) if share < 1 else share
    assert all(layer.stored() == budget for layer in cache.compressed)
    assert out.shape == (2, N + 8)
    # The same, with the gap closed after every step so that each new token is appended.
    slow, read = kvlab.EvictingCache(model, policy, share), ids
    with torch.no_grad():
        for step in range(8):
            start = slow.get_seq_length()
            position = torch.arange(start, start + read.shape[1])[None]
            logits = model(read, past_key_values=slow, position_ids=position).logits[:, -1]
            read = logits.argmax(dim=-1, keepdim=True)
            assert torch.equal(read[:, 0], out[:, N + step])
            for layer in slow.compressed:
                layer._close_gap()
    for fast_layer, slow_layer in zip(cache.compressed, slow.compressed, strict=True):
        fast_layer._close_gap()
        for a, b in zip(fast_layer.positions.flatten(0, 1), slow_layer.positions.flatten(0, 1), strict=True):
            assert set(a.tolist()) == set(b.tolist())


def test_generate_with_room_for_all_is_plain_generate(model):
    ids, options = tokens(N), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(ids, **options)
    for cache in (kvlab.EvictingCache(model, kvlab.H2O(), N + 10), kvlab.SelectingCache(model, kvlab.Oracle(), N + 10)):
        assert torch.equal(model.generate(ids, past_key_values=cache, **options), plain)


def test_beams_and_a_second_turn_work(small):
    cache = kvlab.EvictingCache(small, kvlab.H2O(), BUDGET)
    first = small.generate(tokens(N), past_key_values=cache, max_new_tokens=4, num_beams=3, pad_token_id=0)
    assert first.shape[1] <= N + 4
    cache = kvlab.EvictingCache(small, kvlab.H2O(), BUDGET)
    first = small.generate(tokens(N), past_key_values=cache, max_new_tokens=4, pad_token_id=0, eos_token_id=None)
    more = torch.cat([first, tokens(5, seed=1)], dim=-1)
    again = small.generate(more, past_key_values=cache, max_new_tokens=3, pad_token_id=0, eos_token_id=None)
    assert again.shape[1] == N + 4 + 5 + 3
    assert cache.stored() == BUDGET


def test_the_prefill_s_scores_are_those_of_a_live_cache(model):
    ids = tokens(N)
    for name, policy in EVICTIONS.items():
        with torch.inference_mode():
            done = kvlab.prefill(model, ids)
            made = done.evicting(policy, BUDGET, done.scores({name: policy})[name])
            live = kvlab.EvictingCache(model, policy, BUDGET)
            model(ids, past_key_values=live)
        for a, b in zip(made.compressed, live.compressed, strict=True):
            assert torch.equal(a.positions, b.positions), name
            torch.testing.assert_close(a.keys, b.keys)


def test_a_prefill_cut_short_is_the_prefill_of_the_shorter_prompt(model):
    ids = tokens(N + 1)
    with torch.inference_mode():
        cut = kvlab.prefill(model, ids).selecting(tokens=25)
        short = kvlab.prefill(model, ids[:, :25]).selecting()
        a, b = (kvlab.forward(model, ids[:, 25:27], cache) for cache in (cut, short))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_recorded_tensors_stay_as_they_are(small):
    ids = tokens(N + 3)
    with torch.inference_mode():
        done = kvlab.prefill(small, ids[:, :N])
        before = [tensor.clone() for tensor in (*done.keys, *done.values)]
        for _ in range(2):
            kvlab.decode(small, done.evicting(kvlab.H2O(), N, done.scores({"": kvlab.H2O()})[""]), ids[:, N:], 4)
            kvlab.decode(small, done.selecting(kvlab.Oracle(), 5), ids[:, N:], 4)
    assert all(torch.equal(a, b) for a, b in zip(before, (*done.keys, *done.values), strict=True))


def test_gemma_s_sliding_layers_are_never_compressed():
    model = kvlab.use(make(gemma))
    cache = kvlab.EvictingCache(model, kvlab.Window(), 4)
    with torch.inference_mode():
        model(tokens(30), past_key_values=cache)
    assert [layer.index for layer in cache.compressed] == [1]
    assert [layer.keys.shape[2] for layer in cache.layers] == [15, 4, 15]  # transformers keeps window - 1


def observation(seed=0, heads=4, key_heads=2, count=11, queries=None):
    draw = torch.Generator().manual_seed(seed)
    queries = count if queries is None else queries
    query = torch.randn(1, heads, queries, 6, generator=draw)
    key, value = torch.randn(2, 1, key_heads, count, 6, generator=draw)
    positions = torch.arange(count).expand(1, key_heads, -1)
    fresh = torch.arange(count - queries, count)
    return Observation(0, query, key, value, 0.5, positions, fresh, torch.zeros(1, key_heads, count))


def slow_attention(seen):
    """Attention in float64 by loops over heads and queries."""
    _, heads, queries, _ = seen.query.shape
    count = seen.key.shape[2]
    found = torch.zeros(heads, queries, count, dtype=torch.float64)
    for head in range(heads):
        for row in range(queries):
            last = count - queries + row + 1
            logits = [
                float(seen.query[0, head, row].double() @ seen.key[0, head // seen.groups, j].double()) * seen.scaling
                for j in range(last)
            ]
            total = sum(math.exp(x) for x in logits)
            found[head, row, :last] = torch.tensor([math.exp(x) / total for x in logits], dtype=torch.float64)
    return found


def test_scores_are_those_of_loops_in_float64():
    seen = observation()
    attention = slow_attention(seen)
    grouped = attention.sum(dim=1).reshape(2, 2, -1).mean(dim=1)
    torch.testing.assert_close(kvlab.H2O().score(seen)[0].double(), grouped, atol=1e-5, rtol=1e-5)
    seen_by = torch.arange(seen.key.shape[2], 0, -1)
    torch.testing.assert_close(
        kvlab.ObservedAttention().score(seen)[0].double(), grouped / seen_by, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        kvlab.TOVA().score(seen)[0, 1].double(), attention[:, -1].mean(dim=0), atol=1e-5, rtol=1e-5
    )
    window = attention[:, -3:, :-3].mean(dim=1)
    smooth = torch.zeros_like(window)
    for place in range(window.shape[1]):
        around = [window[:, other] for other in range(place - 2, place + 3) if 0 <= other < window.shape[1]]
        smooth[:, place] = sum(around) / 5
    score = kvlab.SnapKV(window=3).score(seen)[0]
    torch.testing.assert_close(score[:, :-3].double(), smooth.reshape(2, 2, -1).mean(dim=1), atol=1e-5, rtol=1e-5)
    assert set(kvlab.SnapKV(window=3).keep(score[None], seen.positions, 11, 5)[0, 0].tolist()) >= {8, 9, 10}


def test_sums_over_blocks_of_queries_do_not_depend_on_the_block(monkeypatch):
    seen = observation(count=37)
    whole = seen.attention_received()
    monkeypatch.setattr("tokenarium.methods.context.kvlab.observation.ROWS", 5)
    torch.testing.assert_close(observation(count=37).attention_received(), whole)


def test_h2o_goes_on_summing_step_by_step(small):
    """Fed one token at a time with room for all, its scores end where one pass over all of them ends."""
    ids = tokens(20)
    stepwise = kvlab.EvictingCache(small, kvlab.H2O(), 100)
    with torch.inference_mode():
        for place in range(20):
            small(ids[:, place : place + 1], past_key_values=stepwise)
        done = kvlab.prefill(small, ids)
        for layer, scored in zip(stepwise.compressed, done.scores({"": kvlab.H2O()})[""], strict=True):
            torch.testing.assert_close(layer.scores, scored.scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("policy", "expected"), [(kvlab.Window(), [7, 8, 9]), (kvlab.StreamingLLM(sinks=1), [0, 8, 9])]
)
def test_windows_keep_what_their_names_say(policy, expected):
    seen = observation(count=10)
    assert policy.keep(policy.score(seen), seen.positions, 10, 3)[0].tolist() == [expected, expected]


def test_h2o_protects_the_last_half_and_random_the_sinks():
    score = torch.zeros(1, 1, 20)
    score[..., 3] = score[..., 5] = 1
    assert kvlab.H2O().keep(score, torch.arange(20).expand(1, 1, -1), 20, 4)[0, 0].tolist() == [3, 5, 18, 19]
    seen = observation(count=20)
    policy = kvlab.Random(seed=3)
    kept = policy.keep(policy.score(seen), seen.positions, 20, 8)[0]
    assert all(head[:4] == [0, 1, 2, 3] for head in kept.tolist())
    assert kept[0].tolist() != kept[1].tolist()
    assert torch.equal(policy.score(seen), policy.score(seen))
    assert not torch.equal(policy.score(seen), kvlab.Random(seed=4).score(seen))


def test_the_oracle_captures_at_least_the_attention_of_any_other_choice_of_its_size():
    seen = observation(count=24, queries=1)
    mask = kvlab.Oracle().select(seen, 6)
    probabilities = seen.probabilities()[..., : seen.past]
    assert torch.equal(mask.sum(dim=-1), torch.full((1, 4, 1), 6))
    for seed in range(20):
        other = policies.top(torch.rand(1, 4, 1, seen.past, generator=torch.Generator().manual_seed(seed)), 6)
        assert bool(((probabilities * mask).sum(-1) >= (probabilities * other).sum(-1)).all())


def test_rotation_moves_a_key_to_another_position(model):
    """Against transformers' own rotary embedding: a key at position 5, moved by 9, is the key at position 14."""
    layer = next(each for each in model.modules() if hasattr(each, "rotary_emb")).rotary_emb
    states, options = torch.randn(1, 2, 1, 8), {}
    if hasattr(layer, "layer_types"):
        options = {"layer_type": "full_attention"}

    def at(position):
        cosine, sine = layer(states, torch.tensor([[position]]), **options)
        half = torch.cat([-states[..., 4:], states[..., :4]], dim=-1)
        return states * cosine[:, None] + half * sine[:, None]

    moved = rotate(at(5), torch.tensor(9), inverse_frequencies(model))
    torch.testing.assert_close(moved, at(14), atol=1e-5, rtol=1e-5)


def test_a_renumbered_window_forgets_that_there_was_more_text(small):
    """In one layer, a window with positions from 0 on answers as a fresh model that has read nothing else."""
    one = kvlab.use(make(lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 1}))))
    ids = tokens(N + 6)
    logits = {}
    for renumber in (True, False):
        policy = kvlab.Window(renumber=renumber)
        cache = kvlab.EvictingCache(one, policy, 10)
        with torch.inference_mode():
            one(ids[:, :N], past_key_values=cache)
            logits[renumber] = torch.cat(
                [one(ids[:, at : at + 1], past_key_values=cache).logits for at in range(N, N + 6)], 1
            )
    # RoPE knows distances alone, and a window keeps all of them: renumbering changes nothing here ...
    torch.testing.assert_close(logits[True], logits[False], atol=1e-4, rtol=1e-4)
    # ... but it does where tokens between were dropped.
    for renumber in (True, False):
        cache = kvlab.EvictingCache(one, kvlab.StreamingLLM(renumber=renumber), 10)
        with torch.inference_mode():
            one(ids[:, :N], past_key_values=cache)
            logits[renumber] = one(ids[:, N : N + 3], past_key_values=cache).logits
    assert (logits[True] - logits[False]).abs().max() > 1e-3
    kept = torch.cat([ids[:, :4], ids[:, N - 6 : N + 3]], dim=-1)
    with torch.inference_mode():
        torch.testing.assert_close(logits[True], one(kept).logits[:, -3:], atol=1e-4, rtol=1e-4)


def test_a_policy_of_one_s_own_needs_one_method(small):
    """The example of the README."""

    @dataclass(frozen=True)
    class Early(kvlab.EvictionPolicy):
        recent: float = 0.5

        def score(self, seen):
            return -seen.positions.float()

    cache = kvlab.EvictingCache(small, Early(), 0.25)
    small.generate(tokens(N), past_key_values=cache, max_new_tokens=3, pad_token_id=0, eos_token_id=None)
    for layer in cache.compressed:
        layer._close_gap()
        assert sorted(layer.positions[0, 0].tolist()) == [0, 1, 2, 3, 4, N - 3, N - 2, N - 1, N, N + 1]


def test_padding_and_unprepared_models_are_named(small):
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, :5] = 0
    cache = kvlab.EvictingCache(small, kvlab.Window(), 10)
    with pytest.raises(ValueError, match="no padding"):
        small.generate(tokens(N, batch=2), attention_mask=mask, past_key_values=cache, max_new_tokens=2, pad_token_id=0)
    with pytest.raises(ValueError, match=r"kvlab\.use"):
        kvlab.EvictingCache(make(llama), kvlab.Window(), 10)
    with pytest.raises(ValueError, match="positive"):
        kvlab.EvictingCache(small, kvlab.Window(), 0)


def test_rouge_l_and_agreement_by_hand():
    assert rouge_l([1, 2, 3, 4], [1, 9, 3, 4]) == pytest.approx(0.75)
    assert rouge_l([1, 2], [3, 4]) == 0
    assert rouge_l([2, 1, 3], [1, 2, 3]) == pytest.approx(2 / 3)
    assert agreement([1, 2, 3, 4], [1, 9, 3, 4]) == 0.75
    assert agreement([1], [1, 9]) == agreement([1, 2, 3], [1, 9]) == 0.5
    assert until([5, 1, 0, 7, 0], {0}) == [5, 1, 0]
    assert until([5, 1], {0}) == [5, 1]


def test_a_score_is_kept_with_what_the_policy_remembers():
    assert Scored(torch.zeros(1), {"a": 1}).memory == {"a": 1}

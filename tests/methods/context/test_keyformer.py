"""Keyformer against a loop in float64, and against itself: gathering and masking, one step and all at once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tokenarium.methods.context import keyformer, kvlab
from tokenarium.methods.context.keyformer import Keyformer, keyformer_step


def slow_step(logits, prev_score, prev_mask, budget, tau, gumbel):
    """Algorithm 1 with Python loops: (scores by head, kept by head)."""
    recent, keys = budget
    heads, queries, count = logits.shape
    scores, kept = [], []
    for head in range(heads):
        alive = [True if prev_mask is None else bool(prev_mask[head, j]) for j in range(count)]
        score = [0.0] * count
        if prev_score is not None:
            score[: prev_score.shape[-1]] = prev_score[head].tolist()
        for row in range(queries):
            seen = [j for j in range(count - queries + row + 1) if alive[j]]
            weights = {j: math.exp((float(logits[head, row, j]) + float(gumbel[head, row, j])) / tau) for j in seen}
            for j in seen:
                score[j] += weights[j] / sum(weights.values())
        last = set(range(max(0, count - recent), count))
        others = sorted((j for j in range(count) if alive[j] and j not in last), key=lambda j: -score[j])
        chosen = last | set(others[:keys])
        scores.append([score[j] if j in chosen else 0.0 for j in range(count)])
        kept.append(chosen)
    return scores, kept


def inputs(heads, queries, count, seed):
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(heads, queries, count, generator=random)
    noise = keyformer.draw("gumbel", np.random.default_rng(seed), (heads, queries, count))
    return logits, noise


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 14), st.integers(1, 5), st.integers(0, 6), st.integers(0, 1000))
def test_prompt_and_following_steps_equal_the_loop(heads, count, recent, keys, seed):
    logits, noise = inputs(heads, count, count, seed)
    score, mask = keyformer_step(logits, None, None, (recent, keys), 1.0, noise)
    for step in range(4):
        if step:
            logits, noise = inputs(heads, 1, count + step, seed + step)
            tau = keyformer.temperature(step, 4)
            expected = slow_step(logits, score, mask, (recent, keys), tau, noise)
            score, mask = keyformer_step(logits, score, mask, (recent, keys), tau, noise)
        else:
            expected = slow_step(logits, None, None, (recent, keys), 1.0, noise)
        torch.testing.assert_close(score.double(), torch.tensor(expected[0], dtype=torch.float64), atol=1e-4, rtol=1e-4)
        assert [set(np.flatnonzero(row[:-1])) for row in mask.numpy()] == expected[1]
        assert bool(mask[:, -1].all())


@settings(deadline=None, max_examples=30)
@given(st.integers(12, 30), st.integers(2, 5), st.integers(1, 5), st.integers(0, 100))
def test_the_budget_holds_and_what_is_dropped_never_comes_back(count, recent, keys, seed):
    logits, noise = inputs(2, count, count, seed)
    score, mask = keyformer_step(logits, None, None, (recent, keys), 1.0, noise)
    for step in range(1, 5):
        before = mask
        assert mask[:, :-1].sum(dim=-1).tolist() == [recent + keys] * 2
        assert bool((score[~mask[:, :-1]] == 0).all())
        logits, noise = inputs(2, 1, count + step, seed + step)
        score, mask = keyformer_step(logits, score, mask, (recent, keys), 1.5, noise)
        assert not bool((mask[:, : before.shape[1]] & ~before).any())


def test_the_released_code_always_loses_the_token_that_leaves_the_window():
    recent, keys, count = 4, 3, 20
    logits, noise = inputs(3, count, count, 0)
    logits[..., count - recent] = 50.0  # by far the most attended token is the one that leaves
    ours = keyformer_step(logits, None, None, (recent, keys), 1.0, noise)[1]
    theirs = keyformer_step(logits, None, None, (recent, keys), 1.0, noise, official_offbyone=True)[1]
    assert bool(ours[:, count - recent].all())
    assert not bool(theirs[:, count - recent].any())
    assert theirs.sum(dim=-1).tolist() == [recent + keys] * 3  # the coming token takes one of the recent places
    assert ours.sum(dim=-1).tolist() == [recent + keys + 1] * 3
    for step in range(1, 4):  # and no token can ever become a key token: each leaves the window in its turn
        logits, noise = inputs(3, 1, count + step, step)
        theirs = keyformer_step(logits, ours[:, :-1].float(), theirs, (recent, keys), 1.0, noise, True)[1]
        ours = theirs
        assert not bool(theirs[:, count - recent + step].any())


def test_a_constant_added_to_all_logits_changes_nothing():
    logits, _ = inputs(2, 9, 9, 3)
    constant, none = (
        keyformer_step(logits, None, None, (2, 3), 1.0, torch.full_like(logits, value)) for value in (0.577, 0.0)
    )
    torch.testing.assert_close(constant[0], none[0], atol=1e-6, rtol=1e-6)
    assert torch.equal(constant[1], none[1])


def test_noise_has_the_moments_of_a_gumbel_variable():
    for kind in ("gumbel", "gaussian"):
        noise = keyformer.draw(kind, np.random.default_rng(0), (1000, 401))
        assert noise.dtype == torch.float32
        assert bool(noise.isfinite().all())
        assert float(noise.mean()) == pytest.approx(keyformer.EULER, abs=0.01)
        assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)
    skew = [
        float(((x - x.mean()) ** 3).mean() / x.std() ** 3)
        for x in (keyformer.draw(kind, np.random.default_rng(1), (1000, 401)) for kind in ("gumbel", "gaussian"))
    ]
    assert skew == pytest.approx([1.1395, 0.0], abs=0.05)
    assert keyformer.draw("none", np.random.default_rng(0), (3,)) == 0
    assert keyformer.draw("constant", np.random.default_rng(0), (3,)) == keyformer.EULER


def test_temperature_rises_from_start_to_end_and_stays():
    assert [keyformer.temperature(step, 4) for step in (0, 2, 4, 9)] == [1.0, 1.5, 2.0, 2.0]


def test_a_budget_without_a_recent_token_is_named():
    with pytest.raises(ValueError, match="recent"):
        keyformer_step(torch.zeros(1, 2, 2), None, None, (0, 3), 1.0, torch.zeros(1, 2, 2))


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            initializer_range=0.5,
        )
        return kvlab.use(LlamaForCausalLM(config).eval())


class Recorded(Keyformer):
    """Keeps what it saw, to be put through the masking step."""

    def score(self, seen):
        self.log.append((seen.layer, seen.step, seen.logits()[0], seen.positions[0].clone()))
        return super().score(seen)


def test_the_shrinking_cache_keeps_what_the_masking_step_keeps(model):
    """The policy gathers; the parity hook masks. Without noise both must keep the same tokens at every step."""
    prompt, budget, new = 24, 10, 6
    policy = Recorded(noise="none", steps=new)
    object.__setattr__(policy, "log", [])
    cache = kvlab.EvictingCache(model, policy, budget)
    ids = torch.randint(1, 60, (1, prompt + new), generator=torch.Generator().manual_seed(0))
    recent = int(0.3 * budget)
    state = {}
    with torch.inference_mode():
        for step in range(new + 1):
            piece = ids[:, :prompt] if step == 0 else ids[:, prompt + step - 1 : prompt + step]
            model(piece, past_key_values=cache)
            for layer, at, logits, positions in policy.log[-2:]:
                assert at == step
                count, queries = prompt + step, logits.shape[1]
                # What the cache has dropped is hidden; the mask of the step before must hide the same.
                whole = torch.full((4, queries, count), 7.0)
                whole.scatter_(-1, positions[:, None].expand(-1, queries, -1), logits)
                score, mask = state.get(layer, (None, None))
                tau = keyformer.temperature(step, new)
                state[layer] = keyformer_step(
                    whole, score, mask, (recent, budget - recent), tau, torch.zeros_like(whole)
                )
                stored = cache.layers[layer]
                for head in range(4):
                    slots = set(stored.positions[0, head].tolist())
                    if stored.free is not None:
                        slots.remove(int(stored.positions[0, head, stored.free[0, head]]))
                    assert slots == set(np.flatnonzero(state[layer][1][head, :-1].numpy()))


def test_the_noise_is_the_same_in_every_run_and_another_for_each_seed(model):
    done = kvlab.prefill(model, torch.randint(60, (1, 20), generator=torch.Generator().manual_seed(1)))
    scores = done.scores({"a": Keyformer(), "b": Keyformer(), "c": Keyformer(seed=1), "d": Keyformer(noise="none")})
    assert torch.equal(scores["a"][1].scores, scores["b"][1].scores)
    for other in ("c", "d"):
        assert not torch.equal(scores["a"][1].scores, scores[other][1].scores)
    # Every query spreads one unit over the keys, with or without noise.
    for name in scores:
        torch.testing.assert_close(scores[name][0].scores.sum(dim=-1), torch.full((1, 4), 20.0))


def test_without_noise_and_with_h2o_s_window_the_prompt_is_h2o_s(model):
    done = kvlab.prefill(model, torch.randint(60, (1, 30), generator=torch.Generator().manual_seed(2)))
    scores = done.scores({"keyformer": Keyformer(noise="none", recent=0.5), "h2o": kvlab.H2O()})
    for ours, theirs in zip(scores["keyformer"], scores["h2o"], strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)

from dataclasses import dataclass

import pytest
import torch

from tokenarium.methods.vlm.harness import Method, TowerTokens, Visual, enter, evaluate
from tokenarium.methods.vlm.harness.substrate import open_substrate
from tokenarium.methods.vlm.harness.tower import reduced_view

N = 144
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def substrate():
    return open_substrate(None, {"model": "tiny", "data": "scenes", "questions": 5}, seed=0)


@pytest.fixture(scope="module")
def reference(substrate):
    """The tower's own outputs with eager attention, and its keys by hooks: (outputs, {block: (images, 1+N, dim)})."""
    tower, keys, hooks = substrate.model.model.vision_tower, {}, []
    for block, layer in enumerate(tower.encoder.layers):
        hooks.append(
            layer.self_attn.k_proj.register_forward_hook(lambda m, a, out, block=block: keys.update({block: out}))
        )
    tower.set_attn_implementation("eager")
    outputs = tower(substrate.pixels(range(5)), output_attentions=True, output_hidden_states=True)
    tower.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    return outputs, keys


def test_a_view_has_the_towers_own_attentions_keys_and_hidden_states(substrate, reference):
    outputs, keys = reference
    for image, view in enumerate(substrate.views(substrate.questions)):
        for block in (0, 3, 7, -1, -2, -8):
            attention = outputs.attentions[block][image]
            torch.testing.assert_close(view.attention(block), attention, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(view.cls_attention(block), attention[:, 0, 1:], atol=TOLERANCE, rtol=0)
            received = torch.stack([attention[:, :, j].mean() for j in range(1, 1 + N)])
            torch.testing.assert_close(view.received(block), received, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(view.hidden(block), outputs.hidden_states[block][image], atol=1e-4, rtol=0)
            expected = torch.cat(list(view.key(block)), dim=-1)
            torch.testing.assert_close(expected, keys[block % 8][image], atol=TOLERANCE, rtol=0)


def test_projected_features_are_what_the_model_makes_of_the_image(substrate):
    features = substrate.model.get_image_features(substrate.pixels(range(5)), return_dict=True).pooler_output
    for view, expected in zip(substrate.views(substrate.questions), features, strict=True):
        torch.testing.assert_close(view.projected, expected, atol=TOLERANCE, rtol=0)
    assert view.grid == (12, 12)


def test_an_images_generator_is_its_own_and_the_same_again(substrate):
    first, second = substrate.views(substrate.questions[:2])
    draws = [view.generator(seed).initial_seed() for view in (first, second) for seed in (0, 1)]
    assert len(set(draws)) == 4
    assert draws[0] == substrate.views(substrate.questions[:1])[0].generator(0).initial_seed()


def test_a_view_knows_the_question_only_where_the_method_asks(substrate):
    @dataclass(frozen=True, kw_only=True)
    class Asking(Method):
        asks_question = True

    assert substrate.views(substrate.questions[:1])[0].question is None
    assert substrate.views(substrate.questions[:1], Asking())[0].question is substrate.questions[0]


@dataclass(frozen=True, kw_only=True)
class Untouched(Method):
    def in_tower(self, block, tokens):
        return TowerTokens(tokens.x, tokens.key, tokens.size, tokens.source)


def test_a_tower_whose_blocks_reduce_nothing_gives_its_own_features(substrate, reference):
    outputs, _ = reference
    for number in range(5):
        view = reduced_view(substrate.model, substrate.pixels([number]), Untouched(), number, None)
        torch.testing.assert_close(view.features, outputs.hidden_states[-2][number, 1:], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(view.cls, outputs.hidden_states[-2][number, 0], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(view.source, torch.eye(N))
        with pytest.raises(ValueError, match="reduced tower"):
            view.attention(-2)


def test_doubling_a_token_equals_counting_it_twice(substrate):
    """Proportional attention: two equal tokens, or one of size 2, do the same to all others."""
    seen = {}

    @dataclass(frozen=True, kw_only=True)
    class Doubling(Method):
        merge: bool

        def in_tower(self, block, tokens):
            x, size, source = tokens.x, tokens.size, tokens.source
            if block == 1:
                x = x.clone()
                x[8] = x[7]
                if self.merge:
                    keep = [row for row in range(len(x)) if row != 8]
                    size, source = size.clone(), source.clone()
                    size[7], source[7, 8] = 2, 1
                    x, size, source = x[keep], size[keep], source[keep]
            elif not self.merge:
                torch.testing.assert_close(tokens.key.shape, (1 + N, 16))
            return TowerTokens(x, tokens.key, size, source)

        def select(self, image):
            seen[self.merge] = image
            owner = image.source.argmax(dim=0)
            return Visual(image.project(image.features), torch.arange(len(image.features)), unmerge=owner)

    for merge in (False, True):
        enter(substrate.views(substrate.questions[:1], Doubling(merge=merge))[0], Doubling(merge=merge))
    alone, merged = seen[False].features, seen[True].features
    torch.testing.assert_close(merged, alone[[row for row in range(N) if row != 7]], atol=1e-4, rtol=0)
    assert seen[True].size[6] == 2
    assert seen[True].source[6].nonzero()[:, 0].tolist() == [6, 7]
    cell = evaluate(substrate, Doubling(merge=True, positions="preserve"))
    assert cell["visual"].tolist() == [[N - 1] * 8] * 5

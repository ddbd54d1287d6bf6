"""The arena of transplants: pairing, ranking and winners on numbers counted by hand; rows of the new arms."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe, omp_transplant, swaplab, transplants
from tokenarium.methods.tokenizers import tokenadapt_lab as lab
from tokenarium.methods.tokenizers.experiments.transplant_arms import Maker, occurring, stopped

GROUPS = np.array(["one"] * 6 + ["two"] * 6)
BYTES = np.full(12, 256)


def panel(**arms):
    own = np.linspace(100, 200, 12)
    bits = {name: own + np.asarray(extra, dtype=float) for name, extra in arms.items()}
    return transplants.Panel(bits, BYTES, own, GROUPS, resamples=200)


# Panels


def test_cost_is_bits_per_byte_above_the_own_tokenizer():
    found = panel(worse=np.full(12, 25.6)).cost("worse")
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    whole = panel(worse=np.full(12, 25.6))
    assert whole.bits_per_byte(transplants.OWN).value == pytest.approx(150 / 256)
    assert whole.bits_per_byte("worse").value == pytest.approx(150 / 256 + 0.1)


def test_the_ranking_is_from_best_to_worst_and_settles_what_every_block_shows():
    wobble = np.tile([-30.0, 30.0], 6)
    found = transplants.ranking(panel(best=np.zeros(12), close=wobble + 0.1, worst=np.full(12, 90.0)))
    assert found.arm.tolist() == ["best", "close", "worst"]
    assert found.settled[:2].tolist() == ["no", "yes"]
    assert found["to next"][1] == pytest.approx(-(90 - 0.1) / 256)
    assert np.isnan(found["to next"][2])


def test_winners_names_those_that_a_text_cannot_tell_from_the_best():
    wobble = np.tile([-30.0, 30.0], 6)
    arms = panel(
        a=np.where(GROUPS == "one", 0.0, 40.0), b=np.where(GROUPS == "one", wobble + 1, 0.0), c=np.full(12, 80)
    )
    found = transplants.winners(arms).set_index("text")
    assert found.loc["one", "best"] == "a"
    assert found.loc["one", "not told from the best"] == "b"
    assert found.loc["two", ["best", "runner-up", "not told from the best"]].tolist() == ["b", "a", "none"]
    assert found.loc["two", "lead"] == pytest.approx(-40 / 256)


def test_pooling_takes_the_arms_that_all_panels_have():
    one, two = panel(a=np.zeros(12), b=np.ones(12)), panel(a=np.full(12, 2.0), c=np.ones(12))
    both = transplants.pooled([one, two])
    assert list(both.bits) == ["a"]
    np.testing.assert_allclose(both.bits["a"] - both.own, 1)
    shorter = transplants.Panel({"a": np.ones(3)}, BYTES[:3], np.ones(3), GROUPS[:3], 50)
    with pytest.raises(ValueError, match="same units"):
        transplants.pooled([one, shorter])


def test_a_panel_refuses_arms_of_another_length():
    with pytest.raises(ValueError, match="a has 3 units, the texts have 12"):
        transplants.Panel({"a": np.ones(3)}, BYTES, np.ones(12), GROUPS, 50)


def test_the_sign_test_counts_random_signs():
    assert transplants.sign_test(np.zeros(8)) == 1
    exact = 2 / 2**10  # only all plus and all minus are as far out
    assert transplants.sign_test(np.ones(10), flips=40_000) == pytest.approx(exact, rel=0.4)
    assert transplants.sign_test(-np.ones(10)) == transplants.sign_test(np.ones(10))
    assert transplants.sign_test(np.tile([1.0, -1.0], 20) + 0.01) > 0.5


# Reading


class Parts:
    def __init__(self, name, parts):
        self.name, self._parts = name, parts

    @property
    def parts(self):
        return sorted(self._parts)

    def arrays(self, part):
        return self._parts[part]


def texts(value, tokens=4):
    return {name: np.full(tokens, value) for name in ("manual", "german")}


def lengths(size, tokens=4):
    return {f"{name}.{part}": np.full(tokens, size) for name in ("manual", "german") for part in ("bytes", "ids")}


def stored(**more):
    parts = {
        "original": texts(10.0, 8),
        "original.text": lengths(128, 8),
        "T1.text": lengths(256),
        "T1.retok": texts(24.0),
    }
    return Parts("first", parts | {"T1.rows": {}} | {key.replace("_", "."): each for key, each in more.items()})


def test_pairs_are_read_block_by_block_and_seeds_are_pooled():
    more = Parts("second", {"T1.normal0": texts(30.0), "T1.normal1": texts(50.0), "about": {}, "T1.retok": texts(24.0)})
    found = transplants.open_pairs([stored(T1_two={"manual": np.ones(4)}), more], 100)["T1"]
    assert sorted(found.bits) == ["normal", "retok"]  # an arm that did not read every text is left out
    assert found.texts == ["manual", "german"]
    assert found.num_bytes.tolist() == [256] * 8
    assert found.cost("retok").value == pytest.approx((24 - 20) / 256)
    assert found.cost("normal").value == pytest.approx((40 - 20) / 256)
    assert list(transplants.named(found).bits) == ["mean of pieces", "normal"]


def test_two_runs_of_an_arm_that_differ_are_no_arena():
    with pytest.raises(TokenariumError, match=r"T1\.retok of second gives other bits on german"):
        transplants.open_pairs([stored(), Parts("second", {"T1.retok": texts(24.1)})], 100)


def test_the_donor_s_study_is_read_by_arm_and_text(tmp_path):
    path = tmp_path / transplants.EVALUATIONS
    with pytest.raises(TokenariumError, match="dvc repro paper@omp-transplant"):
        transplants.open_donor(tmp_path, 100)
    path.parent.mkdir(parents=True)
    arms = {"original": 10.0, "pieces": 26.0, "normal": 30.0, "normal-0": 30.0, "omp-4": 25.0}
    parts = {
        f"{arm}/{text}": np.full(8 if arm == "original" else 4, bits)
        for arm, bits in arms.items()
        for text in ("a", "b")
    }
    parts |= {f"bytes/{text}": np.full(4, 256) for text in ("a", "b")}
    save_file(parts | {f"own-bytes/{text}": np.full(8, 128) for text in ("a", "b")}, path)
    found = transplants.open_donor(tmp_path, 100)
    assert sorted(found.bits) == ["normal", "omp-4", "pieces"]
    assert found.cost("pieces").value == pytest.approx(6 / 256)


# Rows of the arena's own arms

OLD = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog on a mat"] * 4
NEW = ["the cathedral on the matter", "a dogma and a logbook", "the cat and the dog and the café"] * 4


@pytest.fixture(scope="module")
def maker():
    old, new = bpe.train(OLD, 275).tokenizer(), bpe.train(NEW, 290).tokenizer()
    made = type("Made", (), {"texts": {"text": NEW[2]}, "pool": NEW[:3], "tokenizer": lambda self, name: new})()
    target = lab.Target.of(old, new, [NEW[2]])
    phi = {"old": lab.spelling(lab.decoded(old)), "T": lab.spelling(target.strings)}
    features = type("Features", (), {"parameters": {"targets": {"T": "new"}}, "of": lambda self, name: phi[name]})()
    base = lab.open_model(lab.TINY, None, old.get_vocab_size(), 0, "float32")
    return Maker(None, "T", made, features, old, base, lab.TINY)


def test_omp_mixes_old_rows_by_the_pursuit_in_the_encoder_s_space(maker):
    new, old, rows = maker._space("encoder")
    torch.testing.assert_close(new.norm(dim=1), torch.ones(len(new)))
    assert len(old.unique(dim=0)) == len(old) < len(maker.old_rows)  # old tokens with the same features are one point
    indices, coefficients = omp_transplant.batch_omp(new, old, 3)
    expected = sum(coefficients[:, [each]] * rows[indices[:, each]] for each in range(3))
    torch.testing.assert_close(maker.rows({"kind": "omp", "space": "encoder", "k": 3}), expected)
    longer = maker.rows({"kind": "omp", "space": "encoder", "k": 5})
    torch.testing.assert_close(
        maker.rows({"kind": "omp", "space": "encoder", "k": 3}), expected
    )  # from the longer path
    assert not torch.allclose(longer, expected)


def test_old_tokens_that_the_encoder_cannot_tell_apart_share_their_mean_row(maker):
    _, old, rows = maker._space("encoder")
    features = torch.nn.functional.normalize(torch.from_numpy(maker.lab_rows.phi_old), dim=1)
    for point, row in zip(old, rows, strict=True):
        alike = (features - point).abs().amax(dim=1) < 1e-6
        torch.testing.assert_close(row, maker.old_rows[alike].mean(dim=0))


def test_a_pursuit_stops_where_nothing_is_left():
    points = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    targets = torch.stack([points[4], points[4] + 0.5 * points[9], points.sum(dim=0)])
    path = omp_transplant.pursue(targets, points, 6)
    found = stopped(path, 6)
    assert (found[0] != 0).tolist() == [True] + [False] * 5
    assert found[0, 0] == pytest.approx(1)
    torch.testing.assert_close(found[2], path.coefficients()[2])
    torch.testing.assert_close(omp_transplant.combine(path.indices, found, points)[:2], targets[:2], atol=2e-3, rtol=0)
    assert stopped(path, 1).shape == (3, 1)


def test_rows_of_a_donor_are_those_of_new_and_shared_tokens(maker):
    targets, points, rows = maker._space("donor")
    assert (len(targets), len(points)) == (len(maker.target.fresh), len(maker.target.shared[0]))
    torch.testing.assert_close(rows, maker.old_rows[maker.target.shared[1]])
    torch.testing.assert_close(
        maker.rows({"kind": "linear", "space": "donor"}), swaplab.least_squares(targets, points, rows)
    )
    with pytest.raises(ValueError, match="'encoder' or 'donor', got 'elsewhere'"):
        maker.rows({"kind": "omp", "space": "elsewhere", "k": 1})


def test_focus_rows_are_means_of_shared_rows_and_noise_where_the_pool_has_no_word(maker):
    made, support = maker.focus
    seen = np.isin(maker.target.fresh, occurring(maker.pooled))
    assert (support > 0).tolist() == seen.tolist()
    noise = swaplab.normal(maker.old_rows, len(made), 0).double().numpy()
    np.testing.assert_array_equal(made[~seen], noise[~seen])
    shared = maker.old_rows[maker.target.shared[1]].double().numpy()
    assert (made[seen].max(axis=0) <= shared.max(axis=0) + 1e-9).all()
    assert (made[seen].min(axis=0) >= shared.min(axis=0) - 1e-9).all()


def test_support_counts_old_rows(maker):
    pieces = np.mean([len(each) for each in maker.target.pieces])
    adapt = {"kind": "adapt", "k": 3}
    assert maker.support(adapt | {"lam": 0.0}) == pieces
    assert maker.support(adapt | {"lam": 1.0}) == 3
    assert maker.support(adapt | {"lam": 0.3}) == pieces + 3
    assert maker.support({"kind": "normal", "seed": 0}) == 0
    assert maker.support({"kind": "omp", "space": "donor", "k": 5}) == 5


def test_every_arm_makes_a_row_for_each_new_token_and_the_model_reads_it(maker):
    counts = maker.counts()
    assert counts["new"] == len(maker.target.fresh) > counts["new_in_pool"] * 0
    for arm in ({"kind": "normal", "seed": 1}, {"kind": "align"}, {"kind": "neighbours", "space": "donor", "k": 2}):
        rows = maker.rows(arm)
        assert rows.shape == (len(maker.target.fresh), maker.old_rows.shape[1])
        model = swaplab.swap(maker.base, maker.assembled(rows))
        assert np.isfinite(swaplab.token_bits(model, maker.encoded()["text"], maker.start)).all()

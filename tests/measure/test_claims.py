import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.errors import TokenariumError
from tokenarium.measure.bootstrap import Interval
from tokenarium.measure.claims import Metric, Outcome, Rule, Verdict, judge, load_claims

FILE = """
paper: pitome
title: Spectrum-preserving token merging
arxiv: "2405.16148"
family: vision
note: A verdict on this build.
gates:
  - id: G0
    statement: The model has room to lose.
    holds_if: full_top1.low >= 0.80 and random_prune_drop >= 2
    otherwise: "inconclusive: saturated"
    guards: [C1]
claims:
  - id: C1
    statement: Merging costs little accuracy.
    paper_figure: 0.5 % average drop
    where: abstract
    headline: true
    holds_if: drop.high <= 2.0
  - id: C2
    statement: Merging beats ToMe on every seed.
    headline: true
    holds_if: >
      kl_gain.min_low > 0
      and kl_gain.num_seeds >= 3
  - id: C3
    statement: Retrieval behaves the same way.
    headline: true
    not_testable: needs a contrastive encoder
  - id: F1
    statement: Random merging is worst.
    holds_if: random_kl > tome_kl and random_kl > prune_kl
"""


def metric(name, value, low=None, high=None, seeds=()):
    def interval(center):
        return Interval(center, center - 0.1 if low is None else low, center + 0.1 if high is None else high, "typed")

    return Metric.of(name, interval(value), seeds={seed: interval(center) for seed, center in enumerate(seeds)})


def metrics(**changes):
    values = {
        "full_top1": 0.95,
        "random_prune_drop": 5.0,
        "drop": 1.0,
        "kl_gain": (0.5, 0.4, 0.6),
        "random_kl": 3.0,
        "tome_kl": 1.0,
        "prune_kl": 2.0,
    } | changes
    return {
        name: metric(name, sum(value) / len(value), seeds=value) if isinstance(value, tuple) else metric(name, value)
        for name, value in values.items()
    }


@pytest.fixture
def write(tmp_path):
    def write_file(text=FILE, name="pitome.claims.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def claims(write):
    return load_claims(write())


def outcomes(judgement):
    return {result.claim.id: str(result.outcome) for result in judgement.claims}


def test_all_testable_headline_claims_hold_means_reproduced(claims):
    judgement = judge(claims, metrics(), "cpu")
    assert judgement.verdict == "reproduced"
    assert outcomes(judgement) == {"C1": "holds", "C2": "holds", "C3": "not testable", "F1": "holds"}
    assert judgement.reason == "holds: C1, C2; not testable: C3"


def test_some_headline_claims_hold_means_partly(claims):
    judgement = judge(claims, metrics(drop=3.0), "cpu")
    assert judgement.verdict == "partly"
    assert outcomes(judgement)["C1"] == "does not hold"
    assert judgement.reason == "holds: C2; does not hold: C1; not testable: C3"


def test_no_headline_claim_holds_means_not_reproduced(claims):
    judgement = judge(claims, metrics(drop=3.0, kl_gain=(0.5, -0.4, 0.6)), "cpu")
    assert judgement.verdict == "not reproduced"
    assert outcomes(judgement)["F1"] == "holds"


def test_finding_that_fails_leaves_the_verdict_alone(claims):
    judgement = judge(claims, metrics(random_kl=1.5), "cpu")
    assert outcomes(judgement)["F1"] == "does not hold"
    assert judgement.verdict == "reproduced"


def test_closed_gate_makes_its_claim_inconclusive_and_says_why(claims):
    judgement = judge(claims, metrics(full_top1=0.7, drop=0.0), "cpu")
    result = judgement.claims[0]
    assert result.outcome == Outcome.INCONCLUSIVE
    assert result.reason == ("saturated - G0: full_top1.low (0.6) >= 0.80: false, random_prune_drop (5) >= 2: true")
    assert not judgement.gates[0].passed
    assert judgement.verdict == Verdict.PARTLY, "never reproduced while a headline claim is undecided"
    assert judgement.reason == "holds: C2; inconclusive: C1 (saturated); not testable: C3"


def test_closed_gate_also_takes_back_a_failure(claims):
    judgement = judge(claims, metrics(full_top1=0.7, drop=9.0), "cpu")
    assert outcomes(judgement)["C1"] == "inconclusive"


def test_undecided_and_failed_headline_claims_mean_not_reproduced(claims):
    judgement = judge(claims, metrics(full_top1=0.7, kl_gain=(-1.0, -1.0, -1.0)), "cpu")
    assert judgement.verdict == "not reproduced"


def test_closed_gate_over_all_decisive_claims_means_inconclusive(write):
    claims = load_claims(write(FILE.replace("guards: [C1]", "guards: [C1, C2]")))
    judgement = judge(claims, metrics(random_prune_drop=1.0), "gpu")
    assert judgement.verdict == "inconclusive"
    assert judgement.reason == "inconclusive: C1, C2 (saturated); not testable: C3"


def test_paper_without_a_testable_headline_claim_is_not_testable(write):
    text = FILE.replace("holds_if: drop.high <= 2.0", "holds_if: drop.high <= 2.0\n    profiles: [gpu]")
    text = text.replace("    headline: true\n    holds_if: >", "    holds_if: >")
    claims = load_claims(write(text))
    judgement = judge(claims, metrics(), "cpu")
    assert judgement.verdict == "not testable at this scale"
    assert judgement.claims[0].reason == "needs profile gpu"
    assert judge(claims, metrics(), "gpu").verdict == "reproduced"


def test_claim_of_another_profile_needs_no_metrics_here(write):
    claims = load_claims(write(FILE.replace("holds_if: drop.high <= 2.0", "holds_if: drop <= 2\n    profiles: [gpu]")))
    recorded = metrics()
    for name in ("drop", "full_top1", "random_prune_drop"):
        del recorded[name]
    assert outcomes(judge(claims, recorded, "cpu"))["C1"] == "not testable"
    with pytest.raises(TokenariumError, match="G0 asks for 'full_top1'"):
        judge(claims, recorded, "gpu")


@pytest.mark.parametrize("drop", [0.0, 9.0])
def test_smoke_is_never_evidence(claims, drop):
    judgement = judge(claims, metrics(drop=drop), "smoke")
    assert judgement.verdict == "inconclusive"
    assert judgement.reason == "smoke profile: not evidence"
    assert outcomes(judgement)["C1"] == ("holds" if drop == 0 else "does not hold"), "the rules still run"


def test_unknown_profile_is_refused(claims):
    with pytest.raises(TokenariumError, match="no profile 'full': use smoke, cpu, gpu"):
        judge(claims, metrics(), "full")


def test_metric_that_was_not_recorded_is_named_with_the_nearest(claims):
    recorded = metrics()
    recorded["drop_f60"] = recorded.pop("drop")
    with pytest.raises(TokenariumError) as error:
        judge(claims, recorded, "cpu")
    assert str(error.value) == (
        "pitome.claims.yaml: a metric was not recorded: C1 asks for 'drop'; did you mean drop_f60?"
    )


def test_missing_metric_is_no_matter_of_luck_with_short_circuits(claims):
    recorded = metrics(random_kl=0.0)  # the first half of F1 is false already
    del recorded["prune_kl"]
    with pytest.raises(TokenariumError, match="F1 asks for 'prune_kl'"):
        judge(claims, recorded, "cpu")


def test_rule_over_seeds_needs_a_metric_with_seeds(claims):
    with pytest.raises(TokenariumError, match=r"C2: .*'kl_gain' was recorded without seeds"):
        judge(claims, metrics(kl_gain=0.5), "cpu")


def test_rule_without_an_answer_is_an_error_and_not_a_failure(write):
    claims = load_claims(write(FILE.replace("drop.high <= 2.0", "1 / (drop - drop) > 2")))
    with pytest.raises(TokenariumError, match=r"C1: '1 / \(drop - drop\) > 2' has no answer: .*zero"):
        judge(claims, metrics(), "cpu")


def test_evidence_shows_the_rule_with_its_numbers(claims):
    result = judge(claims, metrics(drop=1.25), "cpu").claims
    assert result[0].working == ("drop.high (1.35) <= 2.0: true",)
    assert result[1].working == (
        "kl_gain.min_low (0.3 over 3 seeds) > 0: true",
        "kl_gain.num_seeds (3) >= 3: true",
    )
    assert result[3].working == ("random_kl (3) > tome_kl (1): true", "random_kl (3) > prune_kl (2): true")
    assert set(result[3].evidence) == {"random_kl", "tome_kl", "prune_kl"}


def test_judgement_is_json_with_everything_a_report_shows(claims):
    record = json.loads(json.dumps(judge(claims, metrics(full_top1=0.5), "cpu").to_dict()))
    assert record["verdict"] == "partly"
    assert record["note"] == "A verdict on this build."
    assert record["gates"][0]["passed"] is False
    first = record["claims"][0]
    assert first["outcome"] == "inconclusive"
    assert first["rule"] == "drop.high <= 2.0"
    assert first["evidence"]["drop"]["high"] == pytest.approx(1.1)
    assert record["claims"][2]["rule"] is None
    assert record["claims"][2]["reason"] == "needs a contrastive encoder"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("drop <= 1", True),
        ("drop.value < 1", False),
        ("drop.low < 0.95 < drop.high", True),
        ("drop == 1", True),
        ("drop != 1", False),
        ("not drop > 2 and (drop > 5 or drop > 0.5)", True),
        ("abs(-3 * drop + 1) == 2", True),
        ("max(drop, kl_gain.max_value) == 1", True),
        ("min(kl_gain.min_value, drop.low, 7) == 0.4", True),
        ("kl_gain.max_high <= 0.7 and kl_gain.min_low >= 0.3", True),
        ("kl_gain.max_high < 0.7", False),
        ("drop / 2 - 1e-1 == +0.4", True),
    ],
)
def test_rules_mean_what_they_say(rule, expected):
    assert Rule.parse(rule).holds(metrics()) is expected


@settings(deadline=None)
@given(
    st.floats(-10, 10),
    st.floats(0, 5),
    st.floats(-10, 10),
    st.sampled_from(["<", "<=", ">", ">="]),
    st.sampled_from(["value", "low", "high"]),
)
def test_comparisons_agree_with_python_away_from_ties(value, half_width, bound, operator, end):
    recorded = {"gain": Metric(value, value - half_width, value + half_width, "typed", name="gain")}
    number = {"value": value, "low": value - half_width, "high": value + half_width}[end]
    if abs(number - bound) <= 1e-9 * max(abs(number), abs(bound)):
        return
    expected = {"<": number < bound, "<=": number <= bound, ">": number > bound, ">=": number >= bound}[operator]
    assert Rule.parse(f"gain.{end} {operator} {bound!r}").holds(recorded) is expected


def test_drop_of_exactly_two_points_is_not_lost_to_floating_point():
    drop = 100 * (0.84 - 0.82)
    assert drop > 2.0
    recorded = {"drop": metric("drop", drop)}
    assert Rule.parse("drop <= 2.0").holds(recorded)
    assert not Rule.parse("drop > 2.0").holds(recorded)
    assert not Rule.parse("drop <= 1.99").holds(recorded)


def test_smallest_gain_above_zero_is_above_zero():
    assert Rule.parse("gain > 0").holds({"gain": metric("gain", 1e-300)})


@pytest.mark.parametrize(
    "rule",
    [
        "drop.__class__ > 1",
        "drop.__init__.__globals__ > 1",
        "().__class__.__bases__[0] > drop",
        "__import__('os').system('true') > drop",
        "open('/etc/passwd') > drop",
        "(lambda: drop)() > 1",
        "[x for x in drop] > 1",
        "drop ** 9 ** 9 ** 9 > 1",
        "drop << 9999 > 1",
        "drop % 2 > 1",
        "'a' * 9 > drop",
        "f'{drop}' > 1",
        "drop[0] > 1",
        "{drop: 1} > 1",
        "drop.to_dict() > 1",
        "drop.seeds > 1",
        "drop.name > 1",
        "drop.low.real > 1",
        "min(drop, key=abs) > 1",
        "min(*drop) > 1",
        "min.__self__ > drop",
        "eval(drop) > 1",
        "drop if drop > 1 else 2",
        "(drop := 5) > 1",
        "drop in drop",
        "drop is drop",
        "drop > 1; drop",
        "import os",
        "drop > 1e999",
        "drop > " + "9" * 350,
        "drop > True",
        "drop > None",
        "dröp > 1",
        "_drop > 1",
        "Drop > 1",
        "(" * 300 + "drop > 1" + ")" * 300,
        "not " * 90 + "drop > 1",
        "-" * 390 + "drop > 1",
        "drop > 1 or " * 60 + "drop > 1",
        "drop > 1 \x00",
    ],
)
def test_hostile_expressions_are_refused_before_they_run(rule):
    with pytest.raises(ValueError, match=r"rule|expression|metric has no|takes one number") as error:
        Rule.parse(rule)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="ab.()[]<>=+-*/ _019'\"andorlm:,{}!@%&|~^\\\n", max_size=40))
def test_any_text_is_a_rule_or_a_value_error(text):
    recorded = {name: metric(name, 1.0, seeds=(1.0,)) for name in ("a", "b", "ab", "l", "m")}
    try:
        rule = Rule.parse(text)
        if set(rule.metric_names) <= set(recorded):
            assert rule.holds(recorded) in (True, False)
    except (ValueError, ArithmeticError):
        pass


@pytest.mark.parametrize("rule", ["drop", "drop.high", "drop + 1", "abs(drop)", "not drop", "drop > 1 and drop"])
def test_number_is_no_answer(rule):
    with pytest.raises(ValueError, match="is a number where a yes/no question is needed"):
        Rule.parse(rule)


def test_yes_or_no_is_no_number():
    with pytest.raises(ValueError, match="is a yes/no question where a number is needed"):
        Rule.parse("(drop > 1) + 1 > 1")


def test_rule_must_ask_about_something_measured():
    with pytest.raises(ValueError, match="asks about no metric"):
        Rule.parse("1 < 2")


def test_mistyped_attribute_gets_the_nearest():
    with pytest.raises(ValueError, match=r"'drop\.hihg': a metric has no \.hihg; did you mean high or max_high\?"):
        Rule.parse("drop.hihg <= 2")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Spectrum-preserving token merging\n", "", "title is missing"),
        ("family: vision", "famly: vision", "famly is no key here; did you mean family?"),
        ('"2405.16148"', "2405.16148", "arxiv must be text: put 2405.16148 in quotes"),
        ('"2405.16148"', '"arXiv:2405.16148"', "arxiv: String should match pattern"),
        ("    statement: Merging costs little accuracy.\n", "", "claim C1: statement is missing"),
        ("paper_figure:", "figure:", "claim C1: figure is no key here; did you mean paper_figure?"),
        ("drop.high <= 2.0", "drop.high =< 2.0", "claim C1: holds_if: 'drop.high =< 2.0' is no expression"),
        (
            "drop.high <= 2.0",
            "drop.height <= 2.0",
            "claim C1: holds_if: 'drop.height': a metric has no .height",
        ),
        ("drop.high <= 2.0", "true", "claim C1: holds_if: a rule is a text"),
        ("    holds_if: drop.high <= 2.0\n", "", "claim C1: give either holds_if or not_testable"),
        (
            "drop.high <= 2.0",
            "drop <= 2\n    not_testable: why",
            "claim C1: give either holds_if or not_testable",
        ),
        (
            "drop.high <= 2.0",
            "drop <= 2\n    holds_if: drop <= 9",
            "not valid YAML in line 20 (holds_if is given twice)",
        ),
        (
            "drop.high <= 2.0",
            "drop <= 2\n    profiles: [cpuu]",
            "claim C1: profiles.0: Input should be 'smoke', 'cpu'",
        ),
        (
            "drop.high <= 2.0",
            "drop <= 2\n    profiles: []",
            "claim C1: profiles: Tuple should have at least 1 item",
        ),
        ("id: C2", "id: C1", "the id C1 is used 2 times"),
        ("id: C2", "id: G0", "the id G0 is used 2 times"),
        ("  - id: C2\n    ", "  - ", "claim number 2: id is missing"),
        ("guards: [C1]", "guards: [C9]", "gate G0 guards C9, which is no claim; did you mean"),
        ("guards: [C1]", "guards: []", "gate G0: guards: Tuple should have at least 1 item"),
        ("full_top1.low >= 0.80", "full_top1.low", "gate G0: holds_if: 'full_top1.low' is a number"),
        ("    headline: true\n", "", "no claim is marked 'headline: true'"),
        ("family: vision", "family: [vision", "not valid YAML in line"),
        ("family: vision", "family: !!python/object/apply:os.getcwd []", "not valid YAML in line 5"),
        ("family: vision", "family: 2024-99-99", "not valid YAML (month must be in 1..12"),
        (FILE, "", "a claims file starts with 'paper: <slug>'"),
        (FILE, "- paper", "a claims file starts with 'paper: <slug>'"),
        (FILE[FILE.index("claims:") :], "claims: []\n", "claims: Tuple should have at least 1 item"),
        (
            FILE[FILE.index("claims:") :],
            "claims: [C1]\n",
            "claim number 1: Input should be a valid dictionary",
        ),
        (FILE[FILE.index("claims:") :], "claims: none\n", "claims: Input should be a valid tuple"),
    ],
)
def test_mistake_in_the_file_is_one_line_with_the_place_and_the_mend(write, old, new, message):
    assert old in FILE
    path = write(FILE.replace(old, new))
    with pytest.raises(TokenariumError) as error:
        load_claims(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_further_mistakes_are_counted(write):
    path = write(FILE.replace("arxiv:", "arxive:").replace("title:", "tittle:"))
    with pytest.raises(TokenariumError, match=r"is no key here; did you mean .* \(and 3 more\)$"):
        load_claims(path)


def test_file_must_bear_the_name_of_its_paper(write):
    with pytest.raises(TokenariumError, match=r"name must be pitome\.claims\.yaml"):
        load_claims(write(name="tome.claims.yaml"))


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(TokenariumError, match=r"nowhere\.claims\.yaml: cannot read"):
        load_claims(tmp_path / "nowhere.claims.yaml")
    latin = tmp_path / "latin.claims.yaml"
    latin.write_bytes("title: é".encode("latin-1"))
    with pytest.raises(TokenariumError, match="UTF-8"):
        load_claims(latin)


def test_file_reads_back_as_written(claims):
    content = yaml.safe_load(FILE)
    assert [claim.statement for claim in claims.claims] == [entry["statement"] for entry in content["claims"]]
    assert claims.claims[1].holds_if.text == "kl_gain.min_low > 0 and kl_gain.num_seeds >= 3"
    assert claims.claims[1].holds_if.metric_names == ("kl_gain",)
    assert (claims.paper, claims.arxiv, claims.note) == ("pitome", "2405.16148", "A verdict on this build.")


@pytest.mark.parametrize("end", ["value", "low", "high"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_metric_refuses_numbers_that_are_not_finite_by_name(end, bad):
    numbers = {"value": 1.0, "low": 0.0, "high": 2.0} | {end: bad}
    with pytest.raises(TokenariumError, match=f"metric 'kl_gain': {end} is {bad}"):
        Metric(**numbers, how="typed", name="kl_gain")
    with pytest.raises(TokenariumError, match=f"metric 'kl_gain': .*{end} is {bad}"):
        Metric.from_dict("kl_gain", {"value": 1, "low": 0, "high": 2, "how": "", "seeds": {"0": numbers | {"how": ""}}})


@pytest.mark.parametrize("name", ["KL", "kl gain", "kl-gain", "1kl", "_kl", "kl.low", "", "max", "and", "kl\n"])
def test_metric_refuses_names_that_no_rule_could_use(name):
    with pytest.raises(TokenariumError, match="lower-case letters"):
        metric(name, 1.0)


def test_metric_reads_back_from_json():
    original = Metric.of(
        "kl_gain",
        Interval(0.5, 0.4, 0.6, "paired bootstrap"),
        unit="nats",
        seeds={0: Interval(0.4, 0.3, 0.5, "paired bootstrap"), 7: Interval.exact(0.6)},
    )
    assert Metric.from_dict("kl_gain", json.loads(json.dumps(original.to_dict()))) == original
    assert (original.min_low, original.max_high, original.num_seeds) == (0.3, 0.6, 2)


@pytest.mark.parametrize("record", [{}, {"value": 1}, {"value": "x", "low": 0, "high": 1, "how": ""}, 5, {"size": 1}])
def test_record_of_something_else_is_refused_by_name(record):
    with pytest.raises(TokenariumError, match=r"metric 'drop': (not a record|could not convert)"):
        Metric.from_dict("drop", record)

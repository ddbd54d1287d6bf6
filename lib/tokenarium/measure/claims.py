"""Claims and verdicts: what a paper says, the rule that decides it, and what the measured numbers make of it.

A claims file (`<slug>.claims.yaml`) is written before the run. Its rules are comparisons over metrics:

    drop_f60.high <= 2.0 and kl_gain.min_low > 0

`.value`, `.low` and `.high` are the metric and the ends of its interval (a bare name means `.value`);
`.min_value`, `.max_value`, `.min_low` and `.max_high` are the smallest and largest of these over the training
seeds, so that `kl_gain.min_low > 0` reads "on every seed", and `.num_seeds` counts the seeds. Rules may use
`and`, `or`, `not`, comparisons, + - * / and abs(), min(), max(), nothing else. Numbers that differ by less
than one part in 10^9 count as equal, because 100 * (0.84 - 0.82) is not 2.0 in floating point.
"""

import ast
import keyword
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import simpleeval
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tokenarium.errors import TokenariumError
from tokenarium.measure.bootstrap import Interval
from tokenarium.words import PROFILES, nearest

Profile = Literal["smoke", "cpu", "gpu"]
SUFFIX = ".claims.yaml"
RULE_CHARACTERS = 400
RULE_DEPTH = 12


@dataclass(frozen=True, kw_only=True)
class Metric(Interval):
    """A recorded number: its interval, its unit, and the same per training seed where there are several.

    name: lower-case letters, digits and underscores, starting with a letter. Raises TokenariumError naming
    the metric for any other name and for NaN or infinity.
    """

    name: str
    unit: str = ""
    seeds: Mapping[int, Interval] = field(default_factory=dict)

    def __post_init__(self):
        if not _is_metric_name(self.name):
            raise TokenariumError(
                f"metric {self.name!r}: use a name of lower-case letters, digits and underscores that starts "
                "with a letter and is neither abs, min, max nor a Python keyword"
            )
        try:
            super().__post_init__()
        except ValueError as error:
            raise TokenariumError(f"metric {self.name!r}: {error}") from None

    @classmethod
    def of(cls, name: str, interval: Interval, unit: str = "", seeds: Mapping[int, Interval] | None = None) -> "Metric":
        return cls(
            interval.value,
            interval.low,
            interval.high,
            interval.how,
            interval.level,
            name=name,
            unit=unit,
            seeds=dict(seeds or {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and text for metrics.json; the name is the key under which it is stored."""
        record = super().to_dict()
        if self.unit:
            record["unit"] = self.unit
        if self.seeds:
            record["seeds"] = {str(seed): interval.to_dict() for seed, interval in self.seeds.items()}
        return record

    @classmethod
    def from_dict(cls, name: str, record: Mapping[str, Any]) -> "Metric":
        """The metric that `to_dict` wrote; raises TokenariumError naming it for any other record."""
        try:
            seeds = {int(seed): Interval(**interval) for seed, interval in record.get("seeds", {}).items()}
            plain = {key: value for key, value in record.items() if key != "seeds"}
            return cls(**plain, name=name, seeds=seeds)
        except (TypeError, ValueError, AttributeError) as error:
            raise TokenariumError(f"metric {name!r}: not a record of value, low, high and how ({error})") from None

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    @property
    def min_value(self) -> float:
        return min(interval.value for interval in self._per_seed())

    @property
    def max_value(self) -> float:
        return max(interval.value for interval in self._per_seed())

    @property
    def min_low(self) -> float:
        return min(interval.low for interval in self._per_seed())

    @property
    def max_high(self) -> float:
        return max(interval.high for interval in self._per_seed())

    def _per_seed(self) -> Iterable[Interval]:
        if not self.seeds:
            raise TokenariumError(f"metric {self.name!r} was recorded without seeds: record it per seed or use .low")
        return self.seeds.values()


_ATTRIBUTES = ("value", "low", "high", "min_value", "max_value", "min_low", "max_high", "num_seeds")
_FUNCTIONS = {"abs": abs, "min": min, "max": max}


def _is_metric_name(name: str) -> bool:
    return bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)) and name not in _FUNCTIONS and not keyword.iskeyword(name)


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=0.0)


_OPERATORS = {
    ast.Lt: lambda a, b: a < b and not _equal(a, b),
    ast.LtE: lambda a, b: a <= b or _equal(a, b),
    ast.Gt: lambda a, b: a > b and not _equal(a, b),
    ast.GtE: lambda a, b: a >= b or _equal(a, b),
    ast.Eq: _equal,
    ast.NotEq: lambda a, b: not _equal(a, b),
    ast.Not: lambda a: not a,
    ast.UAdd: lambda a: +a,
    ast.USub: lambda a: -a,
    ast.Add: lambda a, b: _finite(a + b),
    ast.Sub: lambda a, b: _finite(a - b),
    ast.Mult: lambda a, b: _finite(a * b),
    ast.Div: lambda a, b: _finite(a / b),
}


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ArithmeticError("a result is not finite")
    return number


@dataclass(frozen=True)
class Rule:
    """A yes/no question over metrics, checked when it is read, before anything is measured."""

    text: str
    tree: ast.expr = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: Any) -> "Rule":
        """Read a rule. Raises ValueError that quotes the part of the text which no rule may contain."""
        if isinstance(text, Rule):
            return text
        if not isinstance(text, str) or not text.strip():
            raise ValueError("a rule is a text such as 'drop.high <= 2.0'")
        text = " ".join(text.split())
        if len(text) > RULE_CHARACTERS or not text.isascii():
            raise ValueError(f"a rule is at most {RULE_CHARACTERS} plain ASCII characters")
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{_quoted(text)} is no expression ({getattr(error, 'msg', None) or error})") from None
        _check(tree, text, truth=True, depth=0)
        # Written out once, `drop <= 2` and `drop.value <= 2` are the same tree for everything that follows.
        tree = _ValueOfBareNames().visit(tree)
        rule = cls(text, tree)
        if not rule.metric_names:
            raise ValueError(f"{_quoted(text)} asks about no metric")
        return rule

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.value.id for node in _references(self.tree)))

    def holds(self, metrics: Mapping[str, Metric]) -> bool:
        """The answer, given all `metric_names`. Raises ArithmeticError, as for a division by zero."""
        return bool(self._evaluate(self.tree, metrics))

    def working(self, metrics: Mapping[str, Metric]) -> tuple[str, ...]:
        """Every comparison with its numbers put in and its answer: `drop_f60.high (1.2) <= 2.0: true`."""
        comparisons = [node for node in ast.walk(self.tree) if isinstance(node, ast.Compare)]
        return tuple(
            f"{self._with_numbers(node, metrics)}: {str(bool(self._evaluate(node, metrics))).lower()}"
            for node in sorted(comparisons, key=lambda node: node.col_offset)
        )

    def _evaluate(self, node: ast.expr, metrics: Mapping[str, Metric]) -> Any:
        evaluator = simpleeval.SimpleEval(
            operators=_OPERATORS,
            functions=_FUNCTIONS,
            names={name: metrics[name] for name in self.metric_names},
            allowed_attrs={Metric: set(_ATTRIBUTES)},
        )
        return evaluator.eval(self.text, previously_parsed=node)

    def _with_numbers(self, comparison: ast.Compare, metrics: Mapping[str, Metric]) -> str:
        text = self.text[: comparison.end_col_offset]
        for node in sorted(_references(comparison), key=lambda node: -node.end_col_offset):
            number = f"{getattr(metrics[node.value.id], node.attr):.6g}"
            if node.attr in ("min_value", "max_value", "min_low", "max_high"):
                number += f" over {metrics[node.value.id].num_seeds} seeds"
            text = f"{text[: node.end_col_offset]} ({number}){text[node.end_col_offset :]}"
        return text[comparison.col_offset :]


class _ValueOfBareNames(ast.NodeTransformer):
    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def visit_Name(self, node: ast.Name) -> ast.Attribute:
        return ast.copy_location(ast.Attribute(node, "value", ast.Load()), node)


def _references(tree: ast.expr) -> list[ast.Attribute]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


def _check(node: ast.expr, text: str, truth: bool, depth: int) -> None:
    """Raise ValueError unless `node` is a yes/no question (`truth`) or else a number that a rule may hold."""
    quoted = _quoted(ast.get_source_segment(text, node))
    if depth > RULE_DEPTH:
        raise ValueError(f"a rule is nested at most {RULE_DEPTH} deep")

    def check(children: Iterable[ast.expr], truth: bool) -> None:
        for child in children:
            _check(child, text, truth, depth + 1)

    match node:
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not()) | ast.Compare() if not truth:
            raise ValueError(f"{quoted} is a yes/no question where a number is needed")
        case ast.BoolOp(values=values):
            check(values, truth=True)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            check([operand], truth=True)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _OPERATORS for op in ops):
            check([left, *comparators], truth=False)
        case ast.Name(id=name) if _is_metric_name(name):
            pass
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if _is_metric_name(name):
            if attribute not in _ATTRIBUTES:
                raise ValueError(f"{quoted}: a metric has no .{attribute}; {nearest(attribute, _ATTRIBUTES)}")
        case ast.Constant(value=value) if type(value) in (int, float) and abs(value) <= 1e300:
            pass
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            check([operand], truth=False)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            check([left, right], truth=False)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            count_fits = len(args) == 1 if name == "abs" else len(args) >= 2
            if not count_fits:
                raise ValueError(f"{quoted}: abs() takes one number, min() and max() two or more")
            check(args, truth=False)
        case _:
            raise ValueError(
                f"{quoted} is not allowed in a rule: only metrics, numbers, comparisons, and, or, not, + - * "
                "/ and abs(), min(), max() are"
            )
    if truth and not isinstance(node, ast.BoolOp | ast.Compare) and not _is_not(node):
        raise ValueError(f"{quoted} is a number where a yes/no question is needed: compare it with something")


def _quoted(text: str) -> str:
    return f"'{text}'" if len(text) <= 80 else f"'{text[:77]}...'"


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, str_strip_whitespace=True)


Text = Annotated[str, Field(min_length=1)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")]
ParsedRule = Annotated[Rule, BeforeValidator(Rule.parse)]


class Gate(_Section):
    """A condition on the test bed: where it fails, the claims that it guards cannot be decided."""

    id: Id
    statement: Text
    holds_if: ParsedRule
    otherwise: Text
    guards: Annotated[tuple[str, ...], Field(min_length=1)]


class Claim(_Section):
    """One falsifiable statement of a paper, and the rule that decides it or the reason why nothing here can.

    headline: the paper's verdict rests on it. profiles: where it can be tested.
    """

    id: Id
    statement: Text
    paper_figure: str = ""
    where: str = ""
    headline: bool = False
    holds_if: ParsedRule | None = None
    not_testable: Text | None = None
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)] = PROFILES
    paper_value: dict[str, Any] | None = None  # read by tokenarium.report.distance; no rule sees it

    @model_validator(mode="after")
    def _decided_or_not(self) -> "Claim":
        if (self.holds_if is None) == (self.not_testable is None):
            raise ValueError("give either holds_if or not_testable")
        return self


class PaperClaims(_Section):
    """The claims file of one paper. The verdict rests on the headline claims, the others are findings."""

    paper: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: Text
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")]
    family: Text
    note: Text | None = None
    gates: tuple[Gate, ...] = ()
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _ids_fit(self) -> "PaperClaims":
        ids = [entry.id for entry in (*self.gates, *self.claims)]
        for entry_id in ids:
            if ids.count(entry_id) > 1:
                raise ValueError(f"the id {entry_id} is used {ids.count(entry_id)} times")
        claim_ids = [claim.id for claim in self.claims]
        for gate in self.gates:
            for guarded in gate.guards:
                if guarded not in claim_ids:
                    raise ValueError(
                        f"gate {gate.id} guards {guarded}, which is no claim; {nearest(guarded, claim_ids)}"
                    )
        if not any(claim.headline for claim in self.claims):
            raise ValueError("no claim is marked 'headline: true', so nothing decides the verdict")
        return self


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the plain loader keeps the last and forgets the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key_node.value} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_claims(path: str | Path) -> PaperClaims:
    """Read and check a claims file.

    Raises TokenariumError, one line with the file, the claim and the mend, for a file that is missing, is no
    YAML, has unknown or missing keys, or a rule that no rule may be.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise TokenariumError(f"{path}: cannot read this claims file ({error.strerror})") from None
    except UnicodeDecodeError:
        raise TokenariumError(f"{path}: a claims file is UTF-8 text") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = (getattr(error, "problem", None) or str(error)).splitlines()[0]
        raise TokenariumError(f"{path}: not valid YAML{where} ({problem})") from None
    if not isinstance(content, dict):
        raise TokenariumError(f"{path}: a claims file starts with 'paper: <slug>'")
    try:
        claims = PaperClaims.model_validate(content)
    except ValidationError as error:
        raise TokenariumError(f"{path}: {_first_mistake(error, content)}") from None
    if path.name != claims.paper + SUFFIX:
        raise TokenariumError(f"{path}: holds the claims of {claims.paper}, so its name must be {claims.paper}{SUFFIX}")
    return claims


_SECTIONS = {"claims": Claim, "gates": Gate}


def _first_mistake(error: ValidationError, content: Mapping[str, Any]) -> str:
    """The first thing that pydantic found, said in the words of the claims file."""
    # A mistyped key is also a missing key: the mistyped one is the better news.
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    mistake = mistakes[0]
    location = list(mistake["loc"])
    model, where = PaperClaims, ""
    if len(location) >= 2 and location[0] in _SECTIONS and isinstance(location[1], int):
        section, index = location[:2]
        model, location = _SECTIONS[section], location[2:]
        entry = content[section][index]
        name = entry.get("id") if isinstance(entry, dict) else None
        where = f"{section[:-1]} {name or f'number {index + 1}'}: "
    key = ".".join(str(part) for part in location)
    match mistake["type"]:
        case "missing":
            said = f"{key} is missing"
        case "extra_forbidden":
            said = f"{key} is no key here; {nearest(key, model.model_fields)}"
        case "string_type":
            said = f"{key} must be text: put {mistake['input']!r} in quotes"
        case _:
            said = (f"{key}: " if key else "") + mistake["msg"].removeprefix("Value error, ")
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{where}{said}{more}"


class Outcome(StrEnum):
    """What the metrics make of one claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    INCONCLUSIVE = "inconclusive"
    NOT_TESTABLE = "not testable"


class Verdict(StrEnum):
    """What the claims make of a paper."""

    REPRODUCED = "reproduced"
    PARTLY = "partly"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    NOT_TESTABLE = "not testable at this scale"


@dataclass(frozen=True)
class GateResult:
    """Whether a gate is open; `working` shows its comparisons, `evidence` the metrics that it read."""

    gate: Gate
    passed: bool
    working: tuple[str, ...]
    evidence: Mapping[str, Metric]

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.gate.id,
            "statement": self.gate.statement,
            "rule": self.gate.holds_if.text,
            "passed": self.passed,
            "guards": list(self.gate.guards),
            "working": list(self.working),
            "evidence": _evidence_dict(self.evidence),
        }


@dataclass(frozen=True)
class ClaimResult:
    """The outcome of one claim, why, and the numbers it rests on (`working` and `evidence` as in a gate)."""

    claim: Claim
    outcome: Outcome
    reason: str
    working: tuple[str, ...] = ()
    evidence: Mapping[str, Metric] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.claim.id,
            "statement": self.claim.statement,
            "paper_figure": self.claim.paper_figure,
            "where": self.claim.where,
            "headline": self.claim.headline,
            "rule": self.claim.holds_if.text if self.claim.holds_if else None,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "working": list(self.working),
            "evidence": _evidence_dict(self.evidence),
        }


def _evidence_dict(evidence: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric.to_dict() for name, metric in evidence.items()}


@dataclass(frozen=True)
class Judgement:
    """The verdict on a paper at one profile, its reason, and everything it was computed from."""

    paper: PaperClaims
    profile: str
    verdict: Verdict
    reason: str
    claims: tuple[ClaimResult, ...]
    gates: tuple[GateResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON content."""
        return {
            "paper": self.paper.paper,
            "title": self.paper.title,
            "arxiv": self.paper.arxiv,
            "family": self.paper.family,
            "note": self.paper.note,
            "profile": self.profile,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "gates": [gate.to_dict() for gate in self.gates],
            "claims": [claim.to_dict() for claim in self.claims],
        }


def judge(claims: PaperClaims, metrics: Mapping[str, Metric], profile: str) -> Judgement:
    """Compute the outcome of every claim and the verdict on the paper.

    A paper is `reproduced` when all headline claims that can be tested hold, `partly` when some do, `not
    reproduced` when none does, `inconclusive` when failed gates leave none to decide. At profile smoke the
    rules run, but the verdict is always `inconclusive`. Raises TokenariumError for an unknown profile and for
    a rule that cannot be answered, above all because it names a metric that was not recorded.
    """
    if profile not in PROFILES:
        raise TokenariumError(f"there is no profile {profile!r}: use {', '.join(PROFILES)}")
    tested = [claim for claim in claims.claims if claim.holds_if is not None and profile in claim.profiles]
    tested_ids = {claim.id for claim in tested}
    gates = [gate for gate in claims.gates if tested_ids.intersection(gate.guards)]
    _require_metrics(claims, [*gates, *tested], metrics)

    gate_results = tuple(GateResult(gate, *_answer(claims, gate, metrics)) for gate in gates)
    results = tuple(_claim_result(claims, claim, metrics, profile, gate_results) for claim in claims.claims)
    verdict, reason = _verdict(results, gate_results, profile)
    return Judgement(claims, profile, verdict, reason, results, gate_results)


def _require_metrics(claims: PaperClaims, asked: list[Gate | Claim], metrics: Mapping[str, Metric]) -> None:
    missing = [
        f"{entry.id} asks for {name!r}; {nearest(name, metrics)}"
        for entry in asked
        for name in entry.holds_if.metric_names
        if name not in metrics
    ]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise TokenariumError(f"{claims.paper}{SUFFIX}: a metric was not recorded: {missing[0]}{more}")


def _answer(
    claims: PaperClaims, entry: Gate | Claim, metrics: Mapping[str, Metric]
) -> tuple[bool, tuple[str, ...], dict[str, Metric]]:
    rule = entry.holds_if
    try:
        evidence = {name: metrics[name] for name in rule.metric_names}
        return rule.holds(metrics), rule.working(metrics), evidence
    except (ArithmeticError, TokenariumError) as error:
        raise TokenariumError(f"{claims.paper}{SUFFIX}: {entry.id}: '{rule.text}' has no answer: {error}") from None


def _claim_result(
    claims: PaperClaims,
    claim: Claim,
    metrics: Mapping[str, Metric],
    profile: str,
    gates: tuple[GateResult, ...],
) -> ClaimResult:
    if claim.holds_if is None:
        return ClaimResult(claim, Outcome.NOT_TESTABLE, claim.not_testable)
    if profile not in claim.profiles:
        return ClaimResult(claim, Outcome.NOT_TESTABLE, f"needs profile {' or '.join(claim.profiles)}")
    holds, working, evidence = _answer(claims, claim, metrics)
    closed = [gate for gate in gates if not gate.passed and claim.id in gate.gate.guards]
    if closed:
        reason = "; ".join(f"{_why_closed(gate)} - {gate.gate.id}: {', '.join(gate.working)}" for gate in closed)
        return ClaimResult(claim, Outcome.INCONCLUSIVE, reason, working, evidence)
    return ClaimResult(claim, Outcome.HOLDS if holds else Outcome.DOES_NOT_HOLD, "; ".join(working), working, evidence)


def _verdict(results: tuple[ClaimResult, ...], gates: tuple[GateResult, ...], profile: str) -> tuple[Verdict, str]:
    """The verdict that the headline claims give, with one line on which of them said what."""
    headline = [result for result in results if result.claim.headline]
    by_outcome = {outcome: [result.claim.id for result in headline if result.outcome == outcome] for outcome in Outcome}
    said = {outcome: f"{outcome}: {', '.join(ids)}" for outcome, ids in by_outcome.items() if ids}
    if Outcome.INCONCLUSIVE in said:
        closed = [
            gate
            for gate in gates
            if not gate.passed and not set(gate.gate.guards).isdisjoint(by_outcome[Outcome.INCONCLUSIVE])
        ]
        said[Outcome.INCONCLUSIVE] += f" ({'; '.join(_why_closed(gate) for gate in closed)})"
    reason = "; ".join(said.values())
    held, testable = len(by_outcome[Outcome.HOLDS]), len(headline) - len(by_outcome[Outcome.NOT_TESTABLE])
    if profile == "smoke":
        return Verdict.INCONCLUSIVE, "smoke profile: not evidence"
    if testable == 0:
        return Verdict.NOT_TESTABLE, reason
    if held == testable:
        return Verdict.REPRODUCED, reason
    if held:
        return Verdict.PARTLY, reason
    if by_outcome[Outcome.DOES_NOT_HOLD]:
        return Verdict.NOT_REPRODUCED, reason
    return Verdict.INCONCLUSIVE, reason


def _why_closed(gate: GateResult) -> str:
    # Cards word a closed gate as "inconclusive: saturated"; the outcome already says the first half.
    return gate.gate.otherwise.removeprefix("inconclusive: ")

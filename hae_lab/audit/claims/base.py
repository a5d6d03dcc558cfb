"""What a claim is: a sentence of the document, the ways to read it, and what each of them comes to."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace

from hae_lab.audit.measured import Measured

BETWEEN_PLACES = " ‖ "  # the quoted places of a claim; the document has no such sign
# kinds of numbers; "reach" is what a sentence about one layer comes to in the whole model
PARAMETERS, MACS, TIME, MEMORY, REACH = "parameters", "macs", "time", "memory", "reach"
MASK, STRUCTURE, EXPRESSION, QUALITY = "mask", "structure", "expression", "quality"
INTERFACE, ADVICE = "interface", "advice"
# who is asked: the document's words, more than they say (a threshold of ours, or a whole model for one layer), the
# code that was published for them, another source's words; the first alone is counted for or against the document
SAID, BEYOND, PUBLISHED, OTHERS = "document", "beyond the document", "published code", "other source"

# the document's chapters and the lines on which they begin
CHAPTERS = {
    3: "概述", 7: "核心设计理念", 22: "1. HAE 原版 (HAEUNetModel)", 125: "2. HAE Lite (HAEUNetModelLite)",
    174: "3. HAE V2 (HAEUNetModelV2)", 232: "技术细节对比", 280: "性能特点总结", 299: "使用建议",
}  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """Where to look: a notebook, a figure and a table by their names, and a test as "file.py::name"; "" for none."""

    notebook: str = ""
    figure: str = ""
    table: str = ""
    test: str = ""

    def with_test(self, test: str) -> "Evidence":
        """The same with a test of its own."""
        return replace(self, test=test)

    def over(self, other: "Evidence") -> "Evidence":
        """This evidence, and the other's where this has none."""
        return Evidence(*(getattr(self, each.name) or getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True)
class Finding:
    """What one way of reading a claim comes to.

    `reading` is what the sentence is taken to say, `scope` the models, maps, images or computer on which it was looked
    at. `claimed` and `evidence` are the claim's unless a reading has its own. A time says how and where it was
    measured. `asked_of` is by default the document, beyond it for the kind "reach". One reading of each claim is its
    `example`, by default the first that is not beyond the document.
    """

    reading: str
    scope: str
    computed: str
    verdict: str
    kind: str
    claimed: str = ""
    evidence: Evidence = Evidence()
    way: str = ""
    device_name: str = ""
    clock: str = ""
    asked_of: str = ""
    example: bool = False


Check = Callable[[Measured], Iterator[Finding]]


@dataclass(frozen=True)
class Claim:
    """A sentence of the document, or of `source`: its places by line, and the check which yields its readings."""

    id: str
    places: Mapping[int, str]
    source: str
    english: str
    claimed: str
    evidence: Evidence
    check: Check

    @property
    def section(self) -> str:
        """The document's chapter of the first place."""
        return self.source or CHAPTERS[max(line for line in CHAPTERS if line <= min(self.places))]

    @property
    def order(self) -> int:
        """Where it stands: the first of its lines; what others say comes last."""
        return len(self.source) * 10**6 + min(self.places)

    def findings(self, measured: Measured) -> list[Finding]:
        """Every reading with whom it asks, one of them the example."""
        found = [replace(each, asked_of=self._asked_of(each)) for each in self.check(measured)]
        said = [place for place, each in enumerate(found) if each.asked_of != BEYOND]
        if found and not any(each.example for each in found):
            first = said[0] if said else 0
            found[first] = replace(found[first], example=True)
        return found

    def _asked_of(self, finding: Finding) -> str:
        if self.source:
            return OTHERS
        return finding.asked_of or (BEYOND if finding.kind == REACH else SAID)

    def rows(self, measured: Measured) -> Iterator[dict[str, object]]:
        """A row of the ledger for each reading."""
        said = {"id": self.id, "line": ", ".join(map(str, self.places)) if not self.source else ""}
        said |= {
            "section": self.section,
            "original": BETWEEN_PLACES.join(self.places.values()),
            "english": self.english,
        }
        for each in self.findings(measured):
            evidence = asdict(each.evidence.over(self.evidence))
            yield said | {
                "reading": each.reading, "scope": each.scope, "claimed": each.claimed or self.claimed,
                "computed": each.computed, "verdict": each.verdict, **evidence, "kind": each.kind, "way": each.way,
                "device_name": each.device_name, "clock": each.clock, "asked_of": each.asked_of,
                "example": each.example,
            }  # fmt: skip


def claim(
    places: Mapping[int, str], english: str, claimed: str, *, notebook: str, table: str, test: str, figure: str = "",
    source: str = "",
) -> Callable[[Check], Claim]:  # fmt: skip
    """A decorator: the check below it, and what the document says, are a `Claim` whose id is the check's name."""
    evidence = Evidence(notebook, figure, table, test)

    def made(check: Check) -> Claim:
        return Claim(check.__name__, places, source, english, claimed, evidence, check)

    return made


def listed(words: Iterable[object]) -> str:
    """Numbers of the versions side by side: "100.0 % / 75.2 % / 72.9 %"."""
    return " / ".join(map(str, words))

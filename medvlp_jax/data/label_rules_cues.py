"""The words behind `label_rules` that turn a named observation into an absent or an uncertain one.

Regular expressions as in `label_rules_tables`; `before` and `after` mean before and after the mention in its clause.
"""

from __future__ import annotations

from medvlp_jax.data.label_rules_tables import GAP

NEGATION_BEFORE: tuple[str, ...] = (
    "no",
    "not",
    "nor",
    "none of",
    "without",
    "neither",
    "never",
    r"negative(?: for)?",
    r"free (?:of|from)",
    r"clear of",
    r"absence of",
    r"absent",
    r"lack of",
    r"lacks?",
    r"den(?:y|ies)",
    r"fails? to",
    r"rul(?:ed|es) out",
    r"(?:resolution|resolved|clearing|removal|explantation) of",
    r"(?:resolved|removed)",
    r"rather than",
    r"unlikely to (?:be|represent)",
)
NOT_A_NEGATION: tuple[str, ...] = (
    rf"no {GAP}(?:change|changes|increase|progression|worsening|improvement|decrease)",
    rf"not {GAP}(?:changed|increased|worsened|improved|decreased|only|well|fully|completely|entirely)",
    rf"without {GAP}(?:change|increase|progression|worsening|improvement)",
    r"no longer",
    r"not? (?:\w+ )?exclude\w*",
    r"without comparison",
    r"no (?:prior|previous|comparison|priors)(?: \w+)?",
    r"(?:if|whether or) not",
    r"not otherwise",
)
NEGATION_AFTER: tuple[str, ...] = (
    r"(?:is|are|was|were|has been|have been|be) (?:also )?(?:not|no longer) (?:\w+ )?(?:seen|identified|"
    r"evident|present|visible|visualized|visualised|noted|apparent|appreciated|detected|demonstrated|"
    r"observed|suspected)",
    r"not (?:\w+ )?(?:seen|identified|evident|present|visible|visualized|visualised|noted|apparent|"
    r"appreciated|detected|demonstrated|observed)",
    r"(?:is|are|was|were|has|have) (?:been )?(?:now |completely |nearly |fully |since |"
    r"near completely )?(?:resolved|cleared|removed|absent|excluded|ruled out)",
    r"(?:resolved|removed)",
    r"(?:is|are|seems?|appears?) (?:very |highly |thought )?unlikely",
    r"(?:none|negative|absent)",
    r"(?:is|are|appears?|appear)? ?within (?:normal limits|limits of normal)",
    r"(?:is|are|appears?|appear) (?:normal|unremarkable|clear)",
)
UNCERTAIN_BEFORE: tuple[str, ...] = (
    r"possib\w+",
    r"question\w*",
    r"probab\w+",
    r"(?:most )?likely",
    r"presum\w+",
    r"suspect\w*",
    r"suspicio\w+",
    r"concern\w*",
    r"worrisome",
    r"suggest\w*",
    r"may",
    r"might",
    r"could",
    r"potential\w*",
    r"perhaps",
    r"favor\w*",
    r"equivocal",
    r"versus",
    r"vs",
    r"differential",
    r"considerations?",
    r"consider(?:ed|ing)?",
    r"cannot (?:\w+ )?(?:exclude|rule out)",
    r"can not (?:\w+ )?(?:exclude|rule out)",
    r"(?:not|difficult to|impossible to) (?:\w+ )?(?:exclude|rule out)",
    r"(?:exclude|rule out|evaluate for|evaluation (?:for|of))",
    r"correlat\w+",
    r"(?:in the )?appropriate clinical",
    r"maybe",
    r"either",
)
STRONG_UNCERTAIN_BEFORE: tuple[str, ...] = (
    r"(?:cannot|can not|not|difficult to|impossible to|to) (?:\w+ )?(?:exclude|rule out)",
)
"""Open whatever denies something earlier in the clause."""
UNCERTAIN_AFTER: tuple[str, ...] = (
    r"(?:cannot|can not|not|could not|may not) (?:\w+ )?(?:be )?(?:\w+ )?(?:excluded|ruled out)",
    r"(?:difficult|impossible) to (?:exclude|rule out)",
    r"(?:is|are|remains?|also) (?:\w+ )?(?:possible|suspected|questioned|questionable|likely|considered|"
    r"equivocal|a possibility)",
    r"(?:may|might|could) be (?:\w+ )?(?:present|considered)",
    r"suspected",
    r"in (?:the|an) (?:appropriate|right|correct|proper) clinical (?:setting|context)",
    r"(?:in the|a) (?:differential|consideration|possibility)",
)
VERSUS_AFTER = r" ?(?:[\w/-]+ ){0,4}(?:versus|vs)\b"
"""Right after a mention, without a comma in between."""

BREAKS: tuple[str, ...] = (
    r";",
    r":",
    r"\.(?= )",
    r"\b(?:but|however|although|though|except|besides|yet|whereas|while)\b",
    r"\b(?:status post|s/p|following|after)\b",
    r"\b(?:apart|aside) from\b",
    r"\b(?:other|more) than\b",
    r"\bwith the exception of\b",
    r"\b(?:which|that) (?:is|are|has|have)\b",
    r"(?:,| and| with| as well as) (?=(?:there|this|these|it|its) )",
    # Not in a list that goes on with "or": "no edema, large effusion or pneumothorax".
    r"(?:,| and| with| as well as) (?=(?:stable|unchanged|mild|mildly|moderate|moderately|small|tiny|"
    r"minimal|minimally|"
    r"marked|slight|slightly|persistent|interval|increased|increasing|improved|improving|chronic|new|low|old|healed|"
    r"left|right|bibasilar|bilateral|basilar|scattered|streaky|patchy|prominent|borderline|degenerative|calcified) )"
    r"(?![^;.]*(?:\bor\b|/))",
    r"(?:,| and) (?=(?:the|both) )",
    r"(?:,| and) (?=heart )",
    r"(?<!heart)(?:,| and) (?=lungs are )",
)
"""Where the clause of a mention begins and ends: what was denied or left open before it says nothing after it."""

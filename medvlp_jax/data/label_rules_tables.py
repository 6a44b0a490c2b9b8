"""The words behind `label_rules`: what names an observation, what denies it, what leaves it open.

Every entry is a regular expression for lower-case text with single blanks, matched at word
borders. To change what counts, change a table here and run `benchmarks/label_rules.py`.
"""

from __future__ import annotations

GAP = r"(?:[\w/-]+,? ){0,3}?"
"""Up to three words between two parts of a phrase."""

_LUNG_PART = r"(?:lung|lungs|lobe|lobes|lobar|pulmonary|lingula|basilar|base|bases)"

MENTIONS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        rf"mediastinal {GAP}(?:widening|enlargement|prominence)",
        rf"(?:widening|prominence|enlargement|widened|prominent|enlarged) (?:of )?{GAP}(?:cardio ?)?mediastin\w+",
    ),
    "Cardiomegaly": (
        "cardiomegaly",
        "cardiac enlargement",
        "megacardia",
        rf"enlarge\w* (?:of )?{GAP}(?:heart|cardiac (?:silhouette|shadow|contours?|size))",
    ),
    "Lung Opacity": (
        r"opacit\w+",
        r"opacif\w+",
        r"(?:air ?-?space|alveolar) (?:disease|process)\w*",
        r"infiltrat\w+",
        rf"(?:increased|hazy|patchy|streaky|linear|focal|{_LUNG_PART}|retrocardiac|nodular|rounded|"
        rf"ill-defined) {GAP}densit(?:y|ies)",
        rf"densit(?:y|ies) {GAP}(?:in|over|overlying|within) {GAP}{_LUNG_PART}",
        r"haz(?:e|iness|y)",
        r"(?:increased|prominent|prominence of|coarse\w*|thickened|accentuated|chronic|diffuse|reticular) "
        rf"{GAP}interstitial (?:lung )?(?:markings?|pattern|changes?|prominence|thickening)",
        r"interstitial (?:lung )?(?:disease|prominence|thickening|infiltrates?|changes?|pattern)",
        r"reticul\w+ (?:pattern|markings?|changes?)",
    ),
    "Lung Lesion": (
        r"nodul\w+",
        r"mass(?:es)?",
        r"(?:lung|pulmonary|cavitary|parenchymal) lesions?",
        r"tumou?rs?",
        r"neoplas\w+",
        r"carcinoma\w*",
        r"malignan\w+",
        r"metasta\w+",
        r"cavit(?:y|ies|ary|ation)",
    ),
    "Edema": (
        r"o?edema\w*",
        r"(?:vascular|venous|pulmonary|hilar|interstitial|central|passive) congestion",
        r"congestion",
        r"vascular (?:engorgement|prominence|fullness)",
        r"prominen\w+ (?:of )?(?:the )?(?:central |pulmonary |lung )*vascular\w*",
        r"pulmonary vascular\w* (?:is|are|appears?) (?:\w+ )?(?:prominent|engorged|congested)",
        r"(?:congestive )?(?:heart|cardiac) failure",
        "congestive failure",
        r"decompensation",
        "chf",
        r"kerley\w*",
        r"cephalization",
        r"vascular redistribution",
        r"(?:fluid|volume) overload",
    ),
    "Consolidation": (r"consolidat\w+",),
    "Pneumonia": (r"(?:broncho)?pneumonias?", r"pneumonic", r"pneumonitis", r"infect(?:ion|ions|ious)"),
    "Atelectasis": (
        r"atelect\w+",
        rf"collapse of {GAP}(?:lung|lobe)",
        r"(?:lung|lobe|lobar) collapse",
        r"collapsed (?:lung|lobe)",
    ),
    "Pneumothorax": (r"(?:hydro|hemo|haemo)?-?pneumothora\w+", r"ptx"),
    "Pleural Effusion": (
        r"effusions?",
        r"(?:pleural|fissural|subpulmonic) fluid(?: collections?)?",
        rf"fluid {GAP}(?:in|within) {GAP}(?:fissures?|pleural spaces?)",
        r"(?:hydro|hemo|haemo)(?:pneumo)?-?thorax",
        r"pleural (?:collections?)",
        rf"blunt\w* (?:of )?{GAP}{GAP}(?:sulc\w+|angles?)",
        rf"(?:costophrenic|cardiophrenic|cp) (?:sulc\w+|angles?) {GAP}(?:blunt\w+|obscured)",
    ),
    "Pleural Other": (
        rf"pleura\w* (?:and parenchymal |based |-based )?{GAP}(?:thickening|thickened|scar\w*|plaques?|"
        r"calcifications?|reaction|fibrosis)",
        r"pleur(?:o|al)[- ]?parenchymal (?:scar\w*|thickening|changes?|fibrosis)",
        rf"(?:thickening|thickened|scarring|calcification) (?:of )?{GAP}pleura\w*",
        r"fibrothorax",
        r"apical cap(?:ping|s)?",
    ),
    "Fracture": (r"fractur\w+", r"fx"),
    "Support Devices": (
        r"catheters?",
        r"(?:central|picc|venous|subclavian|jugular|ij|arterial|dialysis|indwelling|support|port|hickman|"
        rf"pic) {GAP}lines?",
        r"lines? placement",
        r"lines?(?=,? (?:and|or) (?:tubes?|devices?|catheters?))",
        r"piccs?",
        r"(?:port-?a-?cath|porta-?cath|medi-?port|infusaport)\w*",
        rf"(?:chest|infusion|subclavian|venous|power|jugular|sided) {GAP}ports?",
        r"tubes?",
        r"tubing",
        r"tracheostomy",
        r"(?:cardiac )?pace-?maker\w*",
        r"pacers?",
        r"pacing (?:device|leads?|wires?|generator)",
        r"(?:a?icd|defibrillators?)",
        r"(?:pacer|pacemaker|pacing|cardiac|icd|ventricular|atrial|ekg|ecg|electrode|intact|monitoring|"
        r"defibrillator) leads?",
        r"leads",
        r"electrodes?",
        r"(?:generator|battery) pack",
        rf"(?:aortic|mitral|prosthetic|artificial|cardiac|tricuspid|heart) {GAP}valves?(?: {GAP}(?:replacement|"
        r"prosthesis))?",
        r"valve (?:replacement|prosthesis|repair)s?",
        r"valvular prosthes\w+",
        r"stents?",
        r"(?:sternotomy|sternal|cerclage|midline) wires?",
        r"hardware",
        r"screws?",
        rf"(?:fixation|orthopedic|fusion|metallic|metal|side|surgical|cervical) {GAP}(?:plates?|rods?|devices?|"
        r"instrumentation)",
        r"(?:spinal|spine|cervical|thoracic|lumbar|thoracolumbar) fusion",
        r"harrington rods?",
        r"prosthes[ie]s",
        r"arthroplast\w+",
        r"(?:balloon|infusion) pump",
        r"(?:support|indwelling|medical|implanted|monitoring|loop|electronic|stimulator|cardiac|assist|pacing|"
        r"implantable|closure|occluder) "
        rf"{GAP}(?:devices?|recorders?|monitors?)",
        r"stimulators?",
        r"(?:ventriculoperitoneal|vp|v-p) shunt",
        r"vena cava filter|ivc filter",
        r"drains?",
    ),
}
"""Observation -> phrases that name it. "No Finding" has none: it follows from the others."""

LOOKALIKES: dict[str, tuple[str, ...]] = {
    "Lung Lesion": (
        r"mass effect",
        rf"calcified {GAP}nodul\w+",
        rf"nodul\w+ {GAP}calcifi\w+",
        rf"(?:bone|bony|osseous|lytic|sclerotic|blastic|breast|thyroid|soft tissue) {GAP}(?:lesions?|mass|"
        r"nodul\w+|metasta\w+)",
        r"nipple \w+",
        r"(?:history of|known|treated|prior|previous) \w* ?(?:carcinoma|malignancy|neoplasm|tumor|"
        r"metastatic disease)",
        r"(?:body|fat|bone|muscle) mass",
        r"(?:thoracic|pleural|chest|peritoneal|intra-?thoracic) cavit(?:y|ies)",
    ),
    "Lung Opacity": (
        r"opacified colon",
        r"(?:bone|bony|soft tissue|osseous|breast|metallic|metal|calcific|mineral) (?:opacit\w+|densit(?:y|ies))",
        r"contrast opacif\w+",
        r"without opacif\w+",
        r"radio-?opaci\w+",
    ),
    "Pleural Effusion": (
        rf"(?:pericardial|joint|knee|cardiac) {GAP}effusions?",
        r"pericardial (?:or|and) \w+ effusions?",
    ),
    "Edema": (
        rf"(?:soft tissue|subcutaneous|cerebral|peripheral|leg|pedal|bone marrow) {GAP}edema",
        "nasal congestion",
    ),
    "Support Devices": (r"(?:heart|aortic|mitral|cardiac) valves? (?:calcifi\w+|area)", r"bronchial tubes?"),
    "Pneumonia": (
        r"(?:history of|previous|prior|treated) pneumonia",
        r"(?:granulomatous|fungal|previous|prior|remote) (?:\w+ )?infections?",
        r"(?:previous|prior|remote|old) infectious",
    ),
    "Consolidation": (),
}
"""Observation -> phrases that contain one of its words but mean something else."""

ANATOMY: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        r"heart(?: size| silhouette| shadow| contours?)?(?! (?:failure|disease|border|borders|block|attack|"
        r"valves?|rate|and lungs have))",
        r"cardiac(?: and (?:mediastinal|hilar))? (?:silhouettes?|shadows?|size|contours?|outlines?|configuration)",
        r"cardio-? ?pericardial (?:silhouette|contour)",
        r"cardiac",
    ),
    "Enlarged Cardiomediastinum": (
        r"cardio-? ?mediastin(?:um|al)(?: (?:silhouettes?|contours?|shadows?|structures?|size|outlines?))?",
        r"cardiomediastinal",
        r"mediastinum",
        r"mediastinal(?: and (?:hilar|cardiac))? (?:contours?|silhouettes?|shadows?|structures?|width|size|"
        r"outlines?|borders?)",
        r"mediastinal",
    ),
}
"""Observation -> the part whose size it is about."""

PREDICATES: dict[int, tuple[str, ...]] = {
    1: (
        r"(?:mildly|moderately|severely|slightly|markedly|borderline|minimally|grossly|"
        r"somewhat)? ?(?:enlarged|prominent|widened|dilated|increased in size)",
        r"enlargement",
        r"(?:is|appears|mildly|moderately|slightly) (?:large|big|prominent|wide)",
        r"borderline(?: in size)?",
        r"prominence",
        r"widening",
    ),
    -1: (
        r"(?:at |near )?(?:the )?(?:upper|top|high|borderline)[ -](?:limits?|range|size)?(?: of)? ?normal\w*",
        r"(?:at |near )?(?:the )?upper limits? (?:of|for)(?: the)? normal",
        r"borderline upper limits?",
        r"top normal",
        r"mild fullness",
    ),
    0: (
        r"normal\w*",
        r"unremarkable",
        r"within limits",
        r"not (?:\w+ )?(?:enlarged|widened|prominent|dilated)",
        r"without (?:\w+ )?enlargement",
        r"no enlargement",
    ),
}
"""State -> what may be said about the size of such a part."""

NO_SIZE: tuple[str, ...] = (r"stable", r"unchanged", r"similar", r"not (?:\w+ )?changed", r"obscured", r"silhouetted")
"""Said of such a part without a word on its size."""

CLEAR_LUNGS: tuple[str, ...] = (
    rf"lungs? (?:fields? )?(?:(?:is|are|appears?|remains?) )?{GAP}clear(?!ing|s|ed| of)",
    rf"clear {GAP}lungs?",
    rf"lungs? {GAP}{GAP}and clear",
)
"""Says that there is no lung opacity."""

OTHER_FINDINGS: tuple[str, ...] = (
    *(r"scolio\w+", r"levo\w+", r"dextro\w+", r"kypho\w+", r"osteophyt\w*", r"spondyl\w+", r"degenerat\w+"),
    *(r"spurring", r"curvature", r"arthr\w+", r"osteo(?:pen|por|arth|scl)\w+", r"deminerali\w+", r"hyperostosis"),
    *(r"wedging|wedge", r"compression \w+", r"granulom\w+", r"calcifi\w+", r"atheroscl\w+", r"arterioscl\w+"),
    *(r"tortuo\w+", r"ectasia|ectatic", r"uncoil\w+", r"unfold\w+", r"aneurysm\w*", r"emphysem\w+", "copd", "dish"),
    *(r"obstructive (?:\w+ )?disease", r"hyper-?(?:inflat|expan|lucen|aerat|distend|distent)\w+", r"air trapping"),
    *(
        r"hypo-?(?:inflat|ventil|aerat|expan)\w+",
        rf"(?:low|decreased|small|reduced|shallow|diminished) {GAP}(?:volumes?|inspiration)",
    ),
    *(r"poor inspira\w+", r"hernia\w*", r"eventration\w*", rf"(?:elevat\w+|raised) {GAP}(?:hemi)?-?diaphragms?"),
    *(rf"(?:hemi)?-?diaphragms? {GAP}(?:elevat\w+|raised|flatten\w*)", rf"elevation of {GAP}(?:hemi)?-?diaphragms?"),
    *(r"flatten\w+", r"scars?", r"scarring", r"fibro(?:sis|tic)\w*", r"bronchiect\w+", r"bronchi(?:tis|olitis)"),
    *(r"peribronchial \w+", r"bronchial (?:wall )?thickening", r"cuffing", r"airways? disease", r"clips?", r"sutures?"),
    *(r"staples?", r"(?:post-?|status post )(?:surgical|operative|op)\w*", r"sternotomy", r"cabg", r"bypass"),
    *(r"mastectom\w+", r"cholecystectom\w+", r"lobectom\w+", r"pneumonectom\w+", r"surg\w+ changes?", r"resection"),
    *(r"deformit(?:y|ies)", r"dislocat\w+", r"subluxat\w+", r"separation", r"foreign bod(?:y|ies)", r"bullets?"),
    *(r"shrapnel", r"adenopathy|lymphadenopathy", r"lymph nodes?", r"pneumoperiton\w+", r"free (?:\w+ )?air"),
    *(r"pneumomediastin\w+", r"lucenc(?:y|ies)", r"volume loss", r"sclero\w+", r"cysts?", r"cystic", r"bulla\w*"),
    *(r"blebs?", r"dilat\w+", r"azygos (?:lobe|fissure)", rf"(?:tracheal|mediastinal) {GAP}(?:shift|deviation)"),
    *(r"deviat\w+", r"(?:lytic|blastic|bone|bony|osseous) lesions?", r"sarcoid\w*", r"tuberculosis", r"asthma"),
    *(r"pectus", r"cervical ribs?", r"bronchovascular (?:\w+ )?(?:markings|crowding)", r"crowding", r"prominen\w+"),
    *(r"pulmonary (?:arterial |artery )?hypertension", r"enlarged \w+", r"thicken\w+", r"pericardial \w+"),
    *(r"fat pad", r"contrast", r"breast implants?", r"pneumatocele\w*", r"histoplasmosis", r"aspiration"),
)
"""Findings outside the fourteen: each, when stated, stands against "No Finding"."""

NORMAL: tuple[str, ...] = (
    rf"no {GAP}(?:acute|active|significant|focal) {GAP}{GAP}"
    r"(?:abnormalit\w+|disease|diseases|process|processes|findings?|pathology)",
    rf"(?:no evidence of|without|negative for) {GAP}(?:acute|active) {GAP}{GAP}\w+",
    rf"normal {GAP}(?:chest|examination|exam|study|radiographs?|film|x-\w+)",
    r"(?:chest|study|examination|exam) (?:is |appears )?(?:within normal limits|normal|unremarkable|negative)",
    rf"negative {GAP}(?:chest|examination|exam|study|radiographs?)",
    r"(?:unremarkable|clear) (?:chest|examination|exam|study)",
    r"^(?:normal|negative|unremarkable|within normal limits)[.]?$",  # a sentence of its own
)
"""Says that the film is normal without naming an observation."""
